"""``xvlm validate`` of what training makes: a run, a checkpoint, a model, a released file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xvlm_cli.output import Output

if TYPE_CHECKING:
    from xvlm_core.train.runs import RunInfo
    from xvlm_core.weights.folder import ModelInfo
    from xvlm_core.weights.provenance import Provenance

SHOWN = 20
SUFFIXES = (".safetensors", ".th", ".pth", ".pt", ".bin")


@dataclass(frozen=True)
class Resume:
    """Whether a run can go on from a checkpoint: the command, or why not."""

    command: str | None = None
    why_not: str | None = None

    def line(self) -> str:
        """For people."""
        return self.command or f"no: {self.why_not}"


def validate_run(folder: Path, out: Output) -> None:
    """Everything of a run: recipe, checkpoints, log, best checkpoint."""
    from xvlm_core.errors import CheckpointError
    from xvlm_core.train import checkpoint, runs
    from xvlm_core.weights.folder import read_info
    from xvlm_core.weights.provenance import of_model, read_provenance

    run = runs.read(folder)
    problems = _recipe_problems(run)
    steps = checkpoint.list_steps(run.checkpoints)
    whole = []
    for step in steps:
        path = run.checkpoints / checkpoint.folder_name(step)
        try:
            checkpoint.verify(path)
            read_info(path)
            read_provenance(path)
        except CheckpointError as error:
            problems.append(error.what)
        else:
            whole.append(path)
    problems += _log_problems(run)
    best = run.best()
    if best is not None and best.step not in steps:
        problems.append(f"best.json names step {best.step}, which has no checkpoint")
    resume = _resume(run, whole[-1] if whole else None)
    chosen = [path for path in whole if best and checkpoint.step_of(path) == best.step]
    provenance = of_model((chosen or whole[-1:])[0]) if whole else None
    value: dict[str, Any] = {
        "kind": "run",
        "path": folder,
        "task": run.task,
        "status": run.status,
        "checkpoints": steps,
        "best": None if best is None else asdict(best),
        "resume": asdict(resume),
        "provenance": provenance,
        "problems": problems,
    }
    lines = [f"{folder}: a {run.task} run ({run.status}), {len(steps)} whole checkpoints"]
    if best is not None:
        lines.append(f"best          step {best.step:,}: {best.score} {best.value:.4f}")
    lines += _provenance_lines(provenance)
    lines.append(f"resume        {resume.line()}")
    out.result(value, lines if not problems else "")
    if problems:
        only = problems[0] if len(problems) == 1 else ""
        raise CheckpointError(
            f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in the run {folder}"
            + (f": {only}" if only else ""),
            details=problems[:SHOWN] if not only else (),
            try_=f"xvlm {_verb(run)} --resume {folder}  (goes on from the newest whole checkpoint)"
            if not _recipe_problems(run)
            else f"put recipe.yaml back, or start a new run: init.checkpoint={folder}",
        )


def _recipe_problems(run: RunInfo) -> list[str]:
    from xvlm_core.config.resolve import resolve
    from xvlm_core.errors import CheckpointError
    from xvlm_core.train import runs

    try:
        runs.check_recipe(run)
    except CheckpointError as error:
        return [error.what]
    resolve(str(run.recipe_file))
    return []


def _log_problems(run: RunInfo) -> list[str]:
    text = run.metrics.read_bytes().decode(errors="replace") if run.metrics.is_file() else ""
    lines = text.splitlines()
    problems = []
    for number, line in enumerate(lines, 1):
        try:
            json.loads(line)["step"]
        except (ValueError, KeyError, TypeError):
            problems.append(f"{run.metrics.name}:{number} is not a line of metrics")
    return problems


def validate_model(folder: Path, out: Output, *, said: str | None = None) -> None:
    """A model folder: a checkpoint of a run, a copy, or one of the hub (``said``)."""
    from xvlm_core.train import checkpoint, runs
    from xvlm_core.weights.folder import load_model_folder
    from xvlm_core.weights.provenance import of_model, run_of

    checked = (folder / checkpoint.MANIFEST).is_file()
    if checked:
        checkpoint.verify(folder)
    loaded = load_model_folder(folder)
    provenance = of_model(folder)
    n_parameters = sum(p.numel() for p in loaded.model.parameters())
    run_folder = run_of(folder)
    run = None if run_folder is None else runs.read(run_folder)
    source = f"init.checkpoint={said or folder}"
    resume = (
        Resume(why_not=f"no run is around it; a new one starts from it: {source}")
        if run is None
        else _resume(run, folder.absolute())
    )
    about = loaded.info.about or loaded.info.task
    out.result(
        {
            "kind": "model",
            "path": folder,
            "task": loaded.info.task,
            "about": loaded.info.about,
            "trained_on": loaded.info.trained_on,
            "size": loaded.info.config.size,
            "heads": list(loaded.info.config.heads),
            "image_size": loaded.info.config.vision.image_size,
            "parameters": n_parameters,
            "checksums": checked,
            "run": run_folder,
            "resume": asdict(resume),
            "provenance": provenance,
        },
        [
            f"{said or folder}: {about}, {n_parameters:,} parameters",
            "checksums hold" if checked else "no checksums beside it; it loads",
            *_info_lines(loaded.info),
            *_provenance_lines(provenance),
            f"resume        {resume.line()}",
        ],
    )


def _info_lines(info: ModelInfo) -> list[str]:
    return [
        f"model         {info.config.size}, task {info.task}, "
        f"{info.config.vision.image_size} px, heads {', '.join(info.config.heads) or 'none'}",
        f"trained on    {info.trained_on or 'not recorded'}",
    ]


def _provenance_lines(provenance: Provenance | None) -> list[str]:
    if provenance is None:
        return ["provenance    not recorded"]
    lines = [
        f"made by       {provenance.command or provenance.run}",
        f"              run {provenance.run}, step {provenance.step:,}, "
        f"{(provenance.saved or provenance.created)[:19]}",
        f"recipe        {provenance.recipe_name}"
        + (f", SHA-256 {provenance.recipe_sha256[:12]}" if provenance.recipe_sha256 else ""),
    ]
    lines += [
        f"data          {name}, fingerprint {fingerprint[:12]}"
        for name, fingerprint in provenance.stores.items()
    ]
    lines += [
        f"score         {name} "
        + ("not finite" if score.value is None else f"{score.value:.4f}")
        + f" ({score.split}, n = {score.n:,}; {score.convention})"
        for name, score in provenance.scores.items()
    ]
    if not provenance.scores:
        lines.append("score         not validated")
    start = provenance.started_from
    if start is None:
        lines.append("started from  as init of its recipe says")
    else:
        digest = f", SHA-256 {start.weights_sha256[:12]}" if start.weights_sha256 else ""
        lines.append(f"started from  {start.place}{digest}")
    versions = [f"{name} {version}" for name, version in provenance.versions.items()]
    lines.append(f"versions      {', '.join(versions) or 'not recorded'}")
    return lines


def _verb(run: RunInfo) -> str:
    from xvlm_core.config.recipes import kind_of_task

    return kind_of_task(run.task)


def _resume(run: RunInfo, folder: Path | None) -> Resume:
    """Whether ``--resume`` goes on from this checkpoint."""
    from xvlm_core.config.resolve import resolve
    from xvlm_core.errors import XvlmError
    from xvlm_core.tasks.registry import fingerprints
    from xvlm_core.train import runs
    from xvlm_core.train.state import OPTIMIZER_FILE, STATE_FILE

    if folder is None:
        return Resume(why_not="the run has no whole checkpoint")
    lacking = [name for name in (STATE_FILE, OPTIMIZER_FILE) if not (folder / name).is_file()]
    if lacking:
        return Resume(why_not=f"it has no {' and no '.join(lacking)}")
    newest = run.newest_checkpoint()
    if newest is not None and newest.resolve() != folder.resolve():
        return Resume(why_not=f"--resume goes on from the newest one, {newest.name}")
    if run.status == "finished":
        return Resume(why_not="the run is finished")
    try:
        runs.check_recipe(run)
        runs.check_stores(run, fingerprints(resolve(str(run.recipe_file)).recipe))
    except XvlmError as error:
        return Resume(why_not=error.what)
    return Resume(command=f"xvlm {_verb(run)} --resume {run.folder}")


def validate_file(path: Path, out: Output) -> None:
    """A file of weights: what it is, as far as its names tell; no code in it is ever run."""
    from xvlm_core.data.manifest import sha256_file
    from xvlm_core.weights.official_shape import TASKS, recognise, shape_of
    from xvlm_core.weights.reading import read_state_file

    state = read_state_file(path)
    numbers = sum(value.numel() for value in state.values())
    task = recognise(state)
    kind, about, use = "weights", "a file of weights that are not of X-VLM", None
    size, image_size = None, None
    if task is not None:
        config = shape_of(state, task, source=str(path)).config
        kind, about, size = "released", TASKS[task].about, config.size
        image_size = config.vision.image_size
        about += f" (X-VLM {size}, {image_size} px)"
        use = f"xvlm convert {path} FOLDER"
    elif any(name.endswith("attn.relative_position_bias_table") for name in state):
        about, use = "a Swin picture encoder", f"init.vision={path}"
    elif any("encoder.layer.0.attention.self.query.weight" in name for name in state):
        about, use = "a BERT text encoder", f"init.text={path}"
    digest = sha256_file(path)
    lines = [f"{path}: {about}, {len(state):,} tensors, {numbers:,} numbers"]
    lines += [f"SHA-256       {digest}", "provenance    not recorded"]
    lines += [f"use           {use}"] if use else []
    lines.append("resume        no: a file of weights alone")
    out.result(
        {
            "kind": kind,
            "path": path,
            "task": task,
            "about": about,
            "size": size,
            "image_size": image_size,
            "tensors": len(state),
            "parameters": numbers,
            "sha256": digest,
            "provenance": None,
            "resume": asdict(Resume(why_not="a file of weights alone")),
        },
        lines,
    )
