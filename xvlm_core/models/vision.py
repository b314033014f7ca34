"""Picture encoders from timm behind one interface: pictures -> patch tokens after the final norm.

Swin: Liu et al., "Swin Transformer", ICCV 2021. ViT: Dosovitskiy et al., ICLR 2021; its
convolutional stem: Xiao et al., "Early convolutions help transformers see better", 2021.

Legend: I pictures, P patches (row-major), D width, n = patches a side.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.layers.patch_embed import PatchEmbed
from timm.models.levit import ConvNorm
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from xvlm_core.models.checkpointing import Blocks
from xvlm_core.models.sizes import VisionConfig


def sine_positions(grid: int, width: int) -> Tensor:
    """Fixed 2-D sine positions, ``(grid * grid, width)`` float32, row-major.

    Half of the channels code the row, half the column (DETR, Carion et al., ECCV 2020), with
    amplitude 1: a small model needs positions as strong as its features to learn to point.
    """
    assert width % 4 == 0, "sine positions need a width that is a multiple of 4"
    quarter = width // 4
    frequency_F = 2 * math.pi / torch.logspace(0, math.log10(grid), quarter) * 0.5
    place_n = (torch.arange(grid) + 0.5) / grid
    angle_nF = place_n[:, None] * grid * frequency_F[None, :]
    axis_nH = torch.cat([angle_nF.sin(), angle_nF.cos()], dim=1)
    rows = axis_nH[:, None, :].expand(grid, grid, -1)
    columns = axis_nH[None, :, :].expand(grid, grid, -1)
    return torch.cat([rows, columns], dim=2).reshape(grid * grid, width)


class ConvStem(nn.Module):
    """Four stride-2 convolutions in place of the ViT patch projection (as LeViT's, by timm).

    The last two have even kernels, so that a token is centred on its patch to 1.5 px (odd ones
    would centre it on the patch's first pixel, 7.5 px away from what region masks mean by it).
    """

    def __init__(self, img_size: int, patch_size: int, embed_dim: int, **_: Any) -> None:
        super().__init__()
        assert patch_size == 16, "the convolutional stem has stride 16"
        self.grid_size = (img_size // patch_size, img_size // patch_size)
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        widths = (3, embed_dim // 8, embed_dim // 4, embed_dim // 2, embed_dim)
        layers: list[nn.Module] = []
        for number, kernel in enumerate((3, 3, 4, 4)):
            layers += [ConvNorm(widths[number], widths[number + 1], kernel, 2, 1), nn.GELU()]
        self.stem = nn.Sequential(*layers[:-1])

    def forward(self, pictures_ICHW: Tensor) -> Tensor:
        """Tokens ``(I, P, D)``."""
        # not flatten(2).transpose(1, 2): of one picture the gradient has strides that the backward
        # pass of the last norm reads wrongly (torch 2.14 on the CPU)
        tokens: Tensor = self.stem(pictures_ICHW).permute(0, 2, 3, 1).flatten(1, 2)
        return tokens


def build_backbone(config: VisionConfig) -> nn.Module:
    """The timm model of a shape, without a classifier."""
    if config.kind == "swin":
        backbone: nn.Module = SwinTransformer(
            img_size=config.image_size,
            patch_size=config.patch_size,
            embed_dim=config.embed_dim,
            depths=config.depths,
            num_heads=config.num_heads,
            # timm shrinks the window (and drops the shift) where the grid is smaller than it
            window_size=config.window_size,
            mlp_ratio=config.mlp_ratio,
            drop_path_rate=config.drop_path,
            num_classes=0,
            global_pool="",
        )
        return backbone
    return VisionTransformer(
        img_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=config.embed_dim,
        depth=config.depths[0],
        num_heads=config.num_heads[0],
        mlp_ratio=config.mlp_ratio,
        drop_path_rate=config.drop_path,
        num_classes=0,
        global_pool="",
        class_token=False,
        pos_embed="none" if config.sine_positions else "learn",
        embed_layer=ConvStem if config.conv_stem else PatchEmbed,
    )


class VisionEncoder(nn.Module):
    """Pictures ``(I, 3, R, R)``, normalised -> patch tokens ``(I, P, D)``, row-major.

    There is no pooled token here: the pooled token of a picture is the mean of its patches, that
    of a region the mean of the region's patches (:meth:`xvlm_core.models.text.Views.pool`).
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config)
        # same names, same order: timm's blocks behind our switch
        for part in list(self.backbone.modules()):
            blocks = getattr(part, "blocks", None)
            if isinstance(blocks, nn.Sequential):
                part.blocks = Blocks(*blocks)
        self.positions_PD: Tensor | None
        positions = sine_positions(config.grid, config.width) if config.sine_positions else None
        self.register_buffer("positions_PD", positions, persistent=False)

    def forward(self, pictures_ICHW: Tensor) -> Tensor:
        """Patch tokens ``(I, P, D)`` after the final norm."""
        if self.config.kind == "swin":
            tokens_IPD: Tensor = self.backbone(pictures_ICHW).flatten(1, 2)
        else:
            tokens_IPD = self._vit(pictures_ICHW)
        if self.positions_PD is not None:
            tokens_IPD = tokens_IPD + self.positions_PD.to(tokens_IPD.dtype)
        return tokens_IPD

    def _vit(self, pictures_ICHW: Tensor) -> Tensor:
        if self.positions_PD is None:
            learnt: Tensor = self.backbone(pictures_ICHW)
            return learnt
        vit = self.backbone
        assert isinstance(vit, VisionTransformer)
        tokens_IPD = vit.patch_embed(pictures_ICHW) + self.positions_PD
        normed: Tensor = vit.norm(vit.blocks(tokens_IPD))
        return normed
