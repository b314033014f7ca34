"""Writing token by token: what is computed once is kept.

The keys and values of a picture (or of a question) are projected once a layer, whatever the number
of steps and of texts that are written about it; they are not copied for each text. The keys and
values of the tokens of a text are kept from step to step.

Legend: S sources (pictures, questions), K tokens of a source, R rows: texts that are written, R / S
about each source, those about one source next to each other; T next tokens a row, L tokens before;
D width, V vocabulary, I pictures, P patches.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from xvlm_core.models.attention import Attention, TextStates
from xvlm_core.models.packing import Packing
from xvlm_core.models.text import TextEncoder


class Memory(Protocol):
    """What is written about."""

    n_sources: int

    def project(self, attention: Attention) -> tuple[Tensor, Tensor]:
        """Its keys and values in a layer, ``(S, K, D)``."""
        ...

    def mask_SK(self) -> Tensor | None:
        """Which of its tokens are there; None: all."""
        ...


class PictureMemory:
    """Whole pictures: [pooled token; patches].

    Args:
        patches_IPS: their patch tokens.
    """

    def __init__(self, patches_IPS: Tensor) -> None:
        self.patches_IPS = patches_IPS
        self.n_sources = len(patches_IPS)

    def project(self, attention: Attention) -> tuple[Tensor, Tensor]:
        """See :class:`Memory`."""
        return attention.keys_values_of(self.patches_IPS)

    def mask_SK(self) -> Tensor | None:
        """All of them."""
        return None


class TextMemory:
    """Texts of any length.

    Args:
        states: of their tokens.
    """

    def __init__(self, states: TextStates) -> None:
        self.states = states
        packing, device = states.packing, states.hidden_ND.device
        self.n_sources = packing.n_texts
        starts = torch.tensor(packing.starts, device=device)
        places = torch.arange(max(packing.lengths), device=device)
        self._is_real_SK = places < torch.tensor(packing.lengths, device=device)[:, None]
        self._token_SK = torch.where(self._is_real_SK, starts[:, None] + places, 0)

    def project(self, attention: Attention) -> tuple[Tensor, Tensor]:
        """See :class:`Memory`."""
        keys_ND, values_ND = attention.keys_values(self.states.hidden_ND)
        return keys_ND[self._token_SK], values_ND[self._token_SK]

    def mask_SK(self) -> Tensor | None:
        """The longest text alone fills its row."""
        return None if self._is_real_SK.all() else self._is_real_SK


class _Sources:
    """Keys and values of those sources that are still written about."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.n = memory.n_sources
        self.mask_SK = memory.mask_SK()
        self._known: dict[Attention, tuple[Tensor, Tensor]] = {}

    def attend(self, attention: Attention, hidden_ND: Tensor, packing: Packing) -> Tensor:
        """See :class:`xvlm_core.models.attention.CrossSource`."""
        if attention not in self._known:
            self._known[attention] = self.memory.project(attention)
        return attention.over_kept(hidden_ND, *self._known[attention], self.mask_SK)

    def keep(self, sources_S: Tensor) -> None:
        """Forget the others."""
        self.n = len(sources_S)
        self._known = {
            attention: (keys[sources_S], values[sources_S])
            for attention, (keys, values) in self._known.items()
        }
        if self.mask_SK is not None:
            self.mask_SK = self.mask_SK[sources_S]


class _Before:
    """Keys and values of the tokens that were written."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.known: dict[Attention, tuple[Tensor, Tensor]] = {}

    def attend(self, attention: Attention, hidden_ND: Tensor) -> Tensor:
        """See :class:`xvlm_core.models.attention.Inside`."""
        past = self.known.get(attention)
        found, self.known[attention] = attention.after(hidden_ND, self.rows, past)
        return found

    def take(self, rows_R: Tensor) -> None:
        """The texts of these rows go on; a row may go on more than once."""
        self.rows = len(rows_R)
        self.known = {
            attention: (keys[rows_R], values[rows_R])
            for attention, (keys, values) in self.known.items()
        }


class Writing:
    """Texts while they are written; :meth:`Speaker.begin` makes one.

    Attributes:
        length: tokens of each text.
        n_sources: sources that are still written about.
        n_rows: texts.
    """

    def __init__(self, text: TextEncoder, memory: Memory) -> None:
        self._text = text
        self._sources = _Sources(memory)
        self._before = _Before(memory.n_sources)
        self.length = 0

    @property
    def n_sources(self) -> int:
        """S."""
        return self._sources.n

    @property
    def n_rows(self) -> int:
        """R."""
        return self._before.rows

    def write(self, ids_RT: Tensor) -> Tensor:
        """Go on by T tokens a row: the scores of the one that follows, ``(R, V)`` float32."""
        rows, new = ids_RT.shape
        assert rows == self.n_rows, "tokens for each row"
        positions_T = torch.arange(self.length, self.length + new, device=ids_RT.device)
        hidden_ND = self._text.extend(
            ids_RT.reshape(-1),
            positions_T.repeat(rows),
            Packing((new,) * rows),
            self._before,
            source=self._sources,
        )
        self.length += new
        return self._text.predict_tokens(hidden_ND.view(rows, new, -1)[:, -1])

    def take(self, rows_R: Tensor) -> None:
        """The texts of these rows go on, about the sources that they were about.

        Args:
            rows_R: rows in the order of the sources, equally many of each; int64.
        """
        self._before.take(rows_R)

    def keep(self, sources_S: Tensor) -> None:
        """Go on with the texts about these sources only.

        Args:
            sources_S: their numbers among those that are left, in order; int64.
        """
        if len(sources_S) == self.n_sources:
            return
        a_source = self.n_rows // self.n_sources
        rows_R = sources_S[:, None] * a_source + torch.arange(a_source, device=sources_S.device)
        self._before.take(rows_R.reshape(-1))
        self._sources.keep(sources_S)


class Speaker:
    """A causal text stack, and what it writes about.

    Args:
        text: the stack; every layer has learnt to see the tokens before only.
        memory: what is looked at.
    """

    def __init__(self, text: TextEncoder, memory: Memory) -> None:
        assert text.config.causal, "the stack sees the tokens before only"
        self.text = text
        self.memory = memory

    @property
    def n_sources(self) -> int:
        """S."""
        return self.memory.n_sources

    @property
    def max_positions(self) -> int:
        """The most tokens that a text may have."""
        return self.text.config.max_positions

    @property
    def device(self) -> torch.device:
        """Where the stack is."""
        return self.text.embeddings.word.weight.device

    def begin(self) -> Writing:
        """One empty text about each source."""
        return Writing(self.text, self.memory)
