"""Models and official layouts that the tests of weights share."""

from __future__ import annotations

from pathlib import Path

import torch

from xvlm_core.models.sizes import ModelConfig, TextConfig, VisionConfig
from xvlm_core.models.xvlm import XVLM

SHARED = Path(__file__).parents[2].parent / "shared"
TABLE = "relative_position_bias_table"


def small_config(**changes):
    return ModelConfig(
        vision=VisionConfig(
            image_size=64, patch_size=4, embed_dim=8, depths=(2, 2), num_heads=(1, 2), window_size=4
        ),
        text=TextConfig(
            hidden_size=16,
            num_layers=4,
            fusion_layer=2,
            num_heads=2,
            intermediate_size=32,
            vocab_size=30,
            max_positions=12,
        ),
        embed_dim=8,
        **changes,
    )


def on_meta(config):
    with torch.device("meta"):
        return XVLM(config)


def assert_same_bits(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.dtype == other[name].dtype, name
        assert torch.equal(value, other[name]), name
