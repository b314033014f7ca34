"""Position tables and the picture features that follow from them, against recorded values."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.golden.case import assert_close, model_config
from xvlm_core.models.xvlm import XVLM
from xvlm_core.weights.interpolate import resize_absolute_positions, resize_relative_table
from xvlm_core.weights.official import from_official, official_name


@pytest.fixture(scope="module")
def case(golden_root: Path | None) -> Path:
    if golden_root is None or not (golden_root / "pos_interp").is_dir():
        pytest.skip("no recorded position tables")
    return golden_root / "pos_interp"


@pytest.fixture(scope="module")
def recorded(case: Path) -> dict[str, Tensor]:
    return load_file(case / "io.safetensors")


def test_every_recorded_relative_table(recorded: dict[str, Tensor]) -> None:
    seen = 0
    for name, reference in recorded.items():
        if match := re.fullmatch(r"(w(\d+)\w+)_to(\d+)", name):
            source = recorded[f"{match[1]}_src"]
            resized = resize_relative_table(source, int(match[2]), int(match[3]))
            assert resized.dtype == torch.float32
            assert_close(name, resized, reference)
            seen += 1
    assert seen


def test_every_recorded_absolute_table(recorded: dict[str, Tensor]) -> None:
    seen = 0
    for name, reference in recorded.items():
        if match := re.fullmatch(r"(vit(\d+)x\2e(\d+))_to(\d+)", name):
            grid_from, extra, grid_to = (int(match[i]) for i in (2, 3, 4))
            source = recorded[f"{match[1]}_src"]
            resized = resize_absolute_positions(source, grid_from, grid_to, extra)
            assert_close(name, resized, reference)
            seen += 1
    assert seen


def test_a_checkpoint_of_window_4_gives_the_recorded_features_at_window_6(
    case: Path, recorded: dict[str, Tensor]
) -> None:
    meta = json.loads((case / "case.json").read_text(encoding="utf-8"))["config"]
    side, window = meta["resized"]["image_res"], meta["resized"]["window_size"]
    meta["swin"].update(image_res=side, window_size=window)
    config = model_config(meta)
    weights = load_file(case.parent / "pretrain_image" / "weights.safetensors")
    converted = from_official(weights, config)
    assert len(converted.report.converted) == sum(config.vision.depths)  # one table a block

    by_official_name = {official_name(name): value for name, value in converted.state.items()}
    for name, reference in recorded.items():
        if match := re.fullmatch(r"table_(\d+)_(\d+)", name):
            key = (
                f"vision_encoder.layers.{match[1]}.blocks.{match[2]}"
                ".attn.relative_position_bias_table"
            )
            assert_close(name, by_official_name[key], reference)

    model = XVLM(config).eval()
    model.load_state_dict(converted.state)
    with torch.no_grad():
        patches = model.encode_pictures(recorded[f"image_{side}"])
    features = torch.cat([patches.mean(1, keepdim=True), patches], dim=1)
    assert_close(f"image_embeds_{side}", features, recorded[f"image_embeds_{side}"])
