"""What is typed at any verb that asks a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ModelRequest:
    """What was typed about the task, the model and the files that are written.

    Attributes:
        task: what is asked.
        words: arguments, as they came.
        checkpoint: the model, if named.
        output: where files go.
        no_files: write none.
        download: fetch the model from the hub if it is not here.
        device: auto, cpu or cuda.
        overwrite: replace files that are there.
        dry_run: say what would be done.
    """

    task: str
    words: tuple[str, ...]
    checkpoint: str | None
    output: Path | None
    no_files: bool
    download: bool
    device: str
    overwrite: bool
    dry_run: bool
