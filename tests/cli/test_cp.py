from __future__ import annotations

import errno
import hashlib
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Run
from xvlm_core.train.files import Files

FILES = ["MANIFEST.json", "config.json", "model.safetensors", "tokenizer.json"]


def test_a_run_becomes_a_plain_model_folder(xvlm: Run, pretrained: Path, tmp_path: Path) -> None:
    document = xvlm("cp", pretrained, "out", "--json").document()
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == sorted([*FILES, "provenance.json"])
    weights = (tmp_path / "out" / "model.safetensors").read_bytes()
    source = pretrained / "checkpoints" / "step-00000002" / "model.safetensors"
    assert weights == source.read_bytes()
    assert document["result"]["files"]["model.safetensors"] == hashlib.sha256(weights).hexdigest()
    checked = xvlm("validate", "out", "--json").document()["result"]
    assert checked["checksums"]
    assert checked["provenance"]["step"] == 2
    assert checked["provenance"]["scores"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_folder_that_is_not_empty_is_refused_and_replaced_when_asked(
    xvlm: Run, model: Path, tmp_path: Path
) -> None:
    assert xvlm("cp", model, "out").code == 0
    assert "--overwrite" in xvlm("cp", model, "out").refusal(2)
    assert xvlm("cp", model, "out", "--overwrite").code == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.txt").touch()
    xvlm("cp", model, "mine", "--overwrite").refusal(2)
    assert (tmp_path / "mine" / "precious.txt").exists()
    xvlm("cp", "out", "out", "--overwrite").refusal(2)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == FILES


@pytest.mark.parametrize("source", ["nowhere", "."])
def test_what_is_no_model_is_refused(xvlm: Run, source: str) -> None:
    xvlm("cp", source, "out").refusal(5)


def test_a_damaged_checkpoint_is_refused(xvlm: Run, model: Path, tmp_path: Path) -> None:
    xvlm("cp", model, "a")
    weights = tmp_path / "a" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    assert "model.safetensors" in xvlm("cp", "a", "b").refusal(5)
    assert not (tmp_path / "b").exists()


def test_a_full_disk_leaves_nothing(
    xvlm: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Files, "sync", full)
    assert "no space left" in xvlm("cp", model, "out").refusal(2)
    assert list(tmp_path.iterdir()) == []


def test_a_destination_below_a_file_is_refused(xvlm: Run, model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    xvlm("cp", model, "file/out").refusal(2)
