"""Scores that an evaluation takes once, at the end, and not at every validation: they are slow, or
want a program that may be missing. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from xvlm_core.tasks.base import Prediction, Scores


@dataclass(frozen=True)
class ExtraScores:
    """What came of them.

    Attributes:
        scores: by name.
        skipped: by name, why a score is not there, in one line.
    """

    scores: Scores = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)


class HasExtraScores(Protocol):
    """A kind of evaluation that has such scores.

    Attributes:
        EXTRA: which, and how they are left out: is said before they are taken.
    """

    EXTRA: ClassVar[str]

    @staticmethod
    def extra_scores(predictions: Sequence[Prediction], split: str) -> ExtraScores:
        """The scores of some predictions, one at least; what stands in the way is no error."""
