"""Whether the said probability of a phrase's being there can be trusted, and one number to mend it.

For evaluations whose predictions have such a probability (:class:`HasPresence`). No torch.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

from xvlm_core.errors import DataError
from xvlm_core.metrics.bootstrap import Interval
from xvlm_core.metrics.calibration import (
    ReliabilityBin,
    Temperature,
    ece,
    ece_interval,
    fit_temperature,
    reliability,
)
from xvlm_core.tasks.base import Prediction


class HasPresence(Protocol):
    """A kind of evaluation whose answers say how probable it is that what they name is there."""

    @staticmethod
    def presence(predictions: Sequence[Prediction]) -> tuple[list[float], list[bool]]:
        """The probabilities, and the truth."""


@dataclass(frozen=True)
class Calibration:
    """How said and observed frequency compare.

    Attributes:
        ece: expected calibration error.
        rows: the reliability table, ten bins.
        interval: 95 % of the errors that as many pictures, drawn again, would give; None: there are
            not two of them.
    """

    ece: float
    rows: tuple[ReliabilityBin, ...]
    interval: Interval | None = None

    @classmethod
    def of(
        cls, probabilities: Sequence[float], labels: Sequence[bool], pictures: Sequence[Hashable]
    ) -> Calibration:
        """Of some items, one at least.

        Args:
            probabilities: said of each.
            labels: whether it is so.
            pictures: that each is of: what is drawn together for the interval.
        """
        return cls(
            ece(probabilities, labels),
            reliability(probabilities, labels),
            ece_interval(probabilities, labels, pictures),
        )


@dataclass(frozen=True)
class PresenceReport:
    """Calibration of a split.

    Attributes:
        n: items.
        as_said: by the model.
        after: with a temperature that was fitted on another split, if one was.
    """

    n: int
    as_said: Calibration
    after: Calibration | None


def presence_report(
    kind: type[HasPresence], predictions: Sequence[Prediction], temperature: Temperature | None
) -> PresenceReport | None:
    """The calibration of some predictions; None where all is there, or nothing."""
    probabilities, labels = kind.presence(predictions)
    if len(set(labels)) < 2:
        return None
    pictures = pictures_of(predictions)
    after = None
    if temperature is not None:
        after = Calibration.of(temperature(probabilities).tolist(), labels, pictures)
    return PresenceReport(len(labels), Calibration.of(probabilities, labels, pictures), after)


def pictures_of(predictions: Sequence[Prediction]) -> list[str]:
    """What is drawn together for an interval: a picture has many phrases."""
    return [p.get("image") or p.get("record") or p["id"] for p in predictions]


def temperature_of(
    kind: type[HasPresence], predictions: Sequence[Prediction], split: str
) -> Temperature:
    """The temperature that fits some predictions best.

    Raises:
        DataError: all of them are there, or none: nothing can be fitted.
    """
    probabilities, labels = kind.presence(predictions)
    if len(set(labels)) < 2:
        lacking = "absent" if labels and labels[0] else "present"
        raise DataError(
            f"split {split!r} has no {lacking} phrase: a probability cannot be calibrated on it",
            where="--calibrate-on",
            try_="a validation split with phrases that are there and phrases that are not",
        )
    return fit_temperature(probabilities, labels)
