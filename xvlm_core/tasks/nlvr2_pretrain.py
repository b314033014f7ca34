"""Extra pre-training for NLVR2: which of two pictures is a text's own (X-VLM, section 4.3).

The data are pictures with captions. All others of a text come from its own part of the update.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from xvlm_core.config.schema import Recipe
from xvlm_core.data.batches import PretrainBatch
from xvlm_core.data.collate import pretrain_batch
from xvlm_core.data.feeds import PretrainFeed
from xvlm_core.errors import ConfigError
from xvlm_core.models.nlvr2 import NLVR2
from xvlm_core.models.sizes import Head, ModelConfig
from xvlm_core.objectives.pair_assignment import (
    assignment_loss,
    assignment_weights,
    draw_assignment,
)
from xvlm_core.tasks.base import Batch, Losses, Moment
from xvlm_core.tasks.nlvr2 import shape_of_pairs
from xvlm_core.tasks.recipe_task import RecipeTask, SamplesOf


class Nlvr2PretrainTask(RecipeTask):
    """Cross-entropy of first, second and neither."""

    name = "nlvr2_pretrain"
    about = "pre-trained on texts with two pictures (for NLVR2)"
    heads: tuple[Head, ...] = ("pair_assignment",)
    loss_names = ("pair_assignment",)

    def __init__(self, recipe: Recipe, start_from: Path | None = None) -> None:
        data = recipe.data
        if data.images is None:
            raise ConfigError(
                "nlvr2_pretrain learns from pictures with captions: the recipe has no data.images",
                where="data.images",
                try_="data.images.stores=[...] (xvlm ls stores shows those that are there)",
            )
        unread = [
            key
            for key in ("regions", "pairs", "validation")
            if getattr(data, key) not in (None, ())
        ]
        if unread:
            raise ConfigError(
                "nlvr2_pretrain learns from pictures with captions alone, and has no validation",
                where=", ".join(f"data.{key}" for key in unread),
                try_=" ".join(
                    f"data.{key}={'[]' if key == 'validation' else 'null'}" for key in unread
                ),
            )
        super().__init__(recipe, start_from)

    def shape(self) -> ModelConfig:
        """The recipe's shape, its cross layers doubled."""
        return shape_of_pairs(self.recipe, self.tokenizer, self.heads)

    def build_model(self, *, first_weights: bool = True) -> nn.Module:
        """The model; the projection that others are drawn by is no part of what learns."""
        model = super().build_model(first_weights=first_weights)
        assert isinstance(model, NLVR2)
        model.vision_proj.requires_grad_(requires_grad=False)
        return model

    def _always_fuses(self) -> bool:
        loss = self.recipe.losses.pair_assignment
        return loss.weight > 0 and loss.start == 0

    def feed(self) -> PretrainFeed:
        """Pictures with a caption each."""
        return PretrainFeed(self.recipe, self.streams["images"], [], self.sample_maker())

    def update_of(
        self, samples: SamplesOf, rng: np.random.Generator, parts: int
    ) -> list[tuple[Batch, float]]:
        """Pictures with a caption each."""
        images, maker = self.recipe.data.images, self.sample_maker()
        assert images is not None
        official = self.recipe.compat == "official"
        whole = samples("images", images.batch_size, maker.of_caption)
        return [(pretrain_batch(whole, rng=rng, compat_official=official), 1.0)]

    def losses(self, model: nn.Module, batch: Batch, moment: Moment) -> Losses:
        """Each text once, with two pictures that are drawn anew in each update."""
        assert isinstance(model, NLVR2)
        assert isinstance(batch, PretrainBatch)
        weights = self.loss_weights(moment)
        if not weights:
            return Losses({}, weights, batch.counts)
        patches_IPS = model.encode_pictures(batch.pictures_ICHW)
        excluded_BB = batch.excluded_BB
        with torch.no_grad():
            looks_BE = model.looks(patches_IPS)[batch.picture_of_text_B]
        drawn = draw_assignment(
            assignment_weights(looks_BE, excluded_BB), excluded_BB, moment.generator
        )
        states = model.look(
            model.encode_texts(batch.texts),
            patches_IPS,
            batch.picture_of_text_B[drawn.first_B],
            batch.picture_of_text_B[drawn.second_B],
        )
        loss = assignment_loss(model.assignment_logits(states.first()), drawn.label_B)
        left_out = int(excluded_BB.all(1).sum())
        counts = {**batch.counts, **({"texts_without_other": left_out} if left_out else {})}
        return Losses({"pair_assignment": loss}, weights, counts)

    def sizes(self, batch: Batch, moment: Moment) -> dict[str, float | None]:
        """Texts that have another picture beside their own."""
        assert isinstance(batch, PretrainBatch)
        size = float((~batch.excluded_BB.all(1)).sum())
        return {name: size for name in self.loss_weights(moment)}
