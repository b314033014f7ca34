from __future__ import annotations

import shutil
from pathlib import Path

import pytest

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


def test_recipes_by_name_and_file(xvlm: Run, tmp_path: Path) -> None:
    assert xvlm("validate", "refcoco+").code == 0
    (tmp_path / "own.yaml").write_text("task: pretrain\nfoo: 1\n")
    error = xvlm("validate", "own.yaml").refusal(3)
    assert "own.yaml:2" in error


@pytest.mark.parametrize("place", ["nothing", "."])
def test_what_is_none_of_them(xvlm: Run, place: str) -> None:
    xvlm("validate", place).refusal(4)
