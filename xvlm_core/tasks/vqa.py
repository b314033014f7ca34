"""VQA (X-VLM, section 4.3): the answer of a question about a picture, written by a decoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import nn

from xvlm_core.config.schema import Recipe
from xvlm_core.data.batches import QuestionBatch
from xvlm_core.data.question_feed import QuestionFeed
from xvlm_core.data.question_samples import QuestionSampleMaker, question_batch
from xvlm_core.errors import ConfigError
from xvlm_core.inference.answer_ranking import Candidates
from xvlm_core.models.sizes import Head, ModelConfig
from xvlm_core.models.vqa import VQA
from xvlm_core.objectives.answer_generation import answer_generation_loss, answer_losses
from xvlm_core.tasks.base import Batch, Losses, Moment
from xvlm_core.tasks.building import sample_settings
from xvlm_core.tasks.recipe_task import RecipeTask, SamplesOf
from xvlm_core.tasks.vqa_answers import answers_to_choose_from
from xvlm_core.tasks.vqa_eval import VqaEvaluation
from xvlm_core.weights.folder import ModelInfo


class VqaTask(RecipeTask):
    """Weighted cross-entropy of the answers of people; scored by the accuracy of VQA v2."""

    name = "vqa"
    about = "fine-tuned for questions about pictures (VQA)"
    heads: tuple[Head, ...] = ()
    loss_names = ("answer",)
    asks = VqaEvaluation

    def __init__(self, recipe: Recipe, start_from: Path | None = None) -> None:
        if recipe.data.questions is None:
            raise ConfigError(
                "vqa learns from pictures with questions: the recipe has no data.questions",
                where="data.questions",
                try_="data.questions.stores=[...] (xvlm ls stores shows those that are there)",
            )
        self.answers: tuple[str, ...] = ()
        super().__init__(recipe, start_from)
        self._require_candidates()

    def _require_candidates(self) -> None:
        """Look at the answers to choose from before a run that would end without a figure."""
        stores, scoring = self.streams["questions"], self.recipe.scoring
        if stores and scoring.scheme != "open":
            most = self.config.text.max_positions
            Candidates.of(self._known_answers(), self.tokenizer, most, scoring.answers)

    def _known_answers(self) -> tuple[str, ...]:
        stores = self.streams["questions"]
        if not self.answers and stores and self.recipe.scoring.scheme != "open":
            self.answers = answers_to_choose_from(
                self.recipe.scoring.answers, stores, self.recipe.data.train_split
            )
        return self.answers

    def shape(self) -> ModelConfig:
        """The recipe's shape with an answer decoder of as many layers as there are cross layers.

        One that has a decoder already (by ``model.overrides``) stays as it is.
        """
        config = super().shape()
        layers = config.decoder_layers or config.text.num_layers - config.text.fusion_layer
        return ModelConfig.model_validate(config.model_dump() | {"decoder_layers": layers})

    def _always_fuses(self) -> bool:
        loss = self.recipe.losses.answer
        return loss.weight > 0 and loss.start == 0

    def info(self) -> ModelInfo:
        """With the answers that the model chooses from."""
        return super().info().model_copy(update={"answers": self._known_answers()})

    def sample_maker(self) -> QuestionSampleMaker:
        """Makes samples of questions."""
        settings = sample_settings(self.recipe, self.config)
        positions = self.config.text.max_positions
        return QuestionSampleMaker(settings, self.tokenizer, self.recipe.seed, positions)

    def feed(self) -> QuestionFeed:
        """Pictures with questions and answers."""
        return QuestionFeed(self.recipe, self.streams["questions"], self.sample_maker())

    def update_of(
        self, samples: SamplesOf, rng: np.random.Generator, parts: int
    ) -> list[tuple[Batch, float]]:
        """Pictures with their questions."""
        questions, maker = self.recipe.data.questions, self.sample_maker()
        assert questions is not None
        asked = samples("questions", questions.batch_size, maker.of_questions)
        return [(question_batch(asked, self.tokenizer.sep_id), 1.0)]

    def losses(self, model: nn.Module, batch: Batch, moment: Moment) -> Losses:
        """A picture is encoded once for its questions, a question once for its answers."""
        assert isinstance(model, VQA)
        assert isinstance(batch, QuestionBatch)
        weights = self.loss_weights(moment)
        if not weights:
            return Losses({}, weights, batch.counts)
        questions = model.read(batch.pictures_ICHW, batch.texts, batch.picture_of_question_Q)
        logits_NV = model.answer_logits(questions, batch.answers, batch.question_of_answer_A)
        losses_A = answer_losses(
            logits_NV,
            batch.next_N,
            batch.answers.packing.text_of_token(logits_NV.device),
            batch.answers.packing.n_texts,
        )
        n_questions = batch.texts.packing.n_texts
        loss = answer_generation_loss(losses_A, batch.weight_A, n_questions)
        return Losses({"answer": loss}, weights, batch.counts)

    def sizes(self, batch: Batch, moment: Moment) -> dict[str, float | None]:
        """Questions."""
        assert isinstance(batch, QuestionBatch)
        n = float(batch.texts.packing.n_texts)
        return {name: n for name in self.loss_weights(moment)}
