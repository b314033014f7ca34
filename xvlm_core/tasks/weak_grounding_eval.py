"""Grounding without boxes, evaluated: the same phrases and figures as grounding with boxes.

The box of a phrase is the proposal with the most heat (official.md 3.5), or what is hot in the map
where there is no proposal. A phrase that the map speaks of no place for is missed, and counted.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections import Counter
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
from xvlm_core.inference.proposals import ProposalIndex, Proposals, usable
from xvlm_core.listing import some
from xvlm_core.metrics.box_accuracy import accuracy_at, iou_plain
from xvlm_core.metrics.heat_map import best_box, best_proposal
from xvlm_core.models.xvlm import XVLM
from xvlm_core.tasks.base import Batch, Prediction, Score, Scores
from xvlm_core.tasks.grounding_eval import BoxXYXY, GroundingEvaluation, reference_of, score
from xvlm_core.tasks.split_items import Place
from xvlm_core.weights.folder import ModelInfo

BY_PROPOSAL, BY_MAP, NO_HEAT = "proposal", "heat map", "no heat"
"""What the box of an answer is; the last: no proposal has a score above 0, or, where there is none,
nothing in the map has."""

NO_PLACE: BoxXYXY = (0.0, 0.0, 0.0, 0.0)
"""The box of no place: it is never right."""


NOT_IN_PICTURE = "no proposal that is a box in the picture"
"""Why there is none to choose from, beside what :class:`Proposals` says."""


class EvaluationWarning(UserWarning):
    """Phrases that were asked, but not as they should have been."""


@dataclass(frozen=True)
class WeakGroundingItem(GroundingItem):
    """A phrase with the boxes to choose from.

    Attributes:
        proposals_xyxy_px: of its picture: boxes in it, cut to it (as released: not cut).
        without: why there are none, if so.
    """

    proposals_xyxy_px: tuple[BoxXYXY, ...] = ()
    without: str | None = None


class WeakGroundingEvaluation(GroundingEvaluation):
    """The phrases of :class:`GroundingEvaluation`, answered from heat maps.

    Args:
        *args: of :class:`GroundingEvaluation`.
        layer: of the text stack, whose attention makes the heat map.
        index: proposals by picture; None: the records' own.
        compat_official: proposals are not cut to the picture, and a phrase none of whose proposals
            has a score above 0 gets the box of the phrase before, as released (official.md 3.5 and
            6, row 9); the first one is missed. Phrases are asked in the order of the data.
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
        limit: int | None = None,
    ) -> WeakGroundingEvaluation:
        """Pictures and phrases as a model wants them.

        Args:
            stores: where the records are.
            split: which records.
            tokenizer: of the model.
            info: what the model is; as released if the run was that it is of.
            scoring: the layer of the heat map; stores of boxes, by their places; whether as
                released, if it is not to be as the run of the model was.
            proposals: those stores, opened by who knows where they are; None: see ``scoring``.
                Without any, the records' own proposals serve.
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
            compat_official=((scoring and scoring.compat) or info.compat) == "official",
            limit=limit,
        )

    def asked_in_order(self) -> list[Place]:
        """Pictures one after the other; as released: as the data have the phrases."""
        return self.places if self.compat_official else super().asked_in_order()

    def _items(
        self, record: Record, prefix: str
    ) -> Iterator[tuple[tuple[int, ...], GroundingItem]]:
        proposals: Proposals | None = None
        for tokens, item in super()._items(record, prefix):
            if proposals is None:
                proposals = self._proposals(record)
            fields = {f.name: getattr(item, f.name) for f in dataclasses.fields(item)}
            boxes = tuple((x1, y1, x2, y2) for x1, y1, x2, y2 in proposals.boxes_xyxy_px.tolist())
            yield (
                tokens,
                WeakGroundingItem(**fields, proposals_xyxy_px=boxes, without=proposals.missing),
            )

    def _proposals(self, record: Record) -> Proposals:
        """Of a record's picture; what is no box in it is left out, but as released."""
        if self.index is not None:
            found = self.index.of_record(record)
        elif record.proposals_xyxy_px:
            found = Proposals(np.array(record.proposals_xyxy_px, dtype=np.float64))
        else:
            found = Proposals.none("no proposals")
        if self.compat_official or found.missing is not None:
            return found
        boxes = usable(found.boxes_xyxy_px, record.width, record.height)
        return Proposals(np.array(boxes)) if boxes else Proposals.none(NOT_IN_PICTURE)

    def _reference(self, item: GroundingItem) -> Prediction:
        assert isinstance(item, WeakGroundingItem)
        return _reference(item)

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
        """The figures of grounding, and how often the box is a proposal.

        Phrases without heat are missed (as released: have the box of the phrase before). How many
        they are, and which had no proposals to choose from, is warned of.
        """
        _warn(predictions, self.split, official=self.compat_official)
        if self.compat_official:
            predictions = with_the_box_before(predictions)
        else:
            predictions = [_missed(p) if _is_cold(p) else p for p in predictions]
        scores = score(predictions, self.split)
        present = [p for p in predictions if p["present"]]
        return scores | _proposal_scores(present, self.split, official=self.compat_official)


def _reference(item: WeakGroundingItem) -> Prediction:
    return {
        **reference_of(item),
        "proposals_xyxy_px": item.proposals_xyxy_px,
        "without_proposals": item.without,
    }


def _prediction(item: GroundingItem, heat_map: np.ndarray, probability: float) -> Prediction:
    assert isinstance(item, WeakGroundingItem)
    choice = best_proposal(heat_map, item.proposals_xyxy_px, item.width, item.height)
    if choice.index is not None:
        box, found_by = item.proposals_xyxy_px[choice.index], BY_PROPOSAL
        is_cold = not choice.score > 0
    else:
        x1, y1, x2, y2 = best_box(heat_map)
        box = (x1 * item.width, y1 * item.height, x2 * item.width, y2 * item.height)
        found_by, is_cold = BY_MAP, not heat_map.max() > 0
    return {
        **_reference(item),
        "box_xyxy_px": list(NO_PLACE if is_cold else box),
        "probability": probability,
        "found_by": NO_HEAT if is_cold else found_by,
        "proposal_score": choice.score if choice.index is not None else None,
    }


def _is_cold(prediction: Prediction) -> bool:
    """Whether the heat map speaks for no place; not known of other programs' answers."""
    found = prediction.get("proposal_score")
    return prediction.get("found_by") == NO_HEAT or (found is not None and not found > 0)


def _missed(prediction: Prediction) -> Prediction:
    return {**prediction, "box_xyxy_px": list(NO_PLACE)}


def _warn(predictions: Sequence[Prediction], split: str, *, official: bool) -> None:
    """Say what was not asked as it should have been; nothing of other programs' answers."""
    ours = [p for p in predictions if "found_by" in p]
    without = [p for p in ours if p.get("without_proposals") is not None]
    if len(without) < len(ours):  # else it was meant so
        instead = "the box of the phrase before" if official else "what is hot in the heat map"
        for reason, n in Counter(p["without_proposals"] for p in without).items():
            named = dict.fromkeys(p["image"] for p in without if p["without_proposals"] == reason)
            text = f"{split}: {n:,} phrases of {some(list(named))}: {reason}, {instead} answers"
            warnings.warn(text, EvaluationWarning, stacklevel=3)
    cold = [p["id"] for p in ours if p["present"] and _is_cold(p)]
    if cold:
        counted = "the box of the phrase before counts" if official else "counted as missed"
        text = f"{split}: {len(cold):,} phrases without heat, {counted}: {some(cold)}"
        warnings.warn(text, EvaluationWarning, stacklevel=3)


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


def _proposal_scores(present: Sequence[Prediction], split: str, *, official: bool) -> Scores:
    if not present:
        return {}
    n = len(present)
    offered = [len(p["proposals_xyxy_px"]) > 0 for p in present]
    cold = [_is_cold(p) for p in present]
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
            sum(offered) / n, split, "the others: what is hot in the map", n
        )
    if any(cold):
        how = "the box of the phrase before, as released" if official else "no place found: missed"
        scores["phrases without heat"] = Score(sum(cold) / n, split, how, n)
    if any(offered):
        scores["baseline: random proposal"] = Score(
            float(np.mean(hits)), split, "plain IoU, exact expectation; none: missed", n
        )
        scores["best possible proposal"] = Score(
            accuracy_at(best), split, "plain IoU, what no choice can exceed", n
        )
    return scores
