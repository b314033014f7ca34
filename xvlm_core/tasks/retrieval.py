"""Image-text retrieval (X-VLM, section 4.1): the texts of a picture, and the picture of a text.

Contrastive and matching losses on whole pictures with their captions (official.md 3.1). Unlike in
pre-training, several captions of one picture in an update are all right answers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import ClassVar

import numpy as np
from torch import Tensor, nn

from xvlm_core.config.schema import Recipe
from xvlm_core.data.batches import PretrainBatch
from xvlm_core.data.collate import retrieval_batch
from xvlm_core.data.feeds import CaptionFeed
from xvlm_core.data.samples import SampleMaker
from xvlm_core.errors import ConfigError
from xvlm_core.models.sizes import Head
from xvlm_core.models.xvlm import XVLM
from xvlm_core.objectives.contrastive import multi_positive_loss, same_picture
from xvlm_core.objectives.matching import match_rows, matching_loss
from xvlm_core.tasks.base import Batch, Losses, Moment
from xvlm_core.tasks.building import sample_settings
from xvlm_core.tasks.pretrain_forward import (
    PretrainOutputs,
    Wanted,
    contrastive_rows,
    pretrain_forward,
)
from xvlm_core.tasks.recipe_task import RecipeTask, SamplesOf
from xvlm_core.tasks.retrieval_eval import RetrievalEvaluation
from xvlm_core.tasks.store_evaluation import StoreEvaluation

HEADS: tuple[Head, ...] = ("contrastive", "matching")

CROP_SCALE = (0.5, 1.0)
"""Fraction of a picture that its crop keeps: more than in pre-training (official.md 2.8)."""


def retrieval_losses(out: PretrainOutputs, *, official: bool) -> dict[str, Tensor]:
    """The losses of what was computed.

    Args:
        out: of a batch of captions.
        official: other pictures with the same words are negatives.
    """
    parts = {}
    if out.similarity_GG is not None:
        assert out.keys_G3 is not None, "the texts of retrieval have keys"
        excluded_GG = None if official else out.excluded_GG
        positive_GG = same_picture(out.keys_G3)
        parts["contrastive"] = multi_positive_loss(out.similarity_GG, positive_GG, excluded_GG)
    if out.match_logits_R2 is not None and out.match_label_R is not None:
        parts["matching"] = matching_loss(out.match_logits_R2, out.match_label_R)
    return parts


class RetrievalTask(RecipeTask):
    """Contrastive loss with several positives, matching with hard negatives; scored by recall."""

    name = "retrieval"
    about = "fine-tuned for image-text retrieval"
    heads = HEADS
    loss_names = ("contrastive", "matching")
    asks: ClassVar[type[StoreEvaluation] | None] = RetrievalEvaluation

    def __init__(self, recipe: Recipe, start_from: Path | None = None) -> None:
        if recipe.data.images is None:
            raise ConfigError(
                "retrieval learns from pictures with captions: the recipe has no data.images",
                where="data.images",
                try_="data.images.stores=[...] (xvlm ls stores shows those that are there)",
            )
        super().__init__(recipe, start_from)

    def _always_fuses(self) -> bool:
        loss = self.recipe.losses.matching
        return loss.weight > 0 and loss.start == 0

    def sample_maker(self) -> SampleMaker:
        """Makes samples of captions; the released code cuts none of them in training."""
        settings = sample_settings(self.recipe, self.config)
        official = settings.compat_official
        settings = dataclasses.replace(
            settings,
            crop_scale=CROP_SCALE,
            max_tokens=self.config.text.max_positions if official else settings.max_tokens,
        )
        return SampleMaker(settings, self.tokenizer, self.recipe.seed)

    def feed(self) -> CaptionFeed:
        """Pictures with a caption each."""
        return CaptionFeed(self.recipe, self.streams["images"], self.sample_maker())

    def update_of(
        self, samples: SamplesOf, rng: np.random.Generator, parts: int
    ) -> list[tuple[Batch, float]]:
        """Pictures with a caption each."""
        images, maker = self.recipe.data.images, self.sample_maker()
        assert images is not None
        made = samples(
            "images", images.batch_size, lambda r, b, e: maker.of_caption(r, b, e, mask=False)
        )
        official = self.recipe.compat == "official"
        return [(retrieval_batch(made, compat_official=official), 1.0)]

    def losses(self, model: nn.Module, batch: Batch, moment: Moment) -> Losses:
        """Contrastive over the whole update, matching within the part.

        Under ``compat: official`` the temperature is not clamped.
        """
        assert isinstance(model, XVLM)
        assert isinstance(batch, PretrainBatch)
        recipe = self.recipe
        weights = self.loss_weights(moment)
        official = recipe.compat == "official"
        if not official:
            model.clamp_temperature()
        out = pretrain_forward(
            model,
            batch,
            self._wanted(weights),
            generator=moment.generator,
            gradient_scale=1 / recipe.official_ranks if official else 1.0,
            peers=moment.peers,
        )
        counts = {**batch.counts, "rows_without_negative": out.rows_without_negative}
        gauges = {} if out.similarity_GG is None else {"temperature": model.temp}
        return Losses(retrieval_losses(out, official=official), weights, counts, gauges)

    def sizes(self, batch: Batch, moment: Moment) -> dict[str, float | None]:
        """Pairs that match or not; the contrastive loss is one over all parts.

        The released code takes the mean over ranks instead, whatever the pairs of each.
        """
        assert isinstance(batch, PretrainBatch)
        pairs = float(match_rows(batch.excluded_BB, self.recipe.losses.matching.negatives))
        if self.recipe.compat == "official":
            pairs = 1.0
        sizes: dict[str, float | None] = {"contrastive": None, "matching": pairs}
        weights = self.loss_weights(moment)
        return {name: size for name, size in sizes.items() if name in weights}

    def tables(self, model: nn.Module, batch: Batch, moment: Moment) -> dict[str, Tensor]:
        """Features of pictures and texts, and what belongs together."""
        assert isinstance(model, XVLM)
        assert isinstance(batch, PretrainBatch)
        wanted = self._wanted(self.loss_weights(moment))
        return contrastive_rows(model, batch, wanted) if wanted.contrastive else {}

    def _wanted(self, weights: Collection[str]) -> Wanted:
        return Wanted(
            contrastive="contrastive" in weights,
            matching="matching" in weights,
            masked_lm=False,
            box=False,
            hard_negatives=self.recipe.losses.matching.negatives,
        )
