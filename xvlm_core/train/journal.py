"""What a run writes down: lines of ``metrics.jsonl`` and of the console, of all ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from xvlm_core.tasks.base import Score, Scores
from xvlm_core.train.ranks import Ranks
from xvlm_core.train.runs import RunInfo
from xvlm_core.train.schedule import Plan
from xvlm_core.train.state import Counters, Window
from xvlm_core.train.telemetry import MetricsFile, Outlook, Telemetry, memory_gb


@dataclass
class Pace:
    """What this rank did since the last line of the log."""

    pictures: int = 0
    seconds: float = 0.0
    waited: float = 0.0

    def rates(self) -> dict[str, float]:
        """Pictures a second, and the share of the time that data was waited for."""
        seconds = max(self.seconds, 1e-9)
        return {"pictures_per_s": self.pictures / seconds, "data_wait": self.waited / seconds}


class Journal:
    """The log of a run. All ranks call it alike; rank 0 writes.

    Args:
        run: its ``metrics.jsonl`` is appended to.
        telemetry: what is shown.
        plan: says what is left.
        ranks: the processes.
        keep_to_step: see :class:`MetricsFile`.

    Raises:
        OutputError: (also from the methods) the file cannot be written.
    """

    def __init__(
        self, run: RunInfo, telemetry: Telemetry, plan: Plan, ranks: Ranks, keep_to_step: int
    ) -> None:
        self.telemetry = telemetry
        self.plan = plan
        self.ranks = ranks
        self.pace = Pace()
        self._metrics: MetricsFile | None = None

        def open_file() -> list[dict[str, Any]]:
            self._metrics = MetricsFile(run.metrics, keep_to_step=keep_to_step)
            return self._metrics.kept

        self.kept = ranks.main_does(open_file)
        """The lines that were there."""

    def train_line(self, at: Counters, lr: float, now: float, device: torch.device) -> None:
        """The means since the last one; the window begins anew."""
        window, at.window = at.window, Window()
        pace, self.pace = self.pace, Pace()
        said = self.ranks.agree(pace.rates())
        line: dict[str, Any] = {
            "kind": "train",
            "step": at.step,
            **window.means(),
            "lr": lr,
            "pictures_per_s": sum(rates["pictures_per_s"] for rates in said),
            "data_wait": max(rates["data_wait"] for rates in said),
            "seconds": now,
            "memory_gb": memory_gb(device),
            "counts": window.counts,
            "dropped": dict(at.dropped),
        }
        if len(said) > 1:
            line["ranks"] = [{"rank": rank, **rates} for rank, rates in enumerate(said)]
        if at.overflows:
            line["overflows"] = at.overflows
        self._tell(line, now)

    def eval_line(self, step: int, scores: Scores, dropped: Mapping[str, int], now: float) -> None:
        """The figures of a validation."""
        written = {name: _json_score(score) for name, score in scores.items()}
        self._tell({"kind": "eval", "step": step, "scores": written, "dropped": dict(dropped)}, now)

    def _tell(self, line: dict[str, Any], now: float) -> None:
        step = line["step"]
        progress = self.plan.progress(step + 1, now)
        left = now * (1 - progress) / progress if progress > 0 else None
        outlook = Outlook(step, self.plan.total, progress, left)

        def write() -> None:
            assert self._metrics is not None
            self._metrics.line(line, outlook)

        self.ranks.main_does(write)
        self.telemetry.line(line, outlook)

    def sync(self) -> None:
        """Make what was written durable."""

        def sync() -> None:
            assert self._metrics is not None
            self._metrics.sync()

        self.ranks.main_does(sync)

    def close(self) -> None:
        """Close the file and the console."""
        if self._metrics is not None:
            self._metrics.close()
        self.telemetry.close()


def _json_score(score: Score) -> dict[str, Any]:
    content = asdict(score)
    return {**content, "value": score.value if math.isfinite(score.value) else None}


def read_scores(written: Mapping[str, Any]) -> Scores:
    """The scores of an ``eval`` line."""
    return {
        name: Score(**{**score, "value": math.nan if score["value"] is None else score["value"]})
        for name, score in written.items()
    }
