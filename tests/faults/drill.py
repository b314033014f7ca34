"""The fault drill: real runs of the real command line, hit at random, continued, compared.

    python -m tests.faults.drill --seed 0 --kills 120 --markdown

Each run trains a tiny model for 24 steps with a checkpoint every 3. Faults hit it from outside, or
(inside a checkpoint write) by a trap that ``drill_hook`` sets; then it goes on with ``--resume``,
to the next fault or its end. Its end is compared with a run of the same command that was left
alone. Which faults, in which runs, and at which moments is drawn from the seed; what exactly
happens at a moment depends on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from tests.faults.drill_run import (
    FAULTS,
    DrillRun,
    Hit,
    Outcome,
    Setup,
    left_alone,
    make_world,
    own_mounts,
    with_same_ranks,
)

SETUPS: dict[str, tuple[Setup, float]] = {
    "torch-2": (Setup("torch", 2, 2), 0.56),
    "torch-1": (Setup("torch", 1, 1), 0.22),
    "torch-2-1": (Setup("torch", 2, 1), 0.08),
    "deepspeed-2": (Setup("deepspeed", 2, 2), 0.14),
}
"""The setups by name, and the share of the faults that hit each."""

_FAULTS_PER_RUN = 3
_ROUNDS = 4  # of faults that came too late and are tried again


def planned(
    kills: int, faults: Sequence[str], setups: Sequence[str], draw: random.Random
) -> list[tuple[str, str]]:
    """Pairs of setup and fault: setups by their shares, faults in turn."""
    total = sum(SETUPS[name][1] for name in setups)
    pairs: list[tuple[str, str]] = []
    for number, name in enumerate(setups):
        possible = [f for f in faults if FAULTS[f].needs_ranks <= SETUPS[name][0].later]
        last = number == len(setups) - 1
        count = kills - len(pairs) if last else round(kills * SETUPS[name][1] / total)
        if not possible:
            continue
        draw.shuffle(possible)
        pairs += [(name, possible[i % len(possible)]) for i in range(count)]
    return pairs


def grouped(pairs: Sequence[tuple[str, str]], draw: random.Random) -> list[tuple[str, list[str]]]:
    """Runs: a setup and the faults that hit it one after the other."""
    runs = []
    for setup in SETUPS:
        faults = [fault for name, fault in pairs if name == setup]
        draw.shuffle(faults)
        for at in range(0, len(faults), _FAULTS_PER_RUN):
            runs.append((setup, faults[at : at + _FAULTS_PER_RUN]))
    draw.shuffle(runs)
    return runs


def drill(
    root: Path, seed: int, pairs: Sequence[tuple[str, str]], jobs: int, *, mounts: bool
) -> list[Outcome]:
    """All runs; faults that came too late are tried again in others."""
    draw = random.Random(f"plan {seed}")
    make_world(root)
    whole = {name: left_alone(root, with_same_ranks(SETUPS[name][0])) for name, _ in pairs}
    outcomes: list[Outcome] = []
    begin, made, number = time.monotonic(), 0, 0
    left = list(pairs)
    for _ in range(_ROUNDS):
        runs = grouped(left, draw)
        left = []
        drills = [
            DrillRun(root, number + i, seed, SETUPS[name][0], faults, whole[name], mounts=mounts)
            for i, (name, faults) in enumerate(runs)
        ]
        number += len(runs)
        with ThreadPoolExecutor(jobs) as pool:
            for (name, _), outcome in zip(runs, pool.map(DrillRun.go, drills), strict=True):
                outcomes.append(outcome)
                left += [(name, fault) for fault in outcome.left]
                made += len(outcome.hits)
                _say(f"{made}/{len(pairs)} faults, {time.monotonic() - begin:.0f} s")
                for note in problems([outcome]):
                    _say(f"  {note}")
        if not left:
            break
    return outcomes


def problems(outcomes: Sequence[Outcome]) -> list[str]:
    """All that was not as promised."""
    found = []
    for outcome in outcomes:
        found += [hit.note for hit in outcome.hits if hit.note]
        found += [f"did not go on: {outcome.unable}"] if outcome.unable else []
        faults = ", ".join(hit.fault for hit in outcome.hits)
        found += [f"differs after {faults}: {outcome.different}"] if outcome.different else []
    return found


def markdown(outcomes: Sequence[Outcome]) -> str:
    """Two tables: by fault and by setup."""
    made = [(hit, outcome) for outcome in outcomes for hit in outcome.hits]
    faults = [(FAULTS[n].said, [p for p in made if p[0].fault == n]) for n in FAULTS]
    setups = [(s.name, [p for p in made if p[0].setup == s.name]) for s, _ in SETUPS.values()]
    return "\n\n".join(_table(head, rows) for head, rows in (("fault", faults), ("run", setups)))


def _table(head: str, rows: Sequence[tuple[str, list[tuple[Hit, Outcome]]]]) -> str:
    lines = [
        f"| {head} | times | checkpoints lost | most steps to make again | could not go on "
        "| end differs | orphans | seconds to the end: median, most | exit codes |",
        "|---|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    everything = [pair for _, pairs in rows for pair in pairs]
    for name, pairs in [*rows, ("all", everything)]:
        if not pairs:
            continue
        hits = [hit for hit, _ in pairs]
        runs = {id(outcome): outcome for _, outcome in pairs}.values()
        seconds = [hit.end.seconds for hit in hits]
        codes = Counter(hit.end.code for hit in hits)
        cells = [
            name,
            len(hits),
            sum(hit.lost for hit in hits),
            max(hit.steps_lost for hit in hits),
            sum(bool(outcome.unable) for outcome in runs),
            sum(bool(outcome.different) for outcome in runs),
            sum(hit.end.orphans for hit in hits),
            f"{statistics.median(seconds):.1f}, {max(seconds):.1f}",
            ", ".join(f"{code} ({n})" for code, n in sorted(codes.items())),
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 0: everything was as promised."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.drill", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=120, help="faults in all")
    parser.add_argument("--only", action="append", choices=FAULTS, help="fault; repeatable")
    parser.add_argument("--setup", action="append", choices=SETUPS, help="kind of run; repeatable")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--folder", type=Path, help="keep what failed here; default: a new one")
    parser.add_argument("--markdown", action="store_true", help="the tables, not JSON")
    words = parser.parse_args(argv)
    mounts = own_mounts()
    faults = words.only or list(FAULTS)
    if not mounts and "disk" in faults:
        _say("no disk may be mounted here: without the full disk")
        faults = [name for name in faults if name != "disk"]
    # a shell starts jobs of the background deaf to it, and processes inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)
    setups = words.setup or list(SETUPS)
    pairs = planned(words.kills, faults, setups, random.Random(f"faults {words.seed}"))
    root = words.folder or Path(tempfile.mkdtemp(prefix="drill-"))
    outcomes = drill(root.resolve(), words.seed, pairs, words.jobs, mounts=mounts)
    found = problems(outcomes)
    made = sum(len(outcome.hits) for outcome in outcomes)
    if words.markdown:
        print(markdown(outcomes))
    else:
        hits = [asdict(hit) for outcome in outcomes for hit in outcome.hits]
        print(json.dumps({"kills": made, "runs": len(outcomes), "problems": found, "hits": hits}))
    if found or made < len(pairs):
        _say(f"{len(found)} problems, {made} of {len(pairs)} faults happened; see {root}")
        return 1
    if words.folder is None:
        shutil.rmtree(root)
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
