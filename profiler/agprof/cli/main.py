"""The command line. This is the one place that catches errors, prints them and exits (docs/exit-codes.md)."""

import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, NoReturn

import typer

from agprof.errors import AgprofError
from agprof.model.version import __version__

COMMANDS = [
    "run", "monitor", "plan", "report", "show", "compare", "baseline", "diff", "export", "import", "peak", "bench-comm",
    "forecast", "top", "doctor", "workloads", "init", "schema",
]  # fmt: skip
"""One module each in this package, with a function of the same name whose docstring is the command's help. A name that
Python keeps for itself has an underscore behind it there (PYTHON_NAMES).

The list of commands imports every module, so each keeps its heavy imports inside its function. The function may return
the exit code; None stands for 0. A class `CommandLine` in the module reads the command's arguments its own way.
"""

PYTHON_NAMES = {"bench-comm": "bench_comm", "import": "import_"}
"""Commands whose module and function can't be called as they are."""

EXIT_USAGE = 2
EXIT_FAULT = 70
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141

# typer gives its usage errors no public name but that of the most common one.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line `argv` (default: that of the process) and exit with its code."""
    code = _exit_code(list(sys.argv[1:] if argv is None else argv))
    sys.exit(code)


def build_app(commands: Sequence[str] = tuple(COMMANDS)) -> typer.Typer:
    """The command line with the given ones of COMMANDS."""
    app = typer.Typer(
        name="agprof",
        add_completion=False,
        no_args_is_help=False,
        pretty_exceptions_enable=False,
        # Help texts are plain: quick to start, and brackets in them mean themselves.
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for name in commands:
        python_name = PYTHON_NAMES.get(name, name)
        module = import_module(f"agprof.cli.{python_name}")
        app.command(name, cls=getattr(module, "CommandLine", None))(getattr(module, python_name))
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"agprof {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """Profile distributed training jobs.

    Begin with `agprof run anomalygpt`, or `agprof workloads` for what else there is.
    """


def _exit_code(argv: list[str]) -> int:
    try:
        code = _run(argv or ["--help"])
        sys.stdout.flush()
    except AgprofError as error:
        _complain(f"error: {error}")
        return error.exit_code
    except _UsageError as error:
        _complain(f"error: {_usage_text(error)}")
        return EXIT_USAGE
    except (KeyboardInterrupt, typer.Abort):
        _complain("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away (`agprof schema | head`). Python would complain again when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except Exception as error:
        traceback.print_exc()
        said = f"{type(error).__name__}: {error}"
        _complain(f"agprof fault: {said}\nThis is an error in agprof itself: please report it with the text above.")
        return EXIT_FAULT
    return code


def _run(argv: list[str]) -> int:
    # A command that is named needs its own module only.
    app = build_app(argv[:1] if argv[0] in COMMANDS else COMMANDS)
    command = typer.main.get_command(app)
    # Not `command.main`: it would answer to an interruption and to a closed pipe in its own way.
    try:
        with command.make_context("agprof", argv) as context:
            code = command.invoke(context)
    except typer.Exit as ended:
        code = ended.exit_code
    return code if isinstance(code, int) else 0


def _usage_text(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "agprof"
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    return f"{message.replace(': Value error, ', ': ')}\nsee: {path} --help"


def _complain(text: str) -> None:
    """Print to stderr, as it is but for control characters: a file's own text must not steer the terminal."""
    safe = "".join(char if char.isprintable() or char in "\n\t" else ascii(char)[1:-1] for char in text)
    try:
        print(safe, file=sys.stderr, flush=True)
    except OSError:
        pass  # nobody reads stderr; the exit code still tells
