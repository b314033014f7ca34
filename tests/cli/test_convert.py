"""``xvlm convert``: released files in, and our models out, bit for bit, or nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.cli.conftest import Run
from tests.weights.official_files import official_file, our_state, task_config
from tests.weights.shapes import SHARED, assert_same_bits
from xvlm_core.train.files import Files
from xvlm_core.weights.official_shape import TASKS

ALL = list(TASKS)
FILES = ["MANIFEST.json", "config.json", "model.safetensors", "tokenizer.json"]
KEYS = ("matched", "converted", "computed", "tied", "dropped", "missing")


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """The vocabulary of the small models."""
    return vocabulary(tmp_path / "vocab.txt", 30)


def vocabulary(path: Path, size: int) -> Path:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    path.write_text("\n".join([*special, *(f"w{n}" for n in range(size - len(special)))]))
    return path


def saved(state: dict[str, Tensor], path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file({key: value.clone() for key, value in state.items()}, path)
    else:
        torch.save({"model": state, "config": {"image_res": 64}, "epoch": 4}, path)
    return path


def read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        tensors: dict[str, Tensor] = load_file(path)
        return tensors
    content = torch.load(path, weights_only=True)
    assert set(content) == {"model", "config"}
    assert content["config"]["image_res"] == 64
    model: dict[str, Tensor] = content["model"]
    return model


# ---------------------------------------------------------------- both ways


@pytest.mark.parametrize("suffix", [".th", ".safetensors"])
@pytest.mark.parametrize("task", ALL)
def test_in_and_out_again_is_bit_for_bit(
    xvlm: Run, words: Path, tmp_path: Path, task: str, suffix: str
) -> None:
    official = official_file(task)
    saved(official, tmp_path / f"in{suffix}")
    document = xvlm("convert", f"in{suffix}", "model", "--tokenizer", words, "--json").document()
    result = document["result"]
    assert result["task"] == ("retrieval" if task == "weak_grounding" else task)
    assert result["to"] == "xvlm"
    assert result["config"]["vision"]["image_size"] == 64
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == FILES
    ours = our_state(task_config(task))
    assert_same_bits(load_file(tmp_path / "model" / "model.safetensors"), ours)
    # every key of the file and every tensor of the model is accounted for
    keys = result["keys"]
    assert set(keys) == set(KEYS)
    assert set(keys["matched"]) == set(ours)
    assert not keys["dropped"]
    assert not keys["missing"]
    tied = {note["name"] for note in keys["tied"]}
    assert len(keys["matched"]) + len(keys["computed"]) + len(tied) == len(official)
    assert tied | set(keys["computed"]) < set(official)

    back = xvlm("convert", "model", f"out{suffix}", "--json").document()["result"]
    assert back["to"] == "official"
    assert back["task"] == result["task"]
    assert_same_bits(read(tmp_path / f"out{suffix}"), official)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the golden cases are not here")
@pytest.mark.parametrize(
    "case",
    ["pretrain_region", "retrieval", "grounding_bbox", "nlvr", "nlvr_pretrain", "vqa", "caption"],
)
def test_recorded_weights_go_in_and_out(xvlm: Run, tmp_path: Path, case: str) -> None:
    source = SHARED / "golden" / case / "weights.safetensors"
    words = vocabulary(tmp_path / "vocab.txt", 200)
    assert xvlm("convert", source, "m", "--text-heads", "4", "--tokenizer", words).code == 0
    assert xvlm("convert", "m", "out.safetensors").code == 0
    assert_same_bits(load_file(tmp_path / "out.safetensors"), load_file(source))


def test_the_table_says_what_became_of_the_keys(xvlm: Run, words: Path, tmp_path: Path) -> None:
    saved(official_file("pretrain"), tmp_path / "in.th")
    done = xvlm("convert", "in.th", "model", "--task", "grounding", "--tokenizer", words)
    lines = done.out.splitlines()
    assert "an official grounding model, out of an official pre-training model" in lines[0]
    assert "64 px, window 4" in lines[0]
    assert [line.split()[0] for line in lines[2:8]] == list(KEYS)
    dropped = next(line for line in lines if line.startswith("dropped"))
    assert dropped.endswith("itm_head, language model, temp, text_proj, vision_proj")
    assert lines[-1] == "wrote model folder model, read back: the same bits"
    assert "1 heads of the text stack's attention" in done.err


def test_half_precision_is_converted_and_said(xvlm: Run, words: Path, tmp_path: Path) -> None:
    half = {k: v.half() if v.is_floating_point() else v for k, v in official_file("vqa").items()}
    saved(half, tmp_path / "in.pth")
    keys = xvlm("convert", "in.pth", "m", "--tokenizer", words, "--json").document()["result"][
        "keys"
    ]
    assert not keys["matched"]
    assert {n["note"] for n in keys["converted"]} == {"torch.float16 -> torch.float32"}


def test_answers_that_a_released_file_has_no_place_for_are_said(
    xvlm: Run, words: Path, tmp_path: Path
) -> None:
    saved(official_file("vqa"), tmp_path / "in.pth")
    assert xvlm("convert", tmp_path / "in.pth", "m", "--tokenizer", words).code == 0
    assert "answers" not in xvlm("convert", "m", "none.th").err
    config = json.loads(Path("m/config.json").read_text())
    Path("m/config.json").write_text(json.dumps({**config, "answers": ["yes", "no"]}))
    Path("m/MANIFEST.json").unlink()  # it was edited
    done = xvlm("convert", "m", "out.th")
    assert done.code == 0
    assert "the 2 answers that the model chooses from have no place" in done.err


def test_a_buffer_of_another_architecture_warns(xvlm: Run, words: Path, tmp_path: Path) -> None:
    official = official_file("grounding")
    name = "vision_encoder.layers.0.blocks.1.attn_mask"
    saved({**official, name: official[name] + 1}, tmp_path / "in.th")
    document = xvlm("convert", "in.th", "m", "--tokenizer", words, "--json").document()
    assert [warning.split()[0] for warning in document["warnings"]] == [name]


# ---------------------------------------------------------------- which task


@pytest.mark.parametrize("task", ["retrieval", "weak_grounding", "grounding", "captioning"])
def test_the_models_that_a_pretraining_file_holds_come_out_of_it(
    xvlm: Run, words: Path, tmp_path: Path, task: str
) -> None:
    saved(official_file("pretrain"), tmp_path / "in.th")
    arguments = ("--task", task, "--tokenizer", words)
    result = xvlm("convert", "in.th", "m", *arguments, "--json").document()["result"]
    assert result["task"] == task
    info = json.loads((tmp_path / "m" / "config.json").read_text())
    assert info["task"] == task
    assert info["max_tokens"] == 40
    assert tuple(info["config"]["heads"]) == TASKS[task].heads
    # the same out of a model folder of ours, and to a released file
    assert xvlm("convert", "in.th", "whole", "--tokenizer", words).code == 0
    assert xvlm("convert", "whole", "part", "--task", task).code == 0
    assert xvlm("convert", "m", "a.th").code == 0
    assert xvlm("convert", "part", "b.th").code == 0
    assert xvlm("convert", "in.th", "c.th", "--task", task).code == 0
    first = read(tmp_path / "a.th")
    assert_same_bits(first, read(tmp_path / "b.th"))
    assert_same_bits(first, read(tmp_path / "c.th"))
    expected = set(official_file(task))
    assert set(first) == expected


def test_a_task_that_the_file_does_not_hold_is_refused(xvlm: Run, tmp_path: Path) -> None:
    saved(official_file("pretrain"), tmp_path / "in.th")
    error = xvlm("convert", "in.th", "m", "--task", "vqa").refusal(2)
    assert "pretrain, retrieval, weak_grounding, grounding, captioning" in error
    xvlm("convert", "in.th", "m", "--task", "chess").refusal(2)
    saved(official_file("grounding"), tmp_path / "g.th")
    xvlm("convert", "g.th", "m", "--task", "retrieval").refusal(2)


# ---------------------------------------------------------------- what is refused


def test_what_is_no_official_checkpoint_is_refused(xvlm: Run, tmp_path: Path) -> None:
    saved({"layers.0.weight": torch.zeros(2)}, tmp_path / "in.pth")
    assert "is no official X-VLM checkpoint" in xvlm("convert", "in.pth", "m").refusal(5)
    (tmp_path / "text.txt").write_text("hello")
    xvlm("convert", "text.txt", "m").refusal(5)
    xvlm("convert", "nowhere.th", "m").refusal(5)
    assert not (tmp_path / "m").exists()


def test_missing_and_unknown_keys_are_named(xvlm: Run, tmp_path: Path) -> None:
    official = official_file("vqa")
    del official["text_decoder.bert.encoder.layer.1.crossattention.self.key.bias"]
    saved({**official, "text_decoder.mystery": torch.zeros(1)}, tmp_path / "in.th")
    error = xvlm("convert", "in.th", "m").refusal(5)
    assert "missing: decoder.layers.1.cross_attention.key.bias" in error
    assert "unexpected: text_decoder.mystery" in error


class Planted:
    def __reduce__(self) -> Any:
        return (os.system, ("touch planted",))


@pytest.mark.parametrize("where", ["beside", "inside"])
def test_a_file_with_code_inside_is_refused_and_not_run(
    xvlm: Run, tmp_path: Path, where: str
) -> None:
    official: dict[str, Any] = dict(official_file("grounding"))
    if where == "inside":
        official["temp"] = Planted()
    content = {"model": official, "config": Planted() if where == "beside" else {}}
    torch.save(content, tmp_path / "evil.th")
    assert "is refused" in xvlm("convert", "evil.th", "m").refusal(5)
    document = xvlm("convert", "evil.th", "m", "--json").document()
    assert document["error"]["code"] == "checkpoint"
    assert not (tmp_path / "planted").exists()
    assert not (tmp_path / "m").exists()


def test_torch_files_are_loaded_as_weights_only(
    xvlm: Run, words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(official_file("grounding"), tmp_path / "in.th")
    asked: list[Any] = []
    load = torch.load

    def watched(*arguments: Any, **options: Any) -> Any:
        asked.append(options.get("weights_only"))
        return load(*arguments, **options)

    monkeypatch.setattr(torch, "load", watched)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "0")
    assert xvlm("convert", "in.th", "out.th").code == 0
    assert asked == [True, True]  # the source, and what was written


def test_another_vocabulary_than_berts_is_asked_for(xvlm: Run, tmp_path: Path) -> None:
    saved(official_file("grounding"), tmp_path / "in.th")
    error = xvlm("convert", "in.th", "m").refusal(5)
    assert "BERT-base-uncased knows 30,522 pieces, the model 30" in error
    assert "Try: --tokenizer" in error
    saved(official_file("grounding", vocab_size=30522), tmp_path / "big.th")
    assert xvlm("convert", "big.th", "m").code == 0


def test_a_model_of_another_architecture_has_no_official_form(
    xvlm: Run, model: Path, tmp_path: Path
) -> None:
    assert "vision.kind is vit, not swin" in xvlm("convert", model, "out.th").refusal(5)
    assert "xvlm cp" in xvlm("convert", model, "out").refusal(2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ("in.th", "out", "--to", "official"),
        ("in.th", "out.th", "--to", "xvlm"),
        ("in.th", "out", "--to", "onnx"),
        ("in.th", "in.th", "--overwrite"),
        ("in.th", "folder.th"),
        ("in.th", "full"),
        ("in.th", "full", "--overwrite"),
        ("in.th", "there.th"),
    ],
)
def test_destinations_that_cannot_be_are_refused(
    xvlm: Run, tmp_path: Path, words: tuple[str, ...]
) -> None:
    saved(official_file("grounding"), tmp_path / "in.th")
    (tmp_path / "folder.th").mkdir()
    (tmp_path / "full").mkdir()
    for name in ("full/mine.txt", "there.th"):
        (tmp_path / name).write_text("mine")
    before = (tmp_path / "in.th").read_bytes()
    xvlm("convert", *words).refusal(2)
    assert (tmp_path / "in.th").read_bytes() == before
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"
    assert (tmp_path / "there.th").read_text() == "mine"


def test_what_is_there_is_replaced_when_asked(xvlm: Run, words: Path, tmp_path: Path) -> None:
    saved(official_file("grounding"), tmp_path / "in.th")
    for _ in range(2):
        assert xvlm("convert", "in.th", "m", "--tokenizer", words, "--overwrite").code == 0
        assert xvlm("convert", "m", "out.safetensors", "--overwrite").code == 0
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == FILES


def test_a_dry_run_says_the_same_and_writes_nothing(xvlm: Run, words: Path, tmp_path: Path) -> None:
    saved(official_file("nlvr2"), tmp_path / "in.th")
    before = sorted(tmp_path.iterdir())
    dry = xvlm("convert", "in.th", "m", "--tokenizer", words, "--dry-run")
    assert dry.code == 0
    assert dry.out.splitlines()[-1] == "would write model folder m"
    xvlm("convert", "in.th", "m", "--dry-run").refusal(5)  # no vocabulary fits
    assert xvlm("convert", "in.th", "out.th", "--dry-run").code == 0
    assert sorted(tmp_path.iterdir()) == before
    done = xvlm("convert", "in.th", "m", "--tokenizer", words)
    assert done.out.splitlines()[:-1] == dry.out.splitlines()[:-1]


@pytest.mark.parametrize("destination", ["m", "out.th", "out.safetensors"])
def test_a_full_disk_leaves_nothing(
    xvlm: Run, words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, destination: str
) -> None:
    saved(official_file("grounding"), tmp_path / "in.th")
    before = sorted(tmp_path.iterdir())

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    arguments = ("convert", "in.th", destination, "--tokenizer", words)
    with monkeypatch.context() as patch:
        patch.setattr(Files, "sync", full)
        assert "no space left" in xvlm(*arguments).refusal(2)

    def torn(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", torn)
        patch.setattr("safetensors.torch.save_file", torn)
        patch.setattr("xvlm_core.weights.files.save_file", torn)
        assert "cannot be written" in xvlm(*arguments).refusal(2)
    assert sorted(tmp_path.iterdir()) == before


def test_bits_that_differ_after_writing_are_noticed(
    xvlm: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(official_file("grounding"), tmp_path / "in.th")
    save = torch.save

    def flipped(content: dict[str, Any], path: Path) -> None:
        model = dict(content["model"])
        model["bbox_head.3.bias"] = model["bbox_head.3.bias"] + 1e-7
        save({**content, "model": model}, path)

    monkeypatch.setattr(torch, "save", flipped)
    assert "differs after writing" in xvlm("convert", "in.th", "out.th").refusal(5)
    assert [path.name for path in tmp_path.iterdir()] == ["in.th"]
