"""``xvlm cp``: a run's model as a plain model folder."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from xvlm_cli import output as outputs
from xvlm_cli.options import DryRunOption, JsonOption, OverwriteOption, QuietOption, complete_run


def cp(
    source: Annotated[
        str,
        typer.Argument(
            help="A run (its best checkpoint), a checkpoint or a model folder.",
            autocompletion=complete_run,
        ),
    ],
    destination: Annotated[Path, typer.Argument(help="The new model folder.")],
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
    json_document: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Copy a model: config.json, model.safetensors and tokenizer.json, verified, or nothing."""
    out = outputs.begin("cp", json_document=json_document, quiet=quiet)
    from xvlm_cli import checkpoints
    from xvlm_core.errors import CheckpointError, OutputError
    from xvlm_core.weights.folder import CONFIG, TOKENIZER, WEIGHTS, read_info

    found = checkpoints.find(source)
    info = read_info(found.path)
    names = (CONFIG, WEIGHTS, TOKENIZER)
    lacking = [name for name in names if not (found.path / name).is_file()]
    if lacking:
        raise CheckpointError(
            f"{found.path} has no {', '.join(lacking)}", try_="xvlm validate " + str(found.path)
        )
    outputs.refuse_nonempty(destination, overwrite=overwrite)
    if destination.is_dir() and any(destination.iterdir()):
        if not (destination / CONFIG).is_file():
            raise OutputError(
                f"{destination} is no model folder: not replaced", try_="another name"
            )
        if found.path.resolve().is_relative_to(destination.resolve()):
            raise OutputError(f"{destination} holds the model to be copied", try_="another name")
    if dry_run:
        value = {"model": destination, "from": found.said, "files": list(names)}
        out.result(value, f"would copy {', '.join(names)} from {found.said} to {destination}")
        return
    with outputs.writing(destination):
        destination.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
        try:
            files = _copy(found.path, work, names)
            _into_place(work, destination)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    said = found.said
    out.result(
        {
            "model": destination,
            "from": said,
            "task": info.task,
            "about": info.about,
            "files": files,
        },
        [f"{destination}: {info.about or info.task}", f"from {said}"],
    )


def _copy(source: Path, work: Path, names: tuple[str, ...]) -> dict[str, str]:
    """Copy, make durable, read back and compare; the sums are written as the manifest."""
    from xvlm_core.data.manifest import sha256_file
    from xvlm_core.errors import CheckpointError
    from xvlm_core.train.checkpoint import MANIFEST, SCHEMA_VERSION
    from xvlm_core.train.files import FILES, json_bytes

    files, listed = {}, {}
    for name in names:
        shutil.copyfile(source / name, work / name)
        FILES.sync(work / name)
        files[name] = sha256_file(work / name)
        if files[name] != sha256_file(source / name):
            raise CheckpointError(f"{name} differs after copying", try_="the same command again")
        listed[name] = {"size": (work / name).stat().st_size, "sha256": files[name]}
    FILES.write(work / MANIFEST, json_bytes({"schema": SCHEMA_VERSION, "files": listed}))
    FILES.sync(work / MANIFEST)
    FILES.sync(work)
    work.chmod(0o755)
    return files


def _into_place(work: Path, destination: Path) -> None:
    from xvlm_core.train.files import FILES, remove_tree

    old = work.with_name(work.name + ".old")
    existed = destination.is_dir()
    if existed:
        FILES.rename(destination, old)
    try:
        FILES.rename(work, destination)
    except OSError:
        if existed:
            FILES.rename(old, destination)
        raise
    FILES.sync(destination.parent)
    if existed:
        remove_tree(old)
