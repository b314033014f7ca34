"""``xvlm pretrain``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
    complete_pretrain,
)

Recipe = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        "-r",
        help="4m, 16m, world, or a YAML file.",
        autocompletion=complete_pretrain,
    ),
]
Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Values that win over the recipe's."),
]
MaxSteps = Annotated[int | None, typer.Option("--max-steps", min=1, help="End after this many.")]
MaxSeconds = Annotated[
    float | None, typer.Option("--max-seconds", min=0.1, help="End after this much training time.")
]
RunFolder = Annotated[
    Path | None, typer.Option("--output", "-o", help="The run's folder (default: runs/...).")
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume", help="Go on with a run: --resume RUN, or the newest that is not finished."
    ),
]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Seed of the run.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu or cuda.")]


def flags_of(
    max_steps: int | None,
    max_seconds: float | None,
    seed: int | None,
    device: str | None,
    engine: str | None,
) -> dict[str, Any]:
    """The flags that were given, by recipe key."""
    flags = {
        "schedule.max_steps": max_steps,
        "schedule.max_seconds": max_seconds,
        "seed": seed,
        "train.device": device,
        "train.engine": engine,
    }
    return {key: value for key, value in flags.items() if value is not None}


def pretrain(
    context: typer.Context,
    words: Words = None,
    recipe: Recipe = None,
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
    """Pre-train a model on prepared stores.

    xvlm pretrain --recipe world

    xvlm pretrain --recipe 16m --max-steps 20 model.size=tiny init.vision=null init.text=null
    data.images.batch_size=16 data.regions.max_images=8 train.micro_batches=1

    xvlm pretrain --recipe 16m --gpus 8

    Any value of the recipe can be given as KEY=VALUE, or in the environment: XVLM_OPTIM__LR=3.0e-5
    is optim.lr=3.0e-5. KEY=VALUE wins over options, these over the environment, that over the
    recipe.
    """
    out = outputs.begin("pretrain", json_document=json_document, quiet=quiet)
    from xvlm_cli import training
    from xvlm_cli.launching import launch
    from xvlm_cli.training_request import Launch, TrainingRequest
    from xvlm_core.config.recipes import recipe_names
    from xvlm_core.errors import UsageError

    if recipe is None and not resume:
        names = [name.partition("/")[2] for name in recipe_names("pretrain")]
        raise UsageError(
            f"which recipe? there are {', '.join(names)}", try_=f"xvlm pretrain --recipe {names[0]}"
        )
    overrides, folder = training.split_words(words or (), resume=resume, output=output)
    request = TrainingRequest(
        verb="pretrain",
        kind="pretrain",
        recipe=recipe,
        words=overrides,
        flags=flags_of(max_steps, max_seconds, seed, device, engine),
        output=folder,
        resume=resume,
        overwrite=overwrite,
        dry_run=dry_run,
    )
    launch(request, Launch(gpus, nodes, node_rank, master, print_slurm), context, out)
