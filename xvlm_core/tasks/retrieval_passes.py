"""The passes of the evaluation of retrieval: what a batch of each is, and texts for the second.

Legend: I pictures, P patches, S width of the picture encoder, T texts, N tokens, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from xvlm_core.data.batches import PictureBatch
from xvlm_core.data.dropped import BadSamples
from xvlm_core.models.packing import PackedTexts, Packing
from xvlm_core.models.text import OnePicture, TextStates
from xvlm_core.models.xvlm import XVLM
from xvlm_core.tasks.retrieval_ranking import Found


@dataclass(frozen=True)
class TextItem:
    """One text of the collection.

    Attributes:
        id: unique in the split.
        picture: id of the picture that it belongs to.
        text: before cleaning.
        tokens: of the cleaned text.
    """

    id: str
    picture: str
    text: str
    tokens: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class CollectionBatch(PictureBatch):
    """First pass: pictures with all their texts, to be encoded.

    Attributes:
        picture_ids: of the I pictures.
        items: the texts.
    """

    picture_ids: tuple[str, ...]
    items: tuple[TextItem, ...]


@dataclass(frozen=True)
class PairsBatch:
    """Second pass: a picture and the texts that it is to be scored with."""

    picture: str
    patches_PS: Tensor
    texts: npt.NDArray[np.int64]
    n_pictures: int = 1
    dropped: Mapping[str, int] = field(default_factory=dict)
    bad: BadSamples = field(default_factory=BadSamples)

    @property
    def record_ids(self) -> tuple[str, ...]:
        """The picture."""
        return (self.picture,)

    def to(self, device: torch.device | str) -> PairsBatch:
        """The same batch on another device."""
        return dataclasses.replace(self, patches_PS=self.patches_PS.to(device))


@dataclass(frozen=True)
class QueriesBatch:
    """Third pass: queries to be ranked, pictures first. The model has nothing to do."""

    queries: range
    record_ids: tuple[str, ...]
    n_pictures: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    bad: BadSamples = field(default_factory=BadSamples)

    def to(self, device: torch.device | str) -> QueriesBatch:
        """Itself."""
        return self


class AllTexts:
    """The states of all texts of a collection, in one row, on the model's device.

    Args:
        found: the collection.
        model: encodes the texts that other ranks have encoded, in the very same batches.
        encoded: those of this rank, by batch.
    """

    def __init__(self, found: Found, model: XVLM, encoded: Mapping[str, TextStates]) -> None:
        self.lengths = np.array([len(tokens) for tokens in found.tokens], dtype=np.int64)
        self.starts = np.cumsum(self.lengths) - self.lengths
        rows = []
        ends = np.flatnonzero(np.diff(found.batch_of_text)) + 1
        for texts in np.split(np.arange(len(found.tokens)), ends):
            name = found.picture_ids[found.batch_of_text[texts[0]]]
            states = encoded.get(name)
            if states is None:
                packed = PackedTexts.from_lists([found.tokens[t] for t in texts])
                states = model.encode_texts(packed.to(model.device))
            at = [
                torch.arange(start, start + length)
                for start, length in zip(states.packing.starts, states.packing.lengths, strict=True)
            ]
            rows.append(states.hidden_ND[torch.cat(at).to(model.device)])
        self.hidden_ND = torch.cat(rows)

    def states(self, texts: npt.NDArray[np.int64]) -> TextStates:
        """Those of some texts, packed."""
        packing = Packing(tuple(self.lengths[texts].tolist()))
        starts = self.starts[texts][list(packing.order)]
        at = [
            (starts[g.row : g.row + g.rows, None] + np.arange(g.length)).reshape(-1)
            for g in packing.groups
        ]
        index = torch.from_numpy(np.concatenate(at)).to(self.hidden_ND.device)
        return TextStates(self.hidden_ND[index], packing)


def match_scores(model: XVLM, states: TextStates, picture: OnePicture) -> Tensor:
    """How well each text fits one picture: the raw logit of class 1, ``(T,)`` float32.

    Args:
        model: with a matching head.
        states: of the texts alone.
        picture: what all of them look at; its keys and values are projected once.
    """
    return model.match_logits(model.text.fuse_one(states, picture).first())[:, 1]
