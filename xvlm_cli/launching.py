"""One process or many: what ``pretrain`` and ``finetune`` do with ``--gpus`` and its like.

The process that was typed becomes the supervisor of as many as were asked for, all with the same
command line; a process that finds itself to be one of many trains. A supervised process says its
last words (result, error) to its supervisor, which prints them: so there is one document and one
error, whichever process they come from.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone

import typer

from xvlm_cli import last_words, training
from xvlm_cli.output import Output
from xvlm_cli.training_request import Launch, TrainingRequest, resolved_recipe, retype
from xvlm_core.config.resolve import resolve
from xvlm_core.errors import UsageError
from xvlm_core.train.launch import Address, Place, place_of
from xvlm_core.train.supervisor import Job, free_address, require_free, supervise

COMMAND: Sequence[str] = (sys.executable, "-m", "xvlm_cli")
"""What a process of a run is started with; the verb and its words follow."""


def launch(request: TrainingRequest, wish: Launch, context: typer.Context, out: Output) -> None:
    """Run a request in as many processes as were asked for, or as one of them.

    Raises:
        UsageError: options that contradict each other or the environment; a port in use.
        LostRankError: a process was killed.
        XvlmError: what stopped the run.
    """
    place = place_of(os.environ)
    if wish.print_slurm:
        from xvlm_cli.batch_script import print_script

        print_script(request, wish, context, out)
    elif place.by != "alone":
        try:
            _require_agreement(wish, place)
        except UsageError as error:
            if place.local_rank > 0:  # the first of the machine says it
                raise SystemExit(error.exit_code) from error
            raise
        last_words.train_as_rank(replace(request, place=place), out)
    else:
        if request.dry_run and wish.processes > 1:
            planned = Place(0, wish.processes, 0, wish.gpus or 1, by="xvlm")
            training.train(replace(request, place=planned), out)
            return
        _require_sense(wish)
        if wish.processes == 1:
            training.train(request, out)
        else:
            _supervise(request, wish, context, out)


def _require_agreement(wish: Launch, place: Place) -> None:
    """What was typed must be what torchrun or srun did."""
    if place.by == "xvlm":
        return
    launcher = {"torchrun": "torchrun", "slurm": "srun"}[place.by]
    processes = "--nproc-per-node" if place.by == "torchrun" else "--ntasks-per-node"
    pairs = (
        ("--gpus", wish.gpus, place.local_world_size, processes),
        ("--nodes", wish.nodes, place.nodes, "--nnodes" if place.by == "torchrun" else "--nodes"),
    )
    for name, typed, found, option in pairs:
        if typed is not None and typed != found:
            raise UsageError(
                f"{name} {typed} was typed, but {launcher} started {found}",
                where=f"{launcher} {option}",
                try_=f"leave {name} out, or {launcher} {option}={typed}",
            )
    for name, given in (("--node-rank", wish.node_rank), ("--master", wish.master)):
        if given is not None:
            raise UsageError(
                f"{name} {given} was typed, but {launcher} says where the processes are",
                try_=f"leave {name} out",
            )


def _require_sense(wish: Launch) -> None:
    """Options that belong together must be together."""
    nodes = wish.nodes or 1
    if nodes > 1:
        missing = [
            f"{name} {example}"
            for name, given, example in (
                ("--gpus", wish.gpus, "8"),
                ("--node-rank", wish.node_rank, "0"),
                ("--master", wish.master, "node1:29500"),
            )
            if given is None
        ]
        if missing:
            raise UsageError(
                f"--nodes {nodes} needs {', '.join(text.split()[0] for text in missing)} too",
                try_=f"--nodes {nodes} {' '.join(missing)}, on each node with its own number",
            )
    if wish.node_rank is not None and wish.node_rank >= nodes:
        raise UsageError(
            f"--node-rank {wish.node_rank} does not lie below --nodes {nodes}",
            try_=f"--nodes {wish.node_rank + 1}, or a number from 0 to {nodes - 1}",
        )
    if wish.master is not None:
        Address.parse(wish.master)
        if wish.processes == 1:
            raise UsageError(
                "--master is where several processes meet, and this is one", try_="--gpus 2"
            )


def _supervise(request: TrainingRequest, wish: Launch, context: typer.Context, out: Output) -> None:
    master = free_address() if wish.master is None else Address.parse(wish.master)
    node_rank = wish.node_rank or 0
    if node_rank == 0:
        require_free(master)
    if not request.resume:
        training.refuse_used_output(request)
    gpus = wish.gpus or 1
    device = _device(request)
    if device != "cpu":
        _require_gpus(gpus)
    job = Job(
        command=[*COMMAND, *retype(context)],
        processes=gpus,
        master=master,
        nodes=wish.nodes or 1,
        node_rank=node_rank,
    )
    where = "CPU processes" if device == "cpu" else "GPUs"
    of = f", node {node_rank} of {job.nodes}" if job.nodes > 1 else ""
    out.note(f"{gpus} {where}{of}, meeting at {master}")
    since = datetime.now(timezone.utc)
    last_words.say_for(supervise(job), request, wish.typed, out, since)


def _device(request: TrainingRequest) -> str:
    """``train.device``, so far as it is known before the run is: auto, cpu or cuda."""
    if not request.resume:
        return resolved_recipe(request).recipe.train.device
    typed = [word for word in request.words if word.startswith("train.device=")]
    if typed:
        return typed[-1].partition("=")[2]
    if "train.device" in request.flags:
        return str(request.flags["train.device"])
    recipe = None if request.output is None else request.output / "recipe.yaml"
    if recipe is None or not recipe.is_file():
        return "auto"
    return resolve(str(recipe)).recipe.train.device


def cuda_devices() -> int:
    """CUDA devices that torch sees. Asked of another process: a supervisor needs no torch."""
    code = "import torch; print(torch.cuda.device_count())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    words = done.stdout.split()
    return int(words[-1]) if done.returncode == 0 and words else 0


def _require_gpus(gpus: int) -> None:
    found = cuda_devices()
    if found < gpus:
        has = "there is no GPU" if found == 0 else f"there are only {found} GPUs"
        if found == 1:
            has = "there is only one GPU"
        raise UsageError(
            f"--gpus {gpus}: {has} here",
            where="torch.cuda.device_count(), after CUDA_VISIBLE_DEVICES",
            try_="--device cpu, to run the processes on the CPU"
            + (f"; or --gpus {found}" if found else ""),
        )
