"""The official key names, both ways. ``../shared`` is used where it is; nothing depends on it."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch

from tests.weights.shapes import SHARED, TABLE, on_meta
from xvlm_core.models.sizes import ModelConfig, VisionConfig, base
from xvlm_core.weights.official import from_official, official_name, to_official

# What the released checkpoints hold: sha256 of their sorted lines "name shape dtype".
RELEASED = {
    "base": (644, "58106cbdf95f56ee43726737ed5f5179cae32ac3b2d8f583ef13c52d1b85bc7c"),
    "grounding": (626, "6ec8bd5206e6d32957f5493eb96b247e41c328ccb2edc89c46be3f08eac6ded7"),
    "retrieval": (631, "0be59f980f21e9ae90894b33492349d8e66f11fec907f1590fe8eaa9bc766769"),
}


def released_config(name):
    if name == "base":
        return base()
    heads = {"grounding": ("box",), "retrieval": ("contrastive", "matching")}[name]
    vision = VisionConfig(image_size=384, window_size=12)
    return ModelConfig(vision=vision, heads=heads)


def key_lines(state):
    return sorted(
        f"{name} {','.join(map(str, value.shape))} {str(value.dtype).removeprefix('torch.')}"
        for name, value in state.items()
    )


@pytest.mark.parametrize("name", RELEASED)
def test_written_checkpoints_have_exactly_the_released_names_shapes_and_types(name):
    config = released_config(name)
    written = to_official(on_meta(config).state_dict(), config)
    lines = key_lines(written)
    count, digest = RELEASED[name]
    assert len(lines) == count
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == digest


@pytest.mark.skipif(not SHARED.is_dir(), reason="the key lists are not here")
@pytest.mark.parametrize("name", RELEASED)
def test_the_released_key_lists_themselves_are_written_and_read(name):
    listed = json.loads((SHARED / "official_checkpoint" / f"keys_{name}.json").read_text())
    config = released_config(name)
    state = {
        key: torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
        for key, shape, dtype in listed
        if ".decoder." not in key  # meta tensors have no values to compare
    }
    converted = from_official(state, config)
    assert converted.report.complete
    assert converted.state.keys() == on_meta(config).state_dict().keys()
    written = to_official(converted.state, config)
    assert {(key, tuple(value.shape)) for key, value in written.items()} == {
        (key, tuple(shape)) for key, shape, _ in listed
    }


def test_base_has_the_published_number_of_parameters():
    state = on_meta(base()).state_dict()
    assert sum(value.numel() for value in state.values()) == 215_637_241
    vision = [value for name, value in state.items() if name.startswith("vision.")]
    assert sum(value.numel() for value in vision) == 86_743_224


def test_the_names_bert_and_swin_lack_are_the_77_published():
    names = on_meta(base()).larger_lr_names
    assert len(names) == 77
    parts = {
        "crossattention": 60,
        "vision_proj": 2,
        "text_proj": 2,
        "temp": 1,
        "itm_head": 6,
        "bbox_head": 6,
    }
    for part, count in parts.items():
        assert sum(part in official_name(name) for name in names) == count, part


def test_official_names_give_the_published_optimiser_groups():
    no_decay = ("bias", "LayerNorm.weight", "norm.weight", "norm1.weight", "norm2.weight")
    larger = on_meta(base()).larger_lr_names
    groups: dict[tuple[bool, bool], list[int]] = {}
    for name, value in on_meta(base()).named_parameters():
        decays = not any(part in official_name(name) for part in no_decay)
        groups.setdefault((decays, name in larger), []).append(value.numel())
    assert {key: (len(sizes), sum(sizes)) for key, sizes in groups.items()} == {
        (True, False): (176, 195_873_792),
        (False, False): (353, 383_730),
        (True, True): (33, 19_345_409),
        (False, True): (44, 34_310),
    }


@pytest.mark.parametrize(
    ("ours", "official"),
    [
        (
            "vision.backbone.layers.1.downsample.reduction.weight",
            "vision_encoder.layers.0.downsample.reduction.weight",
        ),
        (
            f"vision.backbone.layers.3.blocks.1.attn.{TABLE}",
            f"vision_encoder.layers.3.blocks.1.attn.{TABLE}",
        ),
        (
            "text.embeddings.token_type.weight",
            "text_encoder.bert.embeddings.token_type_embeddings.weight",
        ),
        (
            "text.layers.11.self_norm.bias",
            "text_encoder.bert.encoder.layer.11.attention.output.LayerNorm.bias",
        ),
        (
            "text.layers.7.cross_attention.output.weight",
            "text_encoder.bert.encoder.layer.7.crossattention.output.dense.weight",
        ),
        (
            "text.layers.0.mlp.fc2.weight",
            "text_encoder.bert.encoder.layer.0.output.dense.weight",
        ),
        (
            "text.lm_head.norm.weight",
            "text_encoder.cls.predictions.transform.LayerNorm.weight",
        ),
        ("text.lm_head.bias", "text_encoder.cls.predictions.bias"),
        ("itm_head.3.weight", "itm_head.3.weight"),
        ("temp", "temp"),
        ("text.text_norm.weight", "text_encoder.text_norm.weight"),
    ],
)
def test_single_names(ours, official):
    assert official_name(ours) == official
