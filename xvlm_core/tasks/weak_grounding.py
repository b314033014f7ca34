"""Grounding without boxes (X-VLM, section 4.6): learnt from pictures and phrases alone.

The losses of retrieval on (picture, phrase) pairs (official.md 3.5). Where the thing is that a
phrase names is then read off the attention: see :mod:`xvlm_core.inference.heatmap`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from xvlm_core.config.schema import Recipe
from xvlm_core.data.batches import PretrainBatch
from xvlm_core.data.collate import retrieval_batch
from xvlm_core.data.feeds import StoreStream, parts_of, steps_per_epoch
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


class PhraseFeed:
    """Pictures with some of their phrases each: one update a step."""

    def __init__(self, recipe: Recipe, stores: list[Store], maker: PhraseSampleMaker) -> None:
        regions = recipe.data.regions
        assert regions is not None, "grounding without boxes reads data.regions"
        self.recipe = recipe
        self.maker = maker
        self.stream = StoreStream(
            stores,
            recipe.data.train_split,
            regions.max_images,
            recipe.seed,
            "regions",
            parts_of(recipe),
        )

    @property
    def steps_per_epoch(self) -> int:
        """Steps that make one pass."""
        return steps_per_epoch(self.recipe, self.stream)

    def batches(self, step: int, part: int = 0) -> tuple[PretrainBatch, ...]:
        """A part of the update of step 1, 2, ..."""
        samples, dropped = self.stream.samples_of(step, part, self._make)
        official = self.recipe.compat == "official"
        return (retrieval_batch(samples, dropped=dropped, part=part, compat_official=official),)

    def _make(self, store: Store, record: Record, epoch: int) -> Sample:
        sample = self.maker.of_phrases(record, store.picture(record), epoch)
        if len(self.stream.stores) == 1:
            return sample
        # records of different stores may have the same id, and are different pictures
        number = next(n for n, one in enumerate(self.stream.stores) if one is store)
        return dataclasses.replace(sample, record_id=f"{number}:{store.name}/{record.id}")


class WeakGroundingTask(RetrievalTask):
    """Contrastive and matching losses of phrases with whole pictures; scored as grounding is."""

    name = "weak_grounding"
    about = "fine-tuned for grounding without boxes"

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

    def open_evaluation(self) -> WeakGroundingEvaluation:  # type: ignore[override]
        """Every phrase of the validation stores, answered from heat maps."""
        recipe = self.recipe
        return WeakGroundingEvaluation.of_model(
            self.validation_stores,
            recipe.data.validation_split,
            self.tokenizer,
            self.info(),
            scoring=recipe.scoring,
            proposals=open_stores(recipe, recipe.scoring.proposals),
            compat_official=recipe.compat == "official",
            limit=recipe.data.validation_limit,
        )
