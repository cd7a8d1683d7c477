"""The command line: parse, call, print.

Exit status 0: done; 2: the user's mistake, said in one line; 1: a fault of ours, with a traceback; 130: stopped by
Ctrl-C; 141: nobody reads the output any more.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer

import ivlens
from ivlens.cli import ask, audit, compare, convert, runs, study, tasks, universal
from ivlens.cli.options import suggest_typed
from ivlens.cli.output import complain
from ivlens.errors import name_fault
from ivlens.storage.command_line import remember_arguments

# Only the public subclass is at the same place in every version of typer.
_UsageError: Any = typer.BadParameter.__base__
_STOPPED = 130  # 128 and the number of SIGINT, as shells have it.
_UNREAD = 141  # And of SIGPIPE: `ivlens tasks | head -1` is no mistake.

app = typer.Typer(
    name="ivlens",
    help="Which attention heads carry an instruction, and what vector do they write?",
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    The user's mistakes, and what the machine or a file did, become one line.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # A stream of somebody else's making.
            stream.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with _plain_warnings(), remember_arguments(given):
            status = app(given or ["--help"], prog_name="ivlens", standalone_mode=False) or 0
            print(end="", flush=True)  # Not when the interpreter ends: then nobody could say that the disk is full.
    except _UsageError as error:
        return complain(_usage(error))
    except (KeyboardInterrupt, typer.Abort):
        status = _STOPPED
    except SystemExit:  # So end typer and rich where nobody reads the output.
        _drop_output()
        return _UNREAD
    except BaseException as error:  # A tokenizer that gives up is no Exception.
        said = name_fault(error)
        if said is None:
            raise
        if isinstance(error, OSError) and error.filename is None:
            _drop_output()
        return _UNREAD if isinstance(error, BrokenPipeError) else complain(said)
    if status == _STOPPED:  # Some versions of typer return it, others raise.
        complain("stopped; the same command goes on from what it has written")
    return status


def _drop_output() -> None:
    """What is still to be printed cannot be: the interpreter is not to try again when it ends."""
    with suppress(OSError, ValueError, AttributeError), Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _usage(error: Any) -> str:
    message = error.format_message().replace("Value error, ", "").replace(". Did you", "; did you")
    message = re.sub(r" [(]Possible options.*|[.]$", "", message)
    command = error.ctx.command_path if error.ctx is not None else "ivlens"
    return "; ".join(filter(None, [message, suggest_typed(error), f"see {command} --help"]))


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Our own warnings as one line each; everybody else's stay as they are."""
    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], filename: str, *args: Any) -> None:
        if category.__module__.startswith("ivlens.") or issubclass(category, RuntimeWarning):
            complain(f"warning: {message}")
        else:
            usual(message, category, filename, *args)

    with warnings.catch_warnings():
        for category in (UserWarning, RuntimeWarning):
            warnings.simplefilter("default", category)
        warnings.showwarning = show
        yield


def _print_version(wanted: bool) -> bool:
    if wanted:
        print(f"ivlens {ivlens.__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


for name, command in {
    "audit": audit.audit,
    "compare": compare.compare,
    "universal": universal.universal,
    "study": study.study,
    "experiment": study.experiment,
    "show": runs.show,
    "figures": runs.redraw,
    "report": runs.report,
    "explore": runs.explore,
    "ask": ask.ask,
    "convert": convert.convert,
    "tasks": tasks.list_tasks,
    "prompts": tasks.show_prompts,
}.items():
    # The summary in the list of commands is whole: of one that typer takes from the text it cuts the end.
    app.command(name, short_help=inspect.cleandoc(command.__doc__ or "").partition("\n\n")[0])(command)
