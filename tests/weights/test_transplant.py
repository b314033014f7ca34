"""Weights of one model into a model of another arrangement: which feeds which, and what is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.data.painted import TOKENIZER
from tests.weights.shapes import small_config
from xvlm_core.errors import CheckpointError
from xvlm_core.models.build import build_model
from xvlm_core.models.sizes import ModelConfig
from xvlm_core.models.xvlm import XVLM
from xvlm_core.tasks.building import start_from_checkpoint
from xvlm_core.weights.folder import ModelInfo, save_model_folder
from xvlm_core.weights.official import to_official
from xvlm_core.weights.reading import Report
from xvlm_core.weights.transplant import load_from_folder

PLAIN = small_config()


def pairs(*heads: str, fusion: int = 2, layers: int = 6) -> ModelConfig:
    tree = PLAIN.model_dump()
    tree["heads"] = heads
    tree["text"] |= {"pictures": 2, "num_layers": layers, "fusion_layer": fusion}
    return ModelConfig.model_validate(tree)


def made(config: ModelConfig, seed: int = 1) -> XVLM:
    torch.manual_seed(seed)
    return build_model(config)


def folder_of(folder: Path, config: ModelConfig) -> tuple[Path, dict[str, torch.Tensor]]:
    model = made(config)
    info = ModelInfo(task="pretrain", max_words=8, max_tokens=8, config=config)
    save_model_folder(folder, model, TOKENIZER, info)
    return folder, {name: value.clone() for name, value in model.state_dict().items()}


def accounted(report: Report, model: XVLM, state: dict[str, torch.Tensor]) -> None:
    """Every tensor of the model once, and every tensor of the file."""
    own = [*report.matched, *(n.name for n in (*report.copied, *report.converted, *report.fresh))]
    assert sorted(own) == sorted(model.state_dict())
    taken = set(report.matched) | {n.note.removeprefix("from ") for n in report.copied}
    taken |= {n.name for n in report.converted}
    assert taken | {n.name for n in report.dropped} == set(state)


def test_each_cross_layer_of_a_pretrained_model_feeds_two(tmp_path: Path) -> None:
    folder, state = folder_of(tmp_path, PLAIN)
    model = made(pairs("statement"), seed=2)
    fresh = model.cls_head[0].weight.clone()
    report = load_from_folder(model, folder)
    own = model.state_dict()
    for layer, source in {0: 0, 1: 1, 2: 2, 3: 2, 4: 3, 5: 3}.items():
        prefix = f"text.layers.{layer}."
        names = [name for name in own if name.startswith(prefix)]
        assert names
        for name in names:
            theirs = f"text.layers.{source}.{name.removeprefix(prefix)}"
            assert torch.equal(own[name], state[theirs]), name
    shared = [name for name in own if ".cross_attention.key." in name]
    assert [name.split(".")[2] for name in shared] == ["2", "2", "4", "4"], "stored once a pair"
    vision = [name for name in own if name.startswith("vision.")]
    assert all(torch.equal(own[name], state[name]) for name in vision)
    assert torch.equal(model.cls_head[0].weight, fresh)
    accounted(report, model, state)
    assert {note.name.split(".")[0] for note in report.fresh} == {"cls_head"}
    dropped = {note.name.split(".")[0] for note in report.dropped}
    assert dropped == {"itm_head", "bbox_head", "vision_proj", "text_proj", "temp", "text"}
    # the copies at other places are said with where they come from
    assert "text.layers.5.self_attention.query.weight: from text.layers.3.self_attention.query" in (
        "\n".join(report.lines())
    )


def test_its_own_pretraining_brings_everything_but_the_head_of_the_task(tmp_path: Path) -> None:
    folder, state = folder_of(tmp_path, pairs("pair_assignment"))
    model = made(pairs("statement"), seed=2)
    report = load_from_folder(model, folder)
    assert not report.copied
    assert {note.name.split(".")[0] for note in report.fresh} == {"cls_head"}
    assert {note.name.split(".")[0] for note in report.dropped} == {"ta_head", "vision_proj"}
    accounted(report, model, state)
    own = model.state_dict()
    assert all(torch.equal(own[name], state[name]) for name in report.matched)


def test_the_extra_pretraining_keeps_the_projection_of_pictures(tmp_path: Path) -> None:
    folder, state = folder_of(tmp_path, PLAIN)
    model = made(pairs("pair_assignment"), seed=2)
    report = load_from_folder(model, folder)
    assert torch.equal(model.vision_proj.weight, state["vision_proj.weight"])
    assert {note.name.split(".")[0] for note in report.fresh} == {"ta_head"}


def test_tables_of_positions_are_resized(tmp_path: Path) -> None:
    folder, state = folder_of(tmp_path, PLAIN)
    tree = pairs("statement").model_dump()
    tree["vision"] |= {"image_size": 96, "window_size": 6}
    model = made(ModelConfig.model_validate(tree), seed=2)
    report = load_from_folder(model, folder)
    assert len(report.converted) == 4
    assert all("window 4 -> 6" in note.note for note in report.converted)
    accounted(report, model, state)


@pytest.mark.parametrize(
    ("config", "difference"),
    [
        (pairs("statement", layers=8), "text.layers.6"),
        (pairs("statement", layers=4), "text.layers.3"),
        (pairs("statement", fusion=1, layers=7), "text.layers.1.cross"),
    ],
)
def test_another_number_of_layers_is_refused_and_nothing_is_loaded(
    tmp_path: Path, config: ModelConfig, difference: str
) -> None:
    folder, _ = folder_of(tmp_path, PLAIN)
    model = made(config, seed=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match="another size") as caught:
        load_from_folder(model, folder)
    assert any(difference in line for line in caught.value.details), caught.value.details
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


def test_a_model_of_two_pictures_starts_none_of_one(tmp_path: Path) -> None:
    folder, _ = folder_of(tmp_path, pairs("statement"))
    with pytest.raises(CheckpointError, match="two pictures") as caught:
        load_from_folder(made(PLAIN), folder)
    assert caught.value.exit_code == 5
    assert caught.value.try_


def test_a_released_pretraining_file_gives_the_same_model_as_our_folder(tmp_path: Path) -> None:
    folder, state = folder_of(tmp_path / "ours", PLAIN)
    path = tmp_path / "released.safetensors"
    official = to_official(state, PLAIN)
    save_file({name: value.clone().contiguous() for name, value in official.items()}, path)
    for heads in (("statement",), ("pair_assignment",)):
        one, other = made(pairs(*heads), seed=2), made(pairs(*heads), seed=2)
        told = start_from_checkpoint(one, folder), start_from_checkpoint(other, path)
        mine, theirs = one.state_dict(), other.state_dict()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
        assert told[0].lines[1:4] == told[1].lines[1:4], "as many tensors come from the file"


# ------------------------------------------------------------------ the answer decoder


def of_picture_width(width: int) -> ModelConfig:
    tree = PLAIN.model_dump()
    tree["vision"]["embed_dim"] = width >> (len(PLAIN.vision.depths) - 1)
    return ModelConfig.model_validate(tree)


WIDE = of_picture_width(2 * PLAIN.text.hidden_size)
SAME = of_picture_width(PLAIN.text.hidden_size)


def decoder(plain: ModelConfig = WIDE, layers: int = 2) -> ModelConfig:
    tree = plain.model_dump() | {"heads": (), "decoder_layers": layers}
    return ModelConfig.model_validate(tree)


def test_the_cross_layers_of_a_pretrained_model_become_the_answer_decoder(tmp_path: Path) -> None:
    folder, state = folder_of(tmp_path, WIDE)
    model = made(decoder(), seed=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = load_from_folder(model, folder)
    fresh = {note.name for note in report.fresh}
    assert fresh == {
        f"decoder.layers.{layer}.cross_attention.{part}.{leaf}"
        for layer in (0, 1)
        for part in ("key", "value")
        for leaf in ("weight", "bias")
    }
    assert fresh == model.larger_lr_names, "what no pre-training brings learns faster"
    for name, value in model.state_dict().items():
        source = name.replace("decoder.layers.1.", "text.layers.3.")
        source = source.replace("decoder.layers.0.", "text.layers.2.").replace("decoder.", "text.")
        assert torch.equal(value, before[name] if name in fresh else state[source]), name
    accounted(report, model, state)
    assert not {note.name.split(".")[0] for note in report.dropped} & {"text", "vision"}
    said = "\n".join(start_from_checkpoint(model, folder).notes)
    assert "fresh: keys and values of the answer decoder" in said
    assert "left out: bbox_head, itm_head, temp, text_proj, vision_proj" in said


def test_the_decoder_takes_the_keys_too_where_pictures_are_as_wide_as_texts(tmp_path: Path) -> None:
    folder, state = folder_of(tmp_path, SAME)
    model = made(decoder(SAME), seed=2)
    report = load_from_folder(model, folder)
    assert not report.fresh
    assert not model.larger_lr_names
    name = "cross_attention.key.weight"
    own = model.state_dict()[f"decoder.layers.1.{name}"]
    assert torch.equal(own, state[f"text.layers.3.{name}"])


def test_a_decoder_of_more_layers_than_there_are_is_refused(tmp_path: Path) -> None:
    folder, _ = folder_of(tmp_path, WIDE)
    with pytest.raises(CheckpointError, match="another size") as caught:
        load_from_folder(made(decoder(layers=3)), folder)
    assert any("decoder.layers.2." in line for line in caught.value.details)


def test_a_released_pretraining_file_gives_the_same_answer_decoder_as_our_folder(
    tmp_path: Path,
) -> None:
    folder, state = folder_of(tmp_path / "ours", WIDE)
    path = tmp_path / "released.safetensors"
    official = to_official(state, WIDE)
    save_file({name: value.clone().contiguous() for name, value in official.items()}, path)
    one, other = made(decoder(), seed=2), made(decoder(), seed=2)
    told = start_from_checkpoint(one, folder), start_from_checkpoint(other, path)
    mine, theirs = one.state_dict(), other.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert told[0].lines[1:4] == told[1].lines[1:4], "as many tensors come from the file"
    assert all("fresh: keys and values of the answer decoder" in t.notes for t in told)


def test_a_model_that_answers_starts_a_model_that_answers_and_no_other(tmp_path: Path) -> None:
    folder, state = folder_of(tmp_path, decoder())
    model = made(decoder(), seed=2)
    assert not load_from_folder(model, folder).fresh
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    with pytest.raises(CheckpointError, match=r"answer decoder \(VQA\)"):
        load_from_folder(made(WIDE), folder)


# ---------------------------------------------------------------- captions


def captioner() -> ModelConfig:
    tree = PLAIN.model_dump()
    tree["heads"] = ("masked_lm",)
    tree["text"] |= {"causal": True}
    return ModelConfig.model_validate(tree)


def test_nothing_of_a_captioner_is_fresh(tmp_path: Path) -> None:
    folder, state = folder_of(tmp_path / "ours", PLAIN)
    path = tmp_path / "released.safetensors"
    official = to_official(state, PLAIN)
    save_file({name: value.clone().contiguous() for name, value in official.items()}, path)
    for place in (folder, path):
        model = made(captioner(), seed=2)
        told = start_from_checkpoint(model, place)
        own = model.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in own.items())
        assert any("0 are random (none)" in note for note in told.notes)
    report = load_from_folder(made(captioner(), seed=2), folder)
    accounted(report, model, state)
    heads = {note.name.split(".")[0] for note in report.dropped}
    assert heads == {"itm_head", "bbox_head", "vision_proj", "text_proj", "temp"}


def test_a_captioner_starts_a_captioner_and_no_other(tmp_path: Path) -> None:
    folder, _ = folder_of(tmp_path, captioner())
    assert not load_from_folder(made(captioner(), seed=2), folder).fresh
    with pytest.raises(CheckpointError, match="a captioner"):
        load_from_folder(made(PLAIN), folder)
