"""`agprof diff`."""

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console
    from rich.table import Table

    from agprof.model.diff import DiffRow, TraceDiff
    from agprof.store.traces import RankTrace

_TOP = 15
_WIDTH = 80


def diff(
    a: Annotated[Path, typer.Argument(help="Run folder with traces, or trace files (a file, folder or archive).")],
    b: Annotated[Path, typer.Argument(help="The same, to compare it with.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    top: Annotated[
        int | None,
        typer.Option(min=1, help=f"Rows per table, largest change first; {_TOP} when left out, all of them in JSON."),
    ] = None,
) -> None:
    """Compare the device traces of two runs.

    Says which kernels and operators appeared, vanished, or changed their count or time from A to B, per step where both
    mark steps. Names are matched as they are, then without digits, then without template arguments. Trace files are
    imported into a temporary folder first. Exit code 4 when a run folder holds no traces, 5 when a file can't be used.
    """
    from rich.console import Console

    from agprof.analysis.trace_diff import diff_traces
    from agprof.errors import ConfigError
    from agprof.model.communication_kernels import Communication

    errors = Console(stderr=True, highlight=False)
    with TemporaryDirectory(prefix="agprof-diff-") as scratch:
        sides = [_traces(path, Path(scratch) / str(number), errors) for number, path in enumerate((a, b))]
        try:
            communication = Communication.with_user(_patterns(a) | _patterns(b))
        except re.error as error:
            raise ConfigError(f"a pattern of kernels.communication is no regular expression: {error}") from error
        found = diff_traces(*sides, labels=(str(a), str(b)), communication=communication)
    if as_json:
        _print_json(found, top)
    else:
        _print(found, top or _TOP, Console(highlight=False))


def _traces(path: Path, scratch: Path, errors: "Console") -> "Mapping[int, RankTrace]":
    """The traces of a run folder, or of files, which are imported into `scratch`. Raises StoreError, TraceError."""
    from agprof.cli.reading import is_plain, read_files
    from agprof.errors import StoreError
    from agprof.importers.naming import run_name
    from agprof.store import layout
    from agprof.store.traces import read_traces

    is_run = path.is_dir() and ((path / layout.MANIFEST).exists() or any((path / layout.TRACES).glob("rank-*")))
    if not path.exists():
        raise StoreError(f"{path} is not there; give a run folder, or trace files")
    problems: list[str] = []
    if not is_run:
        read_files([path], scratch, name=run_name([path]), console=errors, plain=is_plain(errors))
    traces = read_traces(path if is_run else scratch, problems)
    for problem in problems:
        errors.print(f"{path}: {problem}", markup=False)
    if not traces:
        raise StoreError(
            f"{path} holds no device traces; capture them with the workload file's `kineto:` key, or import some with "
            "`agprof import`"
        )
    return traces


def _patterns(path: Path) -> dict[str, str]:
    """The run's own libraries of communication kernels; {} of files."""
    from agprof.analysis.run import communication_patterns
    from agprof.store import layout
    from agprof.store.reader import read_run

    return communication_patterns(read_run(path)) if (path / layout.MANIFEST).is_file() else {}


def _print_json(found: "TraceDiff", top: int | None) -> None:
    from dataclasses import replace

    import msgspec

    if top is not None:
        found = replace(found, device=found.device[:top], operators=found.operators[:top])
    print(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())


def _print(found: "TraceDiff", top: int, console: "Console") -> None:
    from rich.text import Text

    from agprof.analysis.trace_diff import milliseconds

    for letter, side in (("A", found.a), ("B", found.b)):
        steps = f", {_counted(side.steps, 'step')}" if found.per == "step" else ""
        mean = f", {milliseconds(side.step_ns)} each" if side.step_ns is not None else ""
        line = f"{letter}  {side.label}: {_counted(side.ranks, 'rank')}{steps}{mean}"
        console.print(Text(line), soft_wrap=True)
    for sentence, rows, title in (
        (found.sentence, found.device, "Device"),
        (found.operator_sentence, found.operators, "Operators, own time on the host"),
    ):
        changed = [row for row in rows if row.state != "same"]
        console.print()
        console.print(Text(sentence))
        if changed:
            console.print(_table(found, changed[:top], title))
        if len(changed) > top:
            console.print(f"{len(changed) - top} more changed; --top {len(changed)} shows all.")


def _counted(number: int, what: str) -> str:
    return f"1 {what}" if number == 1 else f"{number} {what}s"


def _table(found: "TraceDiff", rows: "list[DiffRow]", title: str) -> "Table":
    """At most _WIDTH columns wide. Times in ms and counts per unit."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, width=_WIDTH, padding=(0, 1, 0, 0), title=title, title_justify="left")
    for heading in ("change ms", "A ms", "B ms", "A x", "B x"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("name", no_wrap=True, overflow="ellipsis", ratio=1)
    for row in rows:
        table.add_row(
            Text(f"{row.change_ns / 1e6:+.3f}", style="red" if row.change_ns > 0 else "green"),
            *_amounts(row.sum_a_ns / 1e6 / found.a.units, row.sum_b_ns / 1e6 / found.b.units, row, "{:.3f}"),
            *_amounts(row.count_a / found.a.units, row.count_b / found.b.units, row, "{:.4g}"),
            Text(_label(row)),
        )
    return table


def _amounts(a: float, b: float, row: "DiffRow", how: str) -> tuple[str, str]:
    return "-" if row.state == "appeared" else how.format(a), "-" if row.state == "vanished" else how.format(b)


def _label(row: "DiffRow") -> str:
    """What sets the row apart comes first: the name is cut off at the table's end."""
    from agprof.analysis.trace_diff import short_name

    mark = {"appeared": "new ", "vanished": "gone "}.get(row.state, "")
    if row.similar_name is not None:
        mark = "similar "
    return mark + short_name(row.name, 120)
