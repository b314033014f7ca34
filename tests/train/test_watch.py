"""Processes that hang, die, or lose their launcher: the others end, with code 8 and a reason."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from tests.train.toy import _CONTEXT, _child
from xvlm_core.errors import LostRankError
from xvlm_core.train.launch import LAUNCHER_PID, Place
from xvlm_core.train.pulses import Pulses
from xvlm_core.train.supervisor import free_address
from xvlm_core.train.watch import Timing, Watch, follow_launcher

# a busy machine may leave a living process alone for a second or two
TIMING = Timing(heartbeat=0.1, gone=4.0, grace=0.5, launcher=1.0, report=1.0)
# where nobody is silent: nothing is promised there that a slow name server may break
PATIENT = replace(TIMING, gone=20.0, report=5.0)
LONG = 60.0
HOST = socket.gethostname()

Role = Callable[[Watch, int], None]


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.05)
    return False


# ---------------------------------------------------------------------- what a rank does


def hang_in_c(watch: Watch, rank: int) -> None:
    watch.beat(f"step 120, records r{rank}-a, r{rank}-b")
    ctypes.CDLL(None).sleep(int(LONG))  # lets go of the interpreter, and no signal handler runs


def hang_with_the_interpreter(watch: Watch, rank: int) -> None:
    ctypes.PyDLL(None).sleep(int(LONG))


def hang_with_the_interpreter_for_a_while(watch: Watch, rank: int) -> None:
    time.sleep(0.3)
    ctypes.PyDLL(None).usleep(8_000_000)


def the_same_but_told(watch: Watch, rank: int) -> None:
    with watch.holding("the checkpoint"):
        ctypes.PyDLL(None).usleep(5_500_000)
    time.sleep(0.5)


def wait_in_c(watch: Watch, rank: int) -> None:
    left, _right = socket.socketpair()
    watch.beat(f"step 119, records r{rank}-a")
    left.recv(1)


def beat_for_a_while(watch: Watch, rank: int) -> None:
    until = time.monotonic() + 2.5
    while time.monotonic() < until:
        watch.beat("validation")
        time.sleep(0.05)


def beat_for_long(watch: Watch, rank: int) -> None:
    for _ in range(3):
        beat_for_a_while(watch, rank)


def take_a_long_step(watch: Watch, rank: int) -> None:
    for _ in range(10):  # a clock runs on while a process is stopped
        time.sleep(0.1)


def wait_for_a_while(watch: Watch, rank: int) -> None:
    time.sleep(2.5)


def leave(watch: Watch, rank: int) -> None:
    pass


def die(watch: Watch, rank: int) -> None:
    time.sleep(1.5)  # the others have heard of it
    os.kill(os.getpid(), signal.SIGKILL)


def fail(watch: Watch, rank: int) -> None:
    time.sleep(0.3)
    raise ValueError("no such picture")


# ---------------------------------------------------------------------- running it


def rank_of(
    folder: Path,
    roles: list[Role],
    rank: int,
    port: int,
    stalls: Sequence[float],
    all_here: Barrier | None = None,
    timing: Timing = TIMING,
) -> None:
    descriptor = os.open(folder / f"stderr-{rank}", os.O_WRONLY | os.O_CREAT)
    os.dup2(descriptor, 2)
    store = None
    if len(roles) > 1:
        arguments = ("127.0.0.1", port, len(roles), rank == 0, timedelta(seconds=30))
        store = TCPStore(*arguments, wait_for_workers=True)
    place = Place(rank=rank, world_size=len(roles))
    words = folder / f"words-{rank}"

    def say(error: LostRankError) -> None:
        words.write_text(str(error))

    if all_here is not None:  # nobody is timed while others still import torch
        all_here.wait(60)
    watch = Watch(place, store, stalls[rank], folder, resume="GO ON", last_words=say, timing=timing)
    with watch:
        (folder / f"here-{rank}").touch()
        roles[rank](watch, rank)
    (folder / f"left-{rank}").touch()


class Told:
    """Exit codes by rank, seconds until the last ended, and what each rank wrote."""

    def __init__(
        self, all_here: Barrier, folder: Path, timing: Timing, roles: list[Role], *stalls: float
    ) -> None:
        folder.mkdir()
        self.folder = folder
        port = free_address().port
        arguments = [
            (folder, roles, rank, port, stalls * len(roles), all_here, timing)
            for rank in range(len(roles))
        ]
        self._processes = [_CONTEXT.Process(target=_child, args=(rank_of, a)) for a in arguments]
        for process in self._processes:
            process.start()

    def wait(self) -> Told:
        until = time.monotonic() + 40
        for process in self._processes:
            process.join(max(0.1, until - time.monotonic()))
        self.codes = [process.exitcode for process in self._processes]
        self.end()
        ranks = range(len(self._processes))
        self.stderr = [(self.folder / f"stderr-{rank}").read_text() for rank in ranks]
        return self

    def end(self) -> None:
        for process in self._processes:
            process.kill()

    def stacks(self, rank: int) -> str:
        path = self.folder / f"stalled-rank-{rank}.txt"
        return path.read_text() if path.exists() else ""


SILENT = ("killed", "store killed", "told silence", "silence")

RUNS: dict[str, tuple[Any, ...]] = {
    "hangs": ([hang_in_c], 0.6),
    "one hangs": ([wait_in_c, hang_in_c], 1.5),
    "one is told": ([wait_in_c, hang_in_c], LONG, 1.5),
    "beats": ([beat_for_a_while, wait_for_a_while], 1.5),
    "killed": ([wait_in_c, wait_in_c, die], LONG),
    "store killed": ([die, wait_in_c, wait_in_c], LONG),
    "leaves": ([beat_for_a_while, leave], LONG),
    "store leaves": ([leave, beat_for_a_while], LONG),
    "fails": ([wait_in_c, fail], LONG),
    "told silence": ([the_same_but_told, beat_for_long], LONG),
    "silence": ([wait_in_c, hang_with_the_interpreter_for_a_while], LONG),
}

Run = Callable[[str], Told]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """The end of a run. They mostly sleep, so they all run at once."""
    folder = tmp_path_factory.mktemp("runs")
    all_here = _CONTEXT.Barrier(sum(len(what[0]) for what in RUNS.values()))
    started = {
        name: Told(all_here, folder / name, TIMING if name in SILENT else PATIENT, *what)
        for name, what in RUNS.items()
    }
    yield lambda name: started[name].wait()
    for told in started.values():
        told.end()


# ---------------------------------------------------------------------- a run that stands still


def test_a_process_that_hangs_in_c_says_where_and_ends(run: Run) -> None:
    told = run("hangs")
    assert told.codes == [8]
    for text in (told.stderr[0], told.stacks(0)):
        assert text.startswith("nothing was finished for 1 s: the run stands still (last: step 120")
        assert "records r0-a, r0-b" in text
        assert "in hang_in_c" in text
        assert "continue with GO ON" in text
    assert "rank 0 last finished step 120" in told.stacks(0)
    assert (told.folder / "words-0").read_text().startswith("nothing was finished")


def test_when_one_rank_stands_still_every_rank_says_where_it_is(run: Run) -> None:
    told = run("one hangs")
    assert told.codes == [8, 8]
    assert "in wait_in_c" in told.stacks(0)
    assert "step 119, records r0-a" in told.stacks(0)
    assert "in hang_in_c" in told.stacks(1)
    assert "step 120, records r1-a" in told.stacks(1)
    assert "in wait_in_c" in told.stderr[0]
    assert "in hang_in_c" in told.stderr[1]
    assert "rank 1 last finished step 120" in told.stacks(0)  # of the others, as last heard


def test_the_rank_that_finds_out_first_tells_the_others(run: Run) -> None:
    told = run("one is told")
    assert told.codes == [8, 8]
    assert f"rank 1 on host {HOST} stands still (step 120" in told.stderr[0]
    assert "in wait_in_c" in told.stderr[0]
    assert "in hang_in_c" in told.stacks(1)


def test_beats_keep_a_run_alive_also_those_who_wait_for_the_rank_that_beats(run: Run) -> None:
    told = run("beats")
    assert (told.codes, told.stderr) == ([0, 0], ["", ""])
    assert told.stacks(0) == told.stacks(1) == ""


def test_a_process_that_was_stopped_and_goes_on_does_not_stand_still(tmp_path: Path) -> None:
    arguments = (tmp_path, [take_a_long_step], 0, 0, [2.0])
    process = _CONTEXT.Process(target=_child, args=(rank_of, arguments))
    process.start()
    assert process.pid is not None
    within(20, (tmp_path / "here-0").exists)
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(2.5)
    os.kill(process.pid, signal.SIGCONT)
    process.join(20)
    assert process.exitcode == 0


def test_a_hang_that_holds_the_interpreter_is_shown(tmp_path: Path) -> None:
    arguments = (tmp_path, [hang_with_the_interpreter], 0, 0, [0.5])
    process = _CONTEXT.Process(target=_child, args=(rank_of, arguments))
    process.start()
    shown = tmp_path / "stderr-0"
    # the bottom of the stack is written last
    within(20, lambda: shown.exists() and "rank_of" in shown.read_text())
    process.kill()
    assert "in hang_with_the_interpreter" in shown.read_text()


def a_full_pipe(folder: Path) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    try:
        while True:
            os.write(writing, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(writing, True)
    os.dup2(writing, 2)
    with Watch(Place(), None, 0.3, folder / "not there", timing=TIMING) as watch:
        hang_in_c(watch, 0)
    os.close(reading)


def test_it_ends_also_where_nothing_can_be_written(tmp_path: Path) -> None:
    process = _CONTEXT.Process(target=_child, args=(a_full_pipe, (tmp_path,)))
    process.start()
    process.join(20)
    assert process.exitcode == 8


# ---------------------------------------------------------------------- peers


def test_when_a_rank_is_killed_the_others_end_and_the_lowest_says_so(run: Run) -> None:
    told = run("killed")
    assert told.codes == [8, 8, -signal.SIGKILL]
    lines = told.stderr[0].splitlines()
    assert lines[0].startswith(f"rank 2 on host {HOST} is gone since ")
    assert "Thread" not in told.stderr[0]
    assert "is gone" not in told.stderr[1]
    assert "in wait_in_c" in told.stacks(0)
    assert "in wait_in_c" in told.stacks(1)


def test_when_the_rank_with_the_store_is_killed_the_others_end(run: Run) -> None:
    told = run("store killed")
    assert told.codes == [-signal.SIGKILL, 8, 8]
    assert f"rank 0 on host {HOST} is gone since" in told.stacks(1)
    said = [rank for rank in (1, 2) if "is gone since" in told.stderr[rank]]
    assert said == [1]


@pytest.mark.parametrize("name", ["leaves", "store leaves"])
def test_a_rank_that_left_is_not_missed(run: Run, name: str) -> None:
    told = run(name)
    assert (told.codes, told.stderr) == ([0, 0], ["", ""])


def test_a_rank_that_failed_takes_those_with_it_that_wait_for_it(run: Run) -> None:
    told = run("fails")
    assert told.codes == [8, 1]
    assert f"rank 1 on host {HOST} ended: ValueError: no such picture" in told.stderr[0]


class SlowStore:
    """A store whose answers take their time; the first of all but the greeting is lost."""

    host, port = "127.0.0.1", 1

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []

    def set(self, key: str, value: str) -> None:
        if len(self.told) == 1:
            self.told.append({})
            raise RuntimeError("connection reset")
        time.sleep(0.4)
        self.told.append(json.loads(value))

    def check(self, keys: list[str]) -> bool:
        return False


def test_a_rank_that_failed_tells_it_also_to_a_store_that_is_slow_and_stumbles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = SlowStore()
    monkeypatch.setattr(Pulses, "_connect", lambda pulses: store)
    watch = Watch(Place(rank=1, world_size=2), store, LONG, tmp_path, timing=PATIENT)
    with pytest.raises(ValueError, match="no such picture"), watch:
        raise ValueError("no such picture")
    last = store.told[-1]
    assert (last["state"], last["words"]) == ("failed", "ValueError: no such picture")


def test_silence_that_was_told_of_is_no_death(run: Run) -> None:
    told = run("told silence")
    assert (told.codes, told.stderr) == ([0, 0], ["", ""])


def test_silence_that_was_not_told_of_is_death(run: Run) -> None:
    told = run("silence")
    assert told.codes[0] == 8
    assert "rank 1 on host" in told.stderr[0]


# ---------------------------------------------------------------------- the launcher


def a_launcher(folder: Path, role: Any) -> None:
    """Starts one process, and is killed."""
    os.environ[LAUNCHER_PID] = str(os.getpid())
    if os.fork() == 0:
        role(folder)
        os._exit(0)
    while not (folder / "pid").exists():
        time.sleep(0.02)
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGKILL)


def an_obedient_process(folder: Path) -> None:
    signals: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: signals.append(number))
    follow_launcher(TIMING.launcher)
    with Watch(Place(), None, LONG, folder, timing=TIMING):
        (folder / "pid").write_text(str(os.getpid()))
        until = time.monotonic() + 20
        while not signals and time.monotonic() < until:
            time.sleep(0.02)
        time.sleep(0.5)  # the step, and the checkpoint
        (folder / "signals").write_text(repr([int(n) for n in signals]))


def a_process_that_hears_nothing(folder: Path) -> None:
    signal.signal(signal.SIGTERM, lambda number, _: None)
    with Watch(Place(), None, LONG, folder, timing=TIMING):
        (folder / "pid").write_text(str(os.getpid()))
        ctypes.CDLL(None).sleep(int(LONG))
        ctypes.CDLL(None).sleep(int(LONG))  # the signal interrupts the first


def is_alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc on this system")
@pytest.mark.parametrize("role", [an_obedient_process, a_process_that_hears_nothing])
def test_no_process_outlives_its_launcher(tmp_path: Path, role: Any) -> None:
    launcher = _CONTEXT.Process(target=_child, args=(a_launcher, (tmp_path, role)))
    launcher.start()
    launcher.join(20)
    assert launcher.exitcode == -signal.SIGKILL
    pid = int((tmp_path / "pid").read_text())
    assert within(10, lambda: not is_alive(pid))
    if role is an_obedient_process:
        assert (tmp_path / "signals").read_text() == "[15]"
