"""The file that the test server of VQA takes: a JSON list of question ids and answers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xvlm_core.errors import UsageError

if TYPE_CHECKING:
    from xvlm_cli.evaluate_report import Answered

ENDING = ".result.json"


def require_server(task: str, wanted: bool) -> None:
    """There is such a file for the task.

    Raises:
        UsageError: there is none, and it was asked for.
    """
    from xvlm_core.tasks.evaluations import evaluation_class

    if wanted and not hasattr(evaluation_class(task), "submission"):
        raise UsageError(
            f"--server-file is for vqa: no test server is known for {task}", try_="leave it out"
        )


def write_server_files(
    task: str, paths: Mapping[str, Path], answered: Mapping[str, Answered], *, wanted: bool
) -> dict[str, Path]:
    """Write it beside the predictions of splits whose answers are hidden, or of all.

    Args:
        task: whose evaluation.
        paths: of the predictions, by split; a split without one has no such file either.
        answered: the answers to each split.
        wanted: also where the answers are known.

    Returns:
        Its place, by split.

    Raises:
        OutputError: a place cannot be written.
    """
    from xvlm_cli.output import writing
    from xvlm_core.tasks.evaluations import evaluation_class
    from xvlm_core.train.files import json_bytes, write_atomically

    kind: Any = evaluation_class(task)
    written: dict[str, Path] = {}
    if not hasattr(kind, "submission"):
        return written
    for split, path in paths.items():
        if wanted or not answered[split].scores:
            target = path.with_name(path.stem + ENDING)
            with writing(target):
                write_atomically(target, json_bytes(kind.submission(answered[split].predictions)))
            written[split] = target
    return written
