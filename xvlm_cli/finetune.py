"""``xvlm finetune TASK``."""

from __future__ import annotations

from typing import Annotated

import typer

from xvlm_cli import output as outputs
from xvlm_cli.options import (
    DryRunOption,
    EngineOption,
    GpusOption,
    JsonOption,
    MasterOption,
    NodeRankOption,
    NodesOption,
    OverwriteOption,
    PrintSlurmOption,
    QuietOption,
    complete_finetune,
)
from xvlm_cli.pretrain import (
    Device,
    MaxSeconds,
    MaxSteps,
    Resume,
    RunFolder,
    Seed,
    Words,
    flags_of,
)

Task = Annotated[
    str | None,
    typer.Argument(
        metavar="TASK",
        help="A recipe: refcoco, refcoco+, refcocog, coco-retrieval, flickr30k, nlvr2, vqa, "
        "world ... (xvlm ls recipes), or a YAML file.",
        autocompletion=complete_finetune,
    ),
]
Init = Annotated[
    str | None,
    typer.Option(
        "--init", help="Start from this run, model folder or released file (default: recipe's)."
    ),
]


def finetune(
    context: typer.Context,
    task: Task = None,
    words: Words = None,
    init: Init = None,
    max_steps: MaxSteps = None,
    max_seconds: MaxSeconds = None,
    output: RunFolder = None,
    resume: Resume = False,
    overwrite: OverwriteOption = False,
    seed: Seed = None,
    device: Device = None,
    engine: EngineOption = None,
    gpus: GpusOption = None,
    nodes: NodesOption = None,
    node_rank: NodeRankOption = None,
    master: MasterOption = None,
    print_slurm: PrintSlurmOption = False,
    dry_run: DryRunOption = False,
    json_document: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Fine-tune for a task, from the newest pre-training run unless told otherwise.

    xvlm finetune refcoco+
    """
    out = outputs.begin("finetune", json_document=json_document, quiet=quiet)
    from pathlib import Path

    from xvlm_cli import training
    from xvlm_cli.launching import launch
    from xvlm_cli.training_request import Launch, TrainingRequest
    from xvlm_core.config.recipes import recipe_names
    from xvlm_core.errors import UsageError

    given = list(words or ())
    if resume and task is not None and ("=" in task or (Path(task) / "run.json").is_file()):
        given.insert(0, task)  # xvlm finetune --resume RUN
        task = None
    if task is None and not resume:
        names = [name.partition("/")[2] for name in recipe_names("finetune")]
        raise UsageError(
            f"which task? there are {', '.join(names)}", try_=f"xvlm finetune {names[0]}"
        )
    flags = flags_of(max_steps, max_seconds, seed, device, engine)
    if init is not None:
        flags["init.checkpoint"] = init
    overrides, folder = training.split_words(given, resume=resume, output=output)
    request = TrainingRequest(
        verb="finetune",
        kind="finetune",
        recipe=task,
        words=overrides,
        flags=flags,
        output=folder,
        resume=resume,
        overwrite=overwrite,
        dry_run=dry_run,
    )
    launch(request, Launch(gpus, nodes, node_rank, master, print_slurm), context, out)
