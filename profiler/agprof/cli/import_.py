"""`agprof import`."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import typer

if TYPE_CHECKING:
    from rich.console import Console

_QUIET_S = 2.0
"""Progress is told of what takes longer, this often."""


def import_(
    files: Annotated[
        list[Path], typer.Argument(help="Trace files, folders of them, or archives (.zip, .tar, .tar.gz).")
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
        str | None, typer.Option(help="The most that compressed files may unpack to, as 100GiB.")
    ] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Lines instead of a spinner.")] = False,
) -> None:
    """Make a run of traces by PyTorch or Nsight Systems.

    Takes Kineto JSON (torch.profiler), SQLite exports of nsys, reports of nsys (.nsys-rep) where nsys is installed, and
    torch memory snapshots, also compressed; several files are the ranks of one run. The result is a run folder like
    any other, for `agprof report`, `show`, `diff` and `export`. Exit code 5 when a file can't be used.
    """
    from rich.console import Console

    from agprof.cli.report import print_summary, write_report
    from agprof.importers.folder import default_folder, import_files, run_name
    from agprof.launch.folder import DEFAULT_OUT
    from agprof.launch.nsight import find_nsys, quiet

    console = Console(highlight=False)
    plain = plain or not console.is_terminal or console.is_dumb_terminal
    expressions = parse_communication(communication or [])
    limit = None if max_size is None else parse_size(max_size)
    name = name or run_name(files)
    target = out.absolute() if out is not None else default_folder(name, DEFAULT_OUT.absolute())

    def export_report(report: Path, sqlite: Path) -> Path:
        from agprof.importers.nsys_report import export_report as export

        return export(report, sqlite, find_nsys(), quiet())

    with _Progress(console, plain=plain) as progress:
        run = import_files(
            files,
            target,
            name=name,
            export_report=export_report,
            communication=expressions,
            max_bytes=limit,
            progress=progress.tell,
        )
    answers = write_report(run, console, plain=plain)
    print_summary(answers, run, console)


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


class _Progress:
    """A spinner on a terminal; elsewhere a line now and then for what takes its time."""

    def __init__(self, console: "Console", *, plain: bool) -> None:
        self._status = None if plain else console.status("reading")
        self._told_s = time.monotonic()

    def __enter__(self) -> Self:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *failure: object) -> None:
        if self._status is not None:
            self._status.stop()

    def tell(self, what: str, share: float) -> None:
        """`what` is being done, of all files this share is."""
        from rich.markup import escape

        line = f"{share:4.0%} {what[:120]}"
        if self._status is not None:
            self._status.update(escape(line))
        elif time.monotonic() - self._told_s >= _QUIET_S:
            self._told_s = time.monotonic()
            print("".join(c if c.isprintable() else "?" for c in line), file=sys.stderr, flush=True)
