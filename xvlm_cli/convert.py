"""``xvlm convert``: released checkpoint files to model folders, and back."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xvlm_cli import output as outputs
from xvlm_cli.options import DryRunOption, JsonOption, OverwriteOption, QuietOption, complete_run
from xvlm_core.errors import CheckpointError, OutputError, UsageError

if TYPE_CHECKING:
    import torch

    from xvlm_cli.checkpoints import Found
    from xvlm_core.data.tokenizer import Tokenizer
    from xvlm_core.models.sizes import ModelConfig
    from xvlm_core.weights.folder import ModelInfo
    from xvlm_core.weights.reading import Report

_FORMS = ("official", "xvlm")


def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="A released file (.th, .pth, .bin, .safetensors), a run or a model folder.",
            autocompletion=complete_run,
        ),
    ],
    destination: Annotated[
        Path, typer.Argument(help="A new model folder, or a file (.th, .pth, .safetensors).")
    ],
    to: Annotated[
        str | None,
        typer.Option("--to", help="official or xvlm (default: as DESTINATION is named)."),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option("--task", help="The model of this task, where the source holds several."),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            "--tokenizer", help="tokenizer.json or vocab.txt, if it is not BERT-base-uncased's."
        ),
    ] = None,
    text_heads: Annotated[
        int | None,
        typer.Option(
            "--text-heads", min=1, help="Heads of the text stack's attention, if not 64 wide each."
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    dry_run: DryRunOption = False,
    json_document: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Convert a released X-VLM checkpoint of any task to a model folder, or back, bit for bit."""
    out = outputs.begin("convert", json_document=json_document, quiet=quiet)
    form = _form(to, destination)
    _check_destination(destination, form, overwrite=overwrite)
    from xvlm_cli import checkpoints
    from xvlm_core.models.build import kind_of
    from xvlm_core.weights.official import from_official

    found = checkpoints.find(source)
    if form == "xvlm" and task is None and found.path.is_dir():
        raise UsageError(
            f"{source} is a model folder of ours already",
            try_=f"xvlm cp {source} {destination}, or name a file (.th) to write it as released",
        )
    read = _read(found, text_heads)
    if destination.exists() and read.path.resolve() == destination.resolve():
        raise OutputError(f"{destination} is the source itself", try_="another name")
    read = _as_asked(read, task)
    converted = from_official(read.official, read.config, source=read.said)
    report = converted.report
    for note in read.notes:
        out.note(note)
    for warning in report.warnings:
        out.warn(warning)
    if form == "official" and read.info is not None and read.info.answers:
        out.warn(
            f"the {len(read.info.answers):,} answers that the model chooses from have no place in "
            f"a released file: they stay in {read.path / 'config.json'} (--answers FILE)"
        )
    words = None if form == "official" else _tokenizer(read, tokenizer)
    if not dry_run:
        with outputs.writing(destination):
            destination.parent.mkdir(parents=True, exist_ok=True)
            if words is None:
                _write_file(destination, converted.state, read.config)
            else:
                _write_folder(destination, converted.state, read, words)
    number = sum(value.numel() for value in converted.state.values())
    vision = read.config.vision
    what = f"{vision.image_size} px, window {vision.window_size}, {number:,} parameters"
    verb = "would write" if dry_run else "wrote"
    target = "model folder" if form == "xvlm" else "official file"
    out.result(
        {
            "destination": destination,
            "from": read.said,
            "to": form,
            "task": read.task,
            "kind": kind_of(read.config),
            "parameters": number,
            "config": read.config,
            "notes": list(read.notes),
            "keys": _keys(report),
        },
        [
            f"{read.said}: {read.about}, {what}",
            *_table(report),
            f"{verb} {target} {destination}" + ("" if dry_run else ", read back: the same bits"),
        ],
    )


@dataclass(frozen=True)
class _Read:
    """What is to be converted.

    Attributes:
        path: where it lies.
        said: the same, for people.
        official: its tensors by official names.
        task: what it was trained for.
        about: what it is.
        config: the shape of its model.
        notes: what had to be taken for granted.
        info: of a model folder; None: a released file.
    """

    path: Path
    said: str
    official: Mapping[str, torch.Tensor]
    task: str
    about: str
    config: ModelConfig
    notes: tuple[str, ...] = ()
    info: ModelInfo | None = None


def _form(to: str | None, destination: Path) -> str:
    """What is to be written, and whether the destination's name can be that."""
    from xvlm_core.weights.files import FILE_SUFFIXES

    is_file_name = destination.suffix in FILE_SUFFIXES
    if to is None:
        return "official" if is_file_name else "xvlm"
    if to not in _FORMS:
        raise UsageError(f"--to {to}: there are {' and '.join(_FORMS)}", try_="--to official")
    if to == "official" and not is_file_name:
        raise OutputError(
            f"the name of an official file ends in {', '.join(FILE_SUFFIXES)}; "
            f"{destination.name} does not",
            try_=f"{destination}.th",
        )
    if to == "xvlm" and is_file_name:
        raise OutputError(
            f"a model folder is needed, {destination.name} is the name of a file",
            try_=str(destination.with_suffix("")),
        )
    return to


def _check_destination(destination: Path, form: str, *, overwrite: bool) -> None:
    from xvlm_core.weights.folder import CONFIG

    if form == "xvlm":
        outputs.refuse_nonempty(destination, overwrite=overwrite)
        is_full = destination.is_dir() and any(destination.iterdir())
        if is_full and not (destination / CONFIG).is_file():
            raise OutputError(
                f"{destination} is no model folder: not replaced", try_="another name"
            )
    elif destination.is_dir():
        raise OutputError(f"{destination} is a folder, a file is needed", try_="another name")
    elif destination.exists() and not overwrite:
        raise OutputError(
            f"{destination} is there already", try_="another name, or --overwrite to replace it"
        )


def _read(found: Found, text_heads: int | None) -> _Read:
    """The source under official names, whichever form it has.

    Raises:
        CheckpointError: missing, damaged, no X-VLM model, or of an architecture of ours that the
            official format has no place for.
    """
    from xvlm_core.weights.folder import read_info, read_weights
    from xvlm_core.weights.official import to_official
    from xvlm_core.weights.official_shape import TASKS, recognise, shape_of
    from xvlm_core.weights.reading import read_state_file

    if found.path.is_dir():
        info = read_info(found.path)
        official = to_official(read_weights(found.path), info.config)
        about = info.about or info.task
        return _Read(found.path, found.said, official, info.task, about, info.config, info=info)
    state = read_state_file(found.path)
    task = recognise(state)
    if task is None:
        raise CheckpointError(
            f"{found.path.name} is no official X-VLM checkpoint: its keys are those of no task",
            where=str(found.path),
            details=[f"it has {key}" for key in list(state)[:3]],
            try_="init.vision=FILE or init.text=FILE in a recipe, if it is a Swin or a BERT",
        )
    shape = shape_of(state, task, text_heads=text_heads, source=str(found.path))
    notes = shape.notes
    if task == "retrieval":
        notes += ("weak grounding has the same keys: --task weak_grounding says that it is one",)
    about = TASKS[task].about
    return _Read(found.path, found.said, state, task, about, shape.config, notes)


def _as_asked(read: _Read, task: str | None) -> _Read:
    """The model of the task that was asked for.

    Raises:
        UsageError: the source does not hold it whole.
    """
    from dataclasses import replace

    from xvlm_core.weights.official_shape import TASKS, as_task, tasks_within

    if task is None:
        return read
    possible = tasks_within(read.config)
    if task not in possible:
        whole = f"it holds the models of {', '.join(possible)}" if possible else "it holds none"
        more = f" (a model of {task} has more in it)" if task in TASKS else ""
        raise UsageError(
            f"--task {task}: {read.said} is {read.about}; {whole}{more}",
            try_=f"--task {possible[-1]}" if possible else "the same command without --task",
        )
    about = f"{TASKS[task].about}, out of {read.about}"
    return replace(read, task=task, about=about, config=as_task(read.config, task))


def _tokenizer(read: _Read, path: Path | None) -> Tokenizer:
    """The words of the model: given, its own, or BERT's."""
    from xvlm_core.data.tokenizer import Tokenizer
    from xvlm_core.weights.folder import TOKENIZER

    size = read.config.text.vocab_size
    if path is not None:
        found, said = Tokenizer.from_file(path.expanduser()), str(path)
    elif read.info is not None:
        found, said = Tokenizer.from_file(read.path / TOKENIZER), f"the tokenizer of {read.path}"
    else:
        found, said = Tokenizer.bert_base_uncased(), "BERT-base-uncased"
    if found.vocab_size != size:
        raise CheckpointError(
            f"{said} knows {found.vocab_size:,} pieces, the model {size:,}",
            where=read.said,
            try_="--tokenizer FILE  (the tokenizer.json or vocab.txt it was trained with)",
        )
    return found


# ---------------------------------------------------------------- writing


def _write_file(destination: Path, state: Mapping[str, torch.Tensor], config: ModelConfig) -> None:
    from xvlm_core.train.files import FILES
    from xvlm_core.weights.files import write_official_file

    handle, name = tempfile.mkstemp(
        prefix=f".{destination.stem}.", suffix=destination.suffix, dir=destination.parent
    )
    os.close(handle)
    work = Path(name)
    try:
        write_official_file(work, state, config)
        work.chmod(0o644)
        FILES.sync(work)
        FILES.rename(work, destination)
        FILES.sync(destination.parent)
    finally:
        work.unlink(missing_ok=True)


def _write_folder(
    destination: Path, state: Mapping[str, torch.Tensor], read: _Read, words: Tokenizer
) -> None:
    from xvlm_cli.cp import into_place
    from xvlm_core.data.manifest import sha256_file
    from xvlm_core.train.checkpoint import MANIFEST, SCHEMA_VERSION
    from xvlm_core.train.files import FILES, json_bytes
    from xvlm_core.weights.files import write_folder

    work = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
    try:
        write_folder(work, state, words, _info(read))
        listed = {}
        for path in sorted(work.iterdir()):
            FILES.sync(path)
            listed[path.name] = {"size": path.stat().st_size, "sha256": sha256_file(path)}
        FILES.write(work / MANIFEST, json_bytes({"schema": SCHEMA_VERSION, "files": listed}))
        FILES.sync(work / MANIFEST)
        FILES.sync(work)
        work.chmod(0o755)
        into_place(work, destination)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _info(read: _Read) -> ModelInfo:
    from xvlm_core.weights.folder import ModelInfo
    from xvlm_core.weights.official_shape import TASKS

    if read.info is not None:
        return read.info.model_copy(
            update={"task": read.task, "about": read.about, "config": read.config}
        )
    task = TASKS[read.task]
    return ModelInfo(
        task=read.task,
        about=f"X-VLM {read.config.size}: {read.about} ({read.path.name})",
        max_words=task.max_words,
        max_tokens=min(task.max_tokens, read.config.text.max_positions),
        prompt=task.prompt,
        config=read.config,
    )


# ---------------------------------------------------------------- the report


def _keys(report: Report) -> dict[str, Any]:
    """Every key, by what became of it."""

    def notes(found: tuple[Any, ...]) -> list[dict[str, str]]:
        return [{"name": note.name, "note": note.note} for note in found]

    return {
        "matched": list(report.matched),
        "converted": notes(report.converted),
        "computed": [note.name for note in report.computed],
        "tied": notes(report.tied),
        "dropped": notes(report.dropped),
        "missing": list(report.missing),
    }


def _table(report: Report) -> list[str]:
    def whole(names: tuple[Any, ...]) -> str:
        """Parts of the model that names belong to."""
        tops = sorted(
            {
                "language model" if ".cls." in note.name else note.name.split(".")[0]
                for note in names
            }
        )
        return f"heads not of this model: {', '.join(tops)}" if tops else ""

    converted = sorted({note.note for note in report.converted})
    rows = [
        ("matched", len(report.matched), "bit for bit"),
        ("converted", len(report.converted), "; ".join(converted)),
        ("computed", len(report.computed), "buffers, made anew from the shape"),
        ("tied", len(report.tied), "the same tensor under another name"),
        ("dropped", len(report.dropped), whole(report.dropped)),
        ("missing", len(report.missing), ""),
    ]
    return outputs.table(
        ("tensors", "", ""), [(name, n, about if n else "") for name, n, about in rows]
    )
