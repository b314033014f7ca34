"""Text encoder and cross encoder: one BERT stack over packed tokens.

Devlin et al., "BERT", NAACL 2019; cross-attention as in X-VLM, section 3.1 and 3.3. Layers
``[0, fusion_layer)`` encode text alone; the others attend to a picture in addition.

Legend: N packed tokens, B texts, D width; I pictures, P patches, V views (see
:class:`xvlm_core.models.attention.Views`; in the language head: the vocabulary), M masked tokens,
S width of the picture encoder. No operation touches padding (see
:mod:`xvlm_core.models.attention`).

With ``pictures=2`` (NLVR2) the cross layers come in pairs: the first of a pair looks at a text's
first picture, the second at its second, by the same projection to keys and values. With
``causal`` (captions, answers) a token sees the tokens before it only.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xvlm_core.models.attention import (
    Attention,
    CrossSource,
    Inside,
    OnePicture,
    PictureSource,
    TextSource,
    TextStates,
    Views,
)
from xvlm_core.models.checkpointing import Checkpointed
from xvlm_core.models.packing import PackedTexts, Packing
from xvlm_core.models.sizes import TextConfig

__all__ = ["Attention", "OnePicture", "TextEncoder", "TextStates", "Views"]


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

    def forward(
        self,
        x_ND: Tensor,
        packing: Packing,
        source: CrossSource | None,
        inside: Inside | None = None,
    ) -> Tensor:
        """One layer, ``(N, D)``.

        Args:
            x_ND: packed texts.
            packing: where each text lies.
            source: what the texts look at.
            inside: how the tokens of a text see each other; None: the texts are whole.
        """
        if self.norm_first:
            x_ND = x_ND + self.drop(self._own(self.self_norm(x_ND), packing, inside))
            if self.cross_attention is not None:
                x_ND = x_ND + self.drop(self._cross(self.cross_norm(x_ND), packing, source))
            summed: Tensor = x_ND + self.drop(self.mlp(self.mlp_norm(x_ND)))
            return summed
        x_ND = self.self_norm(x_ND + self.drop(self._own(x_ND, packing, inside)))
        if self.cross_attention is not None:
            x_ND = self.cross_norm(x_ND + self.drop(self._cross(x_ND, packing, source)))
        out: Tensor = self.mlp_norm(x_ND + self.drop(self.mlp(x_ND)))
        return out

    def _own(self, x_ND: Tensor, packing: Packing, inside: Inside | None) -> Tensor:
        if inside is None:
            return self.self_attention.over_text(x_ND, packing)
        return inside.attend(self.self_attention, x_ND)

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
        return self.at(texts.ids_N, texts.packing.positions(texts.ids_N.device))

    def at(self, ids_N: Tensor, positions_N: Tensor) -> Tensor:
        """Of tokens that stand at the given positions of their texts, ``(N, D)``."""
        x_ND = self.word(ids_N) + self.token_type.weight[0] + self.position(positions_N)
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

    def fuse_one(self, states: TextStates, picture: OnePicture) -> TextStates:
        """As :meth:`fuse`, where all texts look at the whole of one picture; for inference.

        The picture may be asked again, by other texts: its keys and values are kept in it.
        """
        return self._cross(states, picture)

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

    def extend(
        self,
        ids_N: Tensor,
        positions_N: Tensor,
        packing: Packing,
        inside: Inside,
        *,
        source: CrossSource,
    ) -> Tensor:
        """All layers over the next tokens of texts that are written, ``(N, D)``.

        Args:
            ids_N: the tokens; equally many a text.
            positions_N: where they stand in their texts.
            packing: of them.
            inside: the tokens before.
            source: what the texts look at.
        """
        hidden_ND = self.embeddings.at(ids_N, positions_N)
        for number, layer in enumerate(self.layers):
            if number == self.config.fusion_layer:
                hidden_ND = self.text_norm(hidden_ND)
            looks_at = source if number >= self.config.fusion_layer else None
            hidden_ND = layer(hidden_ND, packing, looks_at, inside)
        out: Tensor = self.final_norm(hidden_ND)
        return out

    def predict_tokens(self, hidden_MD: Tensor) -> Tensor:
        """Vocabulary scores of the given states, ``(M, vocabulary)`` float32."""
        assert self.lm_head is not None, "this model carries no language-model head"
        scores: Tensor = self.lm_head(hidden_MD, self.embeddings.word.weight)
        return scores
