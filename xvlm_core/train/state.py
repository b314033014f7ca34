"""What a checkpoint holds besides the model: optimizer and counters. No pickle.

``optimizer.safetensors`` has tensors named ``<state>/<parameter>``, whole ones whatever the engine
and the number of ranks; ``state.json`` the numbers. Random numbers are a function of the step.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from xvlm_core.errors import CheckpointError
from xvlm_core.tasks.base import Scores
from xvlm_core.train.files import FILES, json_bytes
from xvlm_core.train.runs import Best

OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"
SCHEMA_VERSION = 2


def add_counts(total: dict[str, int], more: Mapping[str, int]) -> None:
    """Add counts by name, in place."""
    for name, count in more.items():
        total[name] = total.get(name, 0) + count


@dataclass
class Window:
    """Sums since the last line of the log. Saved, so that a resumed log is the same log."""

    sums: dict[str, float] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, values: Mapping[str, float], counts: Mapping[str, int]) -> None:
        """One update."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.numbers[name] = self.numbers.get(name, 0) + 1
        add_counts(self.counts, counts)

    def means(self) -> dict[str, float]:
        """Mean of each value over the updates that computed it."""
        return {name: self.sums[name] / self.numbers[name] for name in self.sums}


@dataclass
class Counters:
    """Where a run stands.

    Attributes:
        step: steps made.
        seconds: training time so far, over all sessions.
        dropped: samples left out so far, by reason.
        best: the best checkpoint so far.
        overflows: updates that were passed over because float16 overflowed.
        window: sums since the last line of the log.
        scaler: the loss scale of float16, as it was read (the engine keeps it).
    """

    step: int = 0
    seconds: float = 0.0
    dropped: dict[str, int] = field(default_factory=dict)
    best: Best | None = None
    overflows: int = 0
    window: Window = field(default_factory=Window)
    scaler: dict[str, float] = field(default_factory=dict)


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
        overflows: updates that were passed over because float16 overflowed, over all sessions.
    """

    step: int
    interrupted_by: int | None
    scores: Scores
    seconds: float
    dropped: Mapping[str, int] = field(default_factory=dict)
    validation_dropped: Mapping[str, int] = field(default_factory=dict)
    overflows: int = 0


def write_state(
    folder: Path,
    counters: Counters,
    optimizer_state: Mapping[str, Tensor],
    scaler_state: Mapping[str, float],
) -> None:
    """Write both files into a checkpoint folder."""
    save_file(dict(optimizer_state), folder / OPTIMIZER_FILE)
    content = {"schema": SCHEMA_VERSION, **asdict(counters), "scaler": dict(scaler_state)}
    FILES.write(folder / STATE_FILE, json_bytes(content))


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimizer, ``<key>/<parameter>``."""
    names: dict[Tensor, str] = {value: name for name, value in model.named_parameters()}
    tensors = {}
    for parameter, entries in optimizer.state.items():
        for key, value in entries.items():
            assert isinstance(value, Tensor), f"optimizer state {key} is no tensor"
            tensors[f"{key}/{names[parameter]}"] = value.detach().cpu().contiguous()
    return tensors


def load_optimizer_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> None:
    """Take up a state of :func:`optimizer_tensors`.

    Raises:
        CheckpointError: it is of a model with other parameters.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    index = {names[parameter]: number for number, parameter in enumerate(trained)}
    state: dict[int, dict[str, Any]] = {}
    for full_name, value in tensors.items():
        key, name = full_name.split("/", 1)
        fits = name in index and (value.ndim == 0 or value.shape == trained[index[name]].shape)
        if not fits:
            raise CheckpointError(
                f"the optimizer state is of another model: {name} does not fit",
                try_="resume with the recipe of the run (recipe.yaml in its folder)",
            )
        state.setdefault(index[name], {})[key] = value
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )


def read_counters(folder: Path) -> Counters:
    """The numbers of a checkpoint.

    Raises:
        CheckpointError: ``state.json`` is missing, not ours, or of another schema.
    """
    path = folder / STATE_FILE
    try:
        content = json.loads(path.read_bytes())
        if content["schema"] != SCHEMA_VERSION:
            raise CheckpointError(
                f"{folder.name} was written by another version of xvlm: its training state is of "
                f"schema {content['schema']}, and this version goes on from {SCHEMA_VERSION}",
                where=str(path),
                try_=f"a new run from its weights: init.checkpoint={folder}; or resume with the "
                "version of xvlm that the run's run.json names",
            )
        best = content["best"]
        return Counters(
            step=int(content["step"]),
            seconds=float(content["seconds"]),
            dropped=dict(content["dropped"]),
            best=None if best is None else Best(**best),
            overflows=int(content.get("overflows", 0)),
            window=Window(**content["window"]),
            scaler=dict(content.get("scaler", {})),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"training state of {folder.name} cannot be read: {error}",
            where=str(path),
            try_="a model folder without training state cannot be resumed; start from it instead",
        ) from error


def read_tensors(folder: Path, *, under: str = "") -> dict[str, Tensor]:
    """The tensors of a checkpoint's training state.

    Args:
        folder: the checkpoint.
        under: only those whose names begin so.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    path = folder / OPTIMIZER_FILE
    try:
        with safe_open(path, "pt") as tensors:
            names = [name for name in tensors.keys() if name.startswith(under)]  # noqa: SIM118
            return {name: tensors.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"optimizer state of {folder.name} cannot be read: {error}",
            where=str(path),
            try_="a model folder without training state cannot be resumed; start from it instead",
        ) from error


def random_state() -> dict[str, Tensor]:
    """State of torch's own generators (drop-out), by device type."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Tensor]) -> None:
    """Undo what was drawn since :func:`random_state`."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
