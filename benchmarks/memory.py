"""Memory that ``--dry-run`` predicts, against that of a real run: ``python benchmarks/memory.py``.

Each run is a process of its own, on the CPU, in float32: the world recipe with another size and
other batches, a few steps on synthetic shapes. What it took is the most that the system saw in RAM
(VmHWM), the checkpoint and the validation at its end included. The prediction is made by a process
of its own as well, from the same store. Linux only.

glibc keeps much of what is freed, in holes that are not used again. The second column of measured
values is the same run where it gives everything from 1 MB on back at once
(MALLOC_MMAP_THRESHOLD_=1048576; about a third slower): what the run itself needs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]

TRAIN = """
import sys
from pathlib import Path
from xvlm_cli.app import main
code = main(sys.argv[1:])
status = Path("/proc/self/status").read_text()
print("VmHWM", next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
sys.exit(code)
"""


@dataclass(frozen=True)
class Case:
    """A run: its name, what differs from the world recipe, and whether 15 % are promised."""

    name: str
    overrides: tuple[str, ...]
    promised: bool = True


@dataclass(frozen=True)
class Result:
    """Bytes, predicted and measured; ``needed``: measured where freed memory is given back."""

    case: Case
    predicted: int
    measured: int
    needed: int | None

    @property
    def ratio(self) -> float:
        """Predicted to measured."""
        return self.predicted / self.measured


def case(size: str, pictures: int, *more: str, promised: bool = True) -> Case:
    """Half of the pictures with captions, half with regions."""
    half = pictures // 2
    return Case(
        " ".join((size, f"{pictures} pictures", *more)),
        (
            f"model.size={size}",
            f"data.images={{stores: [world], batch_size: {half}}}",
            f"data.regions.max_images={half}",
            *more,
        ),
        promised,
    )


CASES = (
    case("tiny", 16),
    case("tiny", 64),
    case("small", 4),
    case("small", 16),
    case("small", 16, "train.micro_batches=4"),
    case("small", 16, "train.activation_checkpointing=true", promised=False),
    case("small", 16, "train.engine=deepspeed", "train.zero_stage=0", promised=False),
    case("small", 16, "train.engine=deepspeed", "train.zero_stage=2", promised=False),
    case("small", 16, "train.engine=deepspeed", "train.zero_stage=3", promised=False),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Predict and measure every case; 0 if all are within 15 %."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=4, help="of each run")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--json", action="store_true", help="one document instead of a table")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        results = [
            measure(one, Path(folder), options.steps) for one in CASES if options.only in one.name
        ]
    if options.json:
        print(json.dumps([{**asdict(r), "ratio": r.ratio} for r in results], indent=1))
    else:
        print("| run | predicted, MB | measured, MB | ratio | needed, MB | ratio |")
        print("|---|---|---|---|---|---|")
        for r in results:
            row = [r.case.name]
            row += [f"{r.predicted / 1e6:,.0f}", f"{r.measured / 1e6:,.0f}", f"{r.ratio:.2f}"]
            if r.needed is not None:
                row += [f"{r.needed / 1e6:,.0f}", f"{r.predicted / r.needed:.2f}"]
            print(f"| {' | '.join(row)} |")
    return 0 if all(abs(r.ratio - 1) <= 0.15 for r in results if r.case.promised) else 1


def measure(one: Case, folder: Path, steps: int, *, with_needed: bool = True) -> Result:
    """One case, each figure by a process of its own."""
    if not (folder / "data" / "world").is_dir():
        counts = ("--train", "64", "--val", "4", "--test", "0", "--unseen", "0")
        _run(("prepare-data", "world", "-o", "data/world", *counts), folder)
    words = (
        *("pretrain", "--recipe", "world", "--max-steps", str(steps), "--device", "cpu"),
        *("data.workers=0", "data.validation_limit=2", "train.threads=1", "train.precision=fp32"),
        *one.overrides,
    )
    document = json.loads(_run((*words, "--dry-run", "--json"), folder).split("VmHWM")[0])
    predicted = _engine_of(document["result"])["peak"]

    def peak(environ: dict[str, str]) -> int:
        out = _run((*words, "--quiet", "--overwrite", "-o", "run"), folder, environ)
        return int(out.split("VmHWM")[1].split()[0]) * 1024

    needed = peak({"MALLOC_MMAP_THRESHOLD_": str(2**20)}) if with_needed else None
    result = Result(one, predicted, peak({}), needed)
    print(f"{one.name}: {result.ratio:.2f}", file=sys.stderr, flush=True)
    return result


def _engine_of(result: dict[str, Any]) -> dict[str, Any]:
    """The row of the plan for the engine of the recipe, in one process."""
    values = {row["key"]: row["value"] for row in result["values"]}
    engine = values["train.engine"]
    stage = values["train.zero_stage"] if engine == "deepspeed" else None
    (found,) = (
        row
        for table in result["memory"]
        for row in table["engines"]
        if (table["ranks"], row["engine"], row["zero_stage"]) == (1, engine, stage)
    )
    return dict(found)


def _run(words: Sequence[str], folder: Path, more: dict[str, str] | None = None) -> str:
    environ = {**os.environ, "PYTHONPATH": str(REPOSITORY), **(more or {})}
    command = [sys.executable, "-c", TRAIN, *words]
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"xvlm {' '.join(words)}\n{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
