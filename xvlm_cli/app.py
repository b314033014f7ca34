"""The typer application: verbs are imported when they are run, so that ``--help`` is immediate."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from xvlm_cli import output
from xvlm_core import __version__
from xvlm_core.errors import UsageError, XvlmError

VERBS: dict[str, tuple[str, str]] = {
    "prepare-data": ("prepare_data", "Turn annotations and pictures into a store."),
    "pretrain": ("pretrain", "Pre-train a model on prepared stores."),
    "finetune": ("finetune", "Fine-tune a pre-trained model for a task."),
    "evaluate": ("evaluate", "Score a model on a split of a store."),
    "predict": ("predict", "Answer about your own pictures: boxes for phrases."),
    "demo": ("demo", "Make data, train, evaluate and draw: minutes on two CPU cores."),
    "ls": ("ls", "List runs, recipes, tasks or stores."),
    "cp": ("cp", "Copy a run's model as a plain, verified model folder."),
    "convert": ("convert", "Turn released checkpoints into model folders, and back."),
    "validate": ("validate", "Check a store, run, model folder or recipe."),
}
"""Verb: its module and function (one name), and its line in ``xvlm --help``."""

# typer brings its own click since 0.20 and used the installed one before: take the class it raises.
_ClickException: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


_CTRL_C = 128 + signal.SIGINT


class _Terminated(BaseException):
    """SIGTERM: ends a verb as Ctrl-C does, so that what it was writing is cleared away."""


def _terminate(number: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one has its usual effect
    raise _Terminated


@contextlib.contextmanager
def _sigterm_ends_the_verb() -> Iterator[None]:
    usual = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if not usual or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class LazyGroup(TyperGroup):
    """A group that knows its verbs' names and imports one only to run it."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of the verbs, in the order in which they are used."""
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import a verb."""
        if cmd_name not in VERBS:
            return None
        name, help_line = VERBS[cmd_name]
        module = importlib.import_module(f"xvlm_cli.{name}")
        if hasattr(module, "build"):  # a verb with sub-commands makes its own command
            return module.build()
        function = getattr(module, name)
        verb = typer.Typer(
            add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
        )
        verb.command(cmd_name, short_help=help_line)(function)
        return typer.main.get_command(verb)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As click's, but an unknown verb names the near ones."""
        if args and args[0] not in VERBS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], VERBS, n=1, cutoff=0.4)
            raise UsageError(
                f"no verb {args[0]!r}", try_=f"xvlm {near[0]}" if near else "xvlm --help"
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """The verbs' lines, without importing them."""
        with formatter.section("Verbs"):
            formatter.write_dl([(verb, line) for verb, (_, line) in VERBS.items()])


app = typer.Typer(
    cls=LazyGroup,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"xvlm {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Vision-language models that know where things are: pre-train, fine-tune, ground, show."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; return its exit code. Nothing is raised but ``SystemExit``."""
    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    options = arguments[: arguments.index("--")] if "--" in arguments else arguments
    out = output.start(json_document="--json" in options)
    if options[0] in VERBS:
        out.verb = options[0]
    try:
        with warnings.catch_warnings(), _sigterm_ends_the_verb():
            warnings.showwarning = _show_warning(out, warnings.showwarning)
            error, code = _run(arguments, out)
        out.finish(error)
    except BrokenPipeError:
        code = _quiet_pipe()
    except OSError as problem:  # stdout is a file on a full disk
        out.json = False
        code = output.Output().finish(output.as_user_error(problem) or output.bug(problem))
    finally:
        out.give_back_stdout()
    return code


def _show_warning(out: output.Output, others: Any) -> Any:
    """Our own warnings go where a verb's do (and into the JSON document); others as ever."""

    def show(message: Any, category: type[Warning], *rest: Any, **more: Any) -> None:
        if category.__module__.partition(".")[0] == "xvlm_core":
            if str(message) not in out.warnings:
                out.warn(str(message))
        else:
            others(message, category, *rest, **more)

    return show


def _run(arguments: list[str], out: output.Output) -> tuple[XvlmError | None, int]:
    """The error of a command line, if any, and its exit code."""
    try:
        code = app(arguments, prog_name="xvlm", standalone_mode=False)
    except XvlmError as error:
        found = error
    except _ClickException as error:
        found = _usage(error, arguments)
    except (KeyboardInterrupt, typer.Abort):
        return output.Interrupted("interrupted", signal.SIGINT), _CTRL_C
    except _Terminated:
        return output.Interrupted("terminated", signal.SIGTERM), 128 + signal.SIGTERM
    except BrokenPipeError:
        raise
    except OSError as error:
        if output.debug():
            traceback.print_exc()
        found = output.as_user_error(error) or output.bug(error)
    except Exception as error:
        if output.debug():
            traceback.print_exc()
        found = output.bug(error)
    else:
        if code == _CTRL_C:  # typer catches it first
            return output.Interrupted("interrupted", signal.SIGINT), _CTRL_C
        return None, code if isinstance(code, int) else 0
    if output.debug() and isinstance(found.__cause__, Exception):
        traceback.print_exception(found.__cause__)
    if found.try_ is None:  # what is printed always says what to type next
        found.try_ = f"xvlm {out.verb} --help" if out.verb else "xvlm --help"
    return found, found.exit_code


def _usage(error: Any, arguments: list[str]) -> UsageError:
    verb = f" {arguments[0]}" if arguments and arguments[0] in VERBS else ""
    return UsageError(error.format_message().rstrip("."), try_=f"xvlm{verb} --help")


def _quiet_pipe() -> int:
    """The reader of stdout went away (``| head``): say nothing, end as other tools do."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 141


if __name__ == "__main__":
    sys.exit(main())
