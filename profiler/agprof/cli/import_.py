"""`agprof import`."""

from pathlib import Path
from typing import Annotated

import typer


def import_(
    files: Annotated[
        list[Path],
        typer.Argument(help="Trace files, folders of them, or archives (.zip, .tar, .tar.gz).", metavar="FILE"),
    ],
    out: Annotated[Path | None, typer.Option(help="Run folder to make; agprof-runs/NAME-TIME when left out.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run; the file's or its folder's when left out.")] = None,
    communication: Annotated[
        list[str] | None,
        typer.Option(
            help="Kernels that are communication too, as regular expression on their names. Repeatable.",
            metavar="LIBRARY=REGEX",
        ),
    ] = None,
    max_size: Annotated[
        str | None, typer.Option(help="The most that compressed files may unpack to, as 100GiB.", metavar="SIZE")
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Lines instead of a spinner.")] = False,
) -> None:
    """Make a run of traces by PyTorch or Nsight Systems.

    Takes Kineto JSON (torch.profiler), SQLite exports of nsys, reports of nsys (.nsys-rep) where nsys is installed, and
    torch memory snapshots, also compressed; several files are the ranks of one run. The result is a run folder like
    any other, for `agprof report`, `show`, `diff` and `export`. Exit code 5 when a file can't be used.
    """
    from rich.console import Console

    from agprof.cli.reading import is_plain, read_files
    from agprof.cli.report import print_summary, write_report
    from agprof.importers.naming import default_folder, run_name
    from agprof.launch.folder import DEFAULT_OUT

    console = Console(highlight=False)
    plain = plain or is_plain(console)
    name = run_name(files) if name is None else check_name(name)
    run = read_files(
        files,
        out.absolute() if out is not None else default_folder(name, DEFAULT_OUT.absolute()),
        name=name,
        console=console,
        plain=plain,
        communication=parse_communication(communication or []),
        max_bytes=None if max_size is None else parse_size(max_size),
    )
    answers = write_report(run, console, plain=plain)
    print_summary(answers, run, console)


def check_name(name: str) -> str:
    """The name, under the rule for every run. Raises ConfigError."""
    from agprof.config.names import run_name_problem
    from agprof.errors import ConfigError

    if problem := run_name_problem(name):
        raise ConfigError(f"--name {name[:200]!r}: {problem}")
    return name


def parse_communication(given: list[str]) -> dict[str, str]:
    """`deepep=^deep_ep::` -> library and expression. Raises ConfigError.

    >>> parse_communication(["mine=^my_all_reduce"])
    {'mine': '^my_all_reduce'}
    """
    import re

    from agprof.errors import ConfigError

    found: dict[str, str] = {}
    for text in given:
        library, equals, expression = text.partition("=")
        if not equals or not library.strip() or not expression:
            raise ConfigError(f"--communication {text!r}: write LIBRARY=REGEX, as deepep=^deep_ep::")
        if library.strip() in found:
            raise ConfigError(f"--communication {text!r}: {library.strip()} is given twice; join them with |")
        try:
            re.compile(expression)
        except re.error as error:
            raise ConfigError(f"--communication {text!r}: is no regular expression: {error}") from error
        found[library.strip()] = expression
    return found


_UNITS = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
          "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}  # fmt: skip


def parse_size(text: str) -> int:
    """Bytes. Raises ConfigError.

    >>> parse_size("64GiB"), parse_size("1.5 GB"), parse_size("1000")
    (68719476736, 1500000000, 1000)
    """
    import re

    from agprof.errors import ConfigError

    match = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,3})?)\s*([a-zA-Z]{0,3})\s*", text)
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None or not float(match[1]):
        raise ConfigError(f"--max-size {text!r}: is no size; write it as 64GiB, 500MB or in bytes")
    return int(float(match[1]) * unit)
