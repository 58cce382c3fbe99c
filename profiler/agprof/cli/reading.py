"""Trace files become a run folder, and the terminal is told how far that is: for every command that takes files."""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.console import Console

_QUIET_S = 2.0
"""Progress is told of what takes longer, this often."""


def read_files(
    files: Sequence[Path],
    out: Path,
    *,
    name: str,
    console: "Console",
    plain: bool,
    communication: Mapping[str, str] | None = None,
    max_bytes: int | None = None,
) -> Path:
    """`import_files` with the nsys that is here, and with progress. Raises TraceError and StoreError as it does."""
    from agprof.importers.folder import import_files
    from agprof.importers.nsys_report import export_report
    from agprof.launch.nsight import find_nsys, quiet

    with Progress(console, plain=plain) as progress:
        return import_files(
            files,
            out,
            name=name,
            export_report=lambda report, sqlite: export_report(report, sqlite, find_nsys(), quiet()),
            communication=communication,
            max_bytes=max_bytes,
            progress=progress.tell,
        )


def is_plain(console: "Console") -> bool:
    """Whether a spinner would not be seen as one."""
    return not console.is_terminal or console.is_dumb_terminal


class Progress:
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
