"""The official key names, both ways. ``../shared`` is used where it is; nothing depends on it."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from xvlm_core.errors import CheckpointError
from xvlm_core.models.sizes import ModelConfig, TextConfig, VisionConfig, base, tiny
from xvlm_core.models.xvlm import XVLM
from xvlm_core.weights.official import (
    from_official,
    larger_lr_names,
    official_name,
    read_official,
    to_official,
)

SHARED = Path(__file__).parents[2].parent / "shared"
TABLE = "relative_position_bias_table"

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


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = XVLM(small_config())
    with torch.no_grad():  # zeros and ones would hide a swap
        for parameter in model.parameters():
            parameter.uniform_(-1, 1)
    return model


# ---------------------------------------------------------------- the released lists


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
    names = larger_lr_names(base())
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
    larger = larger_lr_names(base())
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


# ---------------------------------------------------------------- values


@pytest.mark.parametrize("heads", [("contrastive", "matching", "masked_lm", "box"), ("box",)])
def test_round_trip_is_bit_for_bit(heads, model):
    config = small_config(heads=heads)
    names = XVLM(config).state_dict()
    ours = {name: value for name, value in model.state_dict().items() if name in names}
    official = to_official(ours, config)
    converted = from_official(official, config)
    assert_same_bits(converted.state, ours)
    assert_same_bits(to_official(converted.state, config), official)
    assert set(converted.report.matched) == set(ours)
    assert not converted.report.converted


@pytest.mark.skipif(not SHARED.is_dir(), reason="the golden cases are not here")
@pytest.mark.parametrize(
    ("case", "heads", "n_keys"),
    [
        ("pretrain_image", ("contrastive", "matching", "masked_lm", "box"), 244),
        ("grounding_bbox", ("box",), 226),
        ("retrieval", ("contrastive", "matching"), 231),
    ],
)
def test_weights_recorded_from_the_official_code_come_back_bit_for_bit(case, heads, n_keys):
    folder = SHARED / "golden" / case
    shape = json.loads((folder / "case.json").read_text())["config"]
    swin, bert = shape["swin"], shape["bert"]
    config = ModelConfig(
        vision=VisionConfig(
            image_size=swin["image_res"],
            embed_dim=swin["embed_dim"],
            depths=tuple(swin["depths"]),
            num_heads=tuple(swin["num_heads"]),
            window_size=swin["window_size"],
        ),
        text=TextConfig(
            hidden_size=bert["hidden_size"],
            num_layers=bert["num_hidden_layers"],
            fusion_layer=bert["fusion_layer"],
            num_heads=bert["num_attention_heads"],
            intermediate_size=bert["intermediate_size"],
            vocab_size=bert["vocab_size"],
            max_positions=bert["max_position_embeddings"],
        ),
        embed_dim=shape.get("embed_dim", 32),
        heads=heads,
    )
    official = load_file(folder / "weights.safetensors")
    assert len(official) == n_keys
    # index, mask and position buffers are computed by us and compared with the recorded ones here
    assert_same_bits(to_official(from_official(official, config).state, config), official)


def test_written_buffers_are_those_timm_computes():
    # the second stage is one window: timm and the release do not shift it
    config = small_config().model_copy(
        update={
            "vision": VisionConfig(
                image_size=48,
                patch_size=4,
                embed_dim=8,
                depths=(2, 4, 2),
                num_heads=(1, 1, 2),
                window_size=3,
            )
        }
    )
    model = XVLM(config)
    written = to_official(model.state_dict(), config)
    buffers = {
        f"vision_encoder.{name}": value
        for name, value in model.vision.backbone.named_buffers()
        if value is not None
    }
    assert len(buffers) == 8 + 3
    for name, value in buffers.items():
        assert torch.equal(written[name], value.to(written[name].dtype)), name
    assert sum("attn_mask" in name for name in written) == 3
    assert sum("relative_position_index" in name for name in written) == 8


def test_the_decoder_is_written_under_both_names_and_shares_its_memory(model):
    official = to_official(model.state_dict(), model.config)
    word = official["text_encoder.bert.embeddings.word_embeddings.weight"]
    decoder = official["text_encoder.cls.predictions.decoder.weight"]
    assert decoder.data_ptr() == word.data_ptr()
    assert torch.equal(
        official["text_encoder.cls.predictions.decoder.bias"],
        official["text_encoder.cls.predictions.bias"],
    )


def test_a_pretraining_checkpoint_feeds_a_grounding_model_of_another_window(model):
    official = to_official(model.state_dict(), model.config)
    vision = model.config.vision.model_copy(update={"image_size": 96, "window_size": 6})
    config = small_config(heads=("matching", "box")).model_copy(update={"vision": vision})
    converted = from_official(official, config, source="x.th")

    XVLM(config).load_state_dict(converted.state)
    report = converted.report
    assert {note.name.rpartition(".")[2] for note in report.converted} == {TABLE}
    assert len(report.converted) == 4
    assert torch.equal(
        converted.state["bbox_head.3.weight"], model.state_dict()["bbox_head.3.weight"]
    )
    reasons = {note.name: note.note for note in report.dropped}
    assert reasons["text_proj.weight"] == "this model carries no such head"
    assert reasons["text_encoder.cls.predictions.bias"] == "this model carries no such head"
    assert reasons["text_encoder.bert.embeddings.position_ids"] == "computed, not stored"
    assert "tied to" in reasons["text_encoder.cls.predictions.decoder.weight"]
    assert len(official) == len(report.matched) + len(report.converted) + len(report.dropped)
    assert any("window 4 -> 6" in line for line in report.lines())


def test_a_fine_tuned_checkpoint_is_read_without_its_bert_prefix(model):
    config = small_config(heads=("box",))
    pretraining = to_official(model.state_dict(), model.config)
    fine_tuned = {
        key.replace("text_encoder.bert.", "text_encoder."): value
        for key, value in pretraining.items()
        if key.startswith(("vision_encoder.", "text_encoder.bert.", "bbox_head."))
    }
    converted = from_official(fine_tuned, config)
    assert_same_bits(converted.state, from_official(pretraining, config).state)
    assert_same_bits(to_official(converted.state, config), fine_tuned)


def test_half_precision_files_are_converted_and_reported(model):
    official = {
        key: value.half() if value.is_floating_point() else value
        for key, value in to_official(model.state_dict(), model.config).items()
    }
    converted = from_official(official, model.config)
    assert all(value.dtype == torch.float32 for value in converted.state.values())
    assert not converted.report.matched
    assert "torch.float16 -> torch.float32" in converted.report.converted[0].note


# ---------------------------------------------------------------- what does not fit


def test_missing_unexpected_and_misshapen_keys_stop_the_reading_and_are_all_named(model):
    official = to_official(model.state_dict(), model.config)
    del official["itm_head.0.bias"]
    official["vision_proj.bias"] = torch.zeros(9)
    official["mystery.weight"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as caught:
        from_official(official, model.config, source="x.th")
    assert caught.value.exit_code == 5
    assert caught.value.details == (
        "other shape: vision_proj.bias: [9] in the file, [8] in the model",
        "missing: itm_head.0.bias",
        "unexpected: mystery.weight",
    )
    report = from_official(official, model.config, strict=False).report
    assert report.missing == ("itm_head.0.bias",)
    assert report.unexpected == ("mystery.weight",)
    assert [note.name for note in report.mismatched] == ["vision_proj.bias"]
    assert not report.complete
    seen = report.matched + report.converted + report.dropped + report.unexpected
    assert len(seen) + len(report.mismatched) == len(official)


def test_a_key_under_both_prefixes_is_not_chosen_silently(model):
    official = to_official(model.state_dict(), model.config)
    official["text_encoder.embeddings.LayerNorm.bias"] = torch.zeros(16)
    with pytest.raises(CheckpointError) as caught:
        from_official(official, model.config)
    assert caught.value.details == ("unexpected: text_encoder.embeddings.LayerNorm.bias",)


def test_a_long_list_of_problems_is_cut_and_counted(model):
    with pytest.raises(CheckpointError) as caught:
        from_official({}, model.config)
    total = len(model.state_dict())
    assert f"{total} missing" in caught.value.what
    assert len(caught.value.details) == 13
    assert caught.value.details[-1] == f"... and {total - 12} more"


def test_an_untied_decoder_is_refused(model):
    official = to_official(model.state_dict(), model.config)
    official["text_encoder.cls.predictions.decoder.weight"] = torch.zeros(30, 16)
    with pytest.raises(CheckpointError, match=r"decoder\.weight differs from"):
        from_official(official, model.config)


def test_a_decoder_bias_stands_in_for_its_missing_twin(model):
    official = to_official(model.state_dict(), model.config)
    del official["text_encoder.cls.predictions.bias"]
    assert_same_bits(from_official(official, model.config).state, dict(model.state_dict()))


def test_checkpoints_of_other_official_models_are_named(model):
    official = to_official(model.state_dict(), model.config)
    official["text_decoder.bert.embeddings.LayerNorm.bias"] = torch.zeros(16)
    with pytest.raises(CheckpointError, match="an official VQA or captioning model"):
        from_official(official, model.config)


def test_another_architecture_has_no_place_in_the_official_format():
    with pytest.raises(CheckpointError, match=r"vision\.kind is vit, not swin"):
        to_official(on_meta(tiny()).state_dict(), tiny())
    with pytest.raises(CheckpointError, match=r"text\.norm_first is on"):
        from_official({}, ModelConfig(text=TextConfig(norm_first=True)))
    vision = VisionConfig(image_size=256, window_size=7)
    with pytest.raises(CheckpointError, match="no multiple of the window"):
        from_official({}, ModelConfig(vision=vision))


def test_a_state_of_another_model_is_not_written(model):
    state = dict(model.state_dict())
    del state["temp"]
    with pytest.raises(CheckpointError) as caught:
        to_official(state, model.config)
    assert caught.value.details == ("missing: temp",)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("wrap", [None, "model", "state_dict"])
@pytest.mark.parametrize("suffix", [".th", ".pth", ".bin", ".safetensors"])
def test_files_of_every_kind_are_read(tmp_path, model, wrap, suffix):
    path = tmp_path / f"weights{suffix}"
    official = to_official(model.state_dict(), model.config)
    if suffix == ".safetensors":
        save_file({key: value.clone() for key, value in official.items()}, path)
    else:
        content = {wrap: official, "config": {"image_res": 64}, "epoch": 3} if wrap else official
        torch.save(content, path)
    assert_same_bits(read_official(path), official)


class Planted:
    def __reduce__(self):
        return (os.system, ("touch planted",))


@pytest.mark.parametrize(
    ("protocol", "message"),
    [(None, r"is refused: it holds \w+\.system"), (2, "is refused"), (4, "more than tensors")],
)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_that_carries_code_is_refused_and_not_run(
    tmp_path, monkeypatch, protocol, message
):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pth"
    content = {"model": {"temp": torch.zeros(1)}, "config": Planted()}
    if protocol is None:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content["config"], protocol=protocol))
    with pytest.raises(CheckpointError, match=message) as caught:
        read_official(path)
    assert "\n" not in caught.value.what
    assert not (tmp_path / "planted").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_cut_anywhere_is_reported_as_damaged_in_one_line(tmp_path, model, suffix):
    whole = tmp_path / f"whole{suffix}"
    official = to_official(model.state_dict(), model.config)
    if suffix == ".pth":
        torch.save({"model": official}, whole)
    else:
        save_file({key: value.clone() for key, value in official.items()}, whole)
    content = whole.read_bytes()
    for cut in (0, 1, 7, 8, 100, len(content) // 2, len(content) - 1):
        path = tmp_path / f"cut{suffix}"
        path.write_bytes(content[:cut])
        with pytest.raises(CheckpointError, match="damaged or incomplete") as caught:
            read_official(path)
        assert caught.value.exit_code == 5
        assert "\n" not in caught.value.what
        assert caught.value.where == str(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pth", b"hello, this is text\n" * 20, "damaged"),
        ("a.safetensors", b"\xff" * 64, "damaged"),
        ("a.pth", b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
        ("a.zip", b"PK", "must end in"),
    ],
)
def test_files_that_are_no_weights_are_refused(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_official(path)


def test_files_that_hold_something_else_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        read_official(tmp_path / "nothing.pth")
    with pytest.raises(CheckpointError, match="is a folder"):
        read_official(tmp_path)
    path = tmp_path / "list.pth"
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match="holds a list"):
        read_official(path)
    torch.save({"weight": torch.zeros(1), "epoch": 3}, path)
    with pytest.raises(CheckpointError, match="'epoch' is a int"):
        read_official(path)
