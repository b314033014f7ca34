"""The Retriever: the pictures of a text in a collection, and the texts of a picture.

In two stages (X-VLM, section 4.3): similarity of the unit vectors of all, then the cross encoder
on the best, whose matching probability is the order. Pictures and texts are encoded once a call,
whatever the number of questions; keys and values of a picture serve all its texts.

Legend: I pictures, B texts, E width of the joint space.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from xvlm_core.data.boxes import clip_box_xyxy_px, cxcywh_to_xyxy
from xvlm_core.data.images import PictureError, read_picture
from xvlm_core.errors import CheckpointError, DataError
from xvlm_core.inference.reading import (
    Picture,
    ReadText,
    device_of,
    model_pixels,
    read_text,
    upright_rgb,
)
from xvlm_core.inference.search_index import Builder, SearchIndex, fingerprint
from xvlm_core.models.attention import TextStates
from xvlm_core.models.packing import PackedTexts, Packing
from xvlm_core.weights.folder import LoadedModel, load_model_folder

Floats = NDArray[np.float32]
BoxXYXY = tuple[float, float, float, float]

CANDIDATES = 32
"""How many of the most similar the cross encoder looks at for each question, if not more are asked
for."""

BATCH = 16
"""Pictures encoded in one call."""

PAIRS_AT_ONCE = 128
"""Texts with their pictures that the cross encoder reads in one call: bounds the memory."""

TEXTS_AT_ONCE = 256
"""Texts encoded in one call."""

_NEEDED_HEADS = ("contrastive", "matching")


@dataclass(frozen=True)
class Match:
    """One answer: a picture of a text, or a text of a picture.

    Attributes:
        number: of the picture in the index, or of the text among those given.
        similarity: cosine of the two vectors.
        probability: that they belong together, from the matching head; None: the cross encoder has
            not looked at it, as too many others are more similar.
        box_xyxy_px: which part of the picture it is, in its pixels, clipped; None: not asked for,
            or the model has no box head.
    """

    number: int
    similarity: float
    probability: float | None
    box_xyxy_px: BoxXYXY | None = None

    def to_json(self) -> dict[str, Any]:
        """The scores as a JSON object."""
        box = None if self.box_xyxy_px is None else list(self.box_xyxy_px)
        scores = {"similarity": self.similarity, "probability": self.probability}
        return scores if box is None else {**scores, "box_xyxy_px": box}


@dataclass(frozen=True)
class Searched:
    """Answers to each text, and pictures of the index that could not be read again."""

    answers: tuple[tuple[Match, ...], ...]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Ranked:
    """Answers for each picture, None for one that cannot be read, and a line for each of those."""

    answers: tuple[tuple[Match, ...] | None, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class _Texts:
    """Distinct texts as the model has them, and which of them each given one is."""

    states: TextStates
    vectors_BE: Floats
    distinct: tuple[int, ...]


@dataclass(frozen=True)
class _Looked:
    """What the cross encoder says of a text and a picture."""

    log_odds: float
    box_xyxy: NDArray[np.float64] | None


class Retriever:
    """A loaded model that searches. Make one with :meth:`from_folder`.

    Attributes:
        builder: the name of this model in an index.
        has_boxes: whether it can say which part of a picture it is.
    """

    def __init__(self, loaded: LoadedModel, builder: Builder, device: str = "auto") -> None:
        """Take a loaded model to a device ("auto": the GPU if there is one).

        Raises:
            CheckpointError: the model lacks the contrastive or the matching head.
            UsageError: there is no such device.
        """
        lacking = [head for head in _NEEDED_HEADS if head not in loaded.info.config.heads]
        if lacking:
            raise CheckpointError(
                f"this model of task {loaded.info.task} cannot search: "
                f"it has no {' and no '.join(lacking)} head",
                try_="take a model of task retrieval or pretrain (xvlm ls runs)",
            )
        self.info = loaded.info
        self.builder = builder
        self.has_boxes = "box" in loaded.info.config.heads
        self.tokenizer = loaded.tokenizer
        self.device = device_of(device)
        self.model = loaded.model.to(self.device).eval()

    @classmethod
    def from_folder(cls, path: Path | str, device: str = "auto") -> Retriever:
        """Load a model folder.

        Raises:
            CheckpointError: missing, damaged, or a model that cannot search.
            UsageError: there is no such device.
        """
        loaded = load_model_folder(Path(path))
        return cls(loaded, Builder(fingerprint(Path(path), loaded.info), loaded.info.about), device)

    def read(self, text: str) -> ReadText:
        """A text as the model reads it.

        Raises:
            UsageError: nothing is left of it after cleaning.
        """
        return read_text(text, self.tokenizer, self.info)

    # ------------------------------------------------------------------ collections

    @torch.inference_mode()
    def picture_vectors(self, images: Sequence[Image.Image]) -> Floats:
        """Unit vectors ``(I, E)`` of upright RGB pictures."""
        return self._vectors(self._patches(images))

    def search(
        self,
        texts: Sequence[ReadText],
        index: SearchIndex,
        root: Path,
        top: int,
        *,
        region: bool = False,
    ) -> Searched:
        """The pictures of each text, the most probable first.

        A picture that is a candidate of several texts is read and encoded once for all.

        Args:
            texts: what to look for.
            index: of the collection.
            root: the folder of its pictures.
            top: answers to each text; fewer where there are fewer pictures.
            region: also say which part of the picture it is.
        """
        if not texts:
            return Searched((), ())
        asked = self._encode_texts(texts)
        hits = index.search(asked.vectors_BE, max(top, CANDIDATES))
        similarity = {
            (text, number): float(hits.similarity_QK[text, rank])
            for text, numbers in enumerate(hits.number_QK.tolist())
            for rank, number in enumerate(numbers)
        }
        texts_of: dict[int, list[int]] = {}
        for text, number in similarity:
            texts_of.setdefault(number, []).append(text)
        problems: list[str] = []
        found: list[list[tuple[float, Match]]] = [[] for _ in hits.number_QK]
        for numbers, images in _images(sorted(texts_of), index, root, problems):
            wanted = [texts_of[number] for number in numbers]
            looked = self._look(asked.states, self._patches(images), wanted)
            for number, image, row in zip(numbers, images, looked, strict=True):
                for text, one in zip(texts_of[number], row, strict=True):
                    match = _match(number, similarity[text, number], one, image, region=region)
                    found[text].append((one.log_odds, match))
        ranked = [_ranked(some)[:top] for some in found]
        return Searched(tuple(ranked[which] for which in asked.distinct), tuple(problems))

    # ------------------------------------------------------------------ pictures

    def rank(
        self,
        pictures: Sequence[Picture],
        texts: Sequence[Sequence[ReadText]],
        top: int | None = None,
        *,
        region: bool = False,
    ) -> Ranked:
        """The given texts of each picture, the most probable first.

        The cross encoder looks at the ``max(top, CANDIDATES)`` most similar texts of a picture; the
        others follow by similarity.

        Args:
            pictures: files, or Pillow images.
            texts: of each picture those to choose from.
            top: answers for each picture; None: all its texts.
            region: also say which part of the picture each text is.
        """
        all_texts = [text for some in texts for text in some]
        if not all_texts:
            return Ranked(tuple(() for _ in texts), ())
        asked = self._encode_texts(all_texts)
        distinct = iter(asked.distinct)
        texts_of = [[next(distinct) for _ in some] for some in texts]
        answers: list[tuple[Match, ...] | None] = [None] * len(pictures)
        problems: list[str] = []
        for start in range(0, len(pictures), BATCH):
            numbers, images = [], []
            for number in range(start, min(start + BATCH, len(pictures))):
                try:
                    images.append(upright_rgb(pictures[number]))
                except DataError as error:
                    problems.append(error.what)
                    continue
                numbers.append(number)
            if images:
                asked_now = [texts_of[number] for number in numbers]
                ranked = self._rank_batch(images, asked, asked_now, top, region=region)
                for number, row in zip(numbers, ranked, strict=True):
                    answers[number] = row
        return Ranked(tuple(answers), tuple(problems))

    def _rank_batch(
        self,
        images: Sequence[Image.Image],
        asked: _Texts,
        texts_of: Sequence[Sequence[int]],
        top: int | None,
        *,
        region: bool,
    ) -> list[tuple[Match, ...]]:
        patches_IPS = self._patches(images)
        similarity_IB = self._vectors(patches_IPS) @ asked.vectors_BE.T
        limit = max(top or 0, CANDIDATES)
        similarities = [
            similarity_B[list(texts)]
            for similarity_B, texts in zip(similarity_IB, texts_of, strict=True)
        ]
        orders: list[list[int]] = [np.argsort(-s, kind="stable").tolist() for s in similarities]
        wanted = [
            [texts[place] for place in order[:limit]]
            for texts, order in zip(texts_of, orders, strict=True)
        ]
        looked = self._look(asked.states, patches_IPS, wanted)
        answers: list[tuple[Match, ...]] = []
        for image, similarity, order, row in zip(images, similarities, orders, looked, strict=True):
            scored = [
                (one.log_odds, _match(place, similarity[place], one, image, region=region))
                for place, one in zip(order[:limit], row, strict=True)
            ]
            rest = [Match(place, float(similarity[place]), None) for place in order[limit:]]
            answers.append((*_ranked(scored), *rest)[:top])
        return answers

    # ------------------------------------------------------------------ the model

    @torch.inference_mode()
    def _patches(self, images: Sequence[Image.Image]) -> Tensor:
        side = self.info.config.vision.image_size
        pixels_ICHW = torch.from_numpy(np.stack([model_pixels(image, side) for image in images]))
        return self.model.encode_pictures(pixels_ICHW.to(self.device))

    @torch.inference_mode()
    def _vectors(self, patches_IPS: Tensor) -> Floats:
        views = self.model.whole(len(patches_IPS))
        vectors: Floats = self.model.picture_features(patches_IPS, views).cpu().numpy()
        return vectors

    @torch.inference_mode()
    def _encode_texts(self, texts: Sequence[ReadText]) -> _Texts:
        """Each distinct text once."""
        number_of: dict[tuple[int, ...], int] = {}
        for text in texts:
            number_of.setdefault(text.ids, len(number_of))
        distinct = list(number_of)
        parts = [
            self.model.encode_texts(
                PackedTexts.from_lists(distinct[start : start + TEXTS_AT_ONCE]).to(self.device)
            )
            for start in range(0, len(distinct), TEXTS_AT_ONCE)
        ]
        states = _joined(parts)
        vectors_BE: Floats = self.model.text_features(states.first()).cpu().numpy()
        return _Texts(states, vectors_BE, tuple(number_of[text.ids] for text in texts))

    @torch.inference_mode()
    def _look(
        self, states: TextStates, patches_IPS: Tensor, texts_of: Sequence[Sequence[int]]
    ) -> list[list[_Looked]]:
        """The cross encoder on each picture and its texts, a few pictures at a time."""
        looked: list[list[_Looked]] = [[] for _ in texts_of]
        for pairs in _in_calls(texts_of):
            rows = sorted({row for row, _ in pairs})
            views = self.model.whole(len(rows))
            row_of = {row: place for place, row in enumerate(rows)}
            picture_B = torch.tensor([row_of[row] for row, _ in pairs], device=self.device)
            some = states.select([text for _, text in pairs])
            first_BD = self.model.fuse(some, patches_IPS[rows], views, picture_B).first()
            logits_B2 = self.model.match_logits(first_BD).double().cpu()
            log_odds = (logits_B2[:, 1] - logits_B2[:, 0]).tolist()
            boxes: Sequence[NDArray[np.float64] | None] = [None] * len(pairs)
            if self.has_boxes:
                boxes = list(cxcywh_to_xyxy(self.model.boxes(first_BD).double().cpu().numpy()))
            for (row, _), odds, box_xyxy in zip(pairs, log_odds, boxes, strict=True):
                looked[row].append(_Looked(odds, box_xyxy))
        return looked


def _in_calls(texts_of: Sequence[Sequence[int]]) -> Iterator[list[tuple[int, int]]]:
    """(picture, text) of each call: the texts of a picture together, if one call holds them."""
    pairs: list[tuple[int, int]] = []
    for row, texts in enumerate(texts_of):
        if pairs and len(pairs) + len(texts) > PAIRS_AT_ONCE:
            yield pairs
            pairs = []
        for text in texts:
            pairs.append((row, text))
            if len(pairs) == PAIRS_AT_ONCE:
                yield pairs
                pairs = []
    if pairs:
        yield pairs


def _joined(parts: Sequence[TextStates]) -> TextStates:
    """The texts of all parts, packed together."""
    if len(parts) == 1:
        return parts[0]
    lengths: tuple[int, ...] = ()
    starts: list[int] = []
    before = 0
    for part in parts:
        lengths += part.packing.lengths
        starts += [before + start for start in part.packing.starts]
        before += part.packing.n_tokens
    packing = Packing(lengths)
    tokens = [torch.arange(starts[b], starts[b] + lengths[b]) for b in packing.order]
    hidden_ND = torch.cat([part.hidden_ND for part in parts])
    return TextStates(hidden_ND[torch.cat(tokens).to(hidden_ND.device)], packing)


def _images(
    numbers: Sequence[int], index: SearchIndex, root: Path, problems: list[str]
) -> Iterator[tuple[list[int], list[Image.Image]]]:
    """Pictures of an index by batches; those that cannot be read go to ``problems``."""
    good: list[int] = []
    images: list[Image.Image] = []
    for number in numbers:
        path = root / index.entries[number].path
        try:
            images.append(read_picture(path))
        except PictureError as error:
            problems.append(f"picture {path}: {error.reason}")
            continue
        good.append(number)
        if len(good) == BATCH:
            yield good, images
            good, images = [], []
    if good:
        yield good, images


def _match(
    number: int, similarity: float, one: _Looked, image: Image.Image, *, region: bool
) -> Match:
    box: BoxXYXY | None = None
    if region and one.box_xyxy is not None:
        size = np.array([image.width, image.height] * 2, dtype=np.float64)
        clipped = clip_box_xyxy_px(one.box_xyxy * size, image.width, image.height)
        x1, y1, x2, y2 = (float(value) for value in clipped)
        box = (x1, y1, x2, y2)
    probability = float(torch.tensor(one.log_odds, dtype=torch.float64).sigmoid())
    return Match(number, float(similarity), probability, box)


def _ranked(scored: Sequence[tuple[float, Match]]) -> tuple[Match, ...]:
    """By the odds (probabilities of 1 would all be equal), then similarity, then number."""
    order = sorted(scored, key=lambda pair: (-pair[0], -pair[1].similarity, pair[1].number))
    return tuple(match for _, match in order)
