from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file

from tests.weights.first_weights import (
    assert_untouched,
    new_model,
    scrambled,
    snapshot,
    swin,
)
from tests.weights.shapes import TABLE
from xvlm_core.errors import CheckpointError
from xvlm_core.weights.interpolate import resize_relative_table
from xvlm_core.weights.pretrained import load_vision


def as_microsoft(state):
    """The layout of the official Swin files: early downsampling, buffers, one classifier."""
    official = {}
    for name, value in state.items():
        if name.startswith("head."):
            name = name.replace("head.fc.", "head.")
        for stage in (1, 2):
            name = name.replace(f"layers.{stage}.downsample", f"layers.{stage - 1}.downsample")
        official[name] = value
    official["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16).long()
    official["layers.0.blocks.1.attn_mask"] = torch.zeros(16, 16, 16)
    return official


@pytest.mark.parametrize("layout", ["microsoft", "timm file", "timm folder", "timm bin"])
def test_swin_files_of_either_layout_give_the_features_of_timm(tmp_path, imagenet, layout):
    state = imagenet.state_dict()
    if layout == "microsoft":
        source = tmp_path / "swin_22k.pth"
        torch.save({"model": as_microsoft(state)}, source)
    elif layout == "timm bin":
        source = tmp_path
        torch.save(state, tmp_path / "pytorch_model.bin")
    else:
        source = tmp_path if layout == "timm folder" else tmp_path / "model.safetensors"
        save_file(state, tmp_path / "model.safetensors")
    model = new_model()
    text_before = snapshot(model.text)

    report = load_vision(model, source)

    pictures = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = imagenet.forward_features(pictures).flatten(1, 2)
        torch.testing.assert_close(model.encode_pictures(pictures), expected)
    assert_untouched(model.text, text_before)
    assert len(report.matched) == len(model.vision.state_dict())
    n_buffers = 2 if layout == "microsoft" else 0
    assert len(report.dropped) == 2 + n_buffers
    assert {note.note for note in report.dropped} >= {"ImageNet classifier"}
    assert report.complete


def test_swin_tables_are_resized_to_the_window_of_the_model(tmp_path, imagenet):
    torch.save({"model": as_microsoft(imagenet.state_dict())}, tmp_path / "swin.pth")
    model = new_model(vision={"image_size": 96, "window_size": 6})
    report = load_vision(model, tmp_path / "swin.pth")
    assert len(report.converted) == 6
    name = f"layers.1.blocks.0.attn.{TABLE}"
    expected = resize_relative_table(imagenet.state_dict()[name], 4, 6)
    assert torch.equal(model.vision.backbone.state_dict()[name], expected)


def test_a_vit_with_a_class_token_gives_its_patches_and_their_positions(tmp_path):
    vit = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=5
    )
    state = scrambled(vit.state_dict())
    save_file(state, tmp_path / "vit.safetensors")
    model = new_model(
        vision={
            "kind": "vit",
            "image_size": 48,
            "patch_size": 8,
            "embed_dim": 16,
            "depths": (2,),
            "num_heads": (2,),
        }
    )
    report = load_vision(model, tmp_path / "vit.safetensors")
    own = model.vision.backbone.state_dict()
    assert torch.equal(own["blocks.1.attn.qkv.weight"], state["blocks.1.attn.qkv.weight"])
    assert own["pos_embed"].shape == (1, 36, 16)
    assert "grid 4 -> 6, 1 special token(s) left out" in report.converted[0].note
    assert {note.name for note in report.dropped} == {"cls_token", "head.weight", "head.bias"}


@pytest.mark.parametrize(
    ("shape", "problem"),
    [
        ({"embed_dim": 16}, "other shape"),
        ({"depths": (2, 4, 2)}, "unexpected"),
        ({"depths": (2, 2), "num_heads": (1, 2)}, "missing"),
    ],
)
def test_a_swin_of_another_shape_is_refused_and_nothing_is_loaded(tmp_path, shape, problem):
    save_file(swin(shape).state_dict(), tmp_path / "other.safetensors")
    model = new_model()
    before = snapshot(model)
    with pytest.raises(CheckpointError, match="is not a Swin of this model's shape") as caught:
        load_vision(model, tmp_path / "other.safetensors")
    assert any(problem in detail for detail in caught.value.details)
    assert caught.value.exit_code == 5
    assert_untouched(model, before)


def test_another_architecture_is_refused(tmp_path):
    resnet = timm.create_model("resnet18", num_classes=3)
    torch.save(resnet.state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(CheckpointError, match="is not a Swin of this model's shape: width 8"):
        load_vision(new_model(), tmp_path / "resnet.pth")
