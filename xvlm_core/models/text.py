"""Text encoder and cross encoder: one BERT stack over packed tokens.

Devlin et al., "BERT", NAACL 2019; cross-attention as in X-VLM, section 3.1 and 3.3. Layers
``[0, fusion_layer)`` encode text alone; the others attend to a picture in addition.

Legend: N packed tokens, B texts, D width, H heads, d = D / H, L length of a text;
I pictures, P patches, V views (a picture and the patches that may be seen of it; in the language
head: the vocabulary), M masked tokens, S width of the picture encoder.

Linear layers see the N real tokens only; attention sees groups of texts of equal length, so no
operation touches padding. Keys and values of a picture are projected once a layer, whatever the
number of texts that look at it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
    """Multi-head attention whose queries are packed texts."""

    def __init__(self, config: TextConfig, source_width: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_heads
        self.dropout = config.dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(source_width, width)
        self.value = nn.Linear(source_width, width)
        self.output = nn.Linear(width, width)

    def _heads(self, x: Tensor, rows: int) -> Tensor:
        """``(rows * T, D)`` -> ``(rows, H, T, d)``, a view."""
        return x.view(rows, -1, self.num_heads, x.shape[-1] // self.num_heads).transpose(1, 2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        context = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return context.transpose(1, 2).reshape(-1, self.query.out_features)

    def over_text(self, hidden_ND: Tensor, packing: Packing) -> Tensor:
        """Self-attention inside each text, ``(N, D)``."""
        q_ND, k_ND, v_ND = self.query(hidden_ND), self.key(hidden_ND), self.value(hidden_ND)
        parts = [
            self._attend(*(self._heads(x[g.start : g.stop], g.rows) for x in (q_ND, k_ND, v_ND)))
            for g in packing.groups
        ]
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
        keys_IPD, values_IPD = self.key(patches_IPS), self.value(patches_IPS)
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


@dataclass(frozen=True)
class CrossSource:
    """What the cross layers look at: see :meth:`Attention.over_pictures`."""

    patches_IPS: Tensor
    views: Views
    view_of_row: Tensor


class Layer(nn.Module):
    """Self-attention, cross-attention (cross layers only), MLP; post-norm as BERT, or pre-norm."""

    def __init__(self, config: TextConfig, source_width: int | None) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.norm_first = config.norm_first
        self.drop = nn.Dropout(config.dropout)
        self.self_attention = Attention(config, width)
        self.self_norm = nn.LayerNorm(width, eps=eps)
        self.cross_attention: Attention | None = None
        if source_width is not None:
            self.cross_attention = Attention(config, source_width)
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
        assert source is not None, "a cross layer needs pictures"
        return self.cross_attention.over_pictures(
            x_ND, packing, source.patches_IPS, source.views, source.view_of_row
        )


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


class TextEncoder(nn.Module):
    """The BERT stack: text layers, then cross layers, and the language-model head."""

    def __init__(self, config: TextConfig, picture_width: int, *, with_lm_head: bool) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(
            Layer(config, picture_width if index >= config.fusion_layer else None)
            for index in range(config.num_layers)
        )
        self.lm_head = LanguageModelHead(config) if with_lm_head else None
        # pre-norm stacks leave their sum unnormalised: one norm after each half
        half = nn.LayerNorm if config.norm_first else nn.Identity
        self.text_norm = half(config.hidden_size)
        self.final_norm = half(config.hidden_size)

    def encode(self, texts: PackedTexts) -> TextStates:
        """Text mode: embeddings and layers ``[0, fusion_layer)``."""
        hidden_ND = self.embeddings(texts)
        for layer in self.layers[: self.config.fusion_layer]:
            hidden_ND = layer(hidden_ND, texts.packing, None)
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
        source = CrossSource(patches_IPS, views, view_of_text[order])
        hidden_ND = states.hidden_ND
        for layer in self.layers[self.config.fusion_layer :]:
            hidden_ND = layer(hidden_ND, states.packing, source)
        return TextStates(self.final_norm(hidden_ND), states.packing)

    def predict_tokens(self, hidden_MD: Tensor) -> Tensor:
        """Vocabulary scores of the given states, ``(M, vocabulary)`` float32."""
        assert self.lm_head is not None, "this model carries no language-model head"
        scores: Tensor = self.lm_head(hidden_MD, self.embeddings.word.weight)
        return scores
