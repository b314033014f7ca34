"""Answers from heat maps: boxes of models that learnt without any, and where each word looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xvlm_core.data.boxes import cxcywh_to_xyxy
from xvlm_core.inference.heatmap import HeatMaps, look_again
from xvlm_core.metrics.heat_map import best_box, best_proposal
from xvlm_core.models.packing import PackedTexts
from xvlm_core.models.xvlm import XVLM

FoundBy = Literal["box head", "proposal", "heat map", "no heat"]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class WordSpan:
    """A word and its tokens, ``start`` to before ``stop`` in the text (CLS is token 0)."""

    word: str
    start: int
    stop: int


@dataclass(frozen=True)
class WordHeat:
    """Where a word looks: the mean over its pieces, ``(n, n)``."""

    word: str
    map_nn: Floats


@dataclass(frozen=True)
class Heat:
    """Where a phrase looks.

    Attributes:
        map_nn: of the whole phrase: the mean over its tokens, CLS among them.
        layer: whose attention that is.
        words: maps of the words.
        word_layer: whose attention those are. In the last layer the first token alone is read by
            the matching head: there no word has a map of its own, and the layer before serves. None
            where there is no such layer.
    """

    map_nn: Floats
    layer: int
    words: tuple[WordHeat, ...]
    word_layer: int | None


@dataclass(frozen=True)
class Place:
    """What an answer needs to know of a phrase and its picture.

    Attributes:
        width: of the picture.
        height: of the picture.
        proposals_xyxy_px: boxes in it to choose from, ``(K, 4)``; None: none.
        words: of the phrase.
    """

    width: int
    height: int
    proposals_xyxy_px: Floats | None
    words: tuple[WordSpan, ...]


@dataclass(frozen=True)
class Answered:
    """A box and its probability; see :class:`xvlm_core.inference.predictor.Grounding`.

    The box is not clipped.
    """

    box_xyxy_px: Floats
    probability: float
    found_by: FoundBy
    proposal_score: float | None = None
    heat: Heat | None = None


def answer(
    model: XVLM,
    pictures_ICHW: Tensor,
    texts: PackedTexts,
    picture_of_text_B: Tensor,
    places: Sequence[Place],
    layer: int,
    *,
    explain: bool,
) -> list[Answered]:
    """The box of each text: a proposal if there are any, else the box head's, else the hot place.

    No heat map is made where none is needed.

    Args:
        model: with a matching head, in evaluation mode.
        pictures_ICHW: normalised pictures.
        texts: B texts.
        picture_of_text_B: the picture of each.
        places: of each text.
        layer: whose attention chooses.
        explain: also say where each word looks.
    """
    choose = any(place.proposals_xyxy_px is not None for place in places)
    if "box" in model.config.heads and not choose and not explain:
        grounded = model.ground(pictures_ICHW, texts, picture_of_text_B)
        boxes_xyxy = cxcywh_to_xyxy(grounded.boxes_cxcywh_B4.double().cpu().numpy())
        return [
            Answered(box_xyxy * _size(place), probability, "box head")
            for place, box_xyxy, probability in zip(
                places,
                boxes_xyxy,
                grounded.match_probability_B.double().cpu().tolist(),
                strict=True,
            )
        ]
    with torch.no_grad():
        patches_IPS = model.encode_pictures(pictures_ICHW)
        states = model.encode_texts(texts)
    looks = look_again(model, patches_IPS, states, picture_of_text_B, layer)
    boxes: Sequence[Floats | None] = [None] * len(places)
    if "box" in model.config.heads:
        with torch.no_grad():
            boxes_cxcywh = model.boxes(looks.first_BD)
        boxes = list(cxcywh_to_xyxy(boxes_cxcywh.double().cpu().numpy()))
    maps = looks.maps.of_texts().double().cpu().numpy()
    heats: Sequence[Heat | None] = [None] * len(places)
    if explain:
        below = min(layer, model.config.text.num_layers - 2)
        word_layer = below if below >= model.config.text.fusion_layer else None
        of_words = looks.maps
        if word_layer is not None and word_layer != layer:
            of_words = look_again(model, patches_IPS, states, picture_of_text_B, word_layer).maps
        heats = [
            Heat(map_nn, layer, words, word_layer)
            for map_nn, words in zip(maps, _of_words(of_words, places, word_layer), strict=True)
        ]
    probabilities = looks.match_probability_B.double().cpu().tolist()
    return [
        _answered(place, box, map_nn, probability, heat)
        for place, box, map_nn, probability, heat in zip(
            places, boxes, maps, probabilities, heats, strict=True
        )
    ]


def _answered(
    place: Place, box_xyxy: Floats | None, map_nn: Floats, probability: float, heat: Heat | None
) -> Answered:
    if place.proposals_xyxy_px is not None:
        boxes = place.proposals_xyxy_px
        choice = best_proposal(map_nn, boxes, place.width, place.height)
        if choice.index is not None:
            return Answered(boxes[choice.index], probability, "proposal", choice.score, heat)
    if box_xyxy is not None:
        return Answered(box_xyxy * _size(place), probability, "box head", None, heat)
    found_by: FoundBy = "heat map" if map_nn.max() > 0 else "no heat"
    return Answered(np.array(best_box(map_nn)) * _size(place), probability, found_by, None, heat)


def _of_words(
    maps: HeatMaps, places: Sequence[Place], word_layer: int | None
) -> list[tuple[WordHeat, ...]]:
    if word_layer is None:
        return [()] * len(places)
    tokens = [map_Lnn.double().cpu().numpy() for map_Lnn in maps.of_tokens()]
    return [
        tuple(WordHeat(w.word, map_Lnn[w.start : w.stop].mean(0)) for w in place.words)
        for map_Lnn, place in zip(tokens, places, strict=True)
    ]


def _size(place: Place) -> Floats:
    return np.array([place.width, place.height] * 2, dtype=np.float64)
