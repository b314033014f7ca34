"""Multi-grained pre-training: four losses at every grain (X-VLM, section 3, Eq. 8)."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from torch import Tensor, nn

from xvlm_core.data.batches import PretrainBatch
from xvlm_core.data.collate import pretrain_batch
from xvlm_core.data.feeds import PretrainFeed
from xvlm_core.data.samples import Sample
from xvlm_core.models.sizes import ALL_HEADS
from xvlm_core.models.xvlm import XVLM
from xvlm_core.objectives.box import box_losses, nearest_targets
from xvlm_core.objectives.contrastive import contrastive_loss
from xvlm_core.objectives.masked_lm import masked_lm_loss
from xvlm_core.objectives.matching import match_rows, matching_loss
from xvlm_core.tasks.base import Batch, Losses, Moment
from xvlm_core.tasks.grounding_eval import GroundingEvaluation
from xvlm_core.tasks.pretrain_forward import Wanted, contrastive_rows, pretrain_forward
from xvlm_core.tasks.recipe_task import RecipeTask, SamplesOf


class PretrainTask(RecipeTask):
    """Contrastive, matching, masked-language and box losses; scored by grounding, if at all."""

    name = "pretrain"
    about = "pre-trained"
    heads = ALL_HEADS
    loss_names = ("contrastive", "matching", "masked_lm", "box_l1", "box_giou")
    asks = GroundingEvaluation

    def feed(self) -> PretrainFeed:
        """Pictures with captions and pictures with regions, mixed as the recipe says."""
        return PretrainFeed(
            self.recipe, self.streams["images"], self.streams["regions"], self.sample_maker()
        )

    def update_of(
        self, samples: SamplesOf, rng: np.random.Generator, parts: int
    ) -> list[tuple[Batch, float]]:
        """Captions and regions, apart or together."""
        recipe, maker = self.recipe, self.sample_maker()
        data, official = recipe.data, recipe.compat == "official"
        whole: list[Sample] = []
        part_of: list[Sample] = []
        most_texts = None
        if data.images is not None:
            whole = samples("images", data.images.batch_size, maker.of_caption)
        if data.regions is not None:
            part_of = samples("regions", data.regions.max_images, maker.of_regions)
            if data.regions.batch_texts is not None:
                most_texts = data.regions.batch_texts // parts

        def batch(samples: list[Sample], always: int, batch_texts: int | None) -> Batch:
            return pretrain_batch(
                samples, batch_texts=batch_texts, always=always, rng=rng, compat_official=official
            )

        if data.mix == "joint":
            return [(batch(whole + part_of, len(whole), most_texts), 1.0)]
        updates: list[tuple[Batch, float]] = []
        if data.regions is not None:
            often = data.regions.iter_perc if whole else 1.0
            updates.append((batch(part_of, 0, most_texts), often))
        if whole:
            updates.append((batch(whole, len(whole), None), 1.0))
        return updates

    def losses(self, model: nn.Module, batch: Batch, moment: Moment) -> Losses:
        """The losses of one update: five where the batch has regions, else three (Eq. 8)."""
        assert isinstance(model, XVLM)
        assert isinstance(batch, PretrainBatch)
        recipe = self.recipe
        weights = self.loss_weights(moment)
        official = recipe.compat == "official"
        model.clamp_temperature()
        out = pretrain_forward(
            model,
            batch,
            self._wanted(weights),
            generator=moment.generator,
            gradient_scale=1 / recipe.official_ranks if official else 1.0,
            peers=moment.peers,
        )
        parts = {}
        if out.similarity_GG is not None:
            parts["contrastive"] = contrastive_loss(out.similarity_GG, out.excluded_GG)
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
        gauges = {} if out.similarity_GG is None else {"temperature": model.temp}
        return Losses({n: v for n, v in parts.items() if n in weights}, weights, counts, gauges)

    def sizes(self, batch: Batch, moment: Moment) -> dict[str, float | None]:
        """Pairs, masked tokens and boxes; the contrastive loss is one over all parts (Eq. 3).

        The released code takes the mean over ranks instead, whatever the items of each.
        """
        assert isinstance(batch, PretrainBatch)
        pairs = match_rows(batch.excluded_BB, self.recipe.losses.matching.negatives)
        boxes = float(batch.is_region_B.sum())
        sizes: dict[str, float | None] = {
            "contrastive": None,
            "matching": float(pairs),
            "masked_lm": float(len(batch.masked_label_M)),
            "box_l1": boxes,
            "box_giou": boxes,
        }
        if self.recipe.compat == "official":
            sizes = {name: size and 1.0 for name, size in sizes.items()}
        weights = self.loss_weights(moment)
        return {name: size for name, size in sizes.items() if name in weights}

    def tables(self, model: nn.Module, batch: Batch, moment: Moment) -> dict[str, Tensor]:
        """Features of concepts and texts, while the contrastive loss takes part."""
        assert isinstance(model, XVLM)
        assert isinstance(batch, PretrainBatch)
        wanted = self._wanted(self.loss_weights(moment))
        return contrastive_rows(model, batch, wanted) if wanted.contrastive else {}

    def _wanted(self, weights: Collection[str]) -> Wanted:
        return Wanted(
            contrastive="contrastive" in weights,
            matching="matching" in weights,
            masked_lm="masked_lm" in weights,
            box=bool({"box_l1", "box_giou"} & set(weights)),
            hard_negatives=self.recipe.losses.matching.negatives,
        )


class BoxPretrainTask(PretrainTask):
    """Pre-training of a model that goes on to grounding: another task, another kind of run.

    Its recipes give the other losses no weight, so that the contrastive and the matching head are
    no longer those of the encoders: what retrieves must not start from such a run by chance.
    """

    name = "box_pretrain"
    about = "pre-trained, then on boxes"
