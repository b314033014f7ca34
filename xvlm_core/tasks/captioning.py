"""Captioning (X-VLM, section 4.3): a caption of a picture, written word by word.

Two stages, of one recipe: cross-entropy of people's captions, then self-critical training on the
reward of captions that the model draws (``captioning.stage=self_critical``; official.md 3.6).
"""

from __future__ import annotations

import dataclasses
from functools import cached_property
from pathlib import Path

import numpy as np
from torch import nn

from xvlm_core.config.schema import Recipe
from xvlm_core.data.batches import CaptionBatch
from xvlm_core.data.caption_samples import CaptionSampleMaker, prompt_ids
from xvlm_core.errors import ConfigError
from xvlm_core.inference.generate import Lengths
from xvlm_core.models.captioner import Captioner
from xvlm_core.models.packing import PackedTexts
from xvlm_core.tasks.base import Batch, Losses, Moment
from xvlm_core.tasks.caption_pretrain import CaptionPretrainTask, require_images
from xvlm_core.tasks.captioning_eval import CaptioningEvaluation, require_room
from xvlm_core.tasks.recipe_task import SamplesOf
from xvlm_core.tasks.self_critical import Reward, SelfCritical
from xvlm_core.weights.folder import ModelInfo


class CaptioningTask(CaptionPretrainTask):
    """Smoothed cross-entropy, or reward; scored by CIDEr."""

    name = "captioning"
    about = "fine-tuned to write captions"
    loss_names = ("language_modeling",)
    asks = CaptioningEvaluation
    crop_scale = (0.5, 1.0)

    def __init__(self, recipe: Recipe, start_from: Path | None = None) -> None:
        self.draws = recipe.captioning.stage == "self_critical"
        if self.draws:
            self.loss_names = ("self_critical",)
        super().__init__(recipe, start_from)
        require_room(recipe.scoring, prompt_ids(self.tokenizer, self.prompt), self.config)

    def _check(self, recipe: Recipe) -> None:
        require_images(recipe, self.name, ("regions", "pairs", "questions"))
        reads_checkpoint = recipe.init.checkpoint is not None
        if recipe.captioning.stage == "self_critical" and not reads_checkpoint:
            raise ConfigError(
                "the second stage of captioning goes on from the first: there is no "
                "init.checkpoint",
                where="init.checkpoint",
                try_="init.checkpoint=newest-captioning",
            )

    @property
    def prompt(self) -> str:
        """What every caption begins with; is not learnt."""
        return self.recipe.captioning.prompt

    @property
    def smoothing(self) -> float:
        """Share of the other tokens in cross-entropy."""
        return self.recipe.captioning.label_smoothing

    def _always_fuses(self) -> bool:
        # what is drawn is of another length on each rank
        return not self.draws and super()._always_fuses()

    def info(self) -> ModelInfo:
        """What the model folder says of the model, its prompt included."""
        return super().info().model_copy(update={"prompt": self.prompt})

    def sample_maker(self) -> CaptionSampleMaker:
        """Makes samples of captions; with references where captions are rewarded."""
        maker = super().sample_maker()
        if not self.draws:
            return maker
        wanted = self.recipe.captioning.self_critical.references
        return CaptionSampleMaker(
            maker.settings, maker.tokenizer, maker.seed, prompt=maker.prompt, references=wanted
        )

    def update_of(
        self, samples: SamplesOf, rng: np.random.Generator, parts: int
    ) -> list[tuple[Batch, float]]:
        """Pictures with a caption each; for the second stage, as many and long ones as are drawn.

        The work of drawing, which keeps nothing for a gradient, is not in it.
        """
        updates = super().update_of(samples, rng, parts)
        if not self.draws:
            return updates
        ((batch, often),) = updates
        assert isinstance(batch, CaptionBatch)
        n = self.recipe.captioning.self_critical.samples * batch.n_pictures
        longest = [[self.tokenizer.cls_id] * self.recipe.scoring.max_length] * n
        drawn = PackedTexts.from_lists(longest)
        return [(dataclasses.replace(batch, drawn=drawn), often)]

    def losses(self, model: nn.Module, batch: Batch, moment: Moment) -> Losses:
        """Cross-entropy, or the reward of what is drawn."""
        if not self.draws:
            return super().losses(model, batch, moment)
        assert isinstance(model, Captioner)
        assert isinstance(batch, CaptionBatch)
        weights = self.loss_weights(moment)
        if not weights:
            return Losses({}, weights, batch.counts)
        found = self.self_critical.update(model, batch, moment.generator)
        return Losses(
            {"self_critical": found.loss}, weights, {**batch.counts, **found.counts}, found.gauges
        )

    @cached_property
    def self_critical(self) -> SelfCritical:
        """The second stage."""
        recipe, scoring = self.recipe, self.recipe.scoring
        return SelfCritical(
            recipe.captioning.self_critical,
            lambda captions, references: self.reward(captions, references),
            self.tokenizer,
            prompt_ids(self.tokenizer, self.prompt),
            Lengths(self.tokenizer.sep_id, scoring.max_length, scoring.min_length),
            recipe.text.max_words,
        )

    @cached_property
    def reward(self) -> Reward:
        """Its document frequencies are those of the training captions: all are read."""
        from xvlm_core.tasks.caption_reward import CaptionReward

        data, settings = self.recipe.data, self.recipe.captioning.self_critical
        return CaptionReward.of_stores(
            self.streams["images"],
            data.train_split,
            self.recipe.text.max_words,
            cider=settings.cider,
            bleu=settings.bleu,
        )

    def sizes(self, batch: Batch, moment: Moment) -> dict[str, float | None]:
        """Learnt tokens; of the second stage: pictures, with equally many captions each."""
        if not self.draws:
            return super().sizes(batch, moment)
        return {name: float(batch.n_pictures) for name in self.loss_weights(moment)}
