"""What writes or trains takes ``--dry-run``: it says what it would do and writes nothing.

``prepare-data``, ``pretrain``, ``finetune`` and ``demo`` have theirs beside their other tests.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tests.cli.conftest import Run


def everything(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def test_predict_evaluate_and_cp_write_nothing(
    xvlm: Run, world_store: Path, tmp_path: Path
) -> None:
    Image.fromarray(np.zeros((20, 30, 3), dtype=np.uint8)).save(tmp_path / "image.png")
    answers = ("-o", "predictions.jsonl")
    commands = (
        ("predict", "grounding", "image.png", "red circle", "-c", "builtin"),
        ("evaluate", "grounding", "-c", "builtin", "-d", world_store, "-s", "val", *answers),
        ("cp", builtin(), "model"),
    )
    before = everything(tmp_path)
    for words in commands:
        done = xvlm(*words, "--dry-run")
        assert done.code == 0, done.err
        assert "would " in done.out
        assert xvlm(*words, "--dry-run", "--json").document()["ok"]
    assert everything(tmp_path) == before
    for words in commands:
        assert xvlm(*words).code == 0
    made = set(everything(tmp_path)) - set(before)
    for name in ("image.grounded.png", "predictions.jsonl", "model"):
        assert str(tmp_path / name) in made


def builtin() -> Path:
    from xvlm_core.inference.checkpoints import builtin_folder

    folder = builtin_folder()
    assert folder is not None
    return folder


def test_a_dry_run_refuses_what_the_run_would_refuse(xvlm: Run, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").write_text("mine")
    xvlm("cp", builtin(), "model", "--dry-run").refusal(2)
    xvlm("predict", "grounding", "gone.jpg", "a dog", "-c", "builtin", "--dry-run").refusal(4)
    xvlm("evaluate", "grounding", "--data", "gone", "--split", "val", "--dry-run").refusal(4)
