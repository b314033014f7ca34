"""``xvlm validate``: a store, a recipe; a run or a model by ``validate_model``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xvlm_cli import output as outputs
from xvlm_cli import validate_model
from xvlm_cli.data_card import card_lines
from xvlm_cli.options import DownloadOption, DryRunOption, JsonOption, QuietOption
from xvlm_cli.output import Output
from xvlm_cli.progress import Progress

if TYPE_CHECKING:
    from xvlm_core.cards.card import DataCard
    from xvlm_core.data.records import Record
    from xvlm_core.data.store import Store

SHOWN = 20
MOST_SAMPLES = 100
CHANGED = "changed since it was prepared"


def validate(
    place: Annotated[
        str,
        typer.Argument(
            metavar="PATH",
            help="A store, run, checkpoint, model, file of weights, recipe, or owner/name on the "
            "hub.",
        ),
    ],
    decode: Annotated[
        bool, typer.Option("--decode", help="Store: decode every picture, not only its header.")
    ] = False,
    sample: Annotated[
        int,
        typer.Option(
            "--sample",
            min=0,
            max=MOST_SAMPLES,
            help="Store: draw so many examples into NAME-samples.png and .html (0: none).",
        ),
    ] = 6,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Store: folder for the samples (default: here)."),
    ] = None,
    download: DownloadOption = False,
    dry_run: DryRunOption = False,
    json_document: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Check that something is whole: counts, checksums, pictures, manifests, schema.

    Of a store, its data card is printed and examples are drawn; of a run or a model, what it is,
    who made it of what, and whether training can go on from it.
    """
    out = outputs.begin("validate", json_document=json_document, quiet=quiet)
    from xvlm_core.config.recipes import looks_like_path, recipe_names
    from xvlm_core.data.files import is_url
    from xvlm_core.errors import DataError
    from xvlm_core.weights import hub
    from xvlm_core.weights.folder import CONFIG

    if is_url(place):
        _validate_store(place.rstrip("/"), _Samples(sample, output), out, decode, dry_run)
        return
    path = Path(place).expanduser()
    names = {part for full in recipe_names() for part in (full, full.partition("/")[2])}
    if (path / "manifest.json").is_file():
        _validate_store(path, _Samples(sample, output), out, decode, dry_run)
    elif (path / "run.json").is_file():
        validate_model.validate_run(path, out)
    elif (path / CONFIG).is_file() or (path / "MANIFEST.json").is_file():
        validate_model.validate_model(path, out)
    elif path.is_file() and path.suffix in validate_model.SUFFIXES:
        validate_model.validate_file(path, out)
    elif (path.is_file() and looks_like_path(place)) or place in names:
        _recipe(place, out)
    elif not path.exists() and (hub_id := hub.parse(place)) is not None:
        fetched = hub.fetch(hub_id, download=hub.may_download(download))
        validate_model.validate_model(fetched.folder, out, said=fetched.said)
    else:
        what = "is no store, run, model folder or recipe" if path.exists() else "does not exist"
        raise DataError(
            f"{path} {what}", where=str(path.absolute()), try_="xvlm ls stores, or xvlm ls runs"
        )


def _validate_store(
    place: Path | str, samples: _Samples, out: Output, decode: bool, dry_run: bool
) -> None:
    if dry_run:
        _say_what_would_be_done(place, samples, out)
    else:
        _store(place, out, decode=decode, samples=samples)


def _say_what_would_be_done(folder: Path | str, samples: _Samples, out: Output) -> None:
    from xvlm_core.data.store import Store

    store = Store.open(folder)
    name = Path(os.path.abspath(folder)).name
    paths = samples.paths(name) if samples.count else {}
    out.result(
        {"kind": "store", "path": folder, "records": len(store), "samples": paths or None},
        [f"would check {len(store):,} records of {folder}"]
        + [f"would write {path}" for path in paths.values()],
    )


def _store(folder: Path | str, out: Output, *, decode: bool, samples: _Samples) -> None:
    from xvlm_core.cards.builder import CardBuilder
    from xvlm_core.data.store import Store
    from xvlm_core.errors import DataError

    if isinstance(folder, Path) and folder.name in ("", ".."):
        folder = Path(os.path.abspath(folder))  # a store has a name
    store = Store.open(folder)
    store.verify()
    progress = Progress(quiet=out.quiet)
    builder = CardBuilder(store.name, store.manifest)
    problems: list[str] = []
    splits: dict[str, int] = {}
    for i in range(len(store)):
        try:
            record = store[i]
        except DataError as error:
            problems.append(error.what)
            continue
        splits[record.split] = splits.get(record.split, 0) + 1
        builder.add(record)
        found = _record_problems(store, record, decode=decode)
        problems += found or _changed(store, i, record)
        progress(i + 1, len(store), "records")
    progress.close()
    if splits != dict(store.manifest.splits):
        problems.append(f"splits {splits}, the manifest says {dict(store.manifest.splits)}")
    for item, count in store.manifest.counts.items():
        if count["read"] != count["kept"] + sum(count["dropped"].values()):
            problems.append(f"{item}: read is not kept + dropped")
    card = builder.card()
    written = samples.write(store, card, out)
    value = {
        "kind": "store",
        "path": folder,
        "records": len(store),
        "splits": splits,
        "counts": store.manifest.counts,
        "problems": problems,
        "card": card.to_json(),
        "samples": written,
    }
    lines = [
        f"{folder}: a whole store, {len(store):,} records",
        "checksums, records, boxes and pictures hold"
        + ("" if decode else " (pictures by their headers; --decode reads them whole)"),
        "",
        *card_lines(card),
    ]
    if written:
        lines += ["", f"samples: {written['png']}", f"         {written['html']}"]
    out.result(value, lines if not problems else "")
    if problems:
        more = len(problems) - SHOWN
        raise DataError(
            f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in the store {folder}",
            details=problems[:SHOWN]
            + ([f"and {more} more (--json lists all)"] if more > 0 else []),
            where=f"pictures from {store.image_root}",
            try_=_remedy(store.manifest.command, problems),
        )


def _changed(store: Store, i: int, record: Record) -> list[str]:
    """Whether picture files have another size in bytes than when they were prepared."""
    then = store.picture_bytes(i)
    paths = [store.picture(record, which) for which in range(len(record.images))] if then else []
    if not paths or not all(isinstance(path, Path) for path in paths):
        return []
    now = sum(os.stat(path).st_size for path in paths if isinstance(path, Path))
    if now == then:
        return []
    names = ", ".join(record.images)
    return [f"{record.id}: {names}: changed since it was prepared: {now:,} bytes, then {then:,}"]


def _record_problems(store: Store, record: Record, *, decode: bool) -> list[str]:
    """What is wrong with a record's pictures and boxes: one line each, record and file named."""
    from xvlm_core.data.boxes import box_problem
    from xvlm_core.data.images import PictureError, picture_size, read_picture

    problems = []
    for which, name in enumerate(record.images):
        try:
            picture = store.picture(record, which)
            size = read_picture(picture).size if decode else picture_size(picture)
        except PictureError as error:
            problems.append(f"{record.id}: {name}: {error.reason}")
            continue
        if which == 0 and size != (record.width, record.height):
            problems.append(
                f"{record.id}: {name}: {CHANGED}: {size[0]} x {size[1]} pixels, the record says "
                f"{record.width} x {record.height}"
            )
    said = [(region.box_xyxy_px, repr(region.text)) for region in record.regions]
    for box, of in [*said, *((box, "a proposal") for box in record.proposals_xyxy_px)]:
        reason = box_problem(box, record.width, record.height)
        if reason is not None:
            problems.append(f"{record.id}: box {list(box)} of {of}: {reason}")
    return problems


def _remedy(command: str, problems: Sequence[str]) -> str:
    """What to type: a picture that is gone can be put back, one that changed has new boxes."""
    again = command if "--overwrite" in command.split() else f"{command} --overwrite"
    if any(f": {CHANGED}: " in problem for problem in problems):
        return f"prepare it again: {again}"
    return f"put the pictures back, or prepare it again: {again}"


@dataclass(frozen=True)
class _Samples:
    """Which samples to draw, and where to: ``folder`` None: here, if that can be written."""

    count: int
    folder: Path | None

    def paths(self, name: str) -> dict[str, Path]:
        """The files that are written for a store of this name."""
        folder = self.folder or Path()
        return {kind: folder / f"{name}-samples.{kind}" for kind in ("png", "html")}

    def write(self, store: Store, card: DataCard, out: Output) -> dict[str, Path] | None:
        """Write them; None if there are none to write."""
        from xvlm_core.cards.files import write_samples
        from xvlm_core.errors import OutputError

        if not self.count or not len(store):
            return None
        paths = self.paths(store.name)
        try:
            write_samples(store, self.count, paths["png"], paths["html"], card)
        except OutputError as error:
            if self.folder is not None:
                raise
            out.warn(f"no samples: {error.what} ({error.try_}, or --sample 0)")
            return None
        return paths


def _recipe(name: str, out: Output) -> None:
    from xvlm_core.config.resolve import resolve

    resolved = resolve(name)
    out.result(
        {
            "kind": "recipe",
            "name": resolved.name,
            "path": resolved.path,
            "task": resolved.recipe.task,
        },
        f"{resolved.path}: a whole recipe for the task {resolved.recipe.task}",
    )
