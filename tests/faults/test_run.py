"""A whole run that is killed at file operations anywhere in it continues to the same end."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.train.test_loop import same_run
from tests.train.toy import ToyTask, in_process, run_toy, toy_recipe
from xvlm_core.config.schema import Recipe
from xvlm_core.train import runs

_CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"}
_STRIDE = 3  # every third of about 50 operations; 1 tries all


def short_recipe() -> Recipe:
    return toy_recipe(
        schedule={"max_steps": 7},
        train={"checkpoint_every": 2, "evaluate_every": 3, "log_every": 2, "keep_last": 1},
    )


def train_until(folder: Path, operation: int | None, report: Path) -> None:
    """Train; exit right before the given change of the run folder (from 0), if any."""
    done = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal done
        change = event in _CHANGES
        if event == "open":
            change = isinstance(arguments[2], int) and bool(
                arguments[2] & (os.O_WRONLY | os.O_RDWR)
            )
        if change and str(folder) in str(arguments[0]) and (folder / "run.json").exists():
            if done == operation:
                os._exit(17)
            done += 1

    sys.addaudithook(hook)
    run_toy(folder, ToyTask(), short_recipe())
    report.write_text(str(done))


def test_a_run_killed_at_any_file_operation_continues_to_the_same_end(tmp_path: Path) -> None:
    report = tmp_path / "report"
    assert in_process(train_until, tmp_path / "whole", None, report) == 0
    total = int(report.read_text())
    assert total > 40
    for operation in range(0, total, _STRIDE):
        folder = tmp_path / f"run-{operation}"
        assert in_process(train_until, folder, operation, report) == 17
        loadable = runs.read(folder).newest_checkpoint()
        assert in_process(run_toy, folder, ToyTask(), short_recipe()) == 0
        assert runs.read(folder).status == "finished"
        same_run(tmp_path / "whole", folder)
        assert loadable is not None or operation < total / 2, "nothing loadable was left"
