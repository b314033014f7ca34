"""What a task is. The training loop and the verbs know nothing beyond this file.

A new task is one file (forward, losses, prediction, metric) and one recipe.

The batch of an update is computed in parts (``train.micro_batches``), shared out over the ranks.
A task computes the losses of one part; what a loss needs of the other parts it asks its
:class:`Peers` for.
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


class Peers(Protocol):
    """The parts of an update, seen from one of them."""

    @property
    def n_parts(self) -> int:
        """Parts of the update, over all ranks."""

    def table(self, name: str, rows: Tensor) -> tuple[Tensor, int]:
        """Rows of all parts, in their order, and the number of the first own one.

        Gradient flows through the own rows alone: the gradients of all parts add up to that of
        a loss over the table. Every part asks for the same names in the same order.

        Args:
            name: of the table.
            rows: the own ones, ``(n, ...)``; n may differ from part to part.
        """


class _Alone:
    n_parts = 1

    def table(self, name: str, rows: Tensor) -> tuple[Tensor, int]:
        return rows, 0


ALONE: Peers = _Alone()
"""An update in one part."""


@dataclass(frozen=True)
class Moment:
    """Where in the run a part of an update stands.

    Attributes:
        step: 1, 2, ...
        progress: share of the run that is done, in [0, 1).
        generator: for draws of this part only (hard negatives): seeded by its place in the run, so
            that a resumed run, on any number of ranks, draws the same.
        peers: the other parts.
    """

    step: int
    progress: float
    generator: torch.Generator
    peers: Peers = ALONE


@dataclass(frozen=True)
class Losses:
    """Named float32 scalars of one part, and what else is worth a line in the log.

    Attributes:
        parts: a mean over the part's items each, or (contrastive) a loss over all parts.
        weights: of them, 1 where none is given.
        counts: are added up.
        gauges: scalars that are shown, but not learnt from (the temperature).
    """

    parts: Mapping[str, Tensor]
    weights: Mapping[str, float]
    counts: Mapping[str, int] = field(default_factory=dict)
    gauges: Mapping[str, Tensor] = field(default_factory=dict)

    def detached(self) -> Losses:
        """The same numbers, without their graph."""
        parts = {name: value.detach() for name, value in self.parts.items()}
        gauges = {name: value.detach().clone() for name, value in self.gauges.items()}
        return Losses(parts, self.weights, self.counts, gauges)

    def total(self, shares: Mapping[str, float] | None = None) -> Tensor | None:
        """The weighted sum that is differentiated; None where nothing is.

        Args:
            shares: what a loss of this part weighs in the update; a loss without a share, or with
                one of 0, is left out. None: 1 for all.
        """
        terms = [
            self.weights.get(name, 1.0) * share * part
            for name, part in self.parts.items()
            if (share := 1.0 if shares is None else shares.get(name, 0.0))
        ]
        return torch.stack(terms).sum() if terms else None


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

    def batches(self, step: int, part: int = 0) -> Sequence[Batch]:
        """One part of the batches of step 1, 2, ...: of one update each, in this order.

        A step has the same updates for all parts. The feed knows the number of parts.
        """


@dataclass(frozen=True)
class Score:
    """One figure and what it means.

    Attributes:
        value: the figure (fractions, not per cent).
        split: the data it was computed on.
        convention: how (e.g. which IoU); shown beside the figure.
        n: number of items it is an average over.
        reference: the row of the paper it is to be compared with, if any.
        interval: 95 % of the figures that as many items, drawn again from these, would give.
    """

    value: float
    split: str
    convention: str
    n: int
    reference: str | None = None
    interval: tuple[float, float] | None = None


Scores = dict[str, Score]


class Evaluation(Protocol):
    """How a model of a task is scored on some data: every item asked once, and a metric."""

    selection: str | None
    """Name of the score that selects the best checkpoint (greater is better), if any."""

    def validation(self, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """Batches of a rank's share of the validation data; empty when there is none.

        The shares of all ranks, one after the other, are every item once, in order.
        """

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """Answers keyed by id, with what is needed to score them. Called without gradient."""

    def score(self, predictions: Sequence[Prediction]) -> Scores:
        """Figures over all predictions; each id counted once."""


@runtime_checkable
class InPasses(Protocol):
    """An evaluation whose answers need those to all other items: a ranking of a collection."""

    def next_pass(
        self, predictions: Sequence[Prediction], rank: int = 0, world_size: int = 1
    ) -> Iterator[Batch] | None:
        """Batches of a rank's share of a further pass, whose predictions replace these.

        Args:
            predictions: of the pass before, of all ranks, in order; equal on every rank. None at
                all: nothing was answered, or the evaluation is given up; what is held between
                the passes is let go.
            rank: of this process.
            world_size: number of them.

        Returns:
            None on every rank where the predictions are final.
        """


class Task(Evaluation, Protocol):
    """What is learnt and how it is scored."""

    name: str
    notes: list[str]
    """What is worth saying once the model is built: where its first weights come from."""

    def build_model(self, *, first_weights: bool = True) -> nn.Module:
        """A fresh model, initialised as the recipe says; without ``first_weights``: anyhow."""

    def save_model(self, model: nn.Module, folder: Path) -> None:
        """Write a self-contained model folder (config.json, model.safetensors, tokenizer.json)."""

    def load_weights(self, model: nn.Module, folder: Path) -> None:
        """Load the weights of a model folder that this task wrote into ``model`` (resume)."""

    def feed(self) -> Feed:
        """The training stream."""

    def losses(self, model: nn.Module, batch: Batch, moment: Moment) -> Losses:
        """The losses of one part of an update."""

    def sizes(self, batch: Batch, moment: Moment) -> Mapping[str, float | None]:
        """The losses that take part at this moment, and what each weighs in the update.

        That is the number of items that it is a mean over; 0: there are none in this part. None:
        it is a loss over all parts (:class:`Peers`), and has the same value in each.
        """

    def tables(self, model: nn.Module, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        """The rows that ``losses`` will ask its peers for, by table, without gradient.

        Called before the losses where a rank computes several parts in turn; empty where no loss
        needs the other parts at this moment.
        """
