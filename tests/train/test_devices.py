"""Which device and precision a process has."""

from __future__ import annotations

import dataclasses
import os

import pytest
import torch

from xvlm_core.errors import MissingToolError
from xvlm_core.train.devices import pick_device, pick_precision
from xvlm_core.train.launch import ALONE

KERNELS = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Two GPUs, as far as PyTorch says; the numbers of those that were made current."""
    current: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    return current


def test_a_process_has_the_gpu_of_its_number(gpus: list[int]) -> None:
    second = dataclasses.replace(ALONE, local_rank=1)
    assert pick_device("auto", second) == torch.device("cuda", 1)
    assert gpus == [1], "what libraries allocate goes there too"
    assert pick_device("cpu", second) == torch.device("cpu")
    with pytest.raises(MissingToolError, match="process 2 of this machine has no GPU") as caught:
        pick_device("auto", dataclasses.replace(ALONE, local_rank=2))
    assert caught.value.try_ == "--gpus 2, or --device cpu"


@pytest.mark.parametrize(("by", "number"), [("slurm", 0), ("torchrun", 0), ("xvlm", None)])
def test_the_only_gpu_that_a_scheduler_lets_it_see_is_the_first(
    by: str, number: int | None, gpus: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    place = dataclasses.replace(ALONE, local_rank=1, by=by)
    if number is None:
        with pytest.raises(MissingToolError, match="process 1 of this machine has no GPU"):
            pick_device("cuda", place)
    else:
        assert pick_device("cuda", place) == torch.device("cuda", number)


def test_without_a_gpu_it_is_the_cpu_unless_one_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
    with pytest.raises(MissingToolError, match="PyTorch sees no CUDA device"):
        pick_device("cuda")


def test_a_cpu_keeps_as_many_kernels_as_a_run_needs(
    gpus: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KERNELS, "")  # so that it is put back
    monkeypatch.delenv(KERNELS)
    pick_device("cuda")
    assert KERNELS not in os.environ
    pick_device("cpu")
    assert int(os.environ[KERNELS]) < 1024
    monkeypatch.setenv(KERNELS, "7")
    pick_device("cpu")
    assert os.environ[KERNELS] == "7"


def test_half_precision_of_float16_is_for_gpus() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    assert (pick_precision("auto", cpu), pick_precision("auto", gpu)) == ("fp32", "bf16")
    assert (pick_precision("bf16", cpu), pick_precision("fp16", gpu)) == ("bf16", "fp16")
    with pytest.raises(MissingToolError, match=r"precision=fp16 needs a GPU"):
        pick_precision("fp16", cpu)
