"""Exponential moving average of the weights of a model.

Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", SIAM J. Control
Optim. 1992, with exponential weights. The warm-up of the decay, min(decay, (1 + n) / (10 + n)) at
n updates before this one, is that of TensorFlow's ``tf.train.ExponentialMovingAverage``
(``num_updates``): without it the first weights, which are random, would stay in the average for
1 / (1 - decay) updates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from xvlm_core.errors import CheckpointError

_UPDATES = "n_updates"


class Ema:
    """Moving average of the trainable parameters, in float32 on their devices.

    Frozen parameters are left alone; a parameter under several names (tied weights) is averaged
    once, under its first. Floating-point buffers that are saved with a model (running means of
    batch norm) are copied as they are at each update, as ``torch.optim.swa_utils`` does.

    Attributes:
        decay: limit of the decay, between 0 and 1.
        n_updates: updates made.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Start from the weights of ``model`` (the whole model, not a wrapper or a shard)."""
        assert 0 < decay < 1, "the decay lies between 0 and 1"
        self.decay = decay
        self.n_updates = 0
        self._swapped = False
        self._names = [name for name, p in model.named_parameters() if p.requires_grad]
        saved = model.state_dict(keep_vars=True)
        self._buffer_names = [
            name for name, b in model.named_buffers() if name in saved and b.is_floating_point()
        ]
        assert _UPDATES not in (*self._names, *self._buffer_names), f"{_UPDATES} is taken"
        self._average = [tensor.detach().float().clone() for tensor in self._weights(model)]
        self._buffers = [tensor.detach().clone() for tensor in self._live_buffers(model)]

    def _weights(self, model: nn.Module) -> list[Tensor]:
        found = dict(model.named_parameters())
        return [found[name].detach() for name in self._names]

    def _live_buffers(self, model: nn.Module) -> list[Tensor]:
        found = dict(model.named_buffers())
        return [found[name].detach() for name in self._buffer_names]

    @property
    def next_decay(self) -> float:
        """The decay of the next update: ``min(decay, (1 + n) / (10 + n))`` at n updates made."""
        return min(self.decay, (1 + self.n_updates) / (10 + self.n_updates))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Average <- decay * average + (1 - decay) * weights, in place.

        To be called after each optimizer step that changed the weights.
        """
        assert not self._swapped, "the model holds the average: it would be averaged with itself"
        weights = [weight.float() for weight in self._weights(model)]
        if weights:
            torch._foreach_lerp_(self._average, weights, 1 - self.next_decay)
        _copy(self._buffers, self._live_buffers(model))
        self.n_updates += 1

    @contextmanager
    def swapped(self, model: nn.Module) -> Iterator[None]:
        """While it is open, ``model`` holds the average; afterwards what it held before, exactly.

        The live weights are kept beside (one more copy of them); whatever changes the model's
        weights meanwhile is undone. The average itself cannot be changed from inside.
        """
        assert not self._swapped, "already swapped"
        targets = [*self._weights(model), *self._live_buffers(model)]
        live = [tensor.clone() for tensor in targets]
        self._swapped = True
        try:
            _copy(targets, [*self._average, *self._buffers])
            yield
        finally:
            _copy(targets, live)
            self._swapped = False

    def state(self) -> dict[str, Tensor]:
        """Copies on the CPU: each parameter's and buffer's by its name, and ``n_updates``."""
        names = [*self._names, *self._buffer_names]
        tensors = {
            name: tensor.to("cpu", copy=True).contiguous()
            for name, tensor in zip(names, [*self._average, *self._buffers], strict=True)
        }
        return {**tensors, _UPDATES: torch.tensor(self.n_updates)}

    def load(self, tensors: Mapping[str, Tensor], *, where: str | None = None) -> None:
        """Go on from what :meth:`state` gave. Nothing is changed if something does not fit.

        Args:
            tensors: by name.
            where: the file they are from, for the error.

        Raises:
            CheckpointError: the average is of a model with other parameters.
        """
        mine = dict(
            zip([*self._names, *self._buffer_names], [*self._average, *self._buffers], strict=True)
        )
        odd = sorted({*mine, _UPDATES} ^ set(tensors)) or [
            name
            for name, tensor in mine.items()
            if (tensor.shape, tensor.dtype) != (tensors[name].shape, tensors[name].dtype)
        ]
        if odd:
            more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
            raise CheckpointError(
                f"the moving average is of another model: {odd[0]}{more} does not fit",
                where=where,
                try_="resume with the recipe of the run (recipe.yaml in its folder)",
            )
        _copy(list(mine.values()), [tensors[name] for name in mine])
        self.n_updates = int(tensors[_UPDATES])


@torch.no_grad()
def _copy(into: list[Tensor], values: list[Tensor]) -> None:
    if into:
        torch._foreach_copy_(into, values)
