"""From a pre-trained run to captions: language modelling, both stages, evaluation, predict."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.conftest import Run
from tests.data.painted import painted_store
from tests.tasks.questions import asked, question


@pytest.fixture(scope="session")
def world_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``data`` with a small store ``world``."""
    from xvlm_core.sources.prepare import prepare

    root = tmp_path_factory.mktemp("data")
    options = {"train": 8, "val": 4, "test": 0, "unseen": 0, "workers": 1, "size": 64}
    prepare("world", root / "world", options, command="xvlm prepare-data world -o data/world")
    return root


def test_language_modelling_both_stages_evaluation_and_a_caption(
    xvlm: Run, pretrained: Path, world_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(pretrained, "runs/pretrain-x")
    more = (
        f"data.root={world_root}", "data.workers=0", "data.images.batch_size=4", "--json",
        "--max-steps", "2",
    )  # fmt: skip
    lm = xvlm("pretrain", "--recipe", "world-caption-lm", *more)
    assert lm.code == 0, lm.err
    assert "pretrain-x" in lm.err, "what it starts from is said"
    assert any("0 are random" in n for n in lm.document()["result"]["first_weights"])

    first = xvlm("finetune", "world-caption", *more, "train.evaluate_every=1")
    assert first.code == 0, first.err
    assert "caption_pretrain run" in first.err
    result = first.document()["result"]
    assert result["best"]["score"] == "CIDEr"
    assert result["scores"]["CIDEr"]["n"] == 4
    config = json.loads((Path(result["checkpoint"]) / "config.json").read_text())
    assert (config["task"], config["prompt"]) == ("captioning", "a picture of ")

    second = xvlm("finetune", "world-caption", *more, "captioning.stage=self_critical")
    assert second.code == 0, second.err
    assert "captioning run" in second.err
    lines = (Path(second.document()["result"]["run"]) / "metrics.jsonl").read_text().splitlines()
    train = [json.loads(line) for line in lines if '"train"' in line]
    assert all({"reward", "baseline"} <= set(json.dumps(line).split('"')) for line in train)

    broken = Path("bin/java")
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(broken.parent.resolve()))
    words = ("evaluate", "captioning", "--data", world_root / "world", "--json")
    done = xvlm(*words)
    assert done.code == 0, done.err
    found = done.document()["result"]
    assert found["scores"]["CIDEr"]["n"] == 4
    assert set(found["skipped"]) == {"METEOR", "SPICE"}, "and the others are kept"
    assert all("java is broken" in reason for reason in found["skipped"].values())
    saved = next(Path("runs").rglob("captioning*.jsonl"))
    rows = [json.loads(line) for line in saved.read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"world-val-{i:06d}" for i in range(4)]
    again = xvlm(*words, "--predictions", saved, "--no-java")
    assert again.code == 0, again.err
    assert again.document()["result"]["scores"] == found["scores"]
    assert again.document()["result"]["skipped"] == {}, "nobody asked for them"
    saved.with_name("bad.jsonl").write_text('{"id": "world-val-000000", "caption": 3}\n')
    bad = xvlm(*words[:-1], "--predictions", saved.with_name("bad.jsonl"))
    assert "a caption that is not a text" in bad.refusal(4)

    shutil.copy(next((world_root / "world").rglob("*.png")), "a.png")
    answer = xvlm("predict", "caption", "a.png", "--json")
    assert answer.code == 0, answer.err
    assert "newest captioning run" in answer.document()["result"]["model"]["origin"]


def test_the_second_stage_wants_a_first_one(xvlm: Run, world_root: Path) -> None:
    words = ("finetune", "world-caption", f"data.root={world_root}")
    said = xvlm(*words, "captioning.stage=self_critical").refusal(5)
    assert "no captioning run" in said
    assert "xvlm finetune caption" in said


def test_a_caption_of_a_picture_without_references_is_left_out_and_named(
    xvlm: Run, tmp_path: Path
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name, colour in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (40, 30), colour).save(pictures / f"{name}.png")
    rows = [
        {"image": "a.png", "text": "a red square"},
        {"image": "b.png", "text": "blue", "box": [1, 1, 30, 20]},
    ]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("--annotations", "rows.jsonl", "--images", pictures, "-o", "store")
    assert xvlm("prepare-data", "jsonl", *words, "--split", "val").code == 0
    records = Path("store/records-00000.jsonl").read_text().splitlines()
    names = [json.loads(line)["id"] for line in records]
    captions = [json.dumps({"id": name, "caption": "a red square"}) for name in names]
    Path("captions.jsonl").write_text("\n".join(captions))
    words = ("--data", "store", "--split", "val", "--predictions", "captions.jsonl", "--no-java")
    done = xvlm("evaluate", "caption", *words, "--json")
    assert done.code == 0, done.err
    result = done.document()["result"]
    assert result["scores"]["BLEU-1"]["n"] == 1
    assert result["dropped"] == {"no reference caption": 1}
    assert names[1] in done.err


def test_a_store_without_captions_is_refused_and_no_run_is_left(xvlm: Run, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    painted_store(tmp_path / "asked", pictures, [asked(pictures, "t", [question("1")])])
    words = (
        "finetune", "world-caption", f"data.root={tmp_path}", "data.images.stores=[asked]",
        "data.images.batch_size=1", "data.validation=[]", "init.checkpoint=null", "data.workers=0",
    )  # fmt: skip
    said = xvlm(*words, "-o", "runs/none").refusal(4)
    assert "no usable sample from step 1 on: 16 no caption" in said
    assert "Try: data.images.stores=[...]" in said
    assert not Path("runs/none").exists()
