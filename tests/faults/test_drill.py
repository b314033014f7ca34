"""Faults of real runs: a sample of the drill, and what is no kill: stalls, and numbers gone bad."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import random
import socket
import subprocess
import sys
import time
from multiprocessing import resource_sharer
from multiprocessing.connection import Client
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.faults import drill
from tests.faults.drill_run import FAULTS, make_world, whole_steps
from tests.faults.drill_session import End, Session
from tests.faults.test_checkpoint import in_child
from tests.train.toy import toy_recipe
from xvlm_core.errors import OutputError
from xvlm_core.train import feeding, runs
from xvlm_core.train.files import Files

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("world")
    make_world(root)
    return root


def two_ranks(
    world: Path, folder: Path, *words: str, trap: dict[str, Any] | None = None
) -> Session:
    command = ["pretrain", "--recipe", "recipe.yaml", "-o", str(folder / "run"), "--gpus", "2"]
    return Session(folder / "session", [*command, *words], 2, world, trap)


def errors(session: Session) -> list[str]:
    return [line for line in session.stderr.splitlines() if line.startswith("Error: ")]


def test_a_sample_of_the_drill_is_as_promised(tmp_path: Path) -> None:
    pairs = [("torch-1", fault) for fault in ("byte", "operation", "term")]
    pairs += [("torch-2", fault) for fault in ("rank-1", "launcher")]
    outcomes = drill.drill(tmp_path, 7, pairs, 2, mounts=False)
    assert drill.problems(outcomes) == []
    assert sum(len(outcome.hits) for outcome in outcomes) == len(pairs)
    table = drill.markdown(outcomes).split("\n\n")[0]
    assert table.splitlines()[-1].startswith("| all | 5 | 0 |")


def test_the_plan_covers_the_matrix_and_comes_from_the_seed() -> None:
    def plan(seed: int) -> list[tuple[str, str]]:
        return drill.planned(120, list(FAULTS), list(drill.SETUPS), random.Random(seed))

    assert len(plan(0)) == 120
    assert plan(0) == plan(0) != plan(1)
    for setup, (kind, _) in drill.SETUPS.items():
        faults = {fault for name, fault in plan(0) if name == setup}
        assert all(kind.later >= FAULTS[fault].needs_ranks for fault in faults)
    assert {fault for name, fault in plan(0) if name == "torch-2"} == set(FAULTS)


def test_a_run_killed_while_its_folder_is_made_is_made_by_the_same_command(
    tmp_path: Path,
) -> None:
    steps = ("write", "sync", "rename", "sync") * 2  # recipe.yaml, then run.json
    had: list[list[str]] = []
    for number in range(len(steps)):
        folder = tmp_path / f"run-{number}"

        def create(folder: Path = folder, **recipe: Any) -> runs.RunInfo:
            recipe = {"seed": 1, **recipe}
            return runs.create(folder, recipe=toy_recipe(**recipe), recipe_name="r", command="c")

        def killed(number: int = number, create: Any = create) -> None:
            left = iter(range(number))

            def counted(method: Any) -> Any:
                return lambda *a: method(*a) if next(left, None) is not None else os._exit(17)

            for name in set(steps):  # this is a process of its own
                setattr(Files, name, counted(getattr(Files, name)))
            create()

        assert in_child(killed) == 17
        had.append(sorted(path.name.rstrip("0123456789") for path in folder.iterdir()))
        if (folder / "run.json").exists():
            assert runs.read(folder).status == "running", "a run: --resume goes on with it"
            continue
        if (folder / "recipe.yaml").exists():
            with pytest.raises(OutputError, match="not empty"):  # it may be the user's own
                create(seed=2)
        assert runs.is_barely_begun(folder) or not any(folder.iterdir())
        assert create().recipe_file.exists()
        assert sorted(p.name for p in folder.iterdir()) == ["recipe.yaml", "run.json"]
    begun = [[".recipe.yaml."], ["recipe.yaml"], [".run.json.", "recipe.yaml"]]
    assert [names for names, _ in itertools.groupby(had)] == [
        [],
        *begun,
        ["recipe.yaml", "run.json"],
    ]


IMPORT = """
import os, signal, sys
from xvlm_core.train.interrupts import held_back
try:
    with held_back():
        os.kill(os.getpid(), int(sys.argv[1]))
        os.kill(os.getpid(), signal.SIGINT)
        print("imported", flush=True)
    print("went on", flush=True)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize(("number", "ends"), [(2, 0), (15, -15)])
def test_a_signal_waits_until_an_import_is_over(number: int, ends: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT, str(number)], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert done.returncode == ends, done.stderr
    assert done.stdout == "imported\n" + "interrupted\n" * (number == 2)


def test_a_loader_process_whose_parent_died_as_it_took_a_tensor_says_nothing(
    tmp_path: Path,
) -> None:
    said = tmp_path / "stderr"

    def hand_over(error: Exception) -> None:
        """A process that takes a tensor goes away in the middle; or something else goes wrong."""
        with said.open("w") as stream:
            os.dup2(stream.fileno(), 2)
        sys.stderr = os.fdopen(2, "w", buffering=1)  # the child's own, not what pytest reads
        feeding._start_worker(0)
        shared: Any = resource_sharer.DupFd(0)
        if isinstance(error, EOFError):
            with socket.socket(socket.AF_UNIX) as taker:
                taker.connect(shared._id[0])
        else:  # a request that cannot be answered
            address, number = shared._id
            key = multiprocessing.current_process().authkey
            with Client(address, authkey=key) as connection:
                connection.send((number + 1, os.getpid()))
        time.sleep(0.5)

    assert in_child(lambda: hand_over(EOFError())) == 0
    assert said.read_text() == ""
    assert in_child(lambda: hand_over(KeyError())) == 0
    assert "KeyError" in said.read_text()


def test_a_rank_that_stalls_ends_the_run_and_every_rank_says_where_it_is(
    world: Path, tmp_path: Path
) -> None:
    trap = {"kind": "stall", "rank": 1, "step": 7}
    session = two_ranks(world, tmp_path, "train.stall_seconds=3", trap=trap)
    end = session.end()
    assert (end.code, end.orphans) == (8, 0), session.stderr
    assert end.seconds < 30
    (error,) = errors(session)
    assert "stands still" in error
    assert f"--resume -o {tmp_path / 'run'}" in session.stderr
    reports = [(tmp_path / "run" / f"stalled-rank-{rank}.txt").read_text() for rank in (0, 1)]
    for rank, report in enumerate(reports):
        assert f"rank {rank} last finished step 7, records world-train-" in report, report
        assert "Thread MainThread" in report
        assert "_update" in report
        for line in report.splitlines():  # on stderr as well, whoever wrote it
            assert line in session.stderr, (rank, line)
    assert "in beat_and_say" in reports[1], "the line that hangs"
    assert "in beat_and_say" not in reports[0]
    assert whole_steps(tmp_path / "run") == ([3, 6], 0)


def test_a_picture_of_one_rank_that_is_not_finite_stops_all_before_the_update(
    world: Path, tmp_path: Path
) -> None:
    trap = {"kind": "nan", "rank": 1, "step": 5}
    session = two_ranks(world, tmp_path, trap=trap)
    end = session.end()
    assert (end.code, end.orphans) == (6, 0), session.stderr
    (error,) = errors(session)
    assert "not finite at step 5; the update was not made" in error
    starts = {told.rank: told.text for told in session.told if told.text.startswith("at step 5,")}
    report = json.loads((tmp_path / "run" / "diverged.json").read_text())
    named = ", ".join(report["records"])
    assert starts[1].startswith(f"at step 5, records {named[:20]}")
    assert not starts[0].startswith(f"at step 5, records {named[:20]}"), "only the rank's own"
    assert f"records: {named}" in session.stderr
    assert whole_steps(tmp_path / "run") == ([3], 0)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "diverged"


def test_a_loader_process_that_dies_ends_the_run_with_one_line(world: Path, tmp_path: Path) -> None:
    session = two_ranks(world, tmp_path)
    assert session.run_until(lambda: session.has_said("saved 3"))
    assert session.run_until(lambda: bool(session.workers_of(1)))
    assert session.send(9, session.workers_of(1)[:1])
    end: End = session.end()
    assert (end.code, end.orphans) == (4, 0), session.stderr
    assert end.seconds < 30
    assert errors(session) == ["Error: rank 1: a loader process died"] or errors(session) == [
        "Error: a loader process died"
    ]
    assert "Try: data.workers=0" in session.stderr
    assert "Traceback" not in session.stderr
