"""Visual grounding with boxes (X-VLM, section 4.6): where is the thing that a phrase names?

Beside the box head the matching head is kept alive, so that a phrase that is not in the picture
gets a low probability instead of a confident wrong box.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from xvlm_core.config.schema import Recipe
from xvlm_core.data.batches import GroundingBatch
from xvlm_core.data.collate import grounding_batch
from xvlm_core.data.feeds import GroundingFeed
from xvlm_core.errors import ConfigError
from xvlm_core.models.sizes import Head
from xvlm_core.models.xvlm import XVLM
from xvlm_core.objectives.box import box_losses, nearest_targets
from xvlm_core.objectives.matching import matching_loss
from xvlm_core.tasks.base import Batch, Losses, Moment
from xvlm_core.tasks.grounding_eval import GroundingEvaluation
from xvlm_core.tasks.recipe_task import RecipeTask, SamplesOf

HEADS: tuple[Head, ...] = ("matching", "box")
LOSSES = ("matching", "box_l1", "box_giou")


class GroundingTask(RecipeTask):
    """L1 + GIoU of the named box, and matching of present against absent phrases."""

    name = "grounding"
    about = "fine-tuned for grounding"
    heads = HEADS
    loss_names = LOSSES
    asks = GroundingEvaluation

    def __init__(self, recipe: Recipe, start_from: Path | None = None) -> None:
        if recipe.data.regions is None:
            raise ConfigError(
                "grounding learns from regions: the recipe has no data.regions",
                where="data.regions",
                try_="data.regions.stores=[...] (xvlm ls stores shows those that are there)",
            )
        if recipe.losses.matching.weight > 0 and recipe.data.regions.absent == 0:
            raise ConfigError(
                "matching would see phrases that are there alone, and learn to say yes to anything",
                where="data.regions.absent",
                try_="data.regions.absent=1, or losses.matching.weight=0",
            )
        super().__init__(recipe, start_from)

    def feed(self) -> GroundingFeed:
        """Pictures with phrases that are there and phrases that are not."""
        return GroundingFeed(self.recipe, self.streams["regions"], self.sample_maker())

    def update_of(
        self, samples: SamplesOf, rng: np.random.Generator, parts: int
    ) -> list[tuple[Batch, float]]:
        """Pictures with their phrases."""
        regions, maker = self.recipe.data.regions, self.sample_maker()
        assert regions is not None
        asked = samples(
            "regions",
            regions.max_images,
            lambda r, b, e: maker.of_regions(r, b, e, mask=False, whole_first=True),
        )
        negatives = regions.absent if self.recipe.losses.matching.weight > 0 else 0
        return [(grounding_batch(asked, negatives=negatives, rng=rng), 1.0)]

    def losses(self, model: nn.Module, batch: Batch, moment: Moment) -> Losses:
        """Box losses of the phrases that are there; matching over all phrases."""
        assert isinstance(model, XVLM)
        assert isinstance(batch, GroundingBatch)
        weights = self.loss_weights(moment)
        counts = {**batch.counts, "absent": int((~batch.present_B).sum())}
        if not weights:
            return Losses({}, weights, counts)
        patches_IPS = model.encode_pictures(batch.pictures_ICHW)
        states = model.encode_texts(batch.texts)
        views = model.whole(batch.n_pictures)
        first_BD = model.fuse(states, patches_IPS, views, batch.picture_of_text_B).first()
        parts = {}
        if {"box_l1", "box_giou"} & set(weights):
            boxes_cxcywh = model.boxes(first_BD[batch.present_B])
            targets_cxcywh = batch.boxes_cxcywh_B4[batch.present_B]
            if batch.others is not None:
                others = batch.others.among(batch.present_B)
                targets_cxcywh = nearest_targets(boxes_cxcywh, targets_cxcywh, others)
            box = box_losses(boxes_cxcywh, targets_cxcywh)
            parts = {"box_l1": box.l1, "box_giou": box.giou}
        if "matching" in weights:
            label_B = batch.present_B.to(torch.int64)
            parts["matching"] = matching_loss(model.match_logits(first_BD), label_B)
        return Losses({n: v for n, v in parts.items() if n in weights}, weights, counts)

    def sizes(self, batch: Batch, moment: Moment) -> dict[str, float | None]:
        """Phrases that are there (boxes), and all (matching)."""
        assert isinstance(batch, GroundingBatch)
        present = float(batch.present_B.sum())
        sizes = {"box_l1": present, "box_giou": present, "matching": float(len(batch.present_B))}
        weights = self.loss_weights(moment)
        return {name: size for name, size in sizes.items() if name in weights}
