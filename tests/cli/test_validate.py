from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.cards.stores import EVERYTHING, make_store, paint
from tests.cli.conftest import Run


@pytest.fixture
def store(world_store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(world_store, tmp_path / "world"))


def test_a_whole_store(xvlm: Run, store: Path) -> None:
    result = xvlm("validate", store, "--decode", "--json").document()["result"]
    assert result["kind"] == "store"
    assert result["records"] == 16
    assert result["problems"] == []


def test_a_missing_picture_is_listed_by_record(xvlm: Run, store: Path) -> None:
    picture = sorted(store.rglob("*.png"))[0]
    picture.unlink()
    error = xvlm("validate", store).refusal(4)
    assert "1 problem in the store" in error
    assert picture.name in error
    assert "missing" in error
    assert "prepare-data" in error
    assert len(xvlm("validate", store, "--json").document()["result"]["problems"]) == 1


def test_a_truncated_picture_is_found_by_decoding(xvlm: Run, store: Path) -> None:
    picture = sorted(store.rglob("*.png"))[0]
    picture.write_bytes(picture.read_bytes()[:-200])
    assert xvlm("validate", store).code == 0
    assert picture.name in xvlm("validate", store, "--decode").refusal(4)


def test_a_changed_record_fails_its_checksum(xvlm: Run, store: Path) -> None:
    records = store / "records-00000.jsonl"
    records.write_bytes(records.read_bytes().replace(b"red", b"rad"))
    assert "checksums differ: records-00000.jsonl" in xvlm("validate", store).refusal(4)


def test_a_store_is_shown_as_a_card_and_samples(xvlm: Run, store: Path, tmp_path: Path) -> None:
    done = xvlm("validate", store)
    assert done.code == 0
    for said in ("world: world, 16 records (train 12, val 4)", "what is in it", "duplicates"):
        assert said in done.out
    with Image.open(tmp_path / "world-samples.png") as sheet:
        assert sheet.format == "PNG"
    page = (tmp_path / "world-samples.html").read_text(encoding="utf-8")
    assert page.count("<article ") == 6
    assert "world-samples.html" in done.out
    assert xvlm("validate", store, "--sample", "2", "-o", "seen").code == 0
    page = (tmp_path / "seen" / "world-samples.html").read_text(encoding="utf-8")
    assert page.count("<article ") == 2


def test_no_samples_and_no_files(xvlm: Run, store: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    done = xvlm("validate", store, "--sample", "0", "--json").document()["result"]
    assert done["samples"] is None
    assert done["card"]["amounts"]["caption"]["total"] > 0
    assert xvlm("validate", store, "--dry-run").out.count("would write") == 2
    assert sorted(tmp_path.rglob("*")) == before
    xvlm("validate", store, "--sample", "1000").refusal(2)


def test_samples_never_go_into_the_store(
    xvlm: Run, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "inside the store" in xvlm("validate", store, "-o", store / "seen").refusal(2)
    monkeypatch.chdir(store)
    document = xvlm("validate", ".", "--json").document()
    assert document["result"]["samples"] is None
    assert any("inside the store" in warning for warning in document["warnings"])
    assert document["result"]["card"]["name"] == "world"
    assert not list(store.rglob("*samples*"))


def test_a_place_that_cannot_be_written_is_a_warning_unless_it_was_named(
    xvlm: Run, store: Path, tmp_path: Path
) -> None:
    (tmp_path / "world-samples.png").mkdir()
    document = xvlm("validate", store, "--json").document()
    assert "world-samples.png cannot be written" in document["warnings"][0]
    assert document["result"]["samples"] is None
    assert "world-samples.png cannot be written" in xvlm("validate", store, "-o", ".").refusal(2)
    assert not list(tmp_path.glob(".*"))


def test_a_picture_of_another_size_under_an_old_manifest(xvlm: Run, tmp_path: Path) -> None:
    make_store(tmp_path / "mine", EVERYTHING)
    paint(tmp_path / "pictures", {"two.png": (64, 48)})
    error = xvlm("validate", "mine").refusal(4)
    assert "two: two.png: changed since it was prepared: 64 x 48 pixels" in error
    assert "the record says 200 x 200" in error
    assert "prepare it again: xvlm prepare-data jsonl mine.jsonl -o data/mine --overwrite" in error
    assert "64 x 48, the record says 200 x 200" in (tmp_path / "mine-samples.html").read_text(
        "utf-8"
    )


def test_every_problem_is_in_one_document(xvlm: Run, tmp_path: Path) -> None:
    make_store(tmp_path / "mine", EVERYTHING)
    (tmp_path / "pictures" / "one.png").write_bytes(b"no picture")
    (tmp_path / "pictures" / "two.png").unlink()
    done = xvlm("validate", "mine", "--json")
    assert done.code == 4
    assert json.loads(done.out)["result"]["problems"] == [
        "one: one.png: not an image",
        "two: two.png: missing",
        "three: two.png: missing",
        "four: one.png: not an image",
        "four: two.png: missing",
    ]
    assert done.document()["result"]["card"]["records_read"] == 4


def test_a_packed_store(xvlm: Run, tmp_path: Path) -> None:
    few = ("--train", "2", "--val", "1", "--test", "0", "--unseen", "0", "--workers", "1")
    assert xvlm("prepare-data", "world", *few, "--pack", "-o", "packed").code == 0
    result = xvlm("validate", "packed", "--decode", "--json").document()["result"]
    assert (result["records"], result["problems"]) == (3, [])
    page = (tmp_path / "packed-samples.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg") == 3


def test_a_model_folder(xvlm: Run, model: Path) -> None:
    result = xvlm("validate", model, "--json").document()["result"]
    assert (result["kind"], result["task"], result["checksums"]) == ("model", "grounding", False)
    assert result["parameters"] > 100_000


def test_a_truncated_model(xvlm: Run, model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "model.safetensors" in xvlm("validate", "m").refusal(5)


def test_a_run_and_a_damaged_checkpoint_in_it(xvlm: Run, pretrained: Path, tmp_path: Path) -> None:
    shutil.copytree(pretrained, tmp_path / "run")
    result = xvlm("validate", "run", "--json").document()["result"]
    assert (result["kind"], result["checkpoints"]) == ("run", [2])
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000002"
    assert xvlm("validate", checkpoint).code == 0
    (checkpoint / "model.safetensors").unlink()
    assert "--resume run" in xvlm("validate", "run").refusal(5)
    assert "model.safetensors" in xvlm("validate", checkpoint).refusal(5)


def test_a_checkpoint_says_what_it_is_and_who_made_it(
    xvlm: Run, pretrained: Path, tmp_path: Path
) -> None:
    shutil.copytree(pretrained, tmp_path / "run")
    checkpoint = Path("run/checkpoints/step-00000002")
    result = xvlm("validate", checkpoint, "--json").document()["result"]
    made = result["provenance"]
    manifest = json.loads((tmp_path / "run" / "run.json").read_bytes())
    assert (made["run"], made["step"], made["task"]) == ("pretrain-world", 2, "pretrain") or (
        made["run"] == "run"  # a run of an older version, told by its folder
    )
    assert made["command"] == manifest["command"]
    assert made["stores"] == manifest["stores"] != {}
    assert made["recipe"]["schedule"]["max_steps"] == 2
    (score,) = [s for name, s in made["scores"].items() if name == "accuracy@0.5"]
    assert score["n"] > 0
    assert result["checksums"]
    assert result["resume"] == {"command": None, "why_not": "the run is finished"}
    text = xvlm("validate", checkpoint).out
    for said in ("checksums hold", "data          world, fingerprint", "accuracy@0.5", "step 2"):
        assert said in text, text
    run = xvlm("validate", "run", "--json").document()["result"]
    assert run["best"]["step"] == 2
    assert run["provenance"]["stores"] == made["stores"]


def status(run: Path, status: str) -> None:
    content = json.loads((run / "run.json").read_bytes())
    (run / "run.json").write_text(json.dumps({**content, "status": status}))


def test_whether_a_run_can_go_on_is_said(xvlm: Run, pretrained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(pretrained, tmp_path / "run"))
    status(run, "interrupted")
    checkpoint = run / "checkpoints" / "step-00000002"

    def resume(place: Path) -> dict[str, str | None]:
        found: dict[str, str | None] = xvlm("validate", place, "--json").document()["result"][
            "resume"
        ]
        return found

    for place in (run, checkpoint):
        assert resume(place) == {"command": f"xvlm pretrain --resume {run}", "why_not": None}
    xvlm("cp", run, "copy")
    assert "no run is around it" in str(resume(tmp_path / "copy")["why_not"])

    newer = run / "checkpoints" / "step-00000003"
    shutil.copytree(checkpoint, newer)
    assert "the newest one, step-00000003" in str(resume(checkpoint)["why_not"])
    shutil.rmtree(newer)

    content = json.loads((run / "run.json").read_bytes())
    stores = dict.fromkeys(content["stores"], "other")
    (run / "run.json").write_text(json.dumps({**content, "stores": stores}))
    assert "other data" in str(resume(checkpoint)["why_not"])
    (run / "run.json").write_text(json.dumps(content))

    with (run / "recipe.yaml").open("a") as file:
        file.write("# by hand\n")
    assert "was changed" in str(resume(checkpoint)["why_not"])
    error = xvlm("validate", run).refusal(5)
    assert "recipe.yaml was changed" in error
    assert "init.checkpoint=" in error


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "provenance.json"])
def test_a_folder_edited_by_hand_is_found(
    xvlm: Run, pretrained: Path, tmp_path: Path, name: str
) -> None:
    xvlm("cp", pretrained, "copy")
    path = tmp_path / "copy" / name
    path.write_bytes(path.read_bytes() + b" ")
    error = xvlm("validate", "copy").refusal(5)
    assert f"model copy is damaged: {name}" in error
    assert "--resume" not in error  # a copy cannot be resumed
    assert "xvlm cp" in error


def test_files_of_weights(xvlm: Run, model: Path, tmp_path: Path) -> None:
    import torch

    from xvlm_core.models.sizes import tiny
    from xvlm_core.models.xvlm import XVLM
    from xvlm_core.weights.official import to_official

    shape = tiny()
    vision = {"kind": "swin", "depths": (2, 2), "num_heads": (1, 2), "window_size": 4}
    shape = shape.model_copy(
        update={
            "vision": shape.vision.model_copy(update={**vision, "sine_positions": False}),
            "text": shape.text.model_copy(update={"norm_first": False}),
        }
    )
    official = to_official(XVLM(shape).state_dict(), shape)
    torch.save({"model": official}, tmp_path / "released.th")
    result = xvlm("validate", "released.th", "--json").document()["result"]
    assert (result["kind"], result["task"]) == ("released", "pretrain")
    assert result["tensors"] == len(official)
    assert result["parameters"] == sum(value.numel() for value in official.values())
    assert "an official pre-training model" in xvlm("validate", "released.th").out

    result = xvlm("validate", model / "model.safetensors", "--json").document()["result"]
    assert (result["kind"], result["task"]) == ("weights", None)
    (tmp_path / "cut.th").write_bytes((tmp_path / "released.th").read_bytes()[:-100])
    assert "damaged" in xvlm("validate", "cut.th").refusal(5)


def test_recipes_by_name_and_file(xvlm: Run, tmp_path: Path) -> None:
    assert xvlm("validate", "refcoco+").code == 0
    (tmp_path / "own.yaml").write_text("task: pretrain\nfoo: 1\n")
    error = xvlm("validate", "own.yaml").refusal(3)
    assert "own.yaml:2" in error


@pytest.mark.parametrize("place", ["nothing", "."])
def test_what_is_none_of_them(xvlm: Run, place: str) -> None:
    xvlm("validate", place).refusal(4)


def test_a_picture_replaced_by_one_of_the_same_size_is_noticed(xvlm: Run, tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    path = tmp_path / "pictures" / "a.jpg"
    Image.new("RGB", (64, 48), (200, 30, 30)).save(path)
    (tmp_path / "mine.jsonl").write_text('{"image": "a.jpg", "text": "red"}\n')
    xvlm("prepare-data", "jsonl", "mine.jsonl", "--images", "pictures", "-o", "store")
    assert xvlm("validate", "store", "--sample", "0").code == 0
    Image.effect_noise((64, 48), 90).convert("RGB").save(path)
    done = xvlm("validate", "store", "--sample", "0")
    assert done.code == 4
    assert "a.jpg: changed since it was prepared" in done.err
    assert "prepare" in done.err.split("Try:")[1]
