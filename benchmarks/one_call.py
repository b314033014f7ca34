"""Fifty questions in one call of ``xvlm predict``, or fifty: ``python benchmarks/one_call.py``.

What a user pays for is the process: Python, PyTorch and the weights are loaded once a call. Models
are untrained (one step): no answer is looked at, and the time does not depend on the weights. One
call with all questions is timed, and three calls with one question each; fifty of those are worked
out from their mean. ``prepare-data world`` makes the pictures.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GOAL = 10.0
"""By how much one call must be faster."""


@dataclass(frozen=True)
class Question:
    """What is asked, all at once or one by one.

    Attributes:
        what: of the table.
        all_at_once: arguments of ``xvlm predict`` for all questions.
        one: arguments for one of them.
        lines: JSON lines for stdin, of all questions; empty: none.
    """

    what: str
    all_at_once: tuple[str, ...]
    one: tuple[str, ...]
    lines: str = ""


@dataclass(frozen=True)
class Result:
    """One comparison.

    Attributes:
        what: was asked.
        questions: how many.
        together: seconds of one call with all of them.
        single: seconds of a call with one of them, mean of those timed.
        ratio: of as many single calls to the one call.
    """

    what: str
    questions: int
    together: float
    single: float
    ratio: float


def _xvlm(folder: Path, *arguments: str, lines: str = "") -> float:
    """Seconds of one call; an error of it ends the benchmark."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    begin = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "xvlm_cli", *arguments],
        cwd=folder,
        env=environment,
        input=lines.encode(),
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    return time.perf_counter() - begin


def _prepare(folder: Path, count: int) -> list[Question]:
    """Pictures, models of one step, and the questions."""
    splits = ("--train", str(2 * count), "--val", "4", "--test", "0", "--unseen", "0")
    _xvlm(folder, "prepare-data", "world", *splits, "--pairs", "8", "-o", "data/world")
    few = ("--max-steps", "1", "data.workers=0", "data.validation=[]")
    _xvlm(folder, "pretrain", "--recipe", "world", "-o", "runs/pre", *few)
    _xvlm(folder, "finetune", "world-nlvr2", "--init", "runs/pre", "-o", "runs/nlvr2", *few)
    pictures = sorted((folder / "data/world").rglob("*.png"))
    assert len(pictures) >= 2 * count, f"only {len(pictures)} pictures in {folder}"
    names = [str(path) for path in pictures[: 2 * count]]
    colours, shapes = ("red", "green", "blue", "yellow", "white"), ("circle", "star", "square")
    phrases = [f"{colours[i % 5]} {shapes[i % 3]} {i}" for i in range(count)]
    collection = folder / "collection"
    collection.mkdir()
    for path in pictures[:count]:
        (collection / path.name).symlink_to(path)
    _xvlm(folder, "predict", "retrieval", "collection", "a star", "-c", "runs/pre", "--no-files")
    statement = "there is a red star in the left picture"
    two = zip(names[::2], names[1::2], strict=True)
    lines = [json.dumps({"images": pair, "statements": [statement]}) + "\n" for pair in two]
    return [
        Question(
            "grounding, phrases of a picture",
            ("grounding", names[0], *phrases),
            ("grounding", names[0], phrases[0]),
        ),
        Question(
            "grounding, a phrase in pictures",
            ("grounding", *names[:count], phrases[0]),
            ("grounding", names[0], phrases[0]),
        ),
        Question(
            "nlvr2, pairs",
            ("nlvr2", "-", "-c", "runs/nlvr2"),
            ("nlvr2", names[0], names[1], statement, "-c", "runs/nlvr2"),
            "".join(lines),
        ),
        Question(
            "retrieval, texts in an indexed folder",
            ("retrieval", "collection", *phrases, "-c", "runs/pre"),
            ("retrieval", "collection", phrases[0], "-c", "runs/pre"),
        ),
    ]


def measure(count: int, singles: int) -> list[Result]:
    """Time every kind of question."""
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for question in _prepare(folder, count):
            always = ("predict", "--no-files", "--json")
            together = _xvlm(folder, *always, *question.all_at_once, lines=question.lines)
            single = sum(_xvlm(folder, *always, *question.one) for _ in range(singles)) / singles
            ratio = count * single / together
            results.append(Result(question.what, count, together, single, ratio))
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 1 if a ratio misses the goal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50, help="questions")
    parser.add_argument("--singles", type=int, default=3, help="single calls that are timed")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    chosen = parser.parse_args(arguments)
    results = measure(chosen.count, chosen.singles)
    if chosen.json:
        print(json.dumps([asdict(result) for result in results]))
    else:
        print(f"| {chosen.count} questions | one call, s | a call each, s | ratio | goal |")
        print("|---|---|---|---|---|")
        for r in results:
            each = r.questions * r.single
            print(f"| {r.what} | {r.together:.1f} | {each:.0f} | {r.ratio:.0f} | {GOAL:.0f} |")
    return 0 if all(result.ratio >= GOAL for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
