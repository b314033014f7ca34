"""``xvlm cp``: a run's model as a plain model folder, here or on the hub."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xvlm_cli import output as outputs
from xvlm_cli.options import (
    DownloadOption,
    DryRunOption,
    JsonOption,
    OverwriteOption,
    QuietOption,
    complete_run,
)
from xvlm_cli.output import Output

if TYPE_CHECKING:
    from xvlm_core.weights.folder import ModelInfo
    from xvlm_core.weights.hub import HubId
    from xvlm_core.weights.provenance import Provenance


def cp(
    source: Annotated[
        str,
        typer.Argument(
            help="A run (its best checkpoint), a checkpoint, a model folder or owner/name on the "
            "hub.",
            autocompletion=complete_run,
        ),
    ],
    destination: Annotated[
        str, typer.Argument(help="The new model folder, or hub:owner/name to upload it.")
    ],
    public: Annotated[
        bool,
        typer.Option("--public", help="Hub: everybody may see a new model (default: only you)."),
    ] = False,
    download: DownloadOption = False,
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
    json_document: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Copy a model: config.json, model.safetensors and tokenizer.json, verified, or nothing.

    xvlm cp RUN hub:owner/name uploads it, with a page about it.
    """
    out = outputs.begin("cp", json_document=json_document, quiet=quiet)
    from xvlm_core.weights import hub

    to = hub.parse(destination) if destination.startswith(hub.PREFIX) else None
    if to is not None:
        hub.refuse_revision(to)
    model = _model(source, download)
    if to is not None:
        _upload(model, to, out, public=public, overwrite=overwrite, dry_run=dry_run)
    else:
        _to_folder(model, Path(destination), out, overwrite=overwrite, dry_run=dry_run)


@dataclass(frozen=True)
class _Model:
    """What is copied: the folder, how to say which one, its files, and what is known of it."""

    folder: Path
    said: str
    info: ModelInfo
    names: tuple[str, ...]
    provenance: Provenance | None

    @property
    def written(self) -> tuple[str, ...]:
        """Names of the files of the copy, its manifest left out."""
        from xvlm_core.weights.provenance import PROVENANCE

        return (*self.names, *((PROVENANCE,) if self.provenance is not None else ()))

    @property
    def text(self) -> str:
        """One line about it."""
        return self.info.about or self.info.task


def _model(source: str, download: bool) -> _Model:
    from xvlm_cli import checkpoints
    from xvlm_core.errors import CheckpointError
    from xvlm_core.weights.folder import CONFIG, TOKENIZER, WEIGHTS, read_info
    from xvlm_core.weights.provenance import of_model

    found = checkpoints.find(source, download=download)
    info = read_info(found.path)
    names = (CONFIG, WEIGHTS, TOKENIZER)
    lacking = [name for name in names if not (found.path / name).is_file()]
    if lacking:
        raise CheckpointError(
            f"{found.path} has no {', '.join(lacking)}", try_="xvlm validate " + str(found.path)
        )
    return _Model(found.path, found.said, info, names, of_model(found.path))


def _to_folder(
    model: _Model, destination: Path, out: Output, *, overwrite: bool, dry_run: bool
) -> None:
    from xvlm_core.errors import OutputError
    from xvlm_core.weights.folder import CONFIG

    outputs.refuse_nonempty(destination, overwrite=overwrite)
    if destination.is_dir() and any(destination.iterdir()):
        if not (destination / CONFIG).is_file():
            raise OutputError(
                f"{destination} is no model folder: not replaced", try_="another name"
            )
        if model.folder.resolve().is_relative_to(destination.resolve()):
            raise OutputError(f"{destination} holds the model to be copied", try_="another name")
    if dry_run:
        value = {"model": destination, "from": model.said, "files": list(model.written)}
        names = ", ".join(model.written)
        out.result(value, f"would copy {names} from {model.said} to {destination}")
        return
    with outputs.writing(destination):
        destination.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
        try:
            files = _copy(model, work)
            into_place(work, destination)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    out.result(
        {
            "model": destination,
            "from": model.said,
            "task": model.info.task,
            "about": model.info.about,
            "files": files,
        },
        [f"{destination}: {model.text}", f"from {model.said}"],
    )


def _copy(model: _Model, work: Path) -> dict[str, str]:
    """Copy, make durable, read back and compare; the sums are written as the manifest."""
    from xvlm_core.data.manifest import sha256_file
    from xvlm_core.errors import CheckpointError
    from xvlm_core.train.checkpoint import MANIFEST
    from xvlm_core.train.files import FILES
    from xvlm_core.weights import provenance

    files = {}
    for name in model.names:
        shutil.copyfile(model.folder / name, work / name)
        files[name] = sha256_file(work / name)
        if files[name] != sha256_file(model.folder / name):
            raise CheckpointError(f"{name} differs after copying", try_="the same command again")
    if model.provenance is not None:
        provenance.write(work, model.provenance)
        files[provenance.PROVENANCE] = sha256_file(work / provenance.PROVENANCE)
    for name in files:
        FILES.sync(work / name)
    sizes = {name: (work / name).stat().st_size for name in files}
    FILES.write(work / MANIFEST, _manifest(files, sizes))
    FILES.sync(work / MANIFEST)
    FILES.sync(work)
    work.chmod(0o755)
    return files


def _manifest(files: dict[str, str], sizes: dict[str, int]) -> bytes:
    from xvlm_core.train.checkpoint import SCHEMA_VERSION
    from xvlm_core.train.files import json_bytes

    listed = {name: {"size": sizes[name], "sha256": digest} for name, digest in files.items()}
    return json_bytes({"schema": SCHEMA_VERSION, "files": listed})


def _upload(
    model: _Model, to: HubId, out: Output, *, public: bool, overwrite: bool, dry_run: bool
) -> None:
    """The same files as a commit on the hub, with a page about the model."""
    import hashlib

    from xvlm_core.data.manifest import sha256_file
    from xvlm_core.train.checkpoint import MANIFEST
    from xvlm_core.weights import hub, provenance
    from xvlm_core.weights.model_card import model_card

    page = model_card(model.info, model.provenance, to.repo)
    seen = "public" if public else "private"
    if dry_run:
        names = [*model.written, MANIFEST, "README.md"]
        out.result(
            {"hub": to.repo, "from": model.said, "files": names, "seen": seen, "page": page},
            [
                f"would upload {', '.join(names)}",
                f"from {model.said} to {to.repo} ({seen})",
                "",
                page,
            ],
        )
        return
    content: dict[str, Path | bytes] = {name: model.folder / name for name in model.names}
    sums = {name: sha256_file(model.folder / name) for name in model.names}
    sizes = {name: (model.folder / name).stat().st_size for name in model.names}
    if model.provenance is not None:
        data = provenance.to_bytes(model.provenance)
        content[provenance.PROVENANCE] = data
        sums[provenance.PROVENANCE] = hashlib.sha256(data).hexdigest()
        sizes[provenance.PROVENANCE] = len(data)
    content[MANIFEST] = _manifest(sums, sizes)
    content["README.md"] = page.encode()
    out.note(f"uploading {sum(sizes.values()) / 1e6:,.0f} MB to {to.repo}")
    done = hub.upload(
        content, to, message=f"{model.text} (xvlm cp)", private=not public, overwrite=overwrite
    )
    how = seen if done.created else "replaced; it is seen by whom it was seen before"
    out.result(
        {
            "hub": to.repo,
            "url": done.url,
            "commit": done.commit,
            "created": done.created,
            "from": model.said,
            "task": model.info.task,
            "about": model.info.about,
            "files": sums,
        },
        [
            f"{done.url}: {model.text} ({how})",
            f"from {model.said}, commit {done.commit[:12]}",
        ],
    )


def into_place(work: Path, destination: Path) -> None:
    """Rename a finished folder to its place; what was there goes away last."""
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
