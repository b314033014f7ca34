"""The report on an update that was not made, because a number of it was not finite."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence

from xvlm_core.config.schema import Recipe
from xvlm_core.errors import DivergedError
from xvlm_core.train.files import json_bytes, write_atomically
from xvlm_core.train.runs import RunInfo

_NAMED_RECORDS = 8


def diverged(
    values: Mapping[str, float],
    step: int,
    record_ids: Sequence[str],
    recipe: Recipe,
    run: RunInfo,
    *,
    write: bool,
) -> DivergedError:
    """The error, with the records and the last good checkpoint.

    Args:
        values: numbers of the update.
        step: that it belongs to.
        record_ids: records in which something was not finite, or all of the update.
        recipe: of the run.
        run: gets ``diverged.json``.
        write: whether this process writes it.
    """
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    report = run.folder / "diverged.json"
    if write:
        shown = {name: str(value) if name in bad else value for name, value in values.items()}
        content = {"step": step, "values": shown, "records": list(record_ids)}
        with contextlib.suppress(OSError):  # a full disk must not hide what happened
            write_atomically(report, json_bytes(content))
    good = run.newest_checkpoint()
    lower = f"optim.lr={recipe.optim.lr / 2:.1e}"
    more = len(record_ids) - _NAMED_RECORDS
    return DivergedError(
        f"{', '.join(bad)} not finite at step {step}; the update was not made",
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
