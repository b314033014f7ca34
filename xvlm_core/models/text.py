"""Text encoder and cross encoder: one BERT stack over packed tokens.

Devlin et al., "BERT", NAACL 2019; cross-attention as in X-VLM, section 3.1 and 3.3. Layers
``[0, fusion_layer)`` encode text alone; the others attend to a picture in addition.

Legend: N packed tokens, B texts, D width, H heads, d = D / H, L length of a text;
I pictures, P patches, V views (a picture and the patches that may be seen of it; in the language
head: the vocabulary), M masked tokens, S width of the picture encoder.

Linear layers see the N real tokens only; attention sees groups of texts of equal length, so no
operation touches padding. Keys and values of a picture are projected once a layer, whatever the
number of texts that look at it.

With ``pictures=2`` (NLVR2) the cross layers come in pairs: the first of a pair looks at a text's
first picture, the second at its second, by the same projection to keys and values. With
``causal`` (captions, answers) a token sees the tokens before it only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xvlm_core.models.checkpointing import Checkpointed
from xvlm_core.models.packing import PackedTexts, Packing
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

    def _keys_values(self, sources: Tensor) -> tuple[Tensor, Tensor]:
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

    def over_text(self, hidden_ND: Tensor, packing: Packing) -> Tensor:
        """Self-attention inside each text, ``(N, D)``."""
        projected = self.query(hidden_ND), *self._keys_values(hidden_ND)
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
    ) -> Tensor:
        """Cross-attention of each text to its view: [pooled token; patches], ``(N, D)``.

        Args:
            hidden_ND: packed texts.
            packing: where each text lies.
            patches_IPS: patch tokens, S the width of the picture encoder.
            views: what may be seen.
            view_of_row: the view of each text in PACKED order, ``(B,)``.
        """
        q_ND = self.query(hidden_ND)
        keys_IPD, values_IPD = self._keys_values(patches_IPS)
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
            parts.append(self._attend(q, self._heads(k, g.rows), self._heads(v, g.rows), mask))
        out: Tensor = self.output(torch.cat(parts))
        return out

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
        keys_ND, values_ND = self._keys_values(others.hidden_ND)
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


class Mlp(nn.Module):
    """Linear, exact GELU, Linear."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_ND: Tensor) -> Tensor:
        """``(N, D)`` -> ``(N, D)``."""
        out: Tensor = self.fc2(F.gelu(self.fc1(hidden_ND)))
        return out


class CrossSource(Protocol):
    """What a cross layer looks at."""

    def attend(self, attention: Attention, hidden_ND: Tensor, packing: Packing) -> Tensor:
        """What the attention of a layer finds in it for packed texts, ``(N, D)``."""
        ...


@dataclass(frozen=True)
class PictureSource:
    """Views of pictures: see :meth:`Attention.over_pictures`."""

    patches_IPS: Tensor
    views: Views
    view_of_row: Tensor

    def attend(self, attention: Attention, hidden_ND: Tensor, packing: Packing) -> Tensor:
        """See :class:`CrossSource`."""
        return attention.over_pictures(
            hidden_ND, packing, self.patches_IPS, self.views, self.view_of_row
        )


@dataclass(frozen=True)
class TextSource:
    """Other texts: see :meth:`Attention.over_texts`."""

    states: TextStates
    text_of_row: Tensor

    def attend(self, attention: Attention, hidden_ND: Tensor, packing: Packing) -> Tensor:
        """See :class:`CrossSource`."""
        return attention.over_texts(hidden_ND, packing, self.states, self.text_of_row)


class Layer(nn.Module):
    """Self-attention, cross-attention (cross layers only), MLP; post-norm as BERT, or pre-norm.

    Args:
        config: the stack's shape.
        source_width: width of what it cross-attends to; None: a text layer.
        keys_of: the layer whose cross-attention projects keys and values for this one, too.
    """

    def __init__(
        self, config: TextConfig, source_width: int | None, keys_of: Layer | None = None
    ) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.norm_first = config.norm_first
        self.drop = nn.Dropout(config.dropout)
        self.self_attention = Attention(config, width)
        self.self_norm = nn.LayerNorm(width, eps=eps)
        self.cross_attention: Attention | None = None
        if source_width is not None:
            shared = None if keys_of is None else keys_of.cross_attention
            self.cross_attention = Attention(config, source_width, shared)
            self.cross_norm = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(config)
        self.mlp_norm = nn.LayerNorm(width, eps=eps)

    def forward(self, x_ND: Tensor, packing: Packing, source: CrossSource | None) -> Tensor:
        """One layer, ``(N, D)``."""
        if self.norm_first:
            x_ND = x_ND + self.drop(self.self_attention.over_text(self.self_norm(x_ND), packing))
            if self.cross_attention is not None:
                x_ND = x_ND + self.drop(self._cross(self.cross_norm(x_ND), packing, source))
            summed: Tensor = x_ND + self.drop(self.mlp(self.mlp_norm(x_ND)))
            return summed
        x_ND = self.self_norm(x_ND + self.drop(self.self_attention.over_text(x_ND, packing)))
        if self.cross_attention is not None:
            x_ND = self.cross_norm(x_ND + self.drop(self._cross(x_ND, packing, source)))
        out: Tensor = self.mlp_norm(x_ND + self.drop(self.mlp(x_ND)))
        return out

    def _cross(self, x_ND: Tensor, packing: Packing, source: CrossSource | None) -> Tensor:
        assert self.cross_attention is not None, "a text layer has no cross-attention"
        assert source is not None, "a cross layer needs something to look at"
        return source.attend(self.cross_attention, x_ND, packing)


class Embeddings(nn.Module):
    """Word + position + segment 0, norm, drop-out."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.word = nn.Embedding(config.vocab_size, width, padding_idx=0)
        self.position = nn.Embedding(config.max_positions, width)
        self.token_type = nn.Embedding(config.type_vocab_size, width)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, texts: PackedTexts) -> Tensor:
        """``(N, D)``."""
        positions_N = texts.packing.positions(texts.ids_N.device)
        x_ND = self.word(texts.ids_N) + self.token_type.weight[0] + self.position(positions_N)
        out: Tensor = self.drop(self.norm(x_ND))
        return out


class LanguageModelHead(nn.Module):
    """Dense, GELU, norm, then the word embeddings as decoder (tied: not stored twice)."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden_MD: Tensor, word_weight: Tensor) -> Tensor:
        """Scores over the vocabulary, ``(M, vocabulary)``, float32.

        The product itself follows autocast (it is as large as a layer); softmax and loss do not.
        """
        x_MD = self.norm(F.gelu(self.dense(hidden_MD)))
        scores_MV: Tensor = F.linear(x_MD, word_weight, self.bias).float()
        return scores_MV


class TextEncoder(Checkpointed, nn.Module):
    """The BERT stack: text layers, then cross layers, and the language-model head.

    Args:
        config: its shape.
        source_width: width of what the cross layers look at.
        with_lm_head: whether it predicts tokens.
    """

    def __init__(self, config: TextConfig, source_width: int, *, with_lm_head: bool) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList()
        previous: Layer | None = None
        for index in range(config.num_layers):
            turn = index - config.fusion_layer
            layer = Layer(
                config,
                source_width if turn >= 0 else None,
                previous if turn >= 0 and turn % config.pictures else None,
            )
            self.layers.append(layer)
            previous = layer
        self.lm_head = LanguageModelHead(config) if with_lm_head else None
        # pre-norm stacks leave their sum unnormalised: one norm after each half
        half = nn.LayerNorm if config.norm_first else nn.Identity
        self.text_norm = half(config.hidden_size)
        self.final_norm = half(config.hidden_size)

    def encode(self, texts: PackedTexts) -> TextStates:
        """Text mode: embeddings and layers ``[0, fusion_layer)``."""
        hidden_ND = self.embeddings(texts)
        for layer in self.layers[: self.config.fusion_layer]:
            hidden_ND = self.run_layer(layer, hidden_ND, texts.packing, None)
        return TextStates(self.text_norm(hidden_ND), texts.packing)

    def fuse(
        self, states: TextStates, patches_IPS: Tensor, views: Views, view_of_text: Tensor
    ) -> TextStates:
        """Fusion mode: layers ``[fusion_layer, num_layers)`` from the states of text mode.

        Args:
            states: B texts.
            patches_IPS: patch tokens of the pictures.
            views: V views of them.
            view_of_text: the view each text looks at, by text number, ``(B,)`` int64.
        """
        order = torch.tensor(states.packing.order, device=view_of_text.device)
        return self._cross(states, PictureSource(patches_IPS, views, view_of_text[order]))

    def fuse_pair(
        self, states: TextStates, patches_IPS: Tensor, first_B: Tensor, second_B: Tensor
    ) -> TextStates:
        """As :meth:`fuse`, where each text looks at two whole pictures in turn.

        Args:
            states: B texts.
            patches_IPS: patch tokens of the pictures.
            first_B: the first picture of each text, int64.
            second_B: the second one.
        """
        order = torch.tensor(states.packing.order, device=first_B.device)
        rows = torch.arange(len(order), device=first_B.device)
        sources = [
            PictureSource(patches_IPS, Views(picture_B[order]), rows)
            for picture_B in (first_B, second_B)
        ]
        return self._cross(states, *sources)

    def fuse_texts(
        self, states: TextStates, others: TextStates, other_of_text: Tensor
    ) -> TextStates:
        """As :meth:`fuse`, where each text looks at another text (its question).

        Args:
            states: B texts.
            others: the texts that are looked at.
            other_of_text: the one that each text looks at, ``(B,)`` int64.
        """
        order = torch.tensor(states.packing.order, device=other_of_text.device)
        return self._cross(states, TextSource(others, other_of_text[order]))

    def _cross(self, states: TextStates, *sources: CrossSource) -> TextStates:
        """The cross layers; they look at the sources in turn."""
        assert len(sources) == self.config.pictures, "a source for each picture of a text"
        hidden_ND = states.hidden_ND
        for turn, layer in enumerate(self.layers[self.config.fusion_layer :]):
            source = sources[turn % len(sources)]
            hidden_ND = self.run_layer(layer, hidden_ND, states.packing, source)
        return TextStates(self.final_norm(hidden_ND), states.packing)

    def predict_tokens(self, hidden_MD: Tensor) -> Tensor:
        """Vocabulary scores of the given states, ``(M, vocabulary)`` float32."""
        assert self.lm_head is not None, "this model carries no language-model head"
        scores: Tensor = self.lm_head(hidden_MD, self.embeddings.word.weight)
        return scores
