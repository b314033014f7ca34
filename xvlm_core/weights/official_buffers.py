"""What official files carry and our models compute: Swin's numbers and masks, BERT's positions."""

from __future__ import annotations

import torch
from torch import Tensor

from xvlm_core.errors import CheckpointError
from xvlm_core.models.sizes import ModelConfig, VisionConfig
from xvlm_core.weights.official_names import DECODER, VISION, text_prefix


def require_official(config: ModelConfig) -> None:
    """The official format has a place for Swin and a post-norm BERT only.

    Raises:
        CheckpointError: naming what has no place there.
    """
    vision = config.vision
    differences = [
        what
        for differs, what in (
            (vision.kind != "swin", f"vision.kind is {vision.kind}, not swin"),
            (vision.sine_positions, "vision.sine_positions is on"),
            (config.text.norm_first, "text.norm_first is on"),
        )
        if differs
    ]
    if vision.kind == "swin":
        differences += [
            f"stage {stage}: a grid of {grid} patches is no multiple of the window {window}"
            for stage, (grid, window) in enumerate(stages(vision))
            if grid % window
        ]
    if differences:
        raise CheckpointError(
            f"a {config.size} model has no place in the official format: {differences[0]}",
            details=differences[1:],
            try_="use model.size=base or model.size=small",
        )


def stages(vision: VisionConfig) -> list[tuple[int, int]]:
    """Patches a side and window of each Swin stage; a window never exceeds its grid."""
    grids = [vision.image_size // vision.patch_size >> s for s in range(len(vision.depths))]
    return [(grid, min(grid, vision.window_size)) for grid in grids]


def official_buffers(config: ModelConfig) -> dict[str, Tensor]:
    """By canonical name: offset numbers of every block, shift masks, position numbers."""
    buffers: dict[str, Tensor] = {}
    for stage, (grid, window) in enumerate(stages(config.vision)):
        index = relative_position_index(window)
        is_shifted = window // 2 and grid > window
        mask = shift_mask(grid, window) if is_shifted else None
        for block in range(config.vision.depths[stage]):
            prefix = f"{VISION}layers.{stage}.blocks.{block}."
            buffers[f"{prefix}attn.relative_position_index"] = index
            if block % 2 and mask is not None:
                buffers[f"{prefix}attn_mask"] = mask
    positions = torch.arange(config.text.max_positions)[None]
    stacks = {text_prefix(config), *([DECODER] if config.decoder_layers else [])}
    for stack in sorted(stacks):
        buffers[f"{stack}bert.embeddings.position_ids"] = positions
    return buffers


def relative_position_index(window: int) -> Tensor:
    """Row of the relative table for each pair of patches, ``(w * w, w * w)`` int64."""
    side = torch.arange(window)
    places = torch.cartesian_prod(side, side)
    offsets = places[:, None] - places[None, :] + window - 1
    return offsets[..., 0] * (2 * window - 1) + offsets[..., 1]


def shift_mask(grid: int, window: int) -> Tensor:
    """Which patches of a shifted window were neighbours, ``(windows, w * w, w * w)`` float32.

    0 where both come from the same region of the picture, -100 elsewhere (Swin, figure 4).
    """
    side = torch.arange(grid)
    # the last window holds patches from both ends: they are told apart at the shift
    region = (side >= grid - window).long() + (side >= grid - window // 2).long()
    label = region[:, None] * 3 + region[None, :]
    n = grid // window
    windows = label.view(n, window, n, window).transpose(1, 2).reshape(n * n, window * window)
    return (windows[:, :, None] != windows[:, None, :]).float() * -100.0
