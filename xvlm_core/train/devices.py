"""Device and precision of a run."""

from __future__ import annotations

import contextlib
import os
from typing import Literal

import torch

from xvlm_core.errors import MissingToolError
from xvlm_core.train.launch import ALONE, Place

Precision = Literal["fp32", "bf16", "fp16"]

_KERNELS_KEPT = "256"
"""Kernels that oneDNN keeps on a CPU, a MB or so each. Its own 1,024 fill up, since each batch of
texts has another number of tokens, and a run grows by 0.8 GB without being faster."""


def pick_device(wanted: Literal["auto", "cpu", "cuda"], place: Place = ALONE) -> torch.device:
    """The device of a recipe's ``train.device``.

    Args:
        wanted: as the recipe says.
        place: of this process: it has the GPU of its number on its machine, or the only one that
            a scheduler lets it see.

    On a CPU, bounds the kernels that are kept (``ONEDNN_PRIMITIVE_CACHE_CAPACITY`` says otherwise).

    Raises:
        MissingToolError: there is no CUDA device, or fewer GPUs than processes.
    """
    n_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "cuda" and not n_devices:
        raise MissingToolError(
            "train.device is cuda, but PyTorch sees no CUDA device", try_="train.device=auto"
        )
    if wanted == "cpu" or not n_devices:
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", _KERNELS_KEPT)  # read at first use
        return torch.device("cpu")
    local_rank = place.local_rank
    if n_devices == 1 and place.by in ("slurm", "torchrun"):
        local_rank = 0
    if local_rank >= n_devices:
        raise MissingToolError(
            f"process {local_rank} of this machine has no GPU: PyTorch sees {n_devices}",
            try_=f"--gpus {n_devices}, or --device cpu",
        )
    torch.cuda.set_device(local_rank)  # what libraries allocate without being asked goes there too
    return torch.device("cuda", local_rank)


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
    if precision == "fp32":
        return contextlib.nullcontext()
    dtype = torch.bfloat16 if precision == "bf16" else torch.float16
    return torch.autocast(device.type, dtype=dtype)
