"""Attention over packed texts: inside a text, to views of pictures, to other texts.

Legend: N packed tokens, B texts, D width, H heads, d = D / H, I pictures, P patches, V views (a
picture and the patches that may be seen of it), S width of the picture encoder.

Linear layers see the N real tokens only; attention sees groups of texts of equal length, so no
operation touches padding. Keys and values of a picture are projected once a layer, whatever the
number of texts that look at it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xvlm_core.models.packing import Packing
from xvlm_core.models.sizes import TextConfig


@dataclass(frozen=True)
class Views:
    """What texts may look at.

    Attributes:
        picture_V: picture of each view, ``(V,)`` int64.
        mask_VP: patches that a view shows, ``(V, P)`` bool; None: every view shows all.
    """

    picture_V: Tensor
    mask_VP: Tensor | None = None

    def join(self, other: Views, n_patches: int) -> Views:
        """These views followed by the other's."""
        picture_V = torch.cat([self.picture_V, other.picture_V])
        if self.mask_VP is None and other.mask_VP is None:
            return Views(picture_V)
        masks = [
            view.mask_VP
            if view.mask_VP is not None
            else torch.ones(
                len(view.picture_V), n_patches, dtype=torch.bool, device=picture_V.device
            )
            for view in (self, other)
        ]
        return Views(picture_V, torch.cat(masks))

    def pool(self, patches_IPD: Tensor) -> Tensor:
        """Mean over the visible patches of each view, ``(V, D)``, in float32.

        Linear projections commute with it: the same function pools patch tokens and their keys
        and values.
        """
        if self.mask_VP is None:
            return patches_IPD.float().mean(1)[self.picture_V]
        weights_VP = self.mask_VP.float()
        weights_VP = weights_VP / weights_VP.sum(1, keepdim=True)
        with torch.autocast(weights_VP.device.type, enabled=False):  # it would take bfloat16
            return torch.bmm(weights_VP[:, None], patches_IPD.float()[self.picture_V])[:, 0]


@dataclass(frozen=True)
class TextStates:
    """Hidden states of packed texts: ``hidden_ND`` lies as ``packing`` says."""

    hidden_ND: Tensor
    packing: Packing

    def first(self) -> Tensor:
        """State of the first token (CLS) of each text, by text number, ``(B, D)``."""
        return self.hidden_ND[self.packing.first_tokens(self.hidden_ND.device)]

    def select(self, texts: Sequence[int]) -> TextStates:
        """The states of the given texts (repeats allowed)."""
        packing, index = self.packing.select(texts)
        return TextStates(self.hidden_ND[index.to(self.hidden_ND.device)], packing)


class Attention(nn.Module):
    """Multi-head attention whose queries are packed texts.

    Args:
        config: the stack's shape.
        source_width: width of what is attended to.
        keys_of: another attention, whose projections to keys and values this one uses.
    """

    def __init__(
        self, config: TextConfig, source_width: int, keys_of: Attention | None = None
    ) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_heads
        self.dropout = config.dropout
        self.causal = config.causal
        self.query = nn.Linear(width, width)
        if keys_of is None:
            self.key = nn.Linear(source_width, width)
            self.value = nn.Linear(source_width, width)
        # in a tuple, the other is no module of this one: its weights are stored once
        self._keys_of = () if keys_of is None else (keys_of,)
        self.output = nn.Linear(width, width)

    def _heads(self, x: Tensor, rows: int) -> Tensor:
        """``(rows * T, D)`` -> ``(rows, H, T, d)``, a view."""
        return x.view(rows, -1, self.num_heads, x.shape[-1] // self.num_heads).transpose(1, 2)

    def keys_values(self, sources: Tensor) -> tuple[Tensor, Tensor]:
        """What is attended to, projected to keys and to values, ``(..., D)`` each."""
        owner = self._keys_of[0] if self._keys_of else self
        return owner.key(sources), owner.value(sources)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        context = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal
        )
        return context.transpose(1, 2).reshape(-1, self.query.out_features)

    def _attend_watched(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, watch: list[Tensor]
    ) -> Tensor:
        """As :meth:`_attend`, with the probabilities as a leaf of the graph in ``watch``."""
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        seen = scores.softmax(-1).detach().requires_grad_(torch.is_grad_enabled())
        watch.append(seen)
        context = F.dropout(seen, self.dropout, self.training) @ v.detach()
        return context.transpose(1, 2).reshape(-1, self.query.out_features)

    def over_text(self, hidden_ND: Tensor, packing: Packing) -> Tensor:
        """Self-attention inside each text, ``(N, D)``."""
        projected = self.query(hidden_ND), *self.keys_values(hidden_ND)
        parts = []
        for g in packing.groups:
            q, k, v = (self._heads(x_ND[g.start : g.stop], g.rows) for x_ND in projected)
            parts.append(self._attend(q, k, v, causal=self.causal))
        out: Tensor = self.output(torch.cat(parts))
        return out

    def over_pictures(
        self,
        hidden_ND: Tensor,
        packing: Packing,
        patches_IPS: Tensor,
        views: Views,
        view_of_row: Tensor,
        watch: list[Tensor] | None = None,
    ) -> Tensor:
        """Cross-attention of each text to its view: [pooled token; patches], ``(N, D)``.

        Args:
            hidden_ND: packed texts.
            packing: where each text lies.
            patches_IPS: patch tokens, S the width of the picture encoder.
            views: what may be seen.
            view_of_row: the view of each text in PACKED order, ``(B,)``.
            watch: takes the probabilities (before drop-out) of each group of texts of equal
                length, ``(rows, H, length, 1 + P)``; what comes after them depends on them alone,
                so that their gradient costs no more than that. None: they are never formed.
        """
        q_ND = self.query(hidden_ND)
        keys_IPD, values_IPD = self.keys_values(patches_IPS)
        pooled_keys_VD = views.pool(keys_IPD).to(keys_IPD.dtype)
        pooled_values_VD = views.pool(values_IPD).to(values_IPD.dtype)
        parts = []
        for g in packing.groups:
            view = view_of_row[g.row : g.row + g.rows]
            picture = views.picture_V[view]
            k = torch.cat([pooled_keys_VD[view][:, None], keys_IPD[picture]], dim=1)
            v = torch.cat([pooled_values_VD[view][:, None], values_IPD[picture]], dim=1)
            mask = None
            if views.mask_VP is not None:
                # the pooled token is always visible
                mask = F.pad(views.mask_VP[view], (1, 0), value=True)[:, None, None]
            q = self._heads(q_ND[g.start : g.stop], g.rows)
            k, v = self._heads(k, g.rows), self._heads(v, g.rows)
            if watch is None:
                parts.append(self._attend(q, k, v, mask))
            else:
                parts.append(self._attend_watched(q, k, v, mask, watch))
        out: Tensor = self.output(torch.cat(parts))
        return out

    def keys_values_of(self, patches_PS: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of whole pictures, [pooled token; patches], ``(..., 1 + P, D)`` each.

        Args:
            patches_PS: of one picture ``(P, S)``, or of several ``(I, P, S)``.
        """
        with_pooled = []
        for x_PD in self.keys_values(patches_PS):
            # projections commute with the mean
            pooled_D = x_PD.float().mean(-2, keepdim=True).to(x_PD.dtype)
            with_pooled.append(torch.cat([pooled_D, x_PD], dim=-2))
        return with_pooled[0], with_pooled[1]

    def over_one_picture(self, hidden_ND: Tensor, keys_KD: Tensor, values_KD: Tensor) -> Tensor:
        """Cross-attention of all tokens to one picture, ``(N, D)``.

        What a token finds depends on no other token: texts of any length are one row of queries,
        and keys and values are neither projected nor copied for each.

        Args:
            hidden_ND: packed texts.
            keys_KD: of the picture.
            values_KD: the same.
        """
        q, k, v = (self._heads(x, 1) for x in (self.query(hidden_ND), keys_KD, values_KD))
        out: Tensor = self.output(self._attend(q, k, v))
        return out

    def over_kept(
        self, hidden_ND: Tensor, keys_SKD: Tensor, values_SKD: Tensor, mask_SK: Tensor | None
    ) -> Tensor:
        """Cross-attention of tokens to sources whose keys and values are known, ``(N, D)``.

        The tokens that look at one source are one row of queries, so that keys and values are not
        copied for each.

        Args:
            hidden_ND: tokens; each source has equally many, those of the first one in front.
            keys_SKD: of S sources of K tokens.
            values_SKD: the same.
            mask_SK: which of these are there, bool; None: all.
        """
        q = self._heads(self.query(hidden_ND), len(keys_SKD))
        k, v = self._heads(keys_SKD, len(keys_SKD)), self._heads(values_SKD, len(keys_SKD))
        mask = None if mask_SK is None else mask_SK[:, None, None]
        out: Tensor = self.output(self._attend(q, k, v, mask))
        return out

    def after(
        self, hidden_ND: Tensor, rows: int, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Self-attention of the next tokens of texts to those before them, and to themselves.

        Args:
            hidden_ND: R texts, equally many next tokens each.
            rows: R.
            past: keys and values ``(R, L, D)`` of the L tokens before; None: there are none.

        Returns:
            What they find, ``(N, D)``, and the keys and values with theirs.
        """
        k_RTD, v_RTD = (x.view(rows, -1, x.shape[-1]) for x in self.keys_values(hidden_ND))
        new = k_RTD.shape[1]
        if past is not None:
            k_RTD, v_RTD = torch.cat([past[0], k_RTD], 1), torch.cat([past[1], v_RTD], 1)
        mask = None
        if new > 1:
            known = k_RTD.shape[1]
            mask = torch.ones(new, known, dtype=torch.bool, device=k_RTD.device)
            mask = mask.tril(known - new)
        q, k, v = (self._heads(x, rows) for x in (self.query(hidden_ND), k_RTD, v_RTD))
        out: Tensor = self.output(self._attend(q, k, v, mask))
        return out, (k_RTD, v_RTD)

    def over_texts(
        self, hidden_ND: Tensor, packing: Packing, others: TextStates, text_of_row: Tensor
    ) -> Tensor:
        """Cross-attention of each text to the tokens of another, ``(N, D)``.

        Args:
            hidden_ND: packed texts.
            packing: where each text lies.
            others: the texts that are looked at.
            text_of_row: the one that each text looks at, in PACKED order, ``(B,)``.
        """
        q_ND = self.query(hidden_ND)
        keys_ND, values_ND = self.keys_values(others.hidden_ND)
        starts = torch.tensor(others.packing.starts, device=q_ND.device)[text_of_row]
        lengths = torch.tensor(others.packing.lengths, device=q_ND.device)[text_of_row]
        places = torch.arange(max(others.packing.lengths), device=q_ND.device)
        is_real = places < lengths[:, None]
        token = torch.where(is_real, starts[:, None] + places, 0)
        parts = []
        for g in packing.groups:
            rows = slice(g.row, g.row + g.rows)
            k, v = keys_ND[token[rows]], values_ND[token[rows]]
            q = self._heads(q_ND[g.start : g.stop], g.rows)
            mask = is_real[rows, None, None]
            parts.append(self._attend(q, self._heads(k, g.rows), self._heads(v, g.rows), mask))
        out: Tensor = self.output(torch.cat(parts))
        return out


class CrossSource(Protocol):
    """What a cross layer looks at."""

    def attend(self, attention: Attention, hidden_ND: Tensor, packing: Packing) -> Tensor:
        """What the attention of a layer finds in it for packed texts, ``(N, D)``."""
        ...


class Inside(Protocol):
    """How the tokens of texts see each other."""

    def attend(self, attention: Attention, hidden_ND: Tensor) -> Tensor:
        """What the self-attention of a layer finds, ``(N, D)``."""
        ...


@dataclass(frozen=True)
class PictureSource:
    """Views of pictures: see :meth:`Attention.over_pictures`."""

    patches_IPS: Tensor
    views: Views
    view_of_row: Tensor
    watch: list[Tensor] | None = None

    def attend(self, attention: Attention, hidden_ND: Tensor, packing: Packing) -> Tensor:
        """See :class:`CrossSource`."""
        return attention.over_pictures(
            hidden_ND, packing, self.patches_IPS, self.views, self.view_of_row, self.watch
        )


class OnePicture:
    """One whole picture that many texts look at: each layer projects it once, whenever.

    Args:
        patches_PS: its patch tokens.
    """

    def __init__(self, patches_PS: Tensor) -> None:
        self.patches_PS = patches_PS
        self._known: dict[Attention, tuple[Tensor, Tensor]] = {}

    def attend(self, attention: Attention, hidden_ND: Tensor, packing: Packing) -> Tensor:
        """See :class:`CrossSource`."""
        if attention not in self._known:
            self._known[attention] = attention.keys_values_of(self.patches_PS)
        return attention.over_one_picture(hidden_ND, *self._known[attention])


@dataclass(frozen=True)
class TextSource:
    """Other texts: see :meth:`Attention.over_texts`."""

    states: TextStates
    text_of_row: Tensor

    def attend(self, attention: Attention, hidden_ND: Tensor, packing: Packing) -> Tensor:
        """See :class:`CrossSource`."""
        return attention.over_texts(hidden_ND, packing, self.states, self.text_of_row)
