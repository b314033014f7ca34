"""DeepSpeed brought to start, quietly, and ended without a trace.

DeepSpeed is made for scripts that a launcher of its own starts: it logs to stdout, reads its place
from the environment, wants a process group even for one process, and keeps both in globals.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import platform
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import HashStore  # type: ignore[attr-defined]

from xvlm_core.config.schema import TrainSection
from xvlm_core.errors import ConfigError, MissingToolError
from xvlm_core.train.ranks import Ranks

BUCKET = 50_000_000
"""Numbers that are reduced or gathered at a time, at most; DeepSpeed reserves room for so many."""


def import_deepspeed(device: torch.device) -> Any:
    """The module ``deepspeed``, set to compute on a device.

    Raises:
        MissingToolError: it is not installed, or this is not Linux.
    """
    if platform.system() != "Linux":
        raise MissingToolError(
            f"DeepSpeed runs on Linux, and this is {platform.system()}",
            where="train.engine",
            try_="train.engine=torch, or on Linux: pip install deepspeed",
        )
    try:
        # it chooses its device at its import; the environment alone can tell it which
        with _silence(), _environment({"DS_ACCELERATOR": device.type}):
            module = importlib.import_module("deepspeed")
            accelerators = importlib.import_module("deepspeed.accelerator")
            if accelerators.get_accelerator().device_name() != device.type:  # an engine before
                kind = importlib.import_module(f"deepspeed.accelerator.{device.type}_accelerator")
                name = {"cpu": "CPU_Accelerator", "cuda": "CUDA_Accelerator"}[device.type]
                accelerators.set_accelerator(getattr(kind, name)())
    except ImportError as error:
        raise MissingToolError(
            f"DeepSpeed cannot be imported: {error}",
            where="train.engine",
            try_="pip install deepspeed",
        ) from error
    # on CPUs it would compile a way of its own to reduce, at every user's first start
    module.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # said at every call of a collective by an older name
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    logger = logging.getLogger("DeepSpeed")
    logger.setLevel(logging.ERROR)  # what it warns of (steps left out) is said by the loop
    for handler in logger.handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)  # stdout is for results
    return module


def configuration(
    settings: TrainSection, device: torch.device, n_elements: int, zero: Mapping[str, Any]
) -> dict[str, Any]:
    """DeepSpeed's configuration.

    Weights, gradients and optimizer state are float32 whatever the precision (see
    :class:`xvlm_core.train.engines.deepspeed.DeepSpeedEngine`), and every update is told where it
    ends, so that neither precision nor accumulation is DeepSpeed's to decide.

    Args:
        settings: ``zero_stage`` and ``offload``.
        device: of the run.
        n_elements: numbers in the model.
        zero: keys of ``zero_optimization`` to set otherwise.

    Raises:
        ConfigError: the optimizer state is to be in the host's memory, and is not shared out.
    """
    bucket = max(2, min(BUCKET, n_elements)) & ~1  # an even number: a demand of its all-gather
    section: dict[str, Any] = {
        "stage": settings.zero_stage,
        "overlap_comm": False,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
        # stage 3 would replace torch.nn.functional.linear in the whole process, for good
        "memory_efficient_linear": False,
    }
    if settings.offload:
        if settings.zero_stage == 0:
            raise ConfigError(
                "train.offload needs ZeRO: stage 0 updates the weights where they are",
                where="train.offload",
                try_="train.zero_stage=2, or train.offload=false",
            )
        pin = device.type == "cuda"
        section["offload_optimizer"] = {"device": "cpu", "pin_memory": pin}
    return {
        "train_micro_batch_size_per_gpu": 1,  # of no effect: batches are ours
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,  # each update is told; theirs is 1 where nothing is said
        "zero_allow_untested_optimizer": True,
        # offload: torch's AdamW does, and needs no compiler
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {**section, **zero},
    }


class Session:
    """DeepSpeed in this process: from its start for a model to its end.

    Args:
        module: ``deepspeed``.
        forward: what is called for a forward pass.
        optimizer: over its parameters.
        config: see :func:`configuration`.
        device: of the run.
        ranks: the processes.
    """

    def __init__(
        self,
        module: Any,
        forward: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: dict[str, Any],
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        with contextlib.ExitStack() as ended:  # also where it fails
            place = {"LOCAL_RANK": str(ranks.place.local_rank)}
            ended.enter_context(_environment(place))
            ended.callback(_forget_groups)
            if not dist.is_initialized():  # one process: no other group will be made for it
                dist.init_process_group(
                    "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
                    store=HashStore(),
                    rank=0,
                    world_size=1,
                )
                ended.callback(dist.destroy_process_group)
            ended.callback(_forget_model, forward)
            with _silence(), _own_broadcast():
                self.engine: Any = module.initialize(
                    model=forward, optimizer=optimizer, config=config
                )[0]
            # reductions are asked for explicitly, once every gradient is there
            self.engine.enable_backward_allreduce = False
            self._ended = ended.pop_all()

    def end(self) -> None:
        """Give back what was made; afterwards another one may begin."""
        with self._ended, _silence():
            self.engine.destroy()


@contextlib.contextmanager
def _own_broadcast() -> Iterator[None]:
    """All ranks begin with the weights of rank 0. DeepSpeed's own way fails on a scalar."""

    def broadcast(engine: Any) -> None:
        for parameter in engine.module.parameters():
            dist.broadcast(parameter.data, src=0)

    def share_out(init: Any, parameter: Any) -> None:
        init._convert_to_deepspeed_param(parameter)
        parameter.partition()

    engine_type = importlib.import_module("deepspeed.runtime.engine").DeepSpeedEngine
    init_type = importlib.import_module("deepspeed.runtime.zero.partition_parameters").Init
    theirs = engine_type._broadcast_model, init_type._zero_init_param
    engine_type._broadcast_model, init_type._zero_init_param = broadcast, share_out
    try:
        yield
    finally:
        engine_type._broadcast_model, init_type._zero_init_param = theirs


def _forget_groups() -> None:
    """Drop the process groups that DeepSpeed keeps: they would outlive those of the run."""
    groups: Any = importlib.import_module("deepspeed.utils.groups")
    comm: Any = importlib.import_module("deepspeed.comm.comm")
    if dist.is_initialized() and groups._WORLD_GROUP is not None:
        dist.destroy_process_group(groups._WORLD_GROUP)
    groups._WORLD_GROUP = None
    comm.cdb = None


def _forget_model(forward: nn.Module) -> None:
    """Drop what ZeRO 3 keeps of a model in globals and on its modules."""
    offload = importlib.import_module("deepspeed.runtime.zero.parameter_offload")
    offload.FWD_MODULE_STACK[:] = [m for m in offload.FWD_MODULE_STACK if m is not forward]
    for module in forward.modules():
        for name in ("pre_bwd_fn", "post_bwd_fn"):
            module.__dict__.pop(name, None)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """What DeepSpeed prints at its start and end is of no use to a user."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
