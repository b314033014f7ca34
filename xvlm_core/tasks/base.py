"""What a task is. The training loop and the verbs know nothing beyond this file.

A new task is one file (forward, losses, prediction, metric) and one recipe.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from xvlm_core.data.dropped import BadSamples

Prediction = dict[str, Any]
"""One JSON-serialisable answer; ``id`` is its key and appears once."""


@dataclass(frozen=True)
class Moment:
    """Where in the run an update stands.

    Attributes:
        step: 1, 2, ...
        progress: share of the run that is done, in [0, 1).
        generator: for draws of this update only (hard negatives): seeded by (seed, step, update),
            so that a resumed run draws the same.
    """

    step: int
    progress: float
    generator: torch.Generator


@dataclass(frozen=True)
class Losses:
    """Named float32 scalars, their weights, and counts worth a line in the log."""

    parts: Mapping[str, Tensor]
    weights: Mapping[str, float]
    counts: Mapping[str, int] = field(default_factory=dict)

    def total(self) -> Tensor:
        """The weighted sum that is differentiated."""
        terms = [self.weights.get(name, 1.0) * part for name, part in self.parts.items()]
        return torch.stack(terms).sum()


@runtime_checkable
class Batch(Protocol):
    """A frozen dataclass of tensors. What the loop reads of it is here."""

    @property
    def record_ids(self) -> tuple[str, ...]:
        """Records in the batch: named when a loss is not finite."""

    @property
    def n_pictures(self) -> int:
        """Pictures in the batch, for the throughput."""

    @property
    def dropped(self) -> Mapping[str, int]:
        """Samples left out while the batch was made, by reason."""

    @property
    def bad(self) -> BadSamples:
        """Those of them that are damage."""

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""


class Feed(Protocol):
    """The training data as a pure function of the step. Picklable: travels to loader workers."""

    @property
    def steps_per_epoch(self) -> int:
        """Steps that make one pass."""

    def batches(self, step: int) -> Sequence[Batch]:
        """The batches of step 1, 2, ...: one update each, in this order."""


@dataclass(frozen=True)
class Score:
    """One figure and what it means.

    Attributes:
        value: the figure (fractions, not per cent).
        split: the data it was computed on.
        convention: how (e.g. which IoU); shown beside the figure.
        n: number of items it is an average over.
        reference: the row of the paper it is to be compared with, if any.
    """

    value: float
    split: str
    convention: str
    n: int
    reference: str | None = None


Scores = dict[str, Score]


class Task(Protocol):
    """What is learnt and how it is scored."""

    name: str
    selection: str | None
    """Name of the score that selects the best checkpoint (greater is better), if any."""
    notes: list[str]
    """What is worth saying once the model is built: where its first weights come from."""

    def build_model(self) -> nn.Module:
        """A fresh model, initialised as the recipe says."""

    def save_model(self, model: nn.Module, folder: Path) -> None:
        """Write a self-contained model folder (config.json, model.safetensors, tokenizer.json)."""

    def load_weights(self, model: nn.Module, folder: Path) -> None:
        """Load the weights of a model folder that this task wrote into ``model`` (resume)."""

    def feed(self) -> Feed:
        """The training stream."""

    def losses(self, model: nn.Module, batch: Batch, moment: Moment) -> Losses:
        """The losses of one update."""

    def validation(self) -> Iterator[Batch]:
        """Batches of the validation data, every item once; empty when there is none."""

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """Answers keyed by id, with what is needed to score them. Called without gradient."""

    def score(self, predictions: Sequence[Prediction]) -> Scores:
        """Figures over all predictions; each id counted once."""
