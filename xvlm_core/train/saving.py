"""Checkpoints of a run: the model, its training state, and where the run continues from."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from xvlm_core.errors import CheckpointError
from xvlm_core.tasks.base import Task
from xvlm_core.train import checkpoint
from xvlm_core.train.ema import Ema
from xvlm_core.train.engines.base import Engine
from xvlm_core.train.runs import Best, RunInfo
from xvlm_core.train.state import Counters, read_counters, read_tensors, write_state

_LIVE, _AVERAGE = "live/", "average/"


def resume_folder(run: RunInfo) -> Path | None:
    """The checkpoint that a run continues from; None: there is none yet.

    Raises:
        CheckpointError: there are some, and all are damaged.
    """
    folder = run.newest_checkpoint()
    if folder is None and checkpoint.list_steps(run.checkpoints):
        raise CheckpointError(
            f"run {run.name} cannot be resumed: all its checkpoints are damaged",
            where=str(run.checkpoints),
            try_="start another run",
        )
    return folder


@dataclass(frozen=True)
class Saved:
    """The training state of a checkpoint, as it was read."""

    folder: Path
    at: Counters
    tensors: dict[str, Tensor]


def read_saved(folder: Path) -> Saved:
    """The training state of a checkpoint.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    return Saved(folder, read_counters(folder), read_tensors(folder))


class Keeper:
    """Writes the checkpoints of a run, and reads the one that it continues from.

    What is saved as the model is what is validated: the moving average of the weights where there
    is one. The live weights are then part of the training state.

    Args:
        task: saves and loads its model.
        engine: holds the live one.
        run: where checkpoints are.
        keep_last: newest ones that stay.
        average: of the weights, if any.
    """

    def __init__(
        self, task: Task, engine: Engine, run: RunInfo, keep_last: int, average: Ema | None
    ) -> None:
        self.task = task
        self.engine = engine
        self.run = run
        self.keep_last = keep_last
        self.average = average
        self.saved_step = 0
        self.published_best: Best | None = None

    @contextlib.contextmanager
    def model(self) -> Iterator[nn.Module]:
        """The model that is validated and saved, whole, on every rank."""
        with self.engine.whole_model() as model:
            if self.average is None:
                yield model
            else:
                with self.average.swapped(model):
                    yield model

    def restore(self, saved: Saved) -> Counters:
        """Bring the engine back to where a checkpoint left it, but for the weights.

        All ranks call it together, with the same.

        Raises:
            CheckpointError: it is of another model.
        """
        at, tensors = saved.at, saved.tensors
        _taken(tensors, _LIVE)  # load_live_weights took them
        if self.average is not None:
            self.average.load(_taken(tensors, _AVERAGE))
        try:
            self.engine.load_optimizer_state(tensors)
        except CheckpointError as error:
            error.where = error.where or str(saved.folder)
            error.raised_on_all = self.engine.ranks.world_size > 1  # all have read the same
            raise
        self.engine.load_scaler_state(at.scaler)
        self.saved_step = at.step
        return at

    def save(self, at: Counters, described: Callable[[Path], None]) -> Path:
        """A checkpoint of this step, on rank 0. All ranks call it.

        Args:
            at: where the run stands.
            described: writes what else belongs into the folder.
        """
        state = self.engine.optimizer_state()
        if self.average is not None and self.engine.ranks.is_main:
            live = self.engine.model.state_dict()
            # copies: the average takes their place in the model while it is written
            state |= {
                _LIVE + name: value.detach().to("cpu", copy=True).contiguous()
                for name, value in live.items()
            }
            state |= {_AVERAGE + name: value for name, value in self.average.state().items()}
        with self.model() as model:
            folder = self.engine.ranks.main_does(lambda: self._write(at, model, state, described))
        self.saved_step = at.step
        return folder

    def _write(
        self,
        at: Counters,
        model: nn.Module,
        state: dict[str, Tensor],
        described: Callable[[Path], None],
    ) -> Path:
        def write_files(folder: Path) -> None:
            self.task.save_model(model, folder)
            write_state(folder, at, state, self.engine.scaler_state())
            described(folder)

        return checkpoint.write(
            self.run.checkpoints,
            at.step,
            write_files,
            keep_last=self.keep_last,
            # until best.json names the new best one, the old one stays
            keep={best.step for best in (at.best, self.published_best) if best},
        )

    def publish(self, best: Best | None) -> None:
        """Name the best checkpoint."""
        self.engine.ranks.main_does(lambda: self.run.write_best(best))
        self.published_best = best


def load_live_weights(task: Task, model: nn.Module, folder: Path) -> None:
    """The weights that training continues with: live ones beside an average, else the model's.

    Raises:
        CheckpointError: damaged, or of another model.
    """
    task.load_weights(model, folder)
    live = _taken(read_tensors(folder, under=_LIVE), _LIVE)
    if live:
        model.load_state_dict(live)


def _taken(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under a prefix, removed from the others."""
    names = [name for name in tensors if name.startswith(prefix)]
    return {name.removeprefix(prefix): tensors.pop(name) for name in names}
