"""What the loop asks of an engine. The loop says what a step is; the engine how it is done.

An update is ``begin``, then ``losses`` and ``backward`` for each part of this rank, then
``update``. Gradients add up over parts and ranks: each part's loss is its share already. Parallel
calls are made in the same order on every rank.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from xvlm_core.tasks.base import Batch, Losses, Moment, Task
from xvlm_core.train.devices import Precision
from xvlm_core.train.ranks import Ranks


@dataclass(frozen=True)
class Update:
    """What became of an update; the same on every rank.

    Attributes:
        norm: global norm of the gradient before clipping, the loss scale taken out.
        applied: the weights were changed. False: they were not, on any rank; the norm was not
            finite.
        loss_scale: that it was made with (float16 only).
    """

    norm: float
    applied: bool
    loss_scale: float | None = None


class Engine(Protocol):
    """A model and its optimizer, on this rank's device and those of the others."""

    ranks: Ranks
    device: torch.device
    precision: Precision
    model: nn.Module
    """The live model. Its weights may be of lower precision, or shared out: see ``whole_model``."""

    @property
    def can_overflow(self) -> bool:
        """Whether an update that is not finite is to be passed over: the loss scale goes down."""

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of every group, times its own factor."""

    def begin(self) -> None:
        """Forget the gradients."""

    def tables(self, task: Task, batch: Batch, moment: Moment) -> Mapping[str, Tensor]:
        """Rows of a part for its peers, without gradient."""

    def losses(
        self, task: Task, batch: Batch, moment: Moment, shares: Mapping[str, float], *, last: bool
    ) -> tuple[Tensor, Losses]:
        """Forward pass of a part.

        Args:
            task: computes the losses.
            batch: on ``device``.
            moment: of this part.
            shares: see :meth:`xvlm_core.tasks.base.Losses.total`.
            last: of this rank's parts of the update.

        Returns:
            The total that is differentiated (a zero that hangs on a parameter where the part has
            no loss: every rank takes part in the reduction), and what it is made of, detached.
        """

    def backward(self, total: Tensor, *, last: bool) -> None:
        """Add up gradients; after the ``last`` part they are those of all ranks."""

    def update(self, clip_norm: float | None) -> Update:
        """Clip the gradient to a global norm, check it, and change the weights: all ranks or none.

        Args:
            clip_norm: the most; None: as it is.
        """

    def whole_model(self) -> contextlib.AbstractContextManager[nn.Module]:
        """A model with all weights in float32, on every rank; to be looked at only."""

    def optimizer_state(self) -> dict[str, Tensor]:
        """Whole tensors ``<key>/<parameter>`` on the CPU of rank 0; empty on the others."""

    def load_optimizer_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up a state of :meth:`optimizer_state`, of any engine and number of ranks.

        Raises:
            CheckpointError: it is of a model with other parameters.
        """

    def scaler_state(self) -> dict[str, float]:
        """The loss scale and what it depends on; empty where there is none."""

    def load_scaler_state(self, state: Mapping[str, float]) -> None:
        """Take up a :meth:`scaler_state`."""

    def close(self) -> None:
        """Free what was made for several processes."""
