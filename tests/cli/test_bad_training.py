"""What a user gets wrong about a run of several processes, through the real command line.

The processes are real ones, started as torchrun starts them (by their environment) from a server
that has imported torch already; each calls what the command ``xvlm`` calls.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.conftest import Result, Run
from tests.tasks import recipes
from tests.train.ranks import _CONTEXT, free_port
from xvlm_cli import launching
from xvlm_cli.app import main
from xvlm_core.train import checkpoint, runs
from xvlm_core.train.files import FILES

STEPS = 4
WITHIN = 30.0
Before = Callable[[int], None]


# --- processes -----------------------------------------------------------------------------------


def _rank(
    words: Sequence[str], environ: dict[str, str], folder: Path, before: Before | None
) -> None:
    """A process of a run: what torchrun would have started."""
    os.setsid()  # by its session are found the processes that it left
    rank = environ["RANK"]
    for descriptor, name in ((1, f"out-{rank}"), (2, f"err-{rank}")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), descriptor)
    sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1, closefd=False) for n in (1, 2))
    for name in list(os.environ):
        if name.startswith(("XVLM_", "SLURM_", "TORCHELASTIC_")):
            del os.environ[name]
    os.environ.update(environ, OMP_NUM_THREADS="1")
    os.chdir(folder)
    if before is not None:
        before(int(rank))
    sys.exit(main(list(words)))


def _left(sessions: Sequence[int]) -> list[str]:
    """The processes of these sessions that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text()
        except OSError:  # it has ended meanwhile
            continue
        state, _, _, session = text.rpartition(")")[2].split()[:4]
        if int(session) in sessions and state != "Z":
            found.append(text)
    return found


def run_ranks(
    folder: Path,
    words: Sequence[str | Path],
    *,
    ranks: Sequence[int] = (0, 1),
    world_size: int | None = None,
    port: int | None = None,
    before: Before | None = None,
    more: Sequence[Sequence[str]] | None = None,
    machines: bool = True,
) -> list[Result]:
    """Run a command line in several processes of one run; all have ended within 30 s.

    Args:
        folder: where they run.
        words: of the command line.
        ranks: that are started.
        world_size: that they are told of; None: as many as are started.
        port: that they meet at; None: a free one.
        before: called in each process, with its rank, before the command.
        more: further words, one list a rank.
        machines: each is told that it is the only one of its machine: none is silent then because
            another one on the machine speaks.
    """
    world_size = world_size or len(ranks)
    port = port or free_port()
    folder.mkdir(parents=True, exist_ok=True)
    processes = []
    for number, rank in enumerate(ranks):
        environ = {
            "RANK": str(rank),
            "LOCAL_RANK": "0" if machines else str(rank),
            "WORLD_SIZE": str(world_size),
            "LOCAL_WORLD_SIZE": "1" if machines else str(world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        line = [*map(str, words), *(more[number] if more else ())]
        processes.append(_CONTEXT.Process(target=_rank, args=(line, environ, folder, before)))
    for process in processes:
        process.start()
    until = time.monotonic() + WITHIN
    try:
        for process in processes:
            process.join(max(0.1, until - time.monotonic()))
        codes = [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()
    said = [[(folder / f"{k}-{rank}").read_text() for k in ("out", "err")] for rank in ranks]
    assert None not in codes, f"not over in {WITHIN:.0f} s: {codes} {said}"
    assert _left([process.pid for process in processes if process.pid]) == []
    return [Result(code or 0, out, err) for code, (out, err) in zip(codes, said, strict=True)]


def refused_by_rank_0(results: Sequence[Result], code: int) -> str:
    """All ended with this code, and rank 0 alone said why."""
    assert [result.code for result in results] == [code] * len(results), results
    for result in results[1:]:
        assert (result.out, result.err) == ("", ""), result
    return results[0].refusal(code)


# --- things to run it on -------------------------------------------------------------------------


def write_recipe(path: Path, data: Path, changes: dict[str, Any] | None = None) -> Path:
    tree: dict[str, Any] = {
        "data": {"images": {"batch_size": 6}, "regions": {"max_images": 6, "batch_texts": None}},
        "schedule": {"max_steps": STEPS},
        "train": {
            "device": "cpu",
            "threads": 1,
            "log_every": 1,
            "checkpoint_every": 2,
            "micro_batches": 2,
        },
    }
    recipe = recipes.recipe(data, **recipes.merged(tree, changes or {}))
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores, a recipe over them, and a finished run of two parts an update."""
    folder = tmp_path_factory.mktemp("bad")
    recipes.write_stores(folder / "data", 14)
    recipe = write_recipe(folder / "recipe.yaml", folder / "data")
    done = main(["pretrain", "--recipe", str(recipe), "-o", str(folder / "run"), "--quiet"])
    assert done == 0
    return folder


@pytest.fixture
def finished(home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(home / "run", tmp_path / "run"))


@pytest.fixture
def stopped(finished: Path) -> Path:
    """The same run, as if it had been killed before its last checkpoint: those of 2 and 3 stay."""
    newest, older = finished / "checkpoints" / "step-00000004", "step-00000002"
    assert sorted(path.name for path in newest.parent.iterdir()) == [older, newest.name]
    shutil.rmtree(newest)
    runs.read(finished).with_status("interrupted")
    return finished


@pytest.fixture
def twice(finished: Path) -> Path:
    """The same run, as if it had been killed after its last checkpoint, with one step to go."""
    runs.read(finished).with_status("interrupted")
    return finished


def seal(folder: Path) -> None:
    """Make a manifest that holds for what is in a checkpoint's folder now."""
    (folder / checkpoint.MANIFEST).unlink()
    checkpoint._seal(folder, checkpoint.step_of(folder), FILES)


def content(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file under a folder: its bytes, and when it was written."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def pretrain(home: Path, run: Path, *more: str) -> list[str]:
    return ["pretrain", "--recipe", str(home / "recipe.yaml"), "-o", str(run), *more]


def resume(run: Path, *more: str) -> list[str]:
    return ["pretrain", "--resume", "-o", str(run), *more]


# --- numbers that do not go together -------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train.micro_batches=3"], "2 processes cannot share the 3 micro-batches"),
        (["train.micro_batches=4"], "cannot be divided into 4 equal parts"),
        (["train.micro_batches=null", "data.images.batch_size=5"], "data.images.batch_size is 5"),
    ],
)
def test_a_batch_that_the_processes_cannot_share_is_refused(
    home: Path, tmp_path: Path, words: list[str], says: str
) -> None:
    error = refused_by_rank_0(run_ranks(tmp_path, pretrain(home, tmp_path / "r", *words)), 3)
    assert says in error
    assert not (tmp_path / "r").exists()


def test_a_run_goes_on_with_as_many_processes_as_its_parts_can_be_shared_by(
    stopped: Path, tmp_path: Path
) -> None:
    before = content(stopped)
    error = refused_by_rank_0(run_ranks(tmp_path, resume(stopped), ranks=(0, 1, 2)), 3)
    assert "3 processes cannot share the 2 micro-batches" in error
    assert "Try: 1, 2 processes" in error
    assert content(stopped) == before


def test_more_processes_than_records_and_shards_just_work(tmp_path: Path) -> None:
    """The order of the data knows nothing of processes, nor do they of shards."""
    sizes = ["--train", "2", "--val", "0", "--test", "0", "--unseen", "0", "--workers", "1"]
    packed = ["-o", str(tmp_path / "data" / "packed"), "--pack", "-q"]
    assert main(["prepare-data", "world", *sizes, *packed]) == 0
    assert len(list((tmp_path / "data" / "packed").glob("shard-*.tar"))) == 1
    stores = {"images": {"stores": ["packed"]}, "regions": {"stores": ["packed"]}}
    changes = {"data": stores, "train": {"micro_batches": 3}}
    write_recipe(tmp_path / "recipe.yaml", tmp_path / "data", changes)
    many = run_ranks(tmp_path, pretrain(tmp_path, tmp_path / "many"), ranks=(0, 1, 2))
    assert [result.code for result in many] == [0, 0, 0], many
    assert main(pretrain(tmp_path, tmp_path / "one", "-q")) == 0
    one, three = (
        [line["loss"] for line in runs.read(tmp_path / name).log()] for name in ("one", "many")
    )
    assert len(one) == STEPS
    assert three == pytest.approx(one, rel=1e-5), "three parts add up in another order"


def test_a_folder_that_is_not_empty_is_refused_by_all(home: Path, finished: Path) -> None:
    """Rank 0 alone can tell; the others must not wait for it."""
    before = content(finished)
    results = run_ranks(finished.parent / "cwd", pretrain(home, finished))
    assert "is not empty" in refused_by_rank_0(results, 2)
    assert content(finished) == before


# --- processes that do not meet ------------------------------------------------------------------


def short_meeting(rank: int) -> None:
    from xvlm_core.train import ranks

    ranks._MEETING_SECONDS = 3.0


def test_a_port_in_use_is_refused(home: Path, tmp_path: Path) -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        words = pretrain(home, tmp_path / "r")
        first, second = run_ranks(tmp_path, words, port=port, before=short_meeting)
    assert f"port {port} of 127.0.0.1 is in use" in first.refusal(2)
    assert "did not all come to" in second.refusal(8)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_peer_that_never_comes_is_not_waited_for_for_ever(
    home: Path, tmp_path: Path, rank: int
) -> None:
    words = pretrain(home, tmp_path / "r")
    (one,) = run_ranks(tmp_path, words, ranks=[rank], world_size=2, before=short_meeting)
    error = one.refusal(8)
    assert "the 2 processes of this run did not all come to 127.0.0.1:" in error
    assert not (tmp_path / "r").exists()


def other_version(rank: int) -> None:
    if rank == 1:
        theirs = {**runs.versions(), "xvlm": "9.9.9"}
        runs.versions = lambda: theirs


def test_processes_of_other_versions_or_data_are_refused_and_the_difference_named(
    home: Path, tmp_path: Path
) -> None:
    recipes.write_stores(tmp_path / "data", 13)
    words = pretrain(home, tmp_path / "r")
    other = [[], [f"data.root={tmp_path / 'data'}"]]
    results = run_ranks(tmp_path, words, before=other_version, more=other)
    error = refused_by_rank_0(results, 3)
    assert "differ in 3 things that must be the same" in error
    assert re.search(r"version of xvlm: \S+ \(rank 0\); 9\.9\.9 \(rank 1\)", error)
    assert re.search(r"data of captions: \S+ \(rank 0\); \S+ \(rank 1\)", error)
    assert not (tmp_path / "r").exists()


OTHER_VERSION = """
import os, sys
from xvlm_core.train import runs
theirs = {**runs.versions(), "xvlm": "9.9.9"}
if os.environ["RANK"] == "1":
    runs.versions = lambda: theirs
from xvlm_cli.app import main
sys.exit(main())
"""


def test_under_our_own_supervisor_the_error_is_said_once_and_no_process_is_left(
    xvlm: Run, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = f"MARK={tmp_path}"
    monkeypatch.setenv(*mark.split("="))
    monkeypatch.setattr(launching, "COMMAND", (sys.executable, "-c", OTHER_VERSION))
    error = xvlm(*pretrain(home, tmp_path / "r", "--gpus", "2", "--device", "cpu")).refusal(3)
    assert "version of xvlm: " in error
    assert error.count("Error: ") == 1
    assert not (tmp_path / "r").exists()
    marked = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark.encode() in path.read_bytes():
                marked.append(path)
    assert marked == []


def test_data_that_is_not_there_is_said_once(home: Path, tmp_path: Path) -> None:
    words = pretrain(home, tmp_path / "r", f"data.root={tmp_path}")
    results = run_ranks(tmp_path, words, machines=False)
    assert "captions, regions are not in" in refused_by_rank_0(results, 4)


# --- checkpoints that are not what they were -----------------------------------------------------


def test_the_optimizer_state_of_another_model_is_refused(
    home: Path, stopped: Path, tmp_path: Path
) -> None:
    wider = {"model": {"overrides": {"embed_dim": 12}}}
    write_recipe(tmp_path / "recipe.yaml", home / "data", wider)
    assert main(pretrain(tmp_path, tmp_path / "wider", "--max-steps", "2", "-q")) == 0
    folder = stopped / "checkpoints" / "step-00000002"
    theirs = tmp_path / "wider" / "checkpoints" / "step-00000002"
    shutil.copy(theirs / "optimizer.safetensors", folder)
    seal(folder)
    error = refused_by_rank_0(run_ranks(tmp_path, resume(stopped)), 5)
    assert "the optimizer state is of another model" in error
    assert f"Where: {folder}" in error
    assert not (stopped / "checkpoints" / "step-00000004").exists()


def test_a_checkpoint_of_an_older_schema_says_how_its_weights_can_be_used(
    stopped: Path, tmp_path: Path
) -> None:
    folder = stopped / "checkpoints" / "step-00000002"
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, "schema": 1}))
    seal(folder)
    error = refused_by_rank_0(run_ranks(tmp_path, resume(stopped)), 5)
    assert "schema 1" in error
    assert f"init.checkpoint={folder}" in error


def change_a_byte(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)


def remove_a_file(folder: Path) -> None:
    (folder / "state.json").unlink()


@pytest.mark.parametrize("edit", [change_a_byte, remove_a_file])
def test_a_checkpoint_edited_by_hand_is_passed_over_and_without_another_refused(
    xvlm: Run, home: Path, twice: Path, edit: Callable[[Path], None]
) -> None:
    newest, older = (twice / "checkpoints" / f"step-0000000{step}" for step in (4, 2))
    edit(newest)
    done = xvlm(*resume(twice))
    assert done.code == 0
    assert re.search(
        r"Warning: checkpoint step-00000004 is damaged: .*; it is passed over", done.err
    )
    assert "continuing after step 2 (step-00000002)" in done.err
    whole = home / "run" / "checkpoints" / "step-00000004" / "model.safetensors"
    assert (newest / "model.safetensors").read_bytes() == whole.read_bytes()

    runs.read(twice).with_status("interrupted")
    edit(newest)
    edit(older)
    before = content(twice / "checkpoints")
    error = xvlm(*resume(twice)).refusal(5)
    assert "all its checkpoints are damaged" in error
    assert content(twice / "checkpoints") == before


def test_a_checkpoint_with_a_file_too_many_is_taken_and_the_file_named(
    xvlm: Run, twice: Path
) -> None:
    """To go back a checkpoint, and write over this one, because of a note in it helps nobody."""
    (twice / "checkpoints" / "step-00000004" / "notes.txt").write_text("the good one")
    done = xvlm(*resume(twice))
    assert done.code == 0
    assert "continuing after step 4" in done.err
    assert "Warning: checkpoint step-00000004 has a file that is not its own: notes.txt" in done.err


# --- a recipe, a run -----------------------------------------------------------------------------


def test_another_recipe_is_refused_key_by_key_and_the_harmless_is_taken(
    xvlm: Run, home: Path, stopped: Path, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"optim": {"lr": 1e-3}, "text": {"max_words": 11}, "seed": 4}
    write_recipe(tmp_path / "recipe.yaml", home / "data", changes)
    error = xvlm(*resume(stopped, "--recipe", str(tmp_path / "recipe.yaml"))).refusal(2)
    assert "3 values of recipe" in error
    assert "optim.lr: 0.0001 in the run, 0.001 now" in error
    assert "text.max_words: 12 in the run, 11 now" in error
    assert "seed: 3 in the run, 4 now" in error

    changes = {"train": {"log_every": 2, "keep_last": 5}, "data": {"workers": 1}}
    write_recipe(tmp_path / "recipe.yaml", home / "data", changes)
    assert xvlm(*resume(stopped, "--recipe", str(tmp_path / "recipe.yaml"))).code == 0
    whole = home / "run" / "checkpoints" / "step-00000004" / "model.safetensors"
    mine = stopped / "checkpoints" / "step-00000004" / "model.safetensors"
    assert mine.read_bytes() == whole.read_bytes()


def test_to_resume_a_finished_run_writes_nothing(xvlm: Run, finished: Path, tmp_path: Path) -> None:
    before = content(finished)
    assert xvlm(*resume(finished)).code == 0
    results = run_ranks(tmp_path / "cwd", resume(finished))
    assert [result.code for result in results] == [0, 0]
    assert "nothing is left to do" in results[0].out
    assert (results[1].out, results[1].err) == ("", "")
    assert content(finished) == before


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests may themselves be run by torchrun or srun."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "MASTER_")) or name in ("RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name)
