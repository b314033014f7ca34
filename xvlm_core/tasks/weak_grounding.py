"""Grounding without boxes (X-VLM, section 4.6): learnt from pictures and phrases alone.

The losses of retrieval on (picture, phrase) pairs (official.md 3.5). Where the thing is that a
phrase names is then read off the attention: see :mod:`xvlm_core.inference.heatmap`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from xvlm_core.config.schema import Recipe
from xvlm_core.data.collate import retrieval_batch
from xvlm_core.data.feeds import PictureTextFeed
from xvlm_core.data.phrase_samples import PhraseSampleMaker
from xvlm_core.data.records import Record
from xvlm_core.data.samples import Sample
from xvlm_core.data.store import Store
from xvlm_core.errors import ConfigError
from xvlm_core.tasks.base import Batch
from xvlm_core.tasks.building import open_stores, sample_settings
from xvlm_core.tasks.recipe_task import RecipeTask, SamplesOf
from xvlm_core.tasks.retrieval import RetrievalTask
from xvlm_core.tasks.weak_grounding_eval import WeakGroundingEvaluation


class PhraseFeed(PictureTextFeed):
    """Pictures with some of their phrases each."""

    def __init__(self, recipe: Recipe, stores: Sequence[Store], maker: PhraseSampleMaker) -> None:
        regions = recipe.data.regions
        assert regions is not None, "grounding without boxes reads data.regions"
        super().__init__(recipe, stores, "regions", regions.max_images)
        self.maker = maker

    def sample(self, record: Record, source: Path | bytes, epoch: int) -> Sample:
        """See :class:`PictureTextFeed`."""
        return self.maker.of_phrases(record, source, epoch)


class WeakGroundingTask(RetrievalTask):
    """Contrastive and matching losses of phrases with whole pictures; scored as grounding is."""

    name = "weak_grounding"
    about = "fine-tuned for grounding without boxes"
    asks = WeakGroundingEvaluation

    def __init__(self, recipe: Recipe, start_from: Path | None = None) -> None:
        regions = recipe.data.regions
        if regions is None:
            raise ConfigError(
                "grounding without boxes learns from phrases: the recipe has no data.regions",
                where="data.regions",
                try_="data.regions.stores=[...] (xvlm ls stores shows those that are there)",
            )
        if regions.absent:
            raise ConfigError(
                "grounding without boxes draws its negatives from other pictures: there is no "
                "place for texts that are known to be absent",
                where="data.regions.absent",
                try_="data.regions.absent=0",
            )
        RecipeTask.__init__(self, recipe, start_from)

    def sample_maker(self) -> PhraseSampleMaker:
        """Makes samples of phrases; the released code cuts none of them in training."""
        settings = sample_settings(self.recipe, self.config)
        if settings.compat_official:
            settings = dataclasses.replace(settings, max_tokens=self.config.text.max_positions)
        return PhraseSampleMaker(settings, self.tokenizer, self.recipe.seed)

    def feed(self) -> PhraseFeed:  # type: ignore[override]  # a feed of other samples
        """Pictures with some of their phrases each."""
        return PhraseFeed(self.recipe, self.streams["regions"], self.sample_maker())

    def update_of(
        self, samples: SamplesOf, rng: np.random.Generator, parts: int
    ) -> list[tuple[Batch, float]]:
        """Pictures with some of their phrases each."""
        regions, maker = self.recipe.data.regions, self.sample_maker()
        assert regions is not None
        made = samples("regions", regions.max_images, maker.of_phrases)
        official = self.recipe.compat == "official"
        return [(retrieval_batch(made, compat_official=official), 1.0)]

    def open_evaluation(self) -> WeakGroundingEvaluation:
        """Every phrase of the validation stores; stores of proposals lie where the recipe says."""
        recipe = self.recipe
        return WeakGroundingEvaluation.of_model(
            self.validation_stores,
            recipe.data.validation_split,
            self.tokenizer,
            self.info(),
            scoring=recipe.scoring,
            proposals=open_stores(recipe, recipe.scoring.proposals),
            limit=recipe.data.validation_limit,
        )
