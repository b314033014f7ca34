"""One run of a drill: hit again and again, continued each time, compared at its end."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.faults.drill_session import REPOSITORY, End, Session
from xvlm_core.errors import CheckpointError
from xvlm_core.train import checkpoint
from xvlm_core.train.telemetry import TIMES

STEPS, EVERY = 24, 3
RECIPE = f"""\
task: pretrain
seed: 3
model:
  size: tiny
  overrides:
    vision: {{image_size: 64, embed_dim: 16, num_heads: [2], depths: [1]}}
    text: {{hidden_size: 16, num_heads: 2, num_layers: 2, fusion_layer: 1, intermediate_size: 32}}
    embed_dim: 8
data:
  root: data
  regions: {{stores: [small], max_images: 2, max_regions: 4, absent: 1}}
  mix: joint
  validation: [small]
  validation_split: val
  workers: 1
text: {{tokenizer: world, max_words: 12, max_tokens: 12}}
schedule: {{max_steps: {STEPS}, warmup: 0.1}}
train:
  device: cpu
  micro_batches: 2
  threads: 1
  log_every: 2
  checkpoint_every: {EVERY}
  evaluate_every: 10
  keep_last: 2
  stall_seconds: 60
"""
STARTUP_SECONDS = 8.0
_DISK_BYTES = 8 << 20


@dataclass(frozen=True)
class Setup:
    """How a run is started, and how it goes on.

    Attributes:
        engine: torch or deepspeed.
        ranks: of the first session.
        later: ranks of the sessions after the first.
    """

    engine: str
    ranks: int
    later: int

    @property
    def name(self) -> str:
        """As the table shows it."""
        ranks = f"{self.ranks} rank{'s' * (self.ranks > 1)}"
        more = "" if self.later == self.ranks else f", goes on with {self.later}"
        zero = " ZeRO 2" if self.engine == "deepspeed" else ""
        return f"{self.engine}{zero}, {ranks}{more}"

    def words(self, ranks: int) -> list[str]:
        """Options of the command line."""
        words = ["--gpus", str(ranks)] if ranks > 1 else []
        if self.engine == "deepspeed":
            words += ["--engine", "deepspeed", "train.zero_stage=2"]
        return words


@dataclass(frozen=True)
class Fault:
    """Something that a run must survive.

    Attributes:
        name: as typed after ``--only``.
        said: as the table shows it.
        codes: exit codes that it may lead to, as a shell tells them.
        saves: the run is asked to stop, and loses no step.
        needs_ranks: it takes several.
        seconds: all processes have ended so long after it at the latest.
    """

    name: str
    said: str
    codes: Sequence[int]
    saves: bool = False
    needs_ranks: int = 1
    seconds: float = 30.0


_KILLED = (8, 128 + signal.SIGKILL)
FAULTS = {
    fault.name: fault
    for fault in (
        Fault("rank-0", "`kill -9` of rank 0", _KILLED),
        Fault("rank-1", "`kill -9` of rank 1", _KILLED, needs_ranks=2),
        Fault("all-ranks", "`kill -9` of every rank", _KILLED, needs_ranks=2),
        Fault("launcher", "`kill -9` of the launcher", _KILLED[1:], saves=True, needs_ranks=2),
        Fault("worker", "`kill -9` of a loader process", (4,)),
        Fault("operation", "`kill -9` of rank 0 at a random change of the disk", _KILLED),
        Fault("byte", "rank 0 ends at a random byte of a checkpoint file", (8, 128 + 25)),
        Fault("writing", "`kill -9` of rank 0 at a random time of a checkpoint write", _KILLED),
        Fault("disk", "full disk", (2,)),
        Fault("term", "SIGTERM to the launcher", (128 + signal.SIGTERM,), saves=True),
        Fault("int", "SIGINT to the launcher", (128 + signal.SIGINT,), saves=True),
    )
}


@dataclass(frozen=True)
class Hit:
    """What came of one fault.

    Attributes:
        fault: which.
        setup: in which run.
        when: at what, in words.
        end: of the session.
        steps_lost: steps that were made and have to be made again.
        allowed: how many may be.
        lost: checkpoints that were whole and are gone, or are there and are damaged.
        note: anything unexpected; empty: nothing was.
    """

    fault: str
    setup: str
    when: str
    end: End
    steps_lost: int
    allowed: int
    lost: int
    note: str = ""


@dataclass
class Outcome:
    """What came of a run.

    Attributes:
        hits: its faults.
        left: faults that did not happen, because the run was over before.
        unable: why the run did not go on; empty: it did.
        different: what differs at the end from the run that was left alone.
    """

    hits: list[Hit] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    unable: str = ""
    different: list[str] = field(default_factory=list)


# ---------------------------------------------------------------------- the world around


def make_world(root: Path) -> None:
    """The recipe and the pictures of all runs."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "recipe.yaml").write_text(RECIPE)
    words = "prepare-data world -o data/small --train 12 --val 2 --test 0 --unseen 0"
    subprocess.run(
        [sys.executable, "-m", "xvlm_cli", *words.split()],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        check=True,
        capture_output=True,
    )


def own_mounts() -> bool:
    """From now on this process mounts for itself alone; False: it may not mount."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_namespace, recursive_private = 0x00020000, 0x4000 | 0x40000
    if libc.unshare(new_namespace) != 0:
        return False
    return bool(libc.mount(b"none", b"/", None, recursive_private, None) == 0)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A disk of a few MB at a folder; False: there is none, it is an ordinary folder."""
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    size = f"size={_DISK_BYTES}".encode()
    mounted = libc.mount(b"tmpfs", str(folder).encode(), b"tmpfs", 0, size) == 0
    try:
        yield mounted
    finally:
        if mounted:
            libc.umount2(str(folder).encode(), 2)


# ---------------------------------------------------------------------- one run


class DrillRun:
    """A run, its faults, and its end.

    Args:
        root: of the drill; has the recipe and the data.
        number: of the run; its random numbers and its folder are named after it.
        seed: of the drill.
        setup: how it is started.
        faults: what it must survive, in this order.
        whole: the run that was left alone.
        mounts: whether disks may be mounted.
    """

    def __init__(
        self,
        root: Path,
        number: int,
        seed: int,
        setup: Setup,
        faults: Sequence[str],
        whole: Path,
        *,
        mounts: bool,
    ) -> None:
        self.root, self.setup, self.faults, self.whole = root, setup, list(faults), whole
        self.random = random.Random(f"{seed}/{number}")
        self.home = root / f"run-{number:03d}"
        self.disk = self.home / "disk"
        self.folder = self.disk / "run"
        self.mounts = mounts
        self.sessions = itertools.count()
        self.ranks = setup.ranks
        self.outcome = Outcome()

    def go(self) -> Outcome:
        """All of it. What is left of a run that went well is deleted."""
        self.home.mkdir()
        with contextlib.ExitStack() as stack:
            if "disk" in self.faults and self.mounts:
                stack.enter_context(small_disk(self.disk))
            else:
                self.disk.mkdir()
            self._survive()
            if not self.outcome.unable:
                same = self.setup.later == self.setup.ranks
                self.outcome.different = differences(self.whole, self.folder, same_ranks=same)
        noted = any(hit.note for hit in self.outcome.hits)
        if not (self.outcome.unable or self.outcome.different or noted):
            shutil.rmtree(self.home)
        return self.outcome

    def _survive(self) -> None:
        for name in self.faults:
            session, when, happened = self._hit(name)
            end = session.end()
            self.ranks = self.setup.later
            if happened and session.hit_at is not None:
                self.outcome.hits.append(self._judge(FAULTS[name], session, when, end))
            else:
                self.outcome.left.append(name)
                if end.code != 0:
                    self.outcome.unable = self._last_words(session, end)
                    return
            (self.disk / "ballast").unlink(missing_ok=True)
        session = self._session(None)
        end = session.end()
        if end.code != 0:
            self.outcome.unable = self._last_words(session, end)

    def _last_words(self, session: Session, end: End) -> str:
        return f"{session.folder}: exit code {end.code}: " + " | ".join(
            session.stderr.splitlines()[-4:]
        )

    def _session(self, trap: Mapping[str, Any] | None) -> Session:
        self.before = whole_steps(self.folder)[0]
        if (self.folder / "run.json").exists():
            words = ["pretrain", "--resume", "-o", str(self.folder)]
        else:
            words = ["pretrain", "--recipe", "recipe.yaml", "-o", str(self.folder)]
        words += [*self.setup.words(self.ranks)]
        name = f"session-{next(self.sessions)}"
        if trap is not None:
            trap = {"rank": 0, **trap}
        return Session(self.home / name, words, self.ranks, self.root, trap)

    # ------------------------------------------------------------------ the faults

    def _hit(self, name: str) -> tuple[Session, str, bool]:
        """Start a session and let the fault happen; when, and whether it did."""
        draw = self.random
        if name == "operation":
            is_new = not (self.folder / "run.json").exists()
            if is_new and draw.random() < 0.5:  # the first ten make the folder of a new run
                trap, since = {"kind": name, "write": 0, "number": draw.randrange(10)}, "the start"
            else:
                trap = {"kind": name, "write": 1 + draw.randrange(4), "number": draw.randrange(24)}
                since = f"the start of checkpoint {trap['write']} of the session"
            return self._session(trap), f"change {trap['number']} since {since}", True
        if name == "byte":
            trap = {"kind": name, "number": 1 + draw.randrange(4)}
            last = self.whole / "checkpoints" / checkpoint.folder_name(STEPS)
            trap["bytes"] = draw.randrange((last / "optimizer.safetensors").stat().st_size)
            when = f"byte {trap['bytes']} of checkpoint {trap['number']} of the session"
            return self._session(trap), when, True
        session = self._session(None)
        if name == "writing":
            count, delay = 1 + draw.randrange(4), draw.uniform(0, 0.06)
            when = f"{delay * 1000:.0f} ms into checkpoint {count} of the session"
            happened = session.run_until(
                lambda: sum(told.text.startswith("writing ") for told in session.told) >= count
            )
        elif name not in ("disk", "worker") and draw.random() < 0.2:
            delay = draw.uniform(0, STARTUP_SECONDS)
            when, happened = f"{delay:.1f} s after the start", True
        else:
            newest = max(self.before, default=0)
            step = newest + 1 + draw.randrange(max(1, min(9, STEPS - newest)))
            delay = draw.uniform(0, 0.15)
            when = f"{delay * 1000:.0f} ms into step {step}"
            happened = session.run_until(
                lambda: any(told.text.startswith(f"at step {step},") for told in session.told)
            )
        if happened and delay:
            wait = session.started + delay if when.endswith("after the start") else None
            happened = self._wait(session, delay, wait)
        return session, when, happened and self._strike(name, session)

    def _wait(self, session: Session, delay: float, until: float | None) -> bool:
        end = until if until is not None else time.monotonic() + delay
        session.run_until(lambda: time.monotonic() >= end)
        return session.process.poll() is None

    def _strike(self, name: str, session: Session) -> bool:
        launcher = [session.process.pid]
        ranks = [session.pid_of(rank) for rank in range(session.ranks)]
        if session.ranks == 1:
            ranks = [session.process.pid]
        known = [pid for pid in ranks if pid is not None]
        if name == "term":
            return session.send(signal.SIGTERM, launcher)
        if name == "int":
            return session.send(signal.SIGINT, launcher)
        if name == "launcher":
            return session.send(signal.SIGKILL, launcher)
        if name == "all-ranks":
            return session.send(signal.SIGKILL, known)
        if name == "worker":
            workers = session.workers_of(self.random.randrange(session.ranks))
            return bool(workers) and session.send(signal.SIGKILL, workers[:1])
        if name == "disk":
            return self._fill(session)
        pid = ranks[1 if name == "rank-1" else 0]
        return pid is not None and session.send(signal.SIGKILL, [pid])

    def _fill(self, session: Session) -> bool:
        """Leave a random rest of the disk."""
        found = os.statvfs(self.disk)
        # nothing fits any more; only lines of the log do; a part of a checkpoint does
        rest = self.random.choice([0, self.random.randrange(8192), self.random.randrange(300_000)])
        size = max(0, found.f_bavail * found.f_frsize - rest)
        with (self.disk / "ballast").open("wb") as stream:
            os.posix_fallocate(stream.fileno(), 0, size)
        session.hit_at = time.monotonic()
        return True

    # ------------------------------------------------------------------ what came of it

    def _judge(self, fault: Fault, session: Session, when: str, end: End) -> Hit:
        whole, damaged = whole_steps(self.folder)
        newest = max(whole, default=0)
        promised = max([*self.before, session.saved()], default=0)
        lost = damaged + (newest < promised)
        best = self.folder / "best.json"
        lost += best.is_file() and json.loads(best.read_text())["step"] not in whole
        allowed = 0 if fault.saves else EVERY
        # a run that was not at its first step yet has made none
        made = max(session.steps_made(), max(self.before, default=0))
        notes = []
        if end.code not in fault.codes:
            notes.append(f"exit code {end.code}")
        if end.seconds > fault.seconds:
            notes.append(f"{end.seconds:.0f} s")
        if made - newest > allowed:
            notes.append(f"{made - newest} steps lost")
        if "Traceback" in session.stderr:
            notes.append("a traceback")
        if fault.name == "disk" and "Try: free some space" not in session.stderr:
            notes.append("it did not say that the disk is full")
        if lost or end.orphans:
            notes.append(f"{lost} checkpoints lost, {end.orphans} orphans")
        note = ", ".join(notes)
        if note:
            note = f"{fault.name} ({session.folder}, {when}): {note}"
        return Hit(
            fault.name, self.setup.name, when, end, max(0, made - newest), allowed, lost, note
        )


def whole_steps(run: Path) -> tuple[list[int], int]:
    """Steps of the whole checkpoints of a run, and how many are damaged."""
    whole, damaged = [], 0
    for step in checkpoint.list_steps(run / "checkpoints"):
        try:
            checkpoint.verify(run / "checkpoints" / checkpoint.folder_name(step))
            whole.append(step)
        except CheckpointError:
            damaged += 1
    return whole, damaged


def differences(whole: Path, hit: Path, *, same_ranks: bool = True) -> list[str]:
    """What differs between two finished runs: weights and optimizer bit for bit, log, best.

    Args:
        whole: nothing happened to it.
        hit: was killed and continued.
        same_ranks: it went on with as many; if not, validation makes other batches, whose figures
            are the same up to 1e-5 only.
    """
    different = []
    last = Path("checkpoints") / checkpoint.folder_name(STEPS)
    for name in ("model.safetensors", "optimizer.safetensors"):
        if (whole / last / name).read_bytes() != (hit / last / name).read_bytes():
            different.append(name)
    (lines, figures), (hit_lines, hit_figures) = _log(whole), _log(hit)
    if lines != hit_lines or len(figures) != len(hit_figures):
        different.append("metrics.jsonl")
    tolerance = 0.0 if same_ranks else 1e-5
    if any(
        not math.isclose(mine, other, rel_tol=tolerance)
        for mine, other in zip(figures, hit_figures, strict=False)
    ):
        different.append("figures of validation")
    if (whole / "best.json").read_bytes() != (hit / "best.json").read_bytes():
        different.append("best.json")
    # others than these two may be kept: a run that is stopped saves where it stands
    best = json.loads((whole / "best.json").read_bytes())["step"]
    steps, damaged = whole_steps(hit)
    if damaged or not {best, STEPS} <= set(steps):
        different.append(f"checkpoints: {steps} are whole, {damaged} are damaged")
    if json.loads((hit / "run.json").read_text())["status"] != "finished":
        different.append("run.json")
    left = [p.name for p in (hit / "checkpoints").iterdir() if p.name.startswith(".")]
    return different + left


def _log(run: Path) -> tuple[list[dict[str, Any]], list[float]]:
    """The lines without times and scores, and the values of the scores."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    scores = [score for line in lines for score in line.get("scores", {}).values()]
    figures = [-1.0 if (v := score.pop("value")) is None else v for score in scores]
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines], figures


def left_alone(root: Path, setup: Setup) -> Path:
    """A run of this setup to which nothing happens.

    Raises:
        RuntimeError: even that fails.
    """
    folder = root / f"whole-{setup.engine}-{setup.ranks}"
    if not folder.exists():
        words = ["pretrain", "--recipe", "recipe.yaml", "-o", str(folder / "run")]
        session = Session(folder, [*words, *setup.words(setup.ranks)], setup.ranks, root)
        end = session.end()
        if end.code != 0:
            raise RuntimeError(f"{folder}: exit code {end.code}: {session.stderr[-2000:]}")
    return folder / "run"


def with_same_ranks(setup: Setup) -> Setup:
    """The setup whose uninterrupted run a run is compared with."""
    return replace(setup, later=setup.ranks)
