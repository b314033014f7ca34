from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from xvlm_core.models.sizes import SIZES, ModelConfig, TextConfig, VisionConfig, base, small, tiny
from xvlm_core.models.xvlm import XVLM


def on_meta(config: ModelConfig) -> XVLM:
    """Names and shapes without storage."""
    with torch.device("meta"):
        return XVLM(config)


def parameters(module: torch.nn.Module) -> int:
    return sum(math.prod(p.shape) for p in module.parameters())


def test_base_has_the_released_number_of_parameters() -> None:
    model = on_meta(base())
    assert parameters(model) == 215_637_241
    assert parameters(model.vision) == 86_743_224
    assert parameters(model.text) == 126_057_018
    assert parameters(model.vision_proj) == 262_400
    assert parameters(model.text_proj) == 196_864
    assert parameters(model.itm_head) == 1_187_330
    assert parameters(model.bbox_head) == 1_190_404


def test_base_has_77_tensors_with_a_larger_learning_rate() -> None:
    model = on_meta(base())
    names = model.larger_lr_names
    assert len(names) == 77
    assert names <= {name for name, _ in model.named_parameters()}
    assert sum(".cross_" in name for name in names) == 60
    assert not any("lm_head" in name or ".self_" in name for name in names)


@pytest.mark.parametrize(
    ("heads", "size", "parameters_"),
    [
        (("contrastive", "matching"), (384, 12), 213_959_547),
        (("box",), (384, 12), 213_503_356),
    ],
)
def test_fine_tuned_shapes_have_the_released_number_of_parameters(
    heads: tuple[str, ...], size: tuple[int, int], parameters_: int
) -> None:
    config = base().model_dump()
    config["heads"] = heads
    config["vision"] |= {"image_size": size[0], "window_size": size[1]}
    assert parameters(on_meta(ModelConfig.model_validate(config))) == parameters_


def test_sizes_grow_and_are_what_they_say() -> None:
    counts = {name: parameters(on_meta(build())) for name, build in SIZES.items()}
    assert counts["tiny"] < counts["small"] / 10
    assert 0.15 < counts["small"] / counts["base"] < 0.3
    assert {name: build().size for name, build in SIZES.items()} == {n: n for n in SIZES}
    assert base().vision.grid == small().vision.grid == 7
    assert (base().vision.stride, base().vision.width) == (32, 1024)
    assert (tiny().vision.grid, tiny().vision.width) == (8, 64)


def test_only_tiny_departs_from_the_official_architecture() -> None:
    for config in (base(), small()):
        assert not config.text.norm_first
        assert not config.vision.sine_positions
        assert not config.vision.conv_stem
        assert (config.vision.kind, config.text.init) == ("swin", "bert")


@pytest.mark.parametrize(
    ("vision", "about"),
    [
        ({"image_size": 200}, "multiple of 32"),
        ({"depths": (2, 2)}, "one entry for each stage"),
        ({"kind": "vit"}, "one stage"),
        ({"depths": (2, 2, 0, 2)}, "at least one block"),
        ({"num_heads": (4, 8, 16, 30)}, "30 heads"),
        ({"num_heads": (4, 8, 0, 32)}, "0 heads"),
        ({"conv_stem": True}, "conv_stem"),
        ({"kind": "vit", "depths": (2,), "num_heads": (2,), "conv_stem": True}, "patch_size 16"),
        (
            {
                "kind": "vit",
                "depths": (2,),
                "num_heads": (2,),
                "embed_dim": 4,
                "sine_positions": True,
            },
            "sine_positions",
        ),
        ({"window": 3}, "Extra inputs"),
    ],
)
def test_shapes_that_no_picture_encoder_can_have_are_refused(
    vision: dict[str, Any], about: str
) -> None:
    with pytest.raises(ValidationError, match=about):
        VisionConfig.model_validate(vision)


@pytest.mark.parametrize(
    ("text", "about"),
    [({"num_heads": 7}, "multiple of num_heads"), ({"fusion_layer": 12}, "below num_layers")],
)
def test_shapes_that_no_text_encoder_can_have_are_refused(text: dict[str, Any], about: str) -> None:
    with pytest.raises(ValidationError, match=about):
        TextConfig.model_validate(text)


@pytest.mark.parametrize(
    "config",
    [{"temperature": 0.9}, {"temperature_range": (0.0, 0.5)}, {"temperature_range": (0.1, 0.05)}],
)
def test_a_temperature_outside_its_range_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="temperature"):
        ModelConfig.model_validate(config)


def test_a_shape_comes_back_from_json() -> None:
    for build in SIZES.values():
        assert ModelConfig.model_validate_json(build().model_dump_json()) == build()


def test_sizes_need_no_torch() -> None:
    code = "import sys, xvlm_core.models.sizes; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
