"""The training loop: one for every task, on one process or many.

A step is one or two updates (:meth:`xvlm_core.tasks.base.Feed.batches`), an update is computed in
parts that the ranks share (:mod:`xvlm_core.train.parts`). Everything that a step depends on is a
function of its number, the weights and the optimizer, so a run that is continued from a
checkpoint makes the same steps, on any number of ranks.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from xvlm_core.config.schema import Recipe
from xvlm_core.errors import DivergedError, XvlmError
from xvlm_core.tasks.base import Batch, Moment, Scores, Task
from xvlm_core.train.bad_samples import BadSampleLimit, Seen
from xvlm_core.train.divergence import diverged
from xvlm_core.train.engines.build import build_engine, prepare
from xvlm_core.train.evaluation import evaluate
from xvlm_core.train.exchange import (
    Outcome,
    Ready,
    Whole,
    data_position,
    first_signal,
    outcome_of,
    summed,
)
from xvlm_core.train.feeding import feed_from
from xvlm_core.train.files import write_atomically
from xvlm_core.train.interrupts import Interrupts
from xvlm_core.train.journal import Journal, read_scores
from xvlm_core.train.parts import (
    GatheredPeers,
    Share,
    Sizes,
    gather_tables,
    seed_of,
    settle_parts,
    shares,
)
from xvlm_core.train.ranks import Ranks, peers_may_be_gone
from xvlm_core.train.running import RunningStatistics
from xvlm_core.train.runs import Best, RunInfo, resume_command
from xvlm_core.train.saving import Keeper, read_saved, resume_folder
from xvlm_core.train.schedule import Plan, total_steps
from xvlm_core.train.state import Counters, TrainResult, add_counts
from xvlm_core.train.telemetry import Telemetry
from xvlm_core.train.upload import Uploader
from xvlm_core.train.watch import Watch
from xvlm_core.weights.provenance import write_provenance


class Loop:
    """A run while it is trained; see :func:`xvlm_core.train.session.train`."""

    def __init__(
        self,
        task: Task,
        recipe: Recipe,
        run: RunInfo,
        telemetry: Telemetry,
        interrupts: Interrupts,
        resume: bool,
        ranks: Ranks,
        watch: Watch,
        uploader: Uploader | None,
    ) -> None:
        recipe = settle_parts(recipe, ranks.world_size)
        assert recipe.train.micro_batches is not None
        self.task, self.recipe, self.run_info, self.ranks = task, recipe, run, ranks
        self.interrupts, self.watch, self.uploader = interrupts, watch, uploader
        self.own_parts = recipe.train.micro_batches // ranks.world_size
        continued = ranks.main_does(lambda: resume_folder(run)) if resume else None
        built = ranks.together(lambda: prepare(task, recipe, ranks, continued))
        with peers_may_be_gone():
            self.engine = build_engine(built, recipe, ranks)
        self.average = built.average
        self.statistics = RunningStatistics(self.engine.model, ranks, self.own_parts)
        self.feed = task.feed()
        self.plan = Plan(
            recipe.schedule,
            total_steps(recipe.schedule, self.feed.steps_per_epoch),
            official=recipe.compat == "official",
        )
        per_epoch, again = self.feed.steps_per_epoch, resume_command(recipe, run)
        self.limit = BadSampleLimit(recipe.data.max_bad, per_epoch, again)
        if built.first_weights:
            report = "\n".join([*built.first_weights, ""]).encode()
            ranks.main_does(lambda: write_atomically(run.folder / "first_weights.txt", report))
        for note in built.notes:
            telemetry.note(note)
        self.keeper = Keeper(task, self.engine, run, recipe.train.keep_last, self.average)
        self.at = Counters()
        if continued is not None:
            saved = ranks.together(lambda: read_saved(continued))
            with peers_may_be_gone():
                self.at = self.keeper.restore(saved)
            telemetry.note(f"continuing after step {self.at.step} ({continued.name})")
        elif resume:
            telemetry.note("no checkpoint yet: starting from step 1")
        self.journal = Journal(run, telemetry, self.plan, ranks, self.at.step)
        self.evaluated: dict[int, Scores] = {}
        self.validation_dropped: dict[str, int] = {}
        for line in self.journal.kept:
            if line["kind"] == "eval":
                self._consider(line["step"], read_scores(line["scores"]))
                self.validation_dropped = line["dropped"]
        self.keeper.publish(self.at.best)
        self.lr = recipe.optim.lr
        self.signal: int | None = None
        self.now = self.at.seconds
        self._session_start = time.monotonic() - self.at.seconds

    def run(self) -> TrainResult:
        """To the end or to a signal, then a checkpoint and a last validation."""
        first = self.ranks.rank * self.own_parts
        parts = range(first, first + self.own_parts)
        feed = feed_from(self.feed, self.at.step + 1, self.recipe.data.workers, parts)
        with contextlib.closing(feed):
            over = self._steps(feed)
        self._save()
        if over and self.signal is None:
            self._evaluate()
        done = over and self.at.step in self.evaluated
        return TrainResult(
            self.at.step,
            # a signal that came when nothing was left to do interrupted nothing
            None if done else self.signal,
            self.evaluated.get(self.at.step, {}),
            self.now,
            self.at.dropped,
            self.validation_dropped,
            self.at.overflows,
        )

    def _steps(self, feed: Iterator[list[Sequence[Batch]]]) -> bool:
        """Steps, with validations and checkpoints between them; whether the run is over."""
        settings, at = self.recipe.train, self.at
        over = self.plan.is_over(at.step, self.now)
        if not over and self._evaluation_due():  # a signal kept it from being made
            self._evaluate()
        while not over and self.signal is None:
            begin = time.perf_counter()
            updates, sizes = self._ready(feed)
            if self.signal is not None:
                break
            for number, batches in enumerate(updates):
                self._update(number, batches, sizes[number])
            at.step += 1
            self.journal.pace.seconds += time.perf_counter() - begin
            over = self.plan.is_over(at.step, self.now)
            if over or at.step % settings.log_every == 0:
                self.journal.train_line(at, self.lr, self.now, self.engine.device)
            if over or self.signal is not None:
                break
            if self._evaluation_due():
                self._evaluate()
            if at.step % settings.checkpoint_every == 0:
                self._save()
        return over

    def _ready(
        self, feed: Iterator[list[Sequence[Batch]]]
    ) -> tuple[list[Sequence[Batch]], list[list[Sizes]]]:
        """Of each update of the next step: this rank's parts, and the sizes of all parts."""
        begin = time.perf_counter()
        parts: list[Sequence[Batch]] = []
        error: XvlmError | None = None
        sizes: list[list[Sizes]] = []
        try:
            parts = next(feed)
        except XvlmError as problem:
            error = problem
        updates: list[Sequence[Batch]] = [list(batches) for batches in zip(*parts, strict=True)]
        if error is None:
            moment = self._moment(0, 0)
            sizes = [[self.task.sizes(b, moment) for b in batches] for batches in updates]
        self.journal.pace.waited += time.perf_counter() - begin  # for data, not for the others
        seen = [Seen.of(batch) for part in parts for batch in part]
        said = self.ranks.agree(Ready(error, self.interrupts.number, sizes, seen))
        self.ranks.raise_first_of([ready.error for ready in said])
        self.limit.check([one for ready in said for one in ready.seen])
        self.signal = first_signal(said)
        whole = [[size for ready in said for size in ready.sizes[n]] for n in range(len(updates))]
        return updates, whole

    def _moment(self, update: int, part: int, **peers: GatheredPeers) -> Moment:
        step = self.at.step + 1
        seed = seed_of(self.recipe.seed, step, update, part, purpose="draws")
        generator = torch.Generator().manual_seed(seed)
        return Moment(step, self.plan.progress(step, self.now), generator, **peers)

    def _update(self, number: int, batches: Sequence[Batch], sizes: Sequence[Sizes]) -> None:
        """One update: the parts of this rank, then a decision of all ranks, then the weights."""
        engine, at, recipe = self.engine, self.at, self.recipe
        self.watch.beat(data_position(at.step + 1, batches))
        first = self.ranks.rank * self.own_parts
        parts = shares(sizes)
        # none of the losses takes part yet, or there is nothing to learn from
        is_empty = not any(part.gradient for part in parts)
        outcomes: list[Outcome] = []
        if not is_empty:
            self.lr = recipe.optim.lr * self.plan.factor(at.step + 1, self.now)
            engine.set_lr(self.lr)
            engine.begin()
            self.statistics.begin()
            tables = self._tables(number, batches) if self.own_parts > 1 else None
            for own, batch in enumerate(batches):
                peers = GatheredPeers(self.ranks, first + own, self.own_parts, tables)
                outcomes.append(self._part(number, own, batch, peers, parts[first + own]))
            self.statistics.finish()
        outcomes += [Outcome({}, {}, batch.dropped, batch.n_pictures) for batch in batches]
        whole = self._agree(outcomes)
        if not is_empty:
            self._change(whole, batches)
        if is_empty:
            add_counts(whole.counts, {"empty_updates": 1})
        add_counts(at.dropped, whole.dropped)
        at.window.add(whole.values, whole.counts)
        self.journal.pace.pictures += sum(batch.n_pictures for batch in batches)

    def _tables(self, number: int, batches: Sequence[Batch]) -> Mapping[str, Sequence[Tensor]]:
        """What all parts give their peers, computed without gradient: see train/parts.py."""
        first = self.ranks.rank * self.own_parts
        own = []
        for part, batch in enumerate(batches, start=first):
            torch.manual_seed(seed_of(self.recipe.seed, self.at.step + 1, number, part))
            moved = batch.to(self.engine.device)
            own.append(self.engine.tables(self.task, moved, self._moment(number, part)))
            self.statistics.undo()
        return gather_tables(self.ranks, own)

    def _part(
        self, number: int, own: int, batch: Batch, peers: GatheredPeers, share: Share
    ) -> Outcome:
        """Forward and backward of one part; its contribution to the numbers of the update."""
        engine, last = self.engine, own == self.own_parts - 1
        # drop-out draws by the place of the part in the run, not by what was drawn before
        torch.manual_seed(seed_of(self.recipe.seed, self.at.step + 1, number, peers.part))
        moment = self._moment(number, peers.part, peers=peers)
        moved = batch.to(engine.device)
        total, losses = engine.losses(self.task, moved, moment, share.gradient, last=last)
        with peers_may_be_gone():
            engine.backward(total, last=last)
        self.statistics.part_done()
        return outcome_of(losses, share, batch, peers)

    def _agree(self, outcomes: Sequence[Outcome]) -> Whole:
        mine = summed(outcomes)
        clock = time.monotonic() - self._session_start
        said = self.ranks.agree(
            Outcome(
                mine.values,
                mine.counts,
                mine.dropped,
                mine.pictures,
                mine.guilty,
                self.interrupts.number,
                clock,
            )
        )
        self.now = said[0].seconds
        self.signal = first_signal(said)
        return summed(said)

    def _change(self, whole: Whole, batches: Sequence[Batch]) -> None:
        """Change the weights, unless a number is not finite on any rank."""
        engine, at = self.engine, self.at
        backs_off = engine.can_overflow
        if not whole.is_finite and not backs_off:
            raise self._diverged(whole.values, whole.guilty or self._records(batches))
        with peers_may_be_gone():
            update = engine.update(self.recipe.optim.clip_norm)
        if update.applied:
            whole.values["grad_norm"] = update.norm
            if self.average is not None:
                self.average.update(engine.model)
        elif backs_off:
            at.overflows += 1
            whole.values.clear()  # no means of numbers that are none
            add_counts(whole.counts, {"overflows": 1})
        else:
            values = {**whole.values, "grad_norm": update.norm}
            raise self._diverged(values, self._records(batches))
        if update.loss_scale is not None:
            whole.values["loss_scale"] = update.loss_scale

    def _records(self, batches: Sequence[Batch]) -> list[str]:
        """Those of all ranks' parts."""
        mine = [record_id for batch in batches for record_id in batch.record_ids]
        return [record_id for ids in self.ranks.agree(mine) for record_id in ids]

    def _diverged(self, values: Mapping[str, float], record_ids: Sequence[str]) -> DivergedError:
        error = diverged(
            values,
            self.at.step + 1,
            record_ids,
            self.recipe,
            self.run_info,
            write=self.ranks.is_main,
        )
        error.raised_on_all = self.ranks.world_size > 1
        return error

    # ------------------------------------------------------------------ validation, checkpoint

    def _evaluation_due(self) -> bool:
        every, step = self.recipe.train.evaluate_every, self.at.step
        return every is not None and step > 0 and step % every == 0 and step not in self.evaluated

    def _evaluate(self) -> None:
        """Validate; a better model than before becomes a checkpoint."""
        if self.at.step in self.evaluated:
            return
        engine = self.engine
        with self.keeper.model() as model:
            made = evaluate(
                self.task,
                model,
                engine.device,
                engine.precision,
                ranks=self.ranks,
                beat=self.watch.beat,
                stop=lambda: self.interrupts.number is not None,
            )
        if made is None:
            self.signal = first_signal(self.ranks.agree(Ready(None, self.interrupts.number)))
            return
        scores, self.validation_dropped = made.scores, made.dropped
        step = self.at.step
        if scores or made.dropped:  # also where nothing was left to score
            self.journal.eval_line(step, scores, made.dropped, self.now)
        self._consider(step, scores)
        if self.at.best is not None and self.at.best != self.keeper.published_best:
            self._save()
            self.keeper.publish(self.at.best)

    def _consider(self, step: int, scores: Scores) -> None:
        self.evaluated[step] = scores
        name, best = self.task.selection, self.at.best
        if name is None or name not in scores or not math.isfinite(scores[name].value):
            return
        if best is None or scores[name].value > best.value:
            self.at.best = Best(step, name, scores[name].value)

    def _save(self) -> None:
        """A checkpoint of this step, unless there is one."""
        if self.keeper.saved_step == self.at.step:
            return
        where = f"checkpoint of step {self.at.step}"
        if not self.ranks.is_main:
            self.watch.beat(where)
            self._write_checkpoint()
            return
        # the library that writes the weights keeps the interpreter meanwhile
        with self.watch.holding(where):
            self._write_checkpoint()

    def _write_checkpoint(self) -> None:
        self.at.seconds = self.now
        self.journal.sync()
        folder = self.keeper.save(self.at, self._describe)
        if self.uploader is not None:
            self.uploader.checkpoint(folder)

    def _describe(self, folder: Path) -> None:
        """What a checkpoint says of where it comes from."""
        step = self.at.step
        write_provenance(folder, self.run_info, step, self.evaluated.get(step, {}))

    def close(self) -> None:
        """Close the engine, the log and the console."""
        self.engine.close()
        self.journal.close()
