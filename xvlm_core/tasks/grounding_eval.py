"""Grounding, evaluated: every phrase of a split once, its box, and whether it is there at all.

Used by the grounding task, and by pre-training to select its best checkpoint.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from xvlm_core.data import augment
from xvlm_core.data.batches import GroundingBatch, GroundingItem
from xvlm_core.data.boxes import box_problem
from xvlm_core.data.images import PictureError, read_picture
from xvlm_core.data.records import Record
from xvlm_core.data.samples import SIZE_MISMATCH
from xvlm_core.data.store import Store
from xvlm_core.models.packing import PackedTexts
from xvlm_core.models.xvlm import XVLM
from xvlm_core.tasks import grounding_scores
from xvlm_core.tasks.base import Batch, Prediction, Scores
from xvlm_core.tasks.grounding_scores import SELECTION, score
from xvlm_core.tasks.split_items import Place, SplitItems

__all__ = [
    "MAX_PHRASES",
    "SELECTION",
    "BoxXYXY",
    "GroundingEvaluation",
    "objects_of",
    "predict",
    "reference_of",
    "score",
    "to_xyxy_px",
]

BoxXYXY = tuple[float, float, float, float]

MAX_PHRASES = 512
"""Phrases a batch from which on no further picture joins it: bounds the memory."""


class _Pictures:
    """The pictures of a batch, each once however many records are about it.

    Attributes:
        pixels: normalised pictures.
        record_ids: the first record of each.
    """

    def __init__(self, image_size: int) -> None:
        self.image_size = image_size
        self.pixels: list[np.ndarray] = []
        self.record_ids: list[str] = []
        self._known: dict[str, tuple[int, tuple[int, int]]] = {}

    def number(self, name: str, store: Store, record: Record) -> int:
        """The place of a record's picture among them.

        Args:
            name: of the picture: the same for all records about it.
            store: of the record.
            record: that is asked about.

        Raises:
            PictureError: it cannot be read, or the boxes of the record cannot be boxes of it.
        """
        number, size = self._known.get(name, (len(self.pixels), (0, 0)))
        image = None
        if name not in self._known:
            image = read_picture(store.picture(record))
            size = image.size
        if size != (record.width, record.height):
            raise PictureError(SIZE_MISMATCH, size)
        if image is not None:
            self.pixels.append(augment.normalise(augment.test_picture(image, self.image_size)))
            self.record_ids.append(record.id)
            self._known[name] = number, size
        return number


class GroundingEvaluation(SplitItems):
    """The phrases of some stores' split, each once; nothing is padded or repeated.

    Records about one picture (RefCOCO has one for each expression) are asked about one after the
    other, so that the picture is read and encoded once in a batch.

    A :class:`xvlm_core.tasks.store_evaluation.StoreEvaluation`.
    """

    NO_ANSWER: ClassVar[dict[str, Any]] = grounding_scores.NO_ANSWER

    selection: str | None = SELECTION

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """See :func:`predict`."""
        assert isinstance(model, XVLM)
        assert isinstance(batch, GroundingBatch)
        return predict(model, batch)

    def score(self, predictions: Sequence[Prediction]) -> Scores:
        """See :func:`score`."""
        return score(predictions, self.split)

    @staticmethod
    def presence(predictions: Sequence[Prediction]) -> tuple[list[float], list[bool]]:
        """Said probabilities of being there, and the truth: what a temperature is fitted to."""
        return grounding_scores.presence(predictions)

    def references(self) -> Iterator[Prediction]:
        """What :func:`score` wants of each phrase beside the answer, in order.

        No picture is opened: phrases of pictures that cannot be read are among them.
        """
        self.forget_dropped()
        for place in self.places:
            for _, item in self._items(place.record(), place.prefix):
                yield self._reference(item)

    def _reference(self, item: GroundingItem) -> Prediction:
        return reference_of(item)

    def validation(self, rank: int = 0, world_size: int = 1) -> Iterator[GroundingBatch]:
        """Batches of whole pictures with all their phrases, present and absent.

        The shares of the ranks, one after the other, are all pictures once. What was dropped
        after the last phrase that could be asked comes as a batch without any.
        """
        for places in self.shares(rank, world_size):
            yield from self._batches(places)
        last = self.newly_dropped()
        if last:
            yield self._batch(_Pictures(self.image_size), [], last)

    def asked_in_order(self) -> list[Place]:
        """Pictures by their first record, each with all its records."""
        return self._by_picture

    @cached_property
    def _by_picture(self) -> list[Place]:
        groups: dict[str, list[Place]] = {}
        for place in self.places:
            groups.setdefault(f"{place.prefix}{place.record().image}", []).append(place)
        return [place for group in groups.values() for place in group]

    def _batches(self, places: Sequence[Place]) -> Iterator[GroundingBatch]:
        """One, or more where there are many phrases."""
        pictures = _Pictures(self.image_size)
        rows: list[tuple[int, tuple[int, ...], GroundingItem]] = []
        for number, place in enumerate(places, start=1):
            record = place.record()
            found = list(self._items(record, place.prefix))
            if found:
                try:
                    picture = pictures.number(found[0][1].image, place.store, record)
                    rows += [(picture, tokens, item) for tokens, item in found]
                except PictureError as problem:
                    self.drop(record.id, problem.reason, len(found))
            if rows and (len(rows) >= MAX_PHRASES or number == len(places)):
                yield self._batch(pictures, rows, self.newly_dropped())
                pictures, rows = _Pictures(self.image_size), []

    def _batch(
        self,
        pictures: _Pictures,
        rows: list[tuple[int, tuple[int, ...], GroundingItem]],
        dropped: dict[str, int],
    ) -> GroundingBatch:
        items = tuple(item for _, _, item in rows)
        return GroundingBatch(
            pictures_ICHW=torch.from_numpy(np.stack(pictures.pixels))
            if pictures.pixels
            else torch.zeros(0, 3),
            texts=PackedTexts.from_lists([tokens for _, tokens, _ in rows]),
            picture_of_text_B=torch.tensor([picture for picture, _, _ in rows]),
            present_B=torch.tensor([item.box_xyxy_px is not None for item in items]),
            boxes_cxcywh_B4=torch.zeros(len(rows), 4),
            items=items,
            record_ids=tuple(pictures.record_ids),
            dropped=dropped,
        )

    def _items(
        self, record: Record, prefix: str
    ) -> Iterator[tuple[tuple[int, ...], GroundingItem]]:
        regions, absent = record.regions, record.absent
        kinds = _named(record, "phrase_kinds", [region.kind for region in regions])
        absent_kinds = _named(record, "absent_kinds", ["absent"] * len(absent))
        likes = _named(record, "absent_like", [None] * len(absent))
        objects = objects_of(record)
        phrases: list[tuple[str, str, BoxXYXY | None, str | None]] = [
            (region.text, str(kind), region.box_xyxy_px, region.kind)
            for region, kind in zip(regions, kinds, strict=True)
        ]
        phrases += [
            (text, str(kind), None, None if like is None else str(like))
            for text, kind, like in zip(absent, absent_kinds, likes, strict=True)
        ]
        labels: Counter[tuple[str, str]] = Counter((r.text, r.kind) for r in regions)
        said: set[str] = set()
        for number, (text, kind, box, like) in enumerate(phrases):
            name = f"{prefix}{record.id}#{number}"
            tokens = self.tokens(text)
            problem = None if tokens else "empty text"
            if box is not None:
                problem = problem or box_problem(box, record.width, record.height)
            if problem is not None:
                self.drop(name, problem)
                continue
            others: tuple[BoxXYXY, ...] = ()
            if box is not None and like == "object" and labels[text, like] > 1:
                if text in said:  # one question, any of its things is a right answer
                    continue
                said.add(text)
                others = tuple(
                    r.box_xyxy_px for r in regions[number + 1 :] if (r.text, r.kind) == (text, like)
                )
            size, image = (record.width, record.height), f"{prefix}{record.image}"
            item = GroundingItem(
                name, record.id, text, kind, box, *size, like, objects, others, image
            )
            yield tokens, item


def _named(record: Record, key: str, default: Sequence[object]) -> Sequence[object]:
    """One entry a phrase from the record's ``meta``, if it has such a list of the right length."""
    value = record.meta.get(key)
    return value if isinstance(value, list) and len(value) == len(default) else default


def objects_of(record: Record) -> tuple[BoxXYXY, ...]:
    """Distinct boxes of single things in a picture, for the random-object baseline.

    ``meta.scene`` (a list of objects with ``box_xyxy_px``) where there is one, else the boxes of
    the record's objects.
    """
    scene = record.meta.get("scene")
    if isinstance(scene, list):
        boxes = [thing.get("box_xyxy_px") for thing in scene if isinstance(thing, dict)]
        known = [
            (float(box[0]), float(box[1]), float(box[2]), float(box[3]))
            for box in boxes
            if isinstance(box, list) and box_problem(box, record.width, record.height) is None
        ]
        if known and len(known) == len(scene):
            return tuple(known)
    single = [r.box_xyxy_px for r in record.regions if r.kind in ("object", "attribute", "phrase")]
    return tuple(dict.fromkeys(single))


def predict(model: XVLM, batch: GroundingBatch) -> list[Prediction]:
    """The box (pixels of the original picture, not clipped) and the probability of each phrase."""
    if not batch.items:
        return []
    grounded = model.ground(batch.pictures_ICHW, batch.texts, batch.picture_of_text_B)
    boxes = to_xyxy_px(grounded.boxes_cxcywh_B4.float().cpu(), batch.items)
    probabilities = grounded.match_probability_B.float().cpu().tolist()
    return [
        {**reference_of(item), "box_xyxy_px": box, "probability": probability}
        for item, box, probability in zip(batch.items, boxes, probabilities, strict=True)
    ]


def reference_of(item: GroundingItem) -> Prediction:
    """What a phrase's answer is compared with."""
    return {
        "id": item.id,
        "record": item.record,
        "image": item.image,
        "phrase": item.phrase,
        "kind": item.kind,
        "like": item.like,
        "present": item.box_xyxy_px is not None,
        "target_xyxy_px": item.box_xyxy_px,
        "other_targets_xyxy_px": item.others_xyxy_px,
        "width": item.width,
        "height": item.height,
        "objects_xyxy_px": item.objects_xyxy_px,
    }


def to_xyxy_px(boxes_cxcywh_B4: Tensor, items: Sequence[GroundingItem]) -> list[list[float]]:
    """Fractions -> corners in pixels of each item's original picture."""
    size = torch.tensor([[item.width, item.height] for item in items], dtype=torch.float32)
    centre, extent = boxes_cxcywh_B4[:, :2] * size, boxes_cxcywh_B4[:, 2:] * size
    corners: list[list[float]] = torch.cat([centre - extent / 2, centre + extent / 2], 1).tolist()
    return corners
