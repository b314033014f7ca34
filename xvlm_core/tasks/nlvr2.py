"""NLVR2 (X-VLM, section 4.3): is a statement about two pictures true?"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch.nn.functional as F
from torch import nn

from xvlm_core.config.schema import Recipe
from xvlm_core.data.batches import PairBatch
from xvlm_core.data.pair_feed import PairFeed
from xvlm_core.data.pair_samples import PairSampleMaker, pair_batch
from xvlm_core.data.tokenizer import Tokenizer
from xvlm_core.errors import ConfigError
from xvlm_core.models.nlvr2 import NLVR2
from xvlm_core.models.sizes import Head, ModelConfig
from xvlm_core.tasks.base import Batch, Losses, Moment
from xvlm_core.tasks.building import model_shape, sample_settings
from xvlm_core.tasks.nlvr2_eval import Nlvr2Evaluation
from xvlm_core.tasks.recipe_task import RecipeTask, SamplesOf


def shape_of_pairs(recipe: Recipe, tokenizer: Tokenizer, heads: tuple[Head, ...]) -> ModelConfig:
    """The recipe's shape for texts that look at two pictures: every cross layer is doubled.

    A shape that has two pictures already (by ``model.overrides``) stays as it is.

    Raises:
        ConfigError: see :func:`xvlm_core.tasks.building.model_shape`.
    """
    tree = model_shape(recipe, tokenizer, ()).model_dump()
    text = tree["text"]
    if text["pictures"] == 1:
        text["num_layers"] += text["num_layers"] - text["fusion_layer"]
        text["pictures"] = 2
    return ModelConfig.model_validate({**tree, "heads": heads})


class Nlvr2Task(RecipeTask):
    """Cross-entropy of true and false; scored by accuracy."""

    name = "nlvr2"
    about = "fine-tuned for statements about two pictures (NLVR2)"
    heads: tuple[Head, ...] = ("statement",)
    loss_names = ("statement",)
    asks = Nlvr2Evaluation

    def __init__(self, recipe: Recipe, start_from: Path | None = None) -> None:
        if recipe.data.pairs is None:
            raise ConfigError(
                "nlvr2 learns from pairs of pictures: the recipe has no data.pairs",
                where="data.pairs",
                try_="data.pairs.stores=[...] (xvlm ls stores shows those that are there)",
            )
        super().__init__(recipe, start_from)

    def shape(self) -> ModelConfig:
        """The recipe's shape, its cross layers doubled."""
        return shape_of_pairs(self.recipe, self.tokenizer, self.heads)

    def _always_fuses(self) -> bool:
        loss = self.recipe.losses.statement
        return loss.weight > 0 and loss.start == 0

    def sample_maker(self) -> PairSampleMaker:
        """Makes samples of pairs."""
        settings = sample_settings(self.recipe, self.config)
        return PairSampleMaker(settings, self.tokenizer, self.recipe.seed)

    def feed(self) -> PairFeed:
        """Pairs with statements that are known to be true or false."""
        return PairFeed(self.recipe, self.streams["pairs"], self.sample_maker())

    def update_of(
        self, samples: SamplesOf, rng: np.random.Generator, parts: int
    ) -> list[tuple[Batch, float]]:
        """Pairs with their statements."""
        pairs, maker = self.recipe.data.pairs, self.sample_maker()
        assert pairs is not None
        asked = samples(
            "pairs", pairs.batch_size, lambda r, b, e: maker.of_pair(r, lambda which: b, e)
        )
        return [(pair_batch(asked), 1.0)]

    def losses(self, model: nn.Module, batch: Batch, moment: Moment) -> Losses:
        """Both pictures of every pair are encoded in one batch."""
        assert isinstance(model, NLVR2)
        assert isinstance(batch, PairBatch)
        weights = self.loss_weights(moment)
        if not weights:
            return Losses({}, weights, batch.counts)
        states = model.read(batch.pictures_ICHW, batch.texts, batch.first_B, batch.second_B)
        loss = F.cross_entropy(model.statement_logits(states.first()), batch.label_B)
        return Losses({"statement": loss}, weights, batch.counts)

    def sizes(self, batch: Batch, moment: Moment) -> dict[str, float | None]:
        """Statements."""
        assert isinstance(batch, PairBatch)
        return {name: float(len(batch.label_B)) for name in self.loss_weights(moment)}
