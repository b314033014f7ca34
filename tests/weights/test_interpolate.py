from __future__ import annotations

import pytest
import torch
from torch.nn.functional import interpolate

from xvlm_core.errors import CheckpointError
from xvlm_core.weights.interpolate import (
    geometric_ratio,
    resize_absolute_positions,
    resize_positions,
    resize_relative_table,
    source_offsets,
)


@pytest.mark.parametrize(
    ("window_from", "window_to", "ratio", "last"),
    [
        (7, 12, 1.240723972320556, 11.000018595002512),
        (7, 15, 1.3375149726867677, 14.000020395181803),
        (4, 6, 1.49999906539917, 4.749996261597554),
        (6, 4, 1.0100009346008303, 5.101014544342974),
    ],
)
def test_source_offsets_grow_by_the_recorded_ratio(window_from, window_to, ratio, last):
    side_from, side_to = 2 * window_from - 1, 2 * window_to - 1
    assert geometric_ratio(side_from, side_to) == pytest.approx(ratio, rel=1e-12)
    offsets = source_offsets(side_from, side_to)
    assert len(offsets) == side_from
    assert offsets == [-offset for offset in reversed(offsets)]
    assert offsets[-1] == pytest.approx(last, rel=1e-12)


def _cubic(y, x):
    """Asymmetric in every way: rows, columns and signs cannot be mixed up unnoticed."""
    return (0.01 * y**3 - 0.3 * y + 1) * (0.02 * x**3 + 0.1 * x**2 - 0.7 * x + 0.5)


@pytest.mark.parametrize(("window_from", "window_to"), [(7, 12), (4, 5)])
def test_a_table_that_is_cubic_over_the_stretched_offsets_is_read_exactly(window_from, window_to):
    offsets = torch.tensor(
        source_offsets(2 * window_from - 1, 2 * window_to - 1), dtype=torch.float64
    )
    targets = torch.arange(1 - window_to, window_to, dtype=torch.float64)
    source = _cubic(offsets[:, None], offsets[None, :]).reshape(-1, 1)
    table = torch.cat([source, -2 * source], dim=1).float()

    resized = resize_relative_table(table, window_from, window_to)

    inside = targets.abs() <= offsets[-1] + 1e-9
    expected = _cubic(targets[:, None], targets[None, :])[inside][:, inside]
    side = 2 * window_to - 1
    for head, factor in ((0, 1.0), (1, -2.0)):
        read = resized[:, head].view(side, side)[inside][:, inside].double()
        torch.testing.assert_close(read, factor * expected, rtol=1e-5, atol=1e-5)
    assert resized.dtype == torch.float32


def test_outside_the_stretched_range_the_border_value_holds():
    torch.manual_seed(0)
    table = torch.randn(49, 2)
    # 4 -> 8 stretches to 4.75 at most, targets run to 7
    resized = resize_relative_table(table, 4, 8).view(15, 15, 2)
    corner = table.view(7, 7, 2)[0, 0]
    torch.testing.assert_close(resized[:3, :3], corner.expand(3, 3, 2))


def test_a_table_of_the_same_window_is_returned_untouched():
    table = torch.randn(169, 4)
    assert resize_relative_table(table, 7, 7) is table


@pytest.mark.parametrize("window", [1, 2])
def test_tiny_windows_keep_the_centre_of_the_table(window):
    torch.manual_seed(0)
    table = torch.randn((2 * window - 1) ** 2, 3)
    resized = resize_relative_table(table, window, 4).view(7, 7, 3)
    centre = (2 * window - 2) // 2
    source = table.view(2 * window - 1, 2 * window - 1, 3)
    torch.testing.assert_close(resized[3, 3], source[centre, centre])


def test_a_table_of_another_window_than_named_is_an_error():
    with pytest.raises(CheckpointError, match=r"\[49, 2\] is not one of window 5"):
        resize_relative_table(torch.zeros(49, 2), 5, 7)
    with pytest.raises(CheckpointError, match="2 special tokens"):
        resize_absolute_positions(torch.zeros(1, 17, 4), 4, 6, 2)


def test_absolute_positions_keep_their_special_tokens_and_are_resized_bicubically():
    torch.manual_seed(0)
    positions = torch.randn(1, 1 + 16, 8)
    resized = resize_absolute_positions(positions, 4, 6, 1)
    assert torch.equal(resized[:, :1], positions[:, :1])
    picture = positions[:, 1:].transpose(1, 2).reshape(1, 8, 4, 4)
    expected = interpolate(picture, size=(6, 6), mode="bicubic", align_corners=False)
    torch.testing.assert_close(resized[:, 1:].transpose(1, 2).reshape(1, 8, 6, 6), expected)
    assert resize_absolute_positions(positions, 4, 4, 1) is positions


def test_only_position_entries_of_another_resolution_are_resized_and_each_is_reported():
    torch.manual_seed(0)
    table = "vision.backbone.layers.0.blocks.0.attn.relative_position_bias_table"
    same = "vision.backbone.layers.0.blocks.1.attn.relative_position_bias_table"
    positions = "vision.backbone.pos_embed"
    state = {
        table: torch.randn(49, 2),
        same: torch.randn(121, 2),
        positions: torch.randn(1, 17, 4),
        "temp": torch.tensor(0.07),
        "extra": torch.zeros(3),
    }
    target = {
        table: torch.empty(121, 2),
        same: torch.empty(121, 2),
        positions: torch.empty(1, 36, 4),
        "temp": torch.empty(()),
    }
    resized, lines = resize_positions(state, target)

    assert resized.keys() == state.keys()
    assert torch.equal(resized[table], resize_relative_table(state[table], 4, 6))
    # the source has a class token, this model has none
    without = resize_absolute_positions(state[positions][:, 1:], 4, 6, 0)
    assert torch.equal(resized[positions], without)
    assert all(resized[name] is state[name] for name in (same, "temp", "extra"))
    assert lines == [
        f"{table}: relative positions resized, window 4 -> 6",
        f"{positions}: absolute positions resized, grid 4 -> 6, 1 special token(s) left out",
    ]


def test_a_shrunk_table_is_reported_as_not_meaningful():
    _, lines = resize_positions(
        {"a.relative_position_bias_table": torch.zeros(121, 2)},
        {"a.relative_position_bias_table": torch.zeros(49, 2)},
    )
    assert "not meaningful" in lines[0]


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("a.relative_position_bias_table", (49, 2), (121, 4)),
        ("a.relative_position_bias_table", (50, 2), (121, 2)),
        ("pos_embed", (1, 17, 4), (1, 37, 8)),
        ("pos_embed", (1, 16, 4), (1, 37, 4)),
    ],
)
def test_position_entries_that_differ_in_more_than_the_resolution_are_an_error(name, value, wanted):
    with pytest.raises(CheckpointError, match="cannot be resized"):
        resize_positions({name: torch.zeros(value)}, {name: torch.zeros(wanted)})
