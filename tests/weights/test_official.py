"""Official checkpoints, read and written. ``../shared`` is used where it is."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.golden.case import model_config
from tests.weights.shapes import SHARED, TABLE, assert_same_bits, on_meta, small_config
from xvlm_core.errors import CheckpointError
from xvlm_core.models.sizes import ModelConfig, TextConfig, VisionConfig, tiny
from xvlm_core.models.xvlm import XVLM
from xvlm_core.weights.official import from_official, to_official

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
    config = model_config(shape, heads)
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
    computed = [note.name for note in report.computed]
    assert "text_encoder.bert.embeddings.position_ids" in computed
    assert len(computed) == 7
    assert [note.name for note in report.tied] == [
        "text_encoder.cls.predictions.decoder.weight",
        "text_encoder.cls.predictions.decoder.bias",
    ]
    parts = (report.matched, report.converted, report.computed, report.tied, report.dropped)
    assert len(official) == sum(map(len, parts))
    assert not report.warnings
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
    seen += report.computed + report.tied
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
    with pytest.raises(CheckpointError, match="this is an official VQA model"):
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
