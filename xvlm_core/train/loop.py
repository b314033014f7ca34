"""The training loop: one for every task.

A step is one or two updates (:meth:`xvlm_core.tasks.base.Feed.batches`). Everything that a step
depends on is a function of its number, the weights, the optimizer and torch's random numbers, so
a run that is continued from a checkpoint makes the same steps.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xvlm_core.config.schema import Recipe
from xvlm_core.errors import CheckpointError, DivergedError
from xvlm_core.tasks.base import Batch, Losses, Moment, Score, Scores, Task
from xvlm_core.train import checkpoint
from xvlm_core.train.bad_samples import BadSampleLimit
from xvlm_core.train.engines.torch import TorchEngine, pick_device, pick_precision
from xvlm_core.train.evaluation import evaluate
from xvlm_core.train.feeding import feed_from
from xvlm_core.train.files import json_bytes, write_atomically
from xvlm_core.train.interrupts import Interrupts
from xvlm_core.train.optim import build_optimizer, parameter_groups, set_lr
from xvlm_core.train.runs import Best, RunInfo, locked
from xvlm_core.train.schedule import Plan, total_steps
from xvlm_core.train.state import (
    Counters,
    Window,
    add_counts,
    read_counters,
    restore,
    write_state,
)
from xvlm_core.train.telemetry import MetricsFile, Outlook, Telemetry

_NAMED_RECORDS = 8


@dataclass(frozen=True)
class TrainResult:
    """How a run ended.

    Attributes:
        step: steps made, over all sessions.
        interrupted_by: number of the signal that stopped it, or None: it came to its end.
        scores: of the last model on the validation data; empty if interrupted or without any.
        seconds: training time, over all sessions.
        dropped: training samples left out, by reason, over all sessions.
        validation_dropped: items of the last validation that could not be asked, by reason.
    """

    step: int
    interrupted_by: int | None
    scores: Scores
    seconds: float
    dropped: Mapping[str, int] = field(default_factory=dict)
    validation_dropped: Mapping[str, int] = field(default_factory=dict)


def train(
    task: Task, recipe: Recipe, run: RunInfo, *, resume: bool, telemetry: Telemetry
) -> TrainResult:
    """Train to the end of the recipe, to a signal, or to divergence.

    Args:
        task: model, data, losses, predictions, scores. May have ``official_name``, a function
            that gives the released code's name of a parameter (for ``compat: official``).
        recipe: the resolved recipe.
        run: the run's folder; its status is kept up to date.
        resume: continue from the newest whole checkpoint (from the start if there is none yet).
        telemetry: what is shown (closed at the end); ``metrics.jsonl`` is written in any case.

    Raises:
        DivergedError: a loss or the gradient is not finite. The update was not made.
        CheckpointError: (resume) all checkpoints are damaged.
        OutputError: another process trains this run, or its folder cannot be written.
        DataError: from the task's feed, or more samples were bad than ``data.max_bad`` allows.
    """
    with locked(run.folder), Interrupts() as interrupts:
        run = run.with_status("running")
        try:
            with contextlib.closing(
                _Loop(task, recipe, run, telemetry, interrupts, resume)
            ) as loop:
                result = loop.run()
        except DivergedError:
            run.with_status("diverged")
            raise
        except BaseException:
            run.with_status("interrupted")
            raise
        run.with_status("finished" if result.interrupted_by is None else "interrupted")
        return result


class _Loop:
    def __init__(
        self,
        task: Task,
        recipe: Recipe,
        run: RunInfo,
        telemetry: Telemetry,
        interrupts: Interrupts,
        resume: bool,
    ) -> None:
        self.task, self.recipe, self.run_info = task, recipe, run
        self.telemetry, self.interrupts = telemetry, interrupts
        device = pick_device(recipe.train.device)
        if recipe.train.threads is not None:
            torch.set_num_threads(recipe.train.threads)
        torch.manual_seed(recipe.seed)
        model = task.build_model().to(device)
        for note in task.notes:
            telemetry.note(note)
        model.train()
        groups = parameter_groups(
            model,
            recipe.optim,
            compat=recipe.compat,
            larger_lr_names=getattr(model, "larger_lr_names", frozenset()),
            name_of=getattr(task, "official_name", str),
        )
        optimizer = build_optimizer(model, recipe.optim, groups, compat=recipe.compat)
        precision = pick_precision(recipe.train.precision, device)
        self.engine = TorchEngine(model, optimizer, device, precision)
        self.feed = task.feed()
        self.plan = Plan(
            recipe.schedule,
            total_steps(recipe.schedule, self.feed.steps_per_epoch),
            official=recipe.compat == "official",
        )
        verb = "pretrain" if recipe.task == "pretrain" else "finetune"
        self.limit = BadSampleLimit(
            recipe.data.max_bad,
            self.feed.steps_per_epoch,
            f"xvlm {verb} --resume -o {run.folder}",
        )
        for group in groups:
            if group.names:
                telemetry.note(f"parameters: {group.line()}")
        self.at = Counters()
        self.saved_step = 0
        if resume:
            self._restore()
        self.metrics = MetricsFile(run.metrics, keep_to_step=self.at.step)
        self.evaluated: dict[int, Scores] = {}
        self.validation_dropped: dict[str, int] = {}
        for line in self.metrics.kept:
            if line["kind"] == "eval":
                self._consider(line["step"], _read_scores(line["scores"]))
                self.validation_dropped = line["dropped"]
        run.write_best(self.at.best)
        self.published_best = self.at.best
        self._session_start = time.monotonic() - self.at.seconds

    def _restore(self) -> None:
        folder = self.run_info.newest_checkpoint()
        if folder is None:
            if checkpoint.list_steps(self.run_info.checkpoints):
                raise CheckpointError(
                    f"run {self.run_info.name} cannot be resumed: all its checkpoints are damaged",
                    where=str(self.run_info.checkpoints),
                    try_="start another run",
                )
            self.telemetry.note("no checkpoint yet: starting from step 1")
            return
        self.at = read_counters(folder)
        self.task.load_weights(self.engine.model, folder)
        restore(folder, self.engine.model, self.engine.optimizer)
        self.saved_step = self.at.step
        self.telemetry.note(f"continuing after step {self.at.step} ({folder.name})")

    def run(self) -> TrainResult:
        """To the end or to a signal, then a checkpoint and a last validation."""
        feed = feed_from(self.feed, self.at.step + 1, self.recipe.data.workers)
        with contextlib.closing(feed):
            over = self._steps(feed)
        self._save()
        if over and not self._stop():
            self._evaluate()
        done = over and self.at.step in self.evaluated
        return TrainResult(
            self.at.step,
            # a signal that came when nothing was left to do interrupted nothing
            None if done else self.interrupts.number,
            self.evaluated.get(self.at.step, {}),
            self.seconds(),
            self.at.dropped,
            self.validation_dropped,
        )

    def _steps(self, feed: Iterator[Sequence[Batch]]) -> bool:
        """Steps, with validations and checkpoints between them; whether the run is over."""
        settings, at = self.recipe.train, self.at
        over = self.plan.is_over(at.step, self.seconds())
        if not over and self._evaluation_due():  # a signal kept it from being made
            self._evaluate()
        while not over and not self._stop():
            begin = time.perf_counter()
            batches = next(feed)
            at.window.waited += time.perf_counter() - begin
            self.limit.check(batches)
            self._step(batches)
            at.window.seconds += time.perf_counter() - begin
            over = self.plan.is_over(at.step, self.seconds())
            if over or at.step % settings.log_every == 0:
                self._log()
            if over or self._stop():
                break
            if self._evaluation_due():
                self._evaluate()
            if at.step % settings.checkpoint_every == 0:
                self._save()
        return over

    def _step(self, batches: Sequence[Batch]) -> None:
        """One step: an update for each of its batches, all at one learning rate."""
        recipe, engine = self.recipe, self.engine
        step, seconds = self.at.step + 1, self.seconds()
        progress = self.plan.progress(step, seconds)
        self.lr = recipe.optim.lr * self.plan.factor(step, seconds)
        set_lr(engine.optimizer, self.lr)
        for number, batch in enumerate(batches):
            batch = batch.to(engine.device)
            moment = Moment(step, progress, update_generator(recipe.seed, step, number))
            engine.zero()
            losses = self._losses(batch, moment)
            add_counts(self.at.dropped, batch.dropped)
            if not losses.parts:  # none of the losses takes part yet, or the batch gave none
                self.at.window.add({}, {**losses.counts, "empty_updates": 1}, batch.n_pictures)
                continue
            total = losses.total()
            engine.backward(total)
            norm = engine.clip(recipe.optim.clip_norm)
            values = self._finite(losses, total, norm, moment, batch)
            engine.step()
            self.at.window.add(values, losses.counts, batch.n_pictures)
        self.at.step = step

    def _losses(self, batch: Batch, moment: Moment) -> Losses:
        try:
            with self.engine.autocast():
                return self.task.losses(self.engine.model, batch, moment)
        except RuntimeError as error:
            if "probability tensor contains" not in str(error):
                raise
            # a draw from scores that are not finite
            raise self._diverged({"scores": math.nan}, moment, batch) from error

    def _finite(
        self, losses: Losses, total: Tensor, norm: Tensor, moment: Moment, batch: Batch
    ) -> dict[str, float]:
        """The numbers of an update, read from the device in one go; raises if one is not finite."""
        named = {**losses.parts, "loss": total, "grad_norm": norm}
        numbers = torch.stack([value.detach().float() for value in named.values()]).tolist()
        values: dict[str, float] = dict(zip(named, numbers, strict=True))
        if not all(math.isfinite(value) for value in values.values()):
            raise self._diverged(values, moment, batch)
        return values

    def _diverged(self, values: dict[str, float], moment: Moment, batch: Batch) -> DivergedError:
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        record_ids = list(batch.record_ids)
        report = self.run_info.folder / "diverged.json"
        shown = {name: str(values[name]) if name in bad else values[name] for name in values}
        write_atomically(
            report, json_bytes({"step": moment.step, "values": shown, "records": record_ids})
        )
        good = self.run_info.newest_checkpoint()
        lower = f"optim.lr={self.recipe.optim.lr / 2:.1e}"
        more = len(record_ids) - _NAMED_RECORDS
        return DivergedError(
            f"{', '.join(bad)} not finite at step {moment.step}; the update was not made",
            where=f"{len(record_ids)} records, all in {report}",
            # to resume would come to the same step in the same way
            try_=(
                f"a new run from the last good checkpoint: init.checkpoint={good} {lower}"
                if good
                else f"start again with {lower} (there is no checkpoint yet)"
            ),
            details=[
                "records: "
                + ", ".join(record_ids[:_NAMED_RECORDS])
                + (f" and {more} more" if more > 0 else "")
            ],
        )

    def _log(self) -> None:
        at = self.at
        window, at.window = at.window, Window()
        line = {
            "kind": "train",
            "step": at.step,
            **window.means(),
            "lr": self.lr,
            "pictures_per_s": window.pictures / max(window.seconds, 1e-9),
            "data_wait": window.waited / max(window.seconds, 1e-9),
            "seconds": self.seconds(),
            "counts": window.counts,
            "dropped": dict(at.dropped),
        }
        self._tell(line)

    def _tell(self, line: dict[str, Any]) -> None:
        seconds = self.seconds()
        progress = self.plan.progress(self.at.step + 1, seconds)
        outlook = Outlook(
            self.at.step,
            self.plan.total,
            progress,
            seconds * (1 - progress) / progress if progress > 0 else None,
        )
        self.metrics.line(line, outlook)
        self.telemetry.line(line, outlook)

    def _evaluation_due(self) -> bool:
        every, step = self.recipe.train.evaluate_every, self.at.step
        return every is not None and step > 0 and step % every == 0 and step not in self.evaluated

    def _evaluate(self) -> None:
        """Validate; a better model than before becomes a checkpoint."""
        if self.at.step in self.evaluated:
            return
        engine = self.engine
        made = evaluate(self.task, engine.model, engine.device, engine.precision, stop=self._stop)
        if made is None:
            return
        scores, self.validation_dropped = made.scores, made.dropped
        step = self.at.step
        if scores or made.dropped:  # also where nothing was left to score
            written = {name: _json_score(score) for name, score in scores.items()}
            line = {"kind": "eval", "step": step, "scores": written, "dropped": made.dropped}
            self._tell(line)
        self._consider(step, scores)
        if self.at.best is not None and self.at.best != self.published_best:
            self._save()
            self.run_info.write_best(self.at.best)
            self.published_best = self.at.best

    def _consider(self, step: int, scores: Scores) -> None:
        self.evaluated[step] = scores
        name, best = self.task.selection, self.at.best
        if name is None or name not in scores or not math.isfinite(scores[name].value):
            return
        if best is None or scores[name].value > best.value:
            self.at.best = Best(step, name, scores[name].value)

    def _save(self) -> None:
        """A checkpoint of this step, unless there is one."""
        if self.saved_step == self.at.step:
            return
        self.at.seconds = self.seconds()
        self.metrics.sync()
        checkpoint.write(
            self.run_info.checkpoints,
            self.at.step,
            self._write_files,
            keep_last=self.recipe.train.keep_last,
            # until best.json names the new best one, the old one stays
            keep={best.step for best in (self.at.best, self.published_best) if best},
        )
        self.saved_step = self.at.step

    def _write_files(self, folder: Path) -> None:
        self.task.save_model(self.engine.model, folder)
        write_state(folder, self.at, self.engine.model, self.engine.optimizer)

    def seconds(self) -> float:
        """Training time so far, over all sessions."""
        return time.monotonic() - self._session_start

    def _stop(self) -> bool:
        return self.interrupts.number is not None

    def close(self) -> None:
        """Close the log and the console."""
        self.metrics.close()
        self.telemetry.close()


def update_generator(seed: int, step: int, number: int) -> torch.Generator:
    """The generator of one update's draws: a function of its place in the run."""
    (word,) = np.random.SeedSequence((seed, step, number)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(word) & ((1 << 63) - 1))


def _json_score(score: Score) -> dict[str, Any]:
    content = asdict(score)
    return {**content, "value": score.value if math.isfinite(score.value) else None}


def _read_scores(written: dict[str, Any]) -> Scores:
    return {
        name: Score(**{**score, "value": math.nan if score["value"] is None else score["value"]})
        for name, score in written.items()
    }
