"""Grounding without boxes, evaluated: the same phrases and figures as grounding with boxes.

The box of a phrase is the proposal with the most heat (official.md 3.5), or what is hot in the map
where there is no proposal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import nn

from xvlm_core.config.schema import ScoringSection
from xvlm_core.data.batches import GroundingBatch, GroundingItem
from xvlm_core.data.files import as_place
from xvlm_core.data.records import Record
from xvlm_core.data.store import Store
from xvlm_core.data.tokenizer import Tokenizer
from xvlm_core.inference.heatmap import cam_layer, look
from xvlm_core.inference.proposals import ProposalIndex, usable
from xvlm_core.metrics.box_accuracy import accuracy_at, iou_plain
from xvlm_core.metrics.heat_map import best_box, best_proposal
from xvlm_core.models.xvlm import XVLM
from xvlm_core.tasks.base import Batch, Prediction, Score, Scores
from xvlm_core.tasks.grounding_eval import BoxXYXY, GroundingEvaluation, reference_of, score
from xvlm_core.weights.folder import ModelInfo

BY_PROPOSAL, BY_MAP = "proposal", "heat map"
"""What the box of an answer is."""

NO_PLACE: BoxXYXY = (0.0, 0.0, 0.0, 0.0)
"""The box of no place: it is never right."""


@dataclass(frozen=True)
class WeakGroundingItem(GroundingItem):
    """A phrase with the boxes to choose from.

    Attributes:
        proposals_xyxy_px: of its picture: boxes in it, cut to it.
    """

    proposals_xyxy_px: tuple[BoxXYXY, ...] = ()


class WeakGroundingEvaluation(GroundingEvaluation):
    """The phrases of :class:`GroundingEvaluation`, answered from heat maps.

    Args:
        *args: of :class:`GroundingEvaluation`.
        layer: of the text stack, whose attention makes the heat map.
        index: proposals by picture; None: the records' own.
        compat_official: a phrase none of whose proposals has a score above 0 gets the box of the
            phrase before, as released (official.md 6, row 9); the first one is missed.
        **kwargs: of :class:`GroundingEvaluation`.
    """

    ALSO_SAID: ClassVar[tuple[str, ...]] = ("found_by", "proposal_score")
    """What a saved answer may have beside the box: those of other programs do not."""

    def __init__(
        self,
        *args: Any,
        layer: int,
        index: ProposalIndex | None = None,
        compat_official: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.layer = layer
        self.index = index
        self.compat_official = compat_official

    @classmethod
    def of_model(
        cls,
        stores: Sequence[Store],
        split: str,
        tokenizer: Tokenizer,
        info: ModelInfo,
        *,
        scoring: ScoringSection | None = None,
        proposals: Sequence[Store] | None = None,
        compat_official: bool = False,
        limit: int | None = None,
    ) -> WeakGroundingEvaluation:
        """Pictures and phrases as a model wants them.

        Args:
            stores: where the records are.
            split: which records.
            tokenizer: of the model.
            info: what the model is.
            scoring: the layer of the heat map; stores of boxes, by their places.
            proposals: those stores, opened by who knows where they are; None: see ``scoring``.
                Without any, the records' own proposals serve.
            compat_official: see the class.
            limit: at most this many pictures.

        Raises:
            ConfigError: the layer attends to no picture.
            DataError: a store of boxes is missing or damaged.
        """
        if proposals is None:
            places = scoring.proposals if scoring else ()
            proposals = [Store.open(as_place(place)) for place in places]
        return cls(
            stores,
            split,
            tokenizer,
            image_size=info.config.vision.image_size,
            max_words=info.max_words,
            max_tokens=info.max_tokens,
            layer=cam_layer(info.config, scoring.cam_layer if scoring else None),
            index=ProposalIndex.of_stores(proposals) if proposals else None,
            compat_official=compat_official,
            limit=limit,
        )

    def _items(
        self, record: Record, prefix: str
    ) -> Iterator[tuple[tuple[int, ...], GroundingItem]]:
        proposals: tuple[BoxXYXY, ...] | None = None
        for tokens, item in super()._items(record, prefix):
            if proposals is None:
                proposals = self._proposals(record)
            fields = {f.name: getattr(item, f.name) for f in dataclasses.fields(item)}
            yield tokens, WeakGroundingItem(**fields, proposals_xyxy_px=proposals)

    def _proposals(self, record: Record) -> tuple[BoxXYXY, ...]:
        """Of a record's picture; what is no box in it is left out."""
        if self.index is None:
            found = np.array(record.proposals_xyxy_px, dtype=np.float64).reshape(-1, 4)
        else:
            found = self.index.of_record(record).boxes_xyxy_px
        return usable(found, record.width, record.height)

    def _reference(self, item: GroundingItem) -> Prediction:
        assert isinstance(item, WeakGroundingItem)
        return {**reference_of(item), "proposals_xyxy_px": item.proposals_xyxy_px}

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """The box of each phrase (pixels of the original picture) and its probability."""
        assert isinstance(model, XVLM)
        assert isinstance(batch, GroundingBatch)
        if not batch.items:
            return []
        looks = look(model, batch.pictures_ICHW, batch.texts, batch.picture_of_text_B, self.layer)
        maps = looks.maps.of_texts().cpu().numpy()
        probabilities = looks.match_probability_B.cpu().tolist()
        return [
            _prediction(item, heat_map, probability)
            for item, heat_map, probability in zip(batch.items, maps, probabilities, strict=True)
        ]

    def score(self, predictions: Sequence[Prediction]) -> Scores:
        """The figures of grounding, and how often the box is a proposal."""
        if self.compat_official:
            predictions = with_the_box_before(predictions)
        scores = score(predictions, self.split)
        return scores | _proposal_scores([p for p in predictions if p["present"]], self.split)


def _prediction(item: GroundingItem, heat_map: np.ndarray, probability: float) -> Prediction:
    assert isinstance(item, WeakGroundingItem)
    choice = best_proposal(heat_map, item.proposals_xyxy_px, item.width, item.height)
    if choice.index is not None:
        box, found_by = item.proposals_xyxy_px[choice.index], BY_PROPOSAL
    else:
        x1, y1, x2, y2 = best_box(heat_map)
        box = (x1 * item.width, y1 * item.height, x2 * item.width, y2 * item.height)
        found_by = BY_MAP
    return {
        **reference_of(item),
        "proposals_xyxy_px": item.proposals_xyxy_px,
        "box_xyxy_px": list(box),
        "probability": probability,
        "found_by": found_by,
        "proposal_score": choice.score if choice.index is not None else None,
    }


def with_the_box_before(predictions: Sequence[Prediction]) -> list[Prediction]:
    """As the released code scores: no proposal with a score above 0, the box of the item before."""
    box: list[float] = list(NO_PLACE)
    out = []
    for prediction in predictions:
        score_of_it = prediction.get("proposal_score")
        if score_of_it is not None and score_of_it > 0:
            box = prediction["box_xyxy_px"]
        out.append({**prediction, "box_xyxy_px": box})
    return out


def _proposal_scores(present: Sequence[Prediction], split: str) -> Scores:
    if not present:
        return {}
    n = len(present)
    chosen = [p.get("found_by") == BY_PROPOSAL for p in present]
    dead = [(found := p.get("proposal_score")) is not None and found <= 0 for p in present]
    hits, best = [], []
    for p in present:
        right = np.array([p["target_xyxy_px"], *p["other_targets_xyxy_px"]])
        some = np.array(p["proposals_xyxy_px"], dtype=np.float64).reshape(-1, 4)
        is_hit = iou_plain(some[:, None], right[None]).max(axis=1, initial=0.0)
        hits.append(accuracy_at(is_hit) if len(some) else 0.0)
        best.append(float(is_hit.max(initial=0.0)))
    scores: Scores = {}
    if any("found_by" in p for p in present):
        scores["phrases with proposals"] = Score(
            sum(chosen) / n, split, "the others: what is hot in the map", n
        )
    if any(dead):
        scores["phrases without heat"] = Score(
            sum(dead) / n, split, "no proposal has a score above 0: the best one all the same", n
        )
    if any(chosen):
        scores["baseline: random proposal"] = Score(
            float(np.mean(hits)), split, "plain IoU, exact expectation; none: missed", n
        )
        scores["best possible proposal"] = Score(
            accuracy_at(best), split, "plain IoU, what no choice can exceed", n
        )
    return scores
