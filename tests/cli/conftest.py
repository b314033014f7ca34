"""A command line that is run in this process, and things to run it on, made once."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xvlm_cli.app import main


@dataclass(frozen=True)
class Result:
    """What a command did."""

    code: int
    out: str
    err: str

    def document(self) -> Any:
        """The one JSON document of ``--json``."""
        value = json.loads(self.out)
        assert set(value) == {"schema", "ok", "result", "warnings", "error"}
        assert value["ok"] == (value["error"] is None) == (self.code == 0)
        if value["error"] is not None:
            keys = {"code", "what", "where", "try", "details", "exit_code"}
            assert set(value["error"]) == keys
            assert value["error"]["exit_code"] == self.code
        return value

    def refusal(self, code: int) -> str:
        """Standard error of a command that was refused: the exit code, one line of what to type.

        Nothing is on stdout, and there is no traceback.
        """
        assert self.code == code, self
        assert self.out == ""
        tries = [line for line in self.err.splitlines() if line.startswith("Try: ")]
        assert len(tries) == 1, self.err
        assert tries[0].removeprefix("Try: ").strip()
        assert "Error: " in self.err
        assert "Traceback" not in self.err
        return self.err


Run = Callable[..., Result]


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("XVLM_"):
            monkeypatch.delenv(name)


@pytest.fixture
def xvlm(
    clean: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Run a command line in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str | Path) -> Result:
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def world_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small store of coloured shapes: train 12, val 4."""
    from xvlm_core.sources.prepare import prepare

    folder = tmp_path_factory.mktemp("data") / "world"
    options = {"train": 12, "val": 4, "test": 0, "unseen": 0, "workers": 1}
    prepare("world", folder, options, command="xvlm prepare-data world -o data/world")
    return folder


def write_model(folder: Path, *, task: str = "grounding", heads: tuple[str, ...] = ()) -> Path:
    """A tiny model that learnt nothing."""
    import torch

    from xvlm_core.config.schema import ModelSection
    from xvlm_core.data.tokenizer import Tokenizer
    from xvlm_core.models.xvlm import XVLM
    from xvlm_core.weights.folder import ModelInfo, save_model_folder
    from xvlm_core.world.grammar import wordpiece_vocabulary

    tokenizer = Tokenizer.from_vocab(wordpiece_vocabulary())
    shape = ModelSection(size="tiny").shape(
        vocab_size=tokenizer.vocab_size, heads=heads or ("matching", "box")
    )
    torch.manual_seed(0)
    info = ModelInfo(
        task=task, about="a model of the tests", max_words=30, max_tokens=30, config=shape
    )
    save_model_folder(folder, XVLM(shape), tokenizer, info)
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def pretrained(world_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished pre-training run of two steps, made by the command line."""
    runs = tmp_path_factory.mktemp("runs")
    folder = runs / "pretrain-world"
    code = main(
        [
            "pretrain",
            "--recipe",
            "world",
            "--max-steps",
            "2",
            "-o",
            str(folder),
            "--quiet",
            f"data.root={world_store.parent}",
            "data.validation_limit=2",
        ]
    )
    assert code == 0
    return folder


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """``image.jpg`` in the folder that commands run in."""
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    path = tmp_path / "image.jpg"
    Image.fromarray(pixels).save(path)
    return path
