"""The bound on damaged training samples: a few are passed over, many end the run."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from xvlm_core.data.dropped import BadSamples
from xvlm_core.errors import DataError
from xvlm_core.tasks.base import Batch

LAST_SAMPLES = 10_000
"""Samples that are judged: the newest so many, so that data that goes bad late is seen soon."""

JUDGED_EVERY = 1_000
"""Samples between judgements, unless one pass is shorter: in part of a small store the share of bad
ones is anything."""

FEWEST_RECORDS = 3
"""Different records that must be bad: one picture of a small store ends no run."""


@dataclass(frozen=True)
class Seen:
    """Samples that were to make a batch, and those of them that are damage."""

    n: int
    bad: BadSamples

    @classmethod
    def of(cls, batch: Batch) -> Seen:
        """Those of a batch."""
        return cls(batch.n_pictures + sum(batch.dropped.values()), batch.bad)


class BadSampleLimit:
    """Ends a run when more than a share of the last 10,000 samples of this session was bad.

    That is judged every 1,000 samples or every pass, whichever is less, and at least three
    different records must be bad; with ``max_bad`` 0 the first one ends the run.

    Args:
        max_bad: the share, ``data.max_bad``.
        steps_per_epoch: steps that make one pass.
        resume: the command that goes on with the run, for what to type.
    """

    def __init__(self, max_bad: float, steps_per_epoch: int, resume: str) -> None:
        self.max_bad = max_bad
        self.steps_per_epoch = steps_per_epoch
        self.resume = resume
        self._steps_since = 0
        self._seen_since = 0
        self._seen = 0
        self._bad = 0
        self._batches: deque[tuple[int, BadSamples]] = deque()

    def check(self, batches: Sequence[Seen]) -> None:
        """Count the batches of a step, of all ranks, before they are learnt from.

        Raises:
            DataError: too many were bad; with the first ones.
        """
        self._steps_since += 1
        for batch in batches:
            self._add(batch.n, batch.bad)
        due = self._seen_since >= JUDGED_EVERY or self._steps_since >= self.steps_per_epoch
        if not due and self.max_bad > 0:
            return
        self._steps_since = self._seen_since = 0
        if self._bad <= self.max_bad * self._seen:
            return
        bad = sum((bad for _, bad in self._batches if bad.n), BadSamples())
        records = {(sample.folder, sample.record_id) for sample in bad.examples}
        if self.max_bad > 0 and len(records) < FEWEST_RECORDS:
            return
        folders = bad.folders()
        raise DataError(
            f"{bad.n:,} of the last {self._seen:,} training samples could not be read "
            f"(more than data.max_bad = {100 * self.max_bad:g} %)",
            details=bad.lines(),
            where=", ".join(folders),
            try_=f"xvlm validate {folders[0]}; to go on nevertheless: {self.resume} data.max_bad=1",
        )

    def _add(self, seen: int, bad: BadSamples) -> None:
        self._batches.append((seen, bad))
        self._seen += seen
        self._seen_since += seen
        self._bad += bad.n
        while self._seen - self._batches[0][0] >= LAST_SAMPLES:
            first, gone = self._batches.popleft()
            self._seen -= first
            self._bad -= gone.n
