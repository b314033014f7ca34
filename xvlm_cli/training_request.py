"""What was typed to train: the recipe and its values, and how many processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from xvlm_core.config.resolve import Resolved, resolve
from xvlm_core.train.launch import ALONE, Place

if TYPE_CHECKING:
    from xvlm_core.errors import LostRankError


@dataclass(frozen=True)
class TrainingRequest:
    """What was typed."""

    verb: str
    kind: str
    recipe: str | None
    words: Sequence[str]
    flags: Mapping[str, Any]
    output: Path | None
    resume: bool
    overwrite: bool
    dry_run: bool
    place: Place = ALONE
    last_words: Callable[[LostRankError], object] | None = None


@dataclass(frozen=True)
class Launch:
    """What was typed about processes.

    Attributes:
        gpus: processes on this machine.
        nodes: machines.
        node_rank: number of this machine.
        master: ``host:port`` at which the processes meet.
        print_slurm: print a batch script instead.
    """

    gpus: int | None = None
    nodes: int | None = None
    node_rank: int | None = None
    master: str | None = None
    print_slurm: bool = False

    @property
    def typed(self) -> str:
        """The options as typed."""
        pairs = (
            ("--gpus", self.gpus),
            ("--nodes", self.nodes),
            ("--node-rank", self.node_rank),
            ("--master", self.master),
        )
        return " ".join(f"{name} {value}" for name, value in pairs if value is not None)

    @property
    def processes(self) -> int:
        """Processes of the run."""
        return (self.gpus or 1) * (self.nodes or 1)


def resolved_recipe(request: TrainingRequest) -> Resolved:
    """The recipe of a new run.

    Raises:
        ConfigError: it does not hold.
    """
    assert request.recipe is not None
    return resolve(request.recipe, request.words, request.flags, os.environ, kind=request.kind)


def retype(context: typer.Context, without: Sequence[str] = ()) -> list[str]:
    """The command line of a verb as it was understood: verb, options, words.

    Args:
        context: of the verb's call.
        without: options to leave out, such as ``--gpus``.
    """
    options: list[str] = []
    words: list[str] = []
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        name = next((n for n in parameter.opts if n.startswith("--")), parameter.opts[0])
        if value is None or value is False or name in without:
            continue
        if parameter.param_type_name == "argument":
            words.extend(map(str, value) if isinstance(value, list | tuple) else [str(value)])
        elif value is True:
            options.append(name)
        else:
            options.extend([name, str(value)])
    return [str(context.command.name), *options, *words]
