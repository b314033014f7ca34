"""Position tables and the picture features that follow from them, against recorded values."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from xvlm_core.models.sizes import ModelConfig
from xvlm_core.models.xvlm import XVLM
from xvlm_core.weights.interpolate import resize_absolute_positions, resize_relative_table
from xvlm_core.weights.official import from_official, official_name

GOLDEN = Path(__file__).parents[2].parent / "shared" / "golden"
CASE = GOLDEN / "pos_interp"

pytestmark = pytest.mark.skipif(not CASE.is_dir(), reason="the golden cases are not here")


@pytest.fixture(scope="module")
def recorded():
    return load_file(CASE / "io.safetensors")


def assert_golden(computed, reference):
    """The comparison rule of the golden cases."""
    assert computed.shape == reference.shape
    assert computed.dtype == reference.dtype
    tolerance = 1e-4 * max(1e-6, reference.abs().max().item())
    assert (computed - reference).abs().max().item() <= tolerance


def test_every_recorded_relative_table(recorded):
    seen = 0
    for name, reference in recorded.items():
        if match := re.fullmatch(r"(w(\d+)\w+)_to(\d+)", name):
            source = recorded[f"{match[1]}_src"]
            assert_golden(resize_relative_table(source, int(match[2]), int(match[3])), reference)
            seen += 1
    assert seen == 11


def test_every_recorded_absolute_table(recorded):
    seen = 0
    for name, reference in recorded.items():
        if match := re.fullmatch(r"(vit(\d+)x\2e(\d+))_to(\d+)", name):
            grid_from, extra, grid_to = (int(match[i]) for i in (2, 3, 4))
            source = recorded[f"{match[1]}_src"]
            assert_golden(resize_absolute_positions(source, grid_from, grid_to, extra), reference)
            seen += 1
    assert seen == 3


def test_a_checkpoint_of_window_4_gives_the_recorded_features_at_window_6(recorded):
    case = json.loads((CASE / "case.json").read_text())["config"]
    swin, bert = case["swin"], case["bert"]
    config = ModelConfig.model_validate(
        {
            "vision": {
                "image_size": case["resized"]["image_res"],
                "window_size": case["resized"]["window_size"],
                "patch_size": swin["patch_size"],
                "embed_dim": swin["embed_dim"],
                "depths": swin["depths"],
                "num_heads": swin["num_heads"],
            },
            "text": {
                "hidden_size": bert["hidden_size"],
                "num_layers": bert["num_hidden_layers"],
                "fusion_layer": bert["fusion_layer"],
                "num_heads": bert["num_attention_heads"],
                "intermediate_size": bert["intermediate_size"],
                "vocab_size": bert["vocab_size"],
                "max_positions": bert["max_position_embeddings"],
            },
            "embed_dim": case["embed_dim"],
        }
    )
    weights = load_file(GOLDEN / "pretrain_image" / "weights.safetensors")
    converted = from_official(weights, config)
    assert len(converted.report.converted) == 8  # one table a block
    by_official_name = {official_name(name): value for name, value in converted.state.items()}
    for stage, block in ((0, 0), (3, 1)):
        name = f"vision_encoder.layers.{stage}.blocks.{block}.attn.relative_position_bias_table"
        assert_golden(by_official_name[name], recorded[f"table_{stage}_{block}"])

    model = XVLM(config).eval()
    model.load_state_dict(converted.state)
    with torch.no_grad():
        patches = model.encode_pictures(recorded["image_192"])
    features = torch.cat([patches.mean(1, keepdim=True), patches], dim=1)
    assert_golden(features, recorded["image_embeds_192"])
