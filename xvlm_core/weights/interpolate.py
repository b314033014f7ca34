"""Position tables resized between resolutions, by the rule of the released code.

Swin's relative tables: the source offsets are stretched geometrically so that the table's border
lands on the target's border, then a bicubic spline is read at whole offsets (the rule of the
BEiT and X-VLM releases; official.md 5.4). ViT's absolute positions: bicubic, special tokens kept.

Legend: w window in patches, a table has ``(2w - 1) ** 2`` rows, row-major over (dy, dx), and one
column a head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from xvlm_core.errors import CheckpointError

RELATIVE_TABLE = "relative_position_bias_table"
ABSOLUTE_POSITIONS = "pos_embed"
# class token, distillation token: what may stand before the patches of a ViT
_MOST_EXTRA_TOKENS = 2


def geometric_ratio(side_from: int, side_to: int) -> float:
    """The growth q of the source steps, by bisection on [1.01, 1.5] to 1e-6.

    With n = side_from // 2 steps, 1 + q + ... + q^(n-1) reaches side_to // 2. Shrinking (or a
    target too far away) ends at a border of the interval.
    """
    low, high = 1.01, 1.5
    ratio = low
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if (1 - ratio ** (side_from // 2)) / (1 - ratio) > side_to // 2:
            high = ratio
        else:
            low = ratio
    return ratio


def source_offsets(side_from: int, side_to: int) -> list[float]:
    """Where the rows of the source table lie on the target's axis: mirrored, 0 in the middle."""
    ratio = geometric_ratio(side_from, side_to)
    positive: list[float] = []
    offset = 1.0
    for step in range(side_from // 2):
        positive.append(offset)
        offset += ratio ** (step + 1)
    return [-offset for offset in reversed(positive)] + [0.0] + positive


def resize_relative_table(table: Tensor, window_from: int, window_to: int) -> Tensor:
    """A Swin relative-position table of one window, for another.

    Args:
        table: ``((2 * window_from - 1) ** 2, heads)``.
        window_from: window of the table, patches.
        window_to: window wanted, patches. A smaller one follows the rule, but the rule is not
            meaningful there (official.md 5.4).

    Returns:
        ``((2 * window_to - 1) ** 2, heads)`` float32; the table itself where the windows agree.

    Raises:
        CheckpointError: the table is not one of ``window_from``.
    """
    side_from, side_to = 2 * window_from - 1, 2 * window_to - 1
    if table.ndim != 2 or table.shape[0] != side_from**2:
        raise CheckpointError(
            f"a relative-position table of shape {list(table.shape)} is not one of window "
            f"{window_from}, which has {side_from**2} rows"
        )
    if side_from == side_to:
        return table
    columns = table.detach().cpu().to(torch.float64).numpy()
    if side_from == 1:  # one offset: nothing to interpolate between
        return torch.from_numpy(np.repeat(columns, side_to**2, axis=0)).to(table.device).float()
    offsets = np.array(source_offsets(side_from, side_to))
    from scipy.interpolate import RectBivariateSpline  # two thirds of a second, seldom needed

    # outside the stretched range the border value holds
    targets = np.arange(-(side_to // 2), side_to // 2 + 1, dtype=np.float64)
    targets = targets.clip(offsets[0], offsets[-1])
    degree = min(3, side_from - 1)
    resized = np.stack(
        [
            RectBivariateSpline(
                offsets, offsets, column.reshape(side_from, side_from), kx=degree, ky=degree
            )(targets, targets).reshape(-1)
            for column in columns.T
        ],
        axis=1,
    )
    return torch.from_numpy(resized).to(table.device, torch.float32)


def resize_absolute_positions(
    positions: Tensor, grid_from: int, grid_to: int, extra_tokens: int
) -> Tensor:
    """Absolute ViT positions of one grid, for another: bicubic, corners not aligned.

    Args:
        positions: ``(1, extra_tokens + grid_from ** 2, D)``.
        grid_from: patches a side of the source.
        grid_to: patches a side wanted.
        extra_tokens: special tokens in front, kept as they are.

    Returns:
        ``(1, extra_tokens + grid_to ** 2, D)``; the positions themselves where the grids agree.

    Raises:
        CheckpointError: the positions are not those of ``grid_from``.
    """
    if positions.ndim != 3 or positions.shape[:2] != (1, extra_tokens + grid_from**2):
        raise CheckpointError(
            f"positions of shape {list(positions.shape)} are not {extra_tokens} special tokens "
            f"and a grid of {grid_from} x {grid_from} patches"
        )
    if grid_from == grid_to:
        return positions
    special, patches = positions[:, :extra_tokens], positions[:, extra_tokens:]
    picture = patches.reshape(1, grid_from, grid_from, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(
        picture.float(), size=(grid_to, grid_to), mode="bicubic", align_corners=False
    )
    return torch.cat([special, resized.flatten(2).transpose(1, 2).to(positions.dtype)], dim=1)


def fit_positions(name: str, value: Tensor, shape: torch.Size) -> tuple[Tensor, str] | None:
    """A position entry of another resolution, resized.

    Args:
        name: its name in a state dict.
        value: the entry.
        shape: the shape wanted.

    Returns:
        The resized entry and one line on what was done; None where ``name`` is no position entry,
        or where more than the resolution differs (heads, width).
    """
    if name.endswith(RELATIVE_TABLE):
        if value.ndim != 2 or len(shape) != 2 or value.shape[1] != shape[1]:
            return None
        window_from, window_to = _window(value.shape[0]), _window(shape[0])
        if window_from is None or window_to is None:
            return None
        note = f"relative positions resized, window {window_from} -> {window_to}"
        if window_to < window_from:
            note += " (shrinking: the official rule is not meaningful here)"
        return resize_relative_table(value, window_from, window_to), note
    if name.endswith(ABSOLUTE_POSITIONS):
        if value.ndim != 3 or len(shape) != 3 or value.shape[2] != shape[2]:
            return None
        source, target = _grid(value.shape[1]), _grid(shape[1])
        if source is None or target is None or target[1] not in (0, source[1]):
            return None
        note = f"absolute positions resized, grid {source[0]} -> {target[0]}"
        if target[1] < source[1]:  # this model has no special tokens
            value = value[:, source[1] :]
            note += f", {source[1]} special token(s) left out"
        return resize_absolute_positions(value, source[0], target[0], target[1]), note
    return None


def resize_positions(
    state: Mapping[str, Tensor], target: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """All position entries whose shape differs from the target's, resized; the rest as it is.

    Args:
        state: a state dict.
        target: a state dict of the model that will take it, by the same names.

    Returns:
        The state and one line for each entry that was resized, ``name: what``.

    Raises:
        CheckpointError: a position entry differs from the target in more than the resolution.
    """
    resized: dict[str, Tensor] = {}
    lines: list[str] = []
    for name, value in state.items():
        resized[name] = value
        if name not in target or value.shape == target[name].shape:
            continue
        if not name.endswith((RELATIVE_TABLE, ABSOLUTE_POSITIONS)):
            continue
        fitted = fit_positions(name, value, target[name].shape)
        if fitted is None:
            raise CheckpointError(
                f"{name} of shape {list(value.shape)} cannot be resized to "
                f"{list(target[name].shape)}",
                try_="set model.overrides to the heads and widths of the checkpoint",
            )
        resized[name], note = fitted
        lines.append(f"{name}: {note}")
    return resized, lines


def _window(rows: int) -> int | None:
    """The window of a relative table with so many rows."""
    side = math.isqrt(rows)
    return (side + 1) // 2 if side**2 == rows and side % 2 == 1 else None


def _grid(tokens: int) -> tuple[int, int] | None:
    """Patches a side and special tokens in front. At most one answer: squares lie further apart."""
    for extra in range(_MOST_EXTRA_TOKENS + 1):
        side = math.isqrt(max(tokens - extra, 0))
        if side > 0 and side**2 + extra == tokens:
            return side, extra
    return None
