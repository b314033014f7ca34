"""Visual grounding with boxes (X-VLM, section 4.6): where is the thing that a phrase names?

Beside the box head the matching head is kept alive, so that a phrase that is not in the picture
gets a low probability instead of a confident wrong box.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from xvlm_core.config.schema import Recipe
from xvlm_core.data.batches import GroundingBatch
from xvlm_core.data.feeds import GroundingFeed
from xvlm_core.data.samples import SampleMaker
from xvlm_core.errors import ConfigError
from xvlm_core.models.sizes import Head
from xvlm_core.models.xvlm import XVLM
from xvlm_core.objectives.box import box_losses, nearest_targets
from xvlm_core.objectives.matching import matching_loss
from xvlm_core.tasks import grounding_eval
from xvlm_core.tasks.base import Batch, Losses, Moment, Prediction, Scores
from xvlm_core.tasks.building import (
    initialise,
    model_shape,
    open_stores,
    open_validation,
    sample_settings,
    start_from_checkpoint,
    tokenizer_of,
)
from xvlm_core.weights import official as official_weights
from xvlm_core.weights.folder import ModelInfo, load_weights, save_model_folder

HEADS: tuple[Head, ...] = ("matching", "box")
LOSSES = ("matching", "box_l1", "box_giou")


class GroundingTask:
    """L1 + GIoU of the named box, and matching of present against absent phrases."""

    name = "grounding"

    def __init__(self, recipe: Recipe, start_from: Path | None = None) -> None:
        if recipe.data.regions is None:
            raise ConfigError(
                "grounding learns from regions: the recipe has no data.regions",
                where="data.regions",
                try_="data.regions.stores=[...] (xvlm ls stores shows those that are there)",
            )
        self.recipe = recipe
        self.start_from = start_from
        self.tokenizer = tokenizer_of(recipe, start_from)
        self.config = model_shape(recipe, self.tokenizer, HEADS)
        self.notes: list[str] = []
        self.stores = open_stores(recipe, recipe.data.regions.stores)
        self.validation_stores = open_validation(recipe)
        self.selection = grounding_eval.SELECTION if self.validation_stores else None

    # ------------------------------------------------------------------ model

    def build_model(self) -> nn.Module:
        """A model with the matching and the box head."""
        model = XVLM(self.config)
        if self.start_from is not None:
            self.notes += start_from_checkpoint(model, self.start_from)
        else:
            self.notes += initialise(model, self.recipe)
        return model

    def save_model(self, model: nn.Module, folder: Path) -> None:
        """Write a model folder."""
        assert isinstance(model, XVLM)
        save_model_folder(folder, model, self.tokenizer, self.info())

    def load_weights(self, model: nn.Module, folder: Path) -> None:
        """Load a checkpoint of this very task (resume)."""
        assert isinstance(model, XVLM)
        load_weights(model, folder)

    def official_name(self, name: str) -> str:
        """What the released code calls a parameter (its weight decay goes by names)."""
        return official_weights.official_name(name)

    def info(self) -> ModelInfo:
        """What the model folder says of the model."""
        names = dict.fromkeys(f"{store.name} ({store.manifest.source})" for store in self.stores)
        return ModelInfo(
            task=self.name,
            about=f"X-VLM {self.config.size}, fine-tuned for grounding",
            trained_on=", ".join(names),
            max_words=self.recipe.text.max_words,
            max_tokens=self.recipe.text.max_tokens,
            config=self.config,
        )

    # ------------------------------------------------------------------ training

    def feed(self) -> GroundingFeed:
        """Pictures with phrases that are there and phrases that are not."""
        settings = sample_settings(self.recipe, self.config)
        maker = SampleMaker(settings, self.tokenizer, self.recipe.seed)
        return GroundingFeed(self.recipe, self.stores, maker)

    def losses(self, model: nn.Module, batch: Batch, moment: Moment) -> Losses:
        """Box losses of the phrases that are there; matching over all phrases."""
        assert isinstance(model, XVLM)
        assert isinstance(batch, GroundingBatch)
        weights = {
            name: loss.weight
            for name, loss in self.recipe.losses
            if name in LOSSES and loss.weight > 0 and moment.progress >= loss.start
        }
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

    # ------------------------------------------------------------------ validation

    def validation(self) -> Iterator[GroundingBatch]:
        """Phrases of the validation stores, each once."""
        data, text = self.recipe.data, self.recipe.text
        return grounding_eval.GroundingEvaluation(
            self.validation_stores,
            data.validation_split,
            self.tokenizer,
            image_size=self.config.vision.image_size,
            max_words=text.max_words,
            max_tokens=text.max_tokens,
            limit=data.validation_limit,
        ).batches()

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """Boxes and probabilities of phrases."""
        assert isinstance(model, XVLM)
        assert isinstance(batch, GroundingBatch)
        return grounding_eval.predict(model, batch)

    def score(self, predictions: Sequence[Prediction]) -> Scores:
        """Box accuracy and presence."""
        return grounding_eval.score(predictions, self.recipe.data.validation_split)
