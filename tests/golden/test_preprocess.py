"""Text cleaning and every RandAugment operation against the recorded official results."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from xvlm_core.data.augment import ALL_OPS, magnitude
from xvlm_core.data.boxes import patch_mask
from xvlm_core.data.operations import apply_operation
from xvlm_core.data.text import EmptyTextError, pre_caption, pre_question


@pytest.fixture(scope="module")
def preprocess(golden_root: Path | None) -> Path:
    if golden_root is None or not (golden_root / "preprocess").is_dir():
        pytest.skip("no recorded preprocessing")
    return golden_root / "preprocess"


def test_every_recorded_caption(preprocess: Path) -> None:
    cases = json.loads((preprocess / "texts.json").read_text(encoding="utf-8"))["captions"]
    assert cases
    for case in cases:
        try:
            result = pre_caption(case["text"], case["max_words"])
        except EmptyTextError:
            result = None
        assert result == case["result"], case


def test_every_recorded_question(preprocess: Path) -> None:
    cases = json.loads((preprocess / "texts.json").read_text(encoding="utf-8"))["questions"]
    assert cases
    for case in cases:
        assert pre_question(case["text"], case["max_words"]) == case["result"], case


def test_every_recorded_operation_to_the_integer(preprocess: Path) -> None:
    recorded = load_file(preprocess / "randaugment.safetensors")
    arguments = json.loads((preprocess / "randaugment.json").read_text())["arguments"]
    picture = recorded["picture"]
    seen = set()
    for case, given in arguments.items():
        name = case.split("_")[0]
        fill = given[1][0] if len(given) > 1 else 128
        ours = apply_operation(name, picture, given[0] if given else None, fill)
        np.testing.assert_array_equal(ours, recorded[case], err_msg=case)
        seen.add(name)
    assert seen == set(ALL_OPS)


def test_recorded_magnitudes_are_those_of_level_seven(preprocess: Path) -> None:
    arguments = json.loads((preprocess / "randaugment.json").read_text())["arguments"]
    rng = np.random.default_rng(0)
    for name in ALL_OPS:
        recorded = {
            tuple(given[:1]) for case, given in arguments.items() if case.split("_")[0] == name
        }
        ours = {magnitude(name, 7, rng) for _ in range(40)}
        assert sorted(m for m in ours if m is not None) == pytest.approx(
            sorted(m for (m,) in recorded) if recorded != {()} else []
        )


@pytest.mark.parametrize(("suffix", "grid"), [("", 4), ("_224", 7)])
def test_every_recorded_patch_mask(golden_root: Path | None, suffix: str, grid: int) -> None:
    case = None if golden_root is None else golden_root / "pretrain_region" / "io.safetensors"
    if case is None or not case.is_file():
        pytest.skip("no recorded region case")
    io = load_file(case)
    boxes, masks = io[f"patch_boxes_px_xywh{suffix}"], io[f"patch_atts{suffix}"]
    assert len(boxes)
    for box, mask in zip(boxes.tolist(), masks, strict=True):
        np.testing.assert_array_equal(patch_mask(box, grid, 32), mask[1:].astype(bool), str(box))
