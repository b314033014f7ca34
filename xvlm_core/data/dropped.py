"""Samples that were left out while a batch was made. Imports no torch.

Most are left out by their nature (no caption, no region in the crop). Bad ones are damage: the
picture cannot be read, or is not the one that the record describes. A run bounds those
(:mod:`xvlm_core.train.bad_samples`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from xvlm_core.data.text import sanitize

MOST_EXAMPLES = 10
"""Bad samples that are named; the others are counted."""


@dataclass(frozen=True)
class BadSample:
    """A record of which no sample can be made because data is damaged.

    Attributes:
        store: name of its store.
        folder: where that is.
        record_id: which record.
        reason: of :class:`~xvlm_core.data.images.PictureError`, or "size mismatch".
        file: its picture as the record names it.
    """

    store: str
    folder: str
    record_id: str
    reason: str
    file: str

    def line(self) -> str:
        """``coco 139: truncated image (val2017/000000000139.jpg)``, printable."""
        return sanitize(f"{self.store} {self.record_id}: {self.reason} ({self.file})")


@dataclass(frozen=True)
class BadSamples:
    """A number of bad samples.

    Attributes:
        n: how many.
        examples: the first few, each once: few enough to travel with a batch.
    """

    n: int = 0
    examples: tuple[BadSample, ...] = ()

    @classmethod
    def of(cls, samples: Iterable[BadSample]) -> BadSamples:
        """Count some."""
        found = list(samples)
        return cls(len(found), tuple(dict.fromkeys(found))[:MOST_EXAMPLES])

    def __add__(self, other: BadSamples) -> BadSamples:
        examples = dict.fromkeys((*self.examples, *other.examples))
        return BadSamples(self.n + other.n, tuple(examples)[:MOST_EXAMPLES])

    def lines(self) -> list[str]:
        """One a named sample, and whether there are more."""
        # where fewer are named, the others are the same ones in a later pass
        more = self.n > len(self.examples) == MOST_EXAMPLES
        named = [sample.line() for sample in self.examples]
        return [*named, "and more"] if more else named

    def folders(self) -> list[str]:
        """The stores of the named ones."""
        return sorted({sample.folder for sample in self.examples})


@dataclass(frozen=True)
class Dropped:
    """What was left out.

    Attributes:
        reasons: samples by reason, the bad ones included.
        bad: those that are damage.
    """

    reasons: Counter[str] = field(default_factory=Counter)
    bad: BadSamples = field(default_factory=BadSamples)

    def __add__(self, other: Dropped) -> Dropped:
        return Dropped(self.reasons + other.reasons, self.bad + other.bad)
