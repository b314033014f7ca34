"""``--print-slurm``: the batch script of a command line."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import typer

from xvlm_cli.options import runs_root
from xvlm_cli.output import Output
from xvlm_cli.training_request import Launch, TrainingRequest, resolved_recipe, retype
from xvlm_core.config.resolve import resolve
from xvlm_core.errors import UsageError
from xvlm_core.train import runs
from xvlm_core.train.slurm import BatchJob

# SLURM starts the processes, and the script says where the run is.
_LEFT_OUT = (
    "--gpus",
    "--nodes",
    "--node-rank",
    "--master",
    "--print-slurm",
    "--output",
    "--resume",
    "--json",
)


def print_script(
    request: TrainingRequest, wish: Launch, context: typer.Context, out: Output
) -> None:
    """The script is the result: ``xvlm pretrain ... --print-slurm > job.sh``.

    Raises:
        UsageError: an option that makes no sense in it.
        ConfigError: the recipe does not hold: said now, not after hours in a queue.
    """
    for name, given in (("--node-rank", wish.node_rank), ("--master", wish.master)):
        if given is not None:
            raise UsageError(
                f"{name} {given}: SLURM says where the processes are", try_=f"leave {name} out"
            )
    if request.overwrite:
        raise UsageError(
            "--overwrite in a batch script would delete the run when the job is started again",
            try_="another -o, or delete the run first",
        )
    if not request.resume:
        resolved = resolved_recipe(request)
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        name = "-".join(dict.fromkeys([request.kind, Path(resolved.name).stem, stamp]))
        run = request.output or runs_root() / name
    elif request.output is not None:
        run = runs.read(request.output).folder
        resolved = resolve(str(run / "recipe.yaml"), request.words, request.flags)
    else:
        raise UsageError(
            "a batch script needs the name of the run that it goes on with",
            try_=f"xvlm {request.verb} --resume RUN --print-slurm (xvlm ls runs)",
        )
    resume = ["xvlm", request.verb, "--resume"]
    if "train.device" in request.flags:
        resume += ["--device", str(request.flags["train.device"])]
    job = BatchJob(
        name=f"xvlm-{run.name}",
        start=resume if request.resume else ["xvlm", *retype(context, _LEFT_OUT)],
        # the rest of the command line is in the run's recipe by then
        resume=resume,
        run=run,
        nodes=wish.nodes or 1,
        tasks=wish.gpus or 1,
        gpus=resolved.recipe.train.device != "cpu",
        cpus=resolved.recipe.data.workers + 1,
    )
    script = job.script()
    out.result({"script": script, "run": run}, script.rstrip("\n"))
