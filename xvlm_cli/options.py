"""Options that several verbs share, and completion of names. Imports nothing heavy."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from xvlm_core.config.recipes import recipe_names

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="No notes and no progress on stderr.")
]
DownloadOption = Annotated[
    bool,
    typer.Option("--download", help="Fetch a model from the hub if it is not here."),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be done; do nothing.")
]
OverwriteOption = Annotated[
    bool, typer.Option("--overwrite", help="Replace the output if it is there already.")
]

GpusOption = Annotated[
    int | None,
    typer.Option("--gpus", min=1, help="Processes on this machine, one a GPU (default: one)."),
]
NodesOption = Annotated[
    int | None, typer.Option("--nodes", min=1, help="Machines; the same command on each.")
]
NodeRankOption = Annotated[
    int | None, typer.Option("--node-rank", min=0, help="Number of this machine, from 0.")
]
MasterOption = Annotated[
    str | None,
    typer.Option("--master", metavar="HOST:PORT", help="A free port of machine 0; all meet there."),
]
EngineOption = Annotated[str | None, typer.Option("--engine", help="torch or deepspeed.")]
PrintSlurmOption = Annotated[
    bool, typer.Option("--print-slurm", help="Print a batch script for SLURM; do nothing.")
]


def runs_root() -> Path:
    """The folder of runs: ``XVLM_RUNS``, or ``runs`` here."""
    return Path(os.environ.get("XVLM_RUNS") or "runs")


def run_folders() -> list[str]:
    """Folders of runs, newest name last; only looks at the folder, so that completion is quick."""
    root = runs_root()
    if not root.is_dir():
        return []
    return sorted(str(folder) for folder in root.iterdir() if (folder / "run.json").is_file())


def complete_recipe(kind: str | None, incomplete: str) -> list[str]:
    """Recipe names that begin so: short ones of the verb's own folder, full ones of the others."""
    own = [name.partition("/")[2] for name in recipe_names(kind)] if kind else []
    return [name for name in [*own, *recipe_names()] if name.startswith(incomplete)]


def complete_pretrain(incomplete: str) -> list[str]:
    """Names for ``pretrain --recipe``."""
    return complete_recipe("pretrain", incomplete)


def complete_finetune(incomplete: str) -> list[str]:
    """Names for ``finetune TASK``."""
    return complete_recipe("finetune", incomplete)


def complete_any(incomplete: str) -> list[str]:
    """Full recipe names that begin so."""
    return complete_recipe(None, incomplete)


def complete_run(incomplete: str) -> list[str]:
    """Run folders that begin so."""
    return [folder for folder in run_folders() if folder.startswith(incomplete)]
