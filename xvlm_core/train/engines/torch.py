"""One process, one device, plain PyTorch: what the loop asks of an engine.

The loop says what a step is; the engine says how each part is done on the device.
"""

from __future__ import annotations

import contextlib
from typing import Literal

import torch
from torch import Tensor, nn

from xvlm_core.errors import MissingToolError

Precision = Literal["fp32", "bf16", "fp16"]


def pick_device(wanted: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device of a recipe's ``train.device``.

    Raises:
        MissingToolError: CUDA is asked for and there is none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise MissingToolError(
            "train.device is cuda, but PyTorch sees no CUDA device", try_="train.device=auto"
        )
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def pick_precision(
    wanted: Literal["auto", "fp32", "bf16", "fp16"], device: torch.device
) -> Precision:
    """The precision of a recipe's ``train.precision``.

    Raises:
        MissingToolError: float16 is asked for and the device is no GPU.
    """
    if wanted == "auto":
        return "bf16" if device.type == "cuda" else "fp32"
    if wanted == "fp16" and device.type != "cuda":
        raise MissingToolError(
            "train.precision=fp16 needs a GPU: the CPU has no float16 arithmetic worth the name",
            where="train.precision",
            try_="train.precision=bf16, or fp32",
        )
    return wanted


def autocast(
    device: torch.device, precision: Precision
) -> contextlib.AbstractContextManager[object]:
    """The context of a forward pass in a precision."""
    if precision != "fp32":
        dtype = torch.bfloat16 if precision == "bf16" else torch.float16
        return torch.autocast(device.type, dtype=dtype)
    return contextlib.nullcontext()


class TorchEngine:
    """A model and its optimizer on one device."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        device: torch.device,
        precision: Precision,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.device = device
        self.precision = precision
        self._parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def autocast(self) -> contextlib.AbstractContextManager[object]:
        """The context of a forward pass."""
        return autocast(self.device, self.precision)

    def zero(self) -> None:
        """Forget the gradients. A parameter without a loss has none, and is not updated."""
        self.optimizer.zero_grad(set_to_none=True)

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients."""
        loss.backward()  # type: ignore[no-untyped-call]

    def clip(self, norm: float | None) -> Tensor:
        """Scale the gradients to a global norm of at most ``norm``; the norm before it."""
        return torch.nn.utils.clip_grad_norm_(
            self._parameters, float("inf") if norm is None else norm
        )

    def step(self) -> None:
        """Update the parameters."""
        self.optimizer.step()
