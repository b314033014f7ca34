"""Where a text looks in its picture: Grad-CAM of the cross-attention (X-VLM, section 4.6, Fig. 5).

Selvaraju et al., "Grad-CAM", ICCV 2017, on attention as in Li et al., "Align before Fuse", NeurIPS
2021: the attention of one cross layer times its gradient, where that raises the score of a match.

Only the attention of that layer and the layers after it are differentiated: neither the picture
encoder nor the text layers keep anything for a backward pass.

Legend: B texts, I pictures, P patches (n a side), L tokens of a text, H heads, D width, S width of
the picture encoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from xvlm_core.errors import ConfigError
from xvlm_core.models.attention import PictureSource
from xvlm_core.models.packing import PackedTexts, Packing
from xvlm_core.models.sizes import ModelConfig
from xvlm_core.models.text import TextStates
from xvlm_core.models.xvlm import XVLM

_FOURTH = 3
"""The released choice, layer 9 of 12, counted from the first cross layer."""


@dataclass(frozen=True)
class HeatMaps:
    """Attention of B texts to their pictures, weighed by what it does for the match.

    Attributes:
        packing: of the texts.
        attention: probabilities (before drop-out) of the texts of each length, in packed order,
            ``(rows, H, L, 1 + P)``: the pooled token, then the patches row by row.
        gradient: of the sum of the match scores, for each of them.
        grid: n.
    """

    packing: Packing
    attention: tuple[Tensor, ...]
    gradient: tuple[Tensor, ...]
    grid: int

    @cached_property
    def _of_groups(self) -> tuple[Tensor, ...]:
        """``(rows, L, n, n)`` of each length: mean over heads, the pooled token left out."""
        shape = (self.grid, self.grid)
        weighed = (
            (seen * slope.clamp(min=0))[..., 1:].mean(1)
            for seen, slope in zip(self.attention, self.gradient, strict=True)
        )
        return tuple(rows.reshape(*rows.shape[:2], *shape) for rows in weighed)

    def of_tokens(self) -> list[Tensor]:
        """One map a token, CLS first: ``(L, n, n)`` of each text, by text number."""
        rows = [row for group in self._of_groups for row in group]
        by_text = dict(zip(self.packing.order, rows, strict=True))
        return [by_text[b] for b in range(self.packing.n_texts)]

    def of_texts(self, padded_length: int | None = None) -> Tensor:
        """One map a text, ``(B, n, n)`` float32: the mean over its tokens, CLS among them.

        Args:
            padded_length: divide by this length instead of the text's own, as the released code
                does, which counts the padding of the batch (official.md 6, row 10): a factor that
                is the same for the whole map, so the best box is the same.
        """
        maps = [group.sum(1) / (padded_length or group.shape[1]) for group in self._of_groups]
        rows = torch.cat(maps)
        by_text = torch.empty_like(rows)
        by_text[torch.tensor(self.packing.order, device=rows.device)] = rows
        return by_text


@dataclass(frozen=True)
class Looks:
    """What the cross encoder says of B texts, and where they look.

    Attributes:
        first_BD: states of the first tokens: what heads read.
        match_logits_B2: class 1 = the text fits its picture.
        maps: what speaks for a match.
    """

    first_BD: Tensor
    match_logits_B2: Tensor
    maps: HeatMaps

    @property
    def match_probability_B(self) -> Tensor:
        """That each text fits its picture."""
        return self.match_logits_B2.softmax(-1)[:, 1]


def cam_layer(config: ModelConfig, wanted: int | None = None) -> int:
    """The layer whose attention makes the heat map: its place in the whole text stack.

    Args:
        config: the shape of the model.
        wanted: ``scoring.cam_layer``; None: the fourth cross layer (9 of 12, as released), or the
            last one where there are fewer.

    Raises:
        ConfigError: that layer has no cross-attention.
    """
    first, end = config.text.fusion_layer, config.text.num_layers
    if wanted is None:
        return min(first + _FOURTH, end - 1)
    if not first <= wanted < end:
        raise ConfigError(
            f"layer {wanted} attends to no picture: the cross layers are {first} to {end - 1}",
            where="scoring.cam_layer",
            try_=f"scoring.cam_layer={min(first + _FOURTH, end - 1)}",
        )
    return wanted


def look(
    model: XVLM,
    pictures_ICHW: Tensor,
    texts: PackedTexts,
    picture_of_text_B: Tensor,
    layer: int,
) -> Looks:
    """Read texts with their pictures, each picture encoded once, and see where they look.

    May be called without gradient and in inference mode; leaves no gradient behind.

    Args:
        model: with a matching head, in evaluation mode.
        pictures_ICHW: normalised pictures.
        texts: B texts.
        picture_of_text_B: the picture of each, int64.
        layer: see :func:`cam_layer`.
    """
    with torch.no_grad():
        patches_IPS = model.encode_pictures(pictures_ICHW)
        states = model.encode_texts(texts)
        return look_again(model, patches_IPS, states, picture_of_text_B, layer)


def look_again(
    model: XVLM, patches_IPS: Tensor, states: TextStates, picture_of_text_B: Tensor, layer: int
) -> Looks:
    """As :func:`look`, from what the encoders made of pictures and texts.

    From the chosen layer on all is float32, whatever the precision of the rest: gradients are small
    numbers.
    """
    config, packing = model.config, states.packing
    assert layer >= config.text.fusion_layer, "a text layer attends to no picture"
    assert packing.n_texts, "no text looks at anything"
    with torch.inference_mode(False):
        order = torch.tensor(packing.order, device=picture_of_text_B.device)
        views, view_of_row = model.whole(len(patches_IPS)), picture_of_text_B[order]
        source = PictureSource(patches_IPS.detach(), views, view_of_row)
        attention: list[Tensor] = []
        hidden_ND = states.hidden_ND
        with torch.no_grad():
            for below in model.text.layers[config.text.fusion_layer : layer]:
                hidden_ND = below(hidden_ND, packing, source)
        # copies: what inference mode made cannot be part of a graph
        hidden_ND = hidden_ND.detach().float().clone()
        patches_IPS = patches_IPS.detach().float().clone()
        with torch.enable_grad(), torch.autocast(hidden_ND.device.type, enabled=False):
            source = PictureSource(patches_IPS, views, view_of_row, watch=attention)
            hidden_ND = model.text.layers[layer](hidden_ND, packing, source)
            source = PictureSource(patches_IPS, views, view_of_row)
            for above in model.text.layers[layer + 1 :]:
                hidden_ND = above(hidden_ND, packing, source)
            first_BD = TextStates(model.text.final_norm(hidden_ND), packing).first()
            logits_B2 = model.match_logits(first_BD)
            gradient = torch.autograd.grad(logits_B2[:, 1].sum(), attention)
    maps = HeatMaps(packing, tuple(a.detach() for a in attention), gradient, config.vision.grid)
    return Looks(first_BD.detach(), logits_B2.detach(), maps)
