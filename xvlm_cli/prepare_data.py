"""``xvlm prepare-data SOURCE``: one sub-command for each source, with that source's options."""

from __future__ import annotations

import inspect
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from xvlm_cli import output as outputs
from xvlm_cli.options import DryRunOption, JsonOption, OverwriteOption, QuietOption, complete_any
from xvlm_cli.output import Output, table
from xvlm_cli.prepared import (
    add_samples,
    balance_lines,
    column_lines,
    document_of,
    refuse_damage,
)
from xvlm_cli.progress import Progress
from xvlm_core.errors import DataError, OutputError, UsageError
from xvlm_core.sources.base import Option, Source
from xvlm_core.sources.registry import SOURCES, checked_options, find_source, options_of

if TYPE_CHECKING:
    from xvlm_core.data.manifest import Manifest

HELP = "Turn annotations and pictures into a store."
STAND_IN = "world"


class SourceGroup(TyperGroup):
    """Sources as sub-commands, made from the registry."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of the sources."""
        return list(SOURCES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of one source."""
        if cmd_name not in SOURCES:
            return None
        source = SOURCES[cmd_name]
        app = typer.Typer(
            add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
        )
        app.command(source.name, help=source.help)(_function(source))
        return typer.main.get_command(app)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As click's, but an unknown source names the near ones."""
        if args and not args[0].startswith("-"):
            find_source(args[0])
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The sources' lines."""
        with formatter.section("Sources (xvlm prepare-data SOURCE --help)"):
            formatter.write_dl([(source.name, source.help) for source in SOURCES.values()])


def build() -> Any:
    """The command ``prepare-data``."""
    app = typer.Typer(
        cls=SourceGroup,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        help=HELP,
        subcommand_metavar="SOURCE ...",
    )
    app.callback()(lambda: None)
    return typer.main.get_command(app)


def _function(source: Source) -> Any:
    """A function whose signature has the options of a source: typer reads it."""
    positional = next((option for option in source.options if option.type is Path), None)

    def run(**given: Any) -> None:
        out = outputs.begin(
            "prepare-data", json_document=given.pop("json_document"), quiet=given.pop("quiet")
        )
        output, overwrite = given.pop("output"), given.pop("overwrite")
        dry_run, recipe = given.pop("dry_run"), given.pop("as_recipe", None)
        sample = given.pop("sample")
        if positional is not None:
            _take_positional(given, positional)
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
        if recipe is not None:
            _stand_in(recipe, output, options, out, overwrite=overwrite, dry_run=dry_run)
        else:
            flags = _Flags(overwrite, dry_run, sample)
            _one(source, output, options, out, flags)

    parameters: dict[str, Any] = {}
    if positional is not None:
        kind: Any = list[str] | None if positional.multiple else str | None
        argument = typer.Argument(metavar=f"[{positional.name.upper()}]", help=positional.help)
        parameters["positional"] = (Annotated[kind, argument], None)
    for option in options_of(source):
        parameters[option.name] = _parameter(option)
    if source.name == STAND_IN:
        parameters["as_recipe"] = (
            Annotated[
                str | None,
                typer.Option(
                    "--as",
                    metavar="RECIPE",
                    help="Fill every missing store of this recipe, as a stand-in; -o is its data "
                    "root.",
                    autocompletion=complete_any,
                ),
            ],
            None,
        )
    sample_help = "Draw this many examples into OUTPUT-samples.png and .html, print the data card."
    parameters["sample"] = (
        Annotated[int | None, typer.Option("--sample", min=1, metavar="N", help=sample_help)],
        None,
    )
    output_help = "The store's folder."
    parameters["output"] = (Annotated[Path, typer.Option("--output", "-o", help=output_help)], ...)
    for name, kind in (
        ("overwrite", OverwriteOption),
        ("dry_run", DryRunOption),
        ("json_document", JsonOption),
        ("quiet", QuietOption),
    ):
        parameters[name] = (kind, False)
    _sign(run, parameters)
    return run


def _sign(function: Any, parameters: Mapping[str, tuple[Any, Any]]) -> None:
    empty = inspect.Parameter.empty
    function.__signature__ = inspect.Signature(
        [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=empty if default is ... else default,
                annotation=annotation,
            )
            for name, (annotation, default) in parameters.items()
        ]
    )
    function.__annotations__ = {name: annotation for name, (annotation, _) in parameters.items()}


def _parameter(option: Option) -> tuple[Any, Any]:
    """An option of a source as a typer parameter. Not given is None: the registry has defaults."""
    text = option.help
    if option.choices:
        text += f" [{'|'.join(option.choices)}]"
    if option.default not in (None, ()) and not isinstance(option.default, bool):
        text += f" (default: {option.default})"
    if option.type is bool:
        name = option.flag.removeprefix("--")
        both = f"--{name}/--no-{name}"
        text += f" (default: {'yes' if option.default else 'no'})"
        return Annotated[bool | None, typer.Option(both, help=text)], None
    # Numbers are typed by the registry, whose messages name option, value and limit.
    kind: Any = {int: int, float: float}.get(option.type, str)
    kind = list[kind] | None if option.multiple else kind | None
    return Annotated[kind, typer.Option(option.flag, help=text)], None


def _take_positional(given: dict[str, Any], option: Option) -> None:
    """The word after the source is its first path: ``prepare-data coco FOLDER``."""
    word = given.pop("positional")
    if not word:
        return
    if given[option.name]:
        raise UsageError(
            f"{option.flag} is given twice: {word} and {given[option.name]}",
            try_=f"leave {option.flag} out",
        )
    given[option.name] = word


@dataclass(frozen=True)
class _Flags:
    """What is not about the data."""

    overwrite: bool
    dry_run: bool
    sample: int | None


def _one(
    source: Source, output: Path, options: Mapping[str, Any], out: Output, flags: _Flags
) -> None:
    if flags.dry_run:
        values = checked_options(source, options)
        there = output.is_dir() and any(output.iterdir())
        rows = [(name, value if value != () else None) for name, value in values.items()]
        lines = [f"would prepare {source.name} in {output}", *table(("option", "value"), rows)]
        if there:
            what = "replaced" if flags.overwrite else "refused"
            lines.append(f"{output} is not empty: {what}")
        value = {"source": source.name, "output": output, "options": values, "exists": there}
        out.result(value, lines)
        return
    manifest = _prepare(source, output, options, out, flags.overwrite)
    document, lines = document_of(output, manifest), balance_lines(output, manifest)
    if flags.sample is not None:
        add_samples(output, flags.sample, document, lines)
    asked = options.get("exclude") or options.get("exclude_like")
    if asked and not any("excluded" in count["dropped"] for count in manifest.counts.values()):
        out.warn(f"no picture of {', '.join(asked)} was found here: nothing was left out")
    lines[1:1] = column_lines(output, document)
    out.result(document, lines)
    refuse_damage(source, output, manifest, float(options.get("allow_damage") or 0))


def _stand_in(
    recipe_name: str,
    root: Path,
    options: Mapping[str, Any],
    out: Output,
    *,
    overwrite: bool,
    dry_run: bool,
) -> None:
    """Fill the stores that a recipe names and that are not there, each with other pictures."""
    from xvlm_core.config.resolve import resolve
    from xvlm_core.sources.world import stand_in
    from xvlm_core.tasks.registry import stores_of

    recipe = resolve(recipe_name).recipe
    names = stores_of(recipe)
    source = SOURCES[STAND_IN]
    checked_options(source, options)
    given = {name: value for name, value in options.items() if value is not None}
    foreign = sorted(set(given) - {"train", "val", "size", "seed", "workers"})
    if foreign:
        raise UsageError(
            f"a stand-in has the splits that the recipe trains and validates on: no --{foreign[0]}",
            try_=f"xvlm prepare-data world --as {recipe_name} -o {root}",
        )
    kept = [name for name in names if (root / name / "manifest.json").is_file() and not overwrite]
    wanted = [name for name in names if name not in kept]
    for name in kept:
        out.note(f"{root / name} is there already: left as it is")
    if not wanted:
        raise OutputError(
            f"all stores of {recipe_name} are in {root} already ({', '.join(kept)})",
            try_="--overwrite to replace them",
        )
    if dry_run:
        lines = [f"would make {root / name}" for name in wanted]
        out.result({"root": root, "make": wanted, "leave": kept}, lines)
        return
    progress = Progress(quiet=out.quiet)
    numbers = {name: int(value) for name, value in given.items()}
    try:
        manifests = stand_in(
            recipe,
            root,
            command=_command(),
            progress=progress,
            overwrite=overwrite,
            only=wanted,
            **numbers,
        )
    finally:
        progress.close()
    documents, lines = [], []
    for name, manifest in manifests.items():
        documents.append(document_of(root / name, manifest))
        lines += [*balance_lines(root / name, manifest), ""]
    lines.append(f"synthetic stand-in for {recipe_name}: coloured shapes, not the real pictures")
    out.warn(f"{root} holds synthetic shapes as a stand-in for {', '.join(wanted)}")
    out.result({"root": root, "stores": documents, "left": kept}, lines)


def _prepare(
    source: Source, output: Path, options: Mapping[str, Any], out: Output, overwrite: bool
) -> Manifest:
    from xvlm_core.sources.prepare import prepare

    progress = Progress(quiet=out.quiet)
    out.note(f"preparing {source.name} in {output}")
    try:
        return prepare(
            source.name,
            output,
            options,
            command=_command(),
            progress=progress,
            overwrite=overwrite,
        )
    except FileNotFoundError as error:
        raise DataError(
            f"{error.filename} is not there", try_=f"xvlm prepare-data {source.name} --help"
        ) from error
    except BaseException as error:
        begun = output.parent / f".{output.name}.partial"
        if not isinstance(error, Exception) and begun.is_dir():  # Ctrl-C, SIGTERM
            out.note("what is done is kept: the same command continues there")
        raise
    finally:
        progress.close()


def _command() -> str:
    """What was typed, without what changes nothing in the store."""
    words = ["xvlm"]
    rest = iter(sys.argv[1:])
    for word in rest:
        name, has_value = word.split("=", 1)[0], "=" in word
        if name in ("--workers", "--engine", "--allow-damage", "--sample"):
            if not has_value:
                next(rest, None)
        elif name not in ("--overwrite", "--json", "--quiet", "-q"):
            words.append(word)
    return shlex.join(words)
