"""Multi-grained pre-training: four losses at every grain (X-VLM, section 3, Eq. 8)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import nn

from xvlm_core.config.schema import Recipe
from xvlm_core.data.batches import GroundingBatch, PretrainBatch
from xvlm_core.data.feeds import PretrainFeed
from xvlm_core.data.samples import SampleMaker
from xvlm_core.models.sizes import ALL_HEADS
from xvlm_core.models.xvlm import XVLM
from xvlm_core.objectives.box import box_losses, nearest_targets
from xvlm_core.objectives.contrastive import contrastive_loss
from xvlm_core.objectives.masked_lm import masked_lm_loss
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
from xvlm_core.tasks.pretrain_forward import Wanted, pretrain_forward
from xvlm_core.weights import official as official_weights
from xvlm_core.weights.folder import ModelInfo, load_weights, save_model_folder


class PretrainTask:
    """Contrastive, matching, masked-language and box losses; scored by grounding, if at all."""

    name = "pretrain"

    def __init__(self, recipe: Recipe, start_from: Path | None = None) -> None:
        self.recipe = recipe
        self.start_from = start_from
        self.tokenizer = tokenizer_of(recipe, start_from)
        self.config = model_shape(recipe, self.tokenizer, ALL_HEADS)
        self.notes: list[str] = []
        data = recipe.data
        self.image_stores = open_stores(recipe, data.images.stores) if data.images else []
        self.region_stores = open_stores(recipe, data.regions.stores) if data.regions else []
        self.validation_stores = open_validation(recipe)
        self.selection = grounding_eval.SELECTION if self.validation_stores else None

    # ------------------------------------------------------------------ model

    def build_model(self) -> nn.Module:
        """A model with every head, from the weights that the recipe names."""
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
        stores = [*self.image_stores, *self.region_stores]
        names = dict.fromkeys(f"{store.name} ({store.manifest.source})" for store in stores)
        return ModelInfo(
            task=self.name,
            about=f"X-VLM {self.config.size}, pre-trained",
            trained_on=", ".join(names),
            max_words=self.recipe.text.max_words,
            max_tokens=self.recipe.text.max_tokens,
            config=self.config,
        )

    # ------------------------------------------------------------------ training

    def feed(self) -> PretrainFeed:
        """Pictures with captions and pictures with regions, mixed as the recipe says."""
        settings = sample_settings(self.recipe, self.config)
        maker = SampleMaker(settings, self.tokenizer, self.recipe.seed)
        return PretrainFeed(self.recipe, self.image_stores, self.region_stores, maker)

    def losses(self, model: nn.Module, batch: Batch, moment: Moment) -> Losses:
        """The losses of one update: five where the batch has regions, else three (Eq. 8)."""
        assert isinstance(model, XVLM)
        assert isinstance(batch, PretrainBatch)
        recipe = self.recipe
        weights = {
            name: loss.weight
            for name, loss in recipe.losses
            if loss.weight > 0 and moment.progress >= loss.start
        }
        boxes = {"box_l1", "box_giou"} & set(weights)
        official = recipe.compat == "official"
        model.clamp_temperature()
        out = pretrain_forward(
            model,
            batch,
            Wanted(
                contrastive="contrastive" in weights,
                matching="matching" in weights,
                masked_lm="masked_lm" in weights,
                box=bool(boxes),
            ),
            generator=moment.generator,
            gradient_scale=1 / recipe.official_ranks if official else 1.0,
        )
        parts = {}
        if out.similarity_BB is not None:
            excluded = None if official else batch.excluded_BB
            parts["contrastive"] = contrastive_loss(out.similarity_BB, excluded)
        if out.match_logits_R2 is not None and out.match_label_R is not None:
            parts["matching"] = matching_loss(out.match_logits_R2, out.match_label_R)
            if out.presence_logits_Q2 is not None and out.presence_label_Q is not None:
                # named and absent phrases of the whole picture weigh as much as the pairs
                presence = matching_loss(out.presence_logits_Q2, out.presence_label_Q)
                parts["matching"] = (parts["matching"] + presence) / 2
        if out.token_logits_MV is not None:
            parts["masked_lm"] = masked_lm_loss(out.token_logits_MV, batch.masked_label_M)
        boxes_cxcywh, targets_cxcywh = out.boxes_cxcywh_N4, out.target_cxcywh_N4
        if boxes_cxcywh is not None and targets_cxcywh is not None and len(boxes_cxcywh):
            if batch.others is not None:
                others = batch.others.among(batch.is_region_B)
                targets_cxcywh = nearest_targets(boxes_cxcywh, targets_cxcywh, others)
            box = box_losses(boxes_cxcywh, targets_cxcywh)
            parts |= {"box_l1": box.l1, "box_giou": box.giou}
        counts = {**batch.counts, "rows_without_negative": out.rows_without_negative}
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
