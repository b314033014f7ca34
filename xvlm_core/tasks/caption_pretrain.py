"""Language-model pre-training: the stack of pre-training learns to write (X-VLM, section 4.3).

The data are pictures with captions. Nothing is new in the model: its text layers, its cross layers
and its language-model head learn to go from left to right (official.md 2.11, 3.6).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from xvlm_core.config.schema import Recipe
from xvlm_core.data.batches import CaptionBatch
from xvlm_core.data.caption_samples import (
    CaptionSampleMaker,
    CaptionWritingFeed,
    caption_batch,
    prompt_ids,
)
from xvlm_core.data.tokenizer import Tokenizer
from xvlm_core.errors import ConfigError
from xvlm_core.models.captioner import Captioner
from xvlm_core.models.sizes import Head, ModelConfig
from xvlm_core.objectives.language_modeling import language_modeling_loss, next_tokens
from xvlm_core.tasks.base import Batch, Losses, Moment
from xvlm_core.tasks.building import model_shape, sample_settings
from xvlm_core.tasks.recipe_task import RecipeTask, SamplesOf


def shape_of_writer(recipe: Recipe, tokenizer: Tokenizer, heads: tuple[Head, ...]) -> ModelConfig:
    """The recipe's shape, where a token of a text sees the tokens before it only.

    Raises:
        ConfigError: see :func:`xvlm_core.tasks.building.model_shape`.
    """
    tree = model_shape(recipe, tokenizer, ()).model_dump()
    tree["text"]["causal"] = True
    return ModelConfig.model_validate({**tree, "heads": heads})


class CaptionPretrainTask(RecipeTask):
    """Cross-entropy of the next token, of all captions whole.

    Attributes:
        crop_scale: fraction of a picture that its crop keeps (official.md 2.8).
    """

    name = "caption_pretrain"
    about = "pre-trained to write captions"
    heads: tuple[Head, ...] = ("masked_lm",)
    loss_names: tuple[str, ...] = ("language_modeling",)
    crop_scale = (0.2, 1.0)

    def __init__(self, recipe: Recipe, start_from: Path | None = None) -> None:
        self._check(recipe)
        super().__init__(recipe, start_from)
        given = len(prompt_ids(self.tokenizer, self.prompt))
        if recipe.text.max_tokens < given + 2:
            raise ConfigError(
                f"text.max_tokens is {recipe.text.max_tokens}: the prompt {self.prompt!r} has "
                f"{given} tokens, and a word and the end must fit",
                where="text.max_tokens",
                try_=f"text.max_tokens={given + 20}",
            )

    def _check(self, recipe: Recipe) -> None:
        """Refuse a recipe with data that this task does not read.

        Raises:
            ConfigError: it has.
        """
        require_images(recipe, self.name, ("regions", "pairs", "questions", "validation"))

    @property
    def prompt(self) -> str:
        """What every caption begins with; is not learnt."""
        return ""

    @property
    def smoothing(self) -> float:
        """Share of the other tokens in cross-entropy."""
        return 0.0

    def shape(self) -> ModelConfig:
        """The recipe's shape, made causal."""
        return shape_of_writer(self.recipe, self.tokenizer, self.heads)

    def _always_fuses(self) -> bool:
        loss = self.recipe.losses.language_modeling
        return loss.weight > 0 and loss.start == 0

    def sample_maker(self) -> CaptionSampleMaker:
        """Makes samples of captions to be written."""
        settings = sample_settings(self.recipe, self.config)
        settings = dataclasses.replace(settings, crop_scale=self.crop_scale)
        return CaptionSampleMaker(settings, self.tokenizer, self.recipe.seed, prompt=self.prompt)

    def feed(self) -> CaptionWritingFeed:
        """Pictures with a caption each."""
        return CaptionWritingFeed(self.recipe, self.streams["images"], self.sample_maker())

    def update_of(
        self, samples: SamplesOf, rng: np.random.Generator, parts: int
    ) -> list[tuple[Batch, float]]:
        """Pictures with a caption each."""
        images, maker = self.recipe.data.images, self.sample_maker()
        assert images is not None
        made = samples("images", images.batch_size, maker.of_writing)
        return [(caption_batch(made, given=maker.given), 1.0)]

    def losses(self, model: nn.Module, batch: Batch, moment: Moment) -> Losses:
        """Only states that a learnt token follows go through the language-model head."""
        assert isinstance(model, Captioner)
        assert isinstance(batch, CaptionBatch)
        weights = self.loss_weights(moment)
        if not weights:
            return Losses({}, weights, batch.counts)
        patches_IPS = model.encode_pictures(batch.pictures_ICHW)
        loss = self._written(model, patches_IPS, batch)
        return Losses({"language_modeling": loss}, weights, batch.counts)

    def _written(self, model: Captioner, patches_IPS: Tensor, batch: CaptionBatch) -> Tensor:
        states = model.caption_states(patches_IPS, batch.texts, batch.picture_of_text_B)
        tokens = next_tokens(batch.texts, batch.given)
        logits_MV = model.text.predict_tokens(states.hidden_ND[tokens.place_M])
        return language_modeling_loss(logits_MV, tokens.label_M, self.smoothing)

    def sizes(self, batch: Batch, moment: Moment) -> dict[str, float | None]:
        """Learnt tokens; released: a mean over ranks, whatever the tokens of each."""
        assert isinstance(batch, CaptionBatch)
        lengths = batch.texts.packing.lengths
        size = float(sum(max(0, length - batch.given) for length in lengths))
        if self.recipe.compat == "official":
            size = float(size > 0)
        return {name: size for name in self.loss_weights(moment)}


def require_images(recipe: Recipe, task: str, unread: tuple[str, ...]) -> None:
    """Pictures with captions are there, and no other data.

    Raises:
        ConfigError: they are not; or a section that nobody would read is given.
    """
    data = recipe.data
    if data.images is None:
        raise ConfigError(
            f"{task} learns from pictures with captions: the recipe has no data.images",
            where="data.images",
            try_="data.images.stores=[...] (xvlm ls stores shows those that are there)",
        )
    given = [key for key in unread if getattr(data, key) not in (None, ())]
    if given:
        what = "alone, and has no validation" if "validation" in unread else "alone"
        raise ConfigError(
            f"{task} learns from pictures with captions {what}",
            where=", ".join(f"data.{key}" for key in given),
            try_=" ".join(f"data.{key}={'[]' if key == 'validation' else 'null'}" for key in given),
        )
