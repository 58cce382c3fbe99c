"""A run of our own that was exported and imported again is the same run: steps, micro-steps, spans, collectives."""

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from agprof.exporters import chrome, nsys_sqlite
from agprof.importers.folder import import_files
from agprof.store.reader import Run, read_run
from synthetic import build_run

COLUMNS = {
    "steps": ["rank", "step", "start_ns", "end_ns", "micro_steps"],
    "spans": ["rank", "step", "category", "name", "start_ns", "end_ns", "depth"],
    "collectives": ["rank", "step", "op", "start_ns", "issue_end_ns", "caller"],
}


def rows(run: Run, table: str) -> list[tuple[object, ...]]:
    """In wall time: monotonic clocks differ."""
    shift = {s.number: s.header["clock"]["realtime_ns"] - s.header["clock"]["monotonic_ns"]
             for s in run.streams if s.scope == "rank"}  # fmt: skip
    frame = run.tables[table].select(COLUMNS[table])
    offset = pl.col("rank").replace_strict(shift)
    return sorted(frame.with_columns(pl.col("^.*_ns$") + offset).rows())


def by_chrome(run: Run, folder: Path) -> Path:
    chrome.export(run, folder, lambda line: None)
    return folder


def by_sqlite(run: Run, folder: Path) -> Path:
    nsys_sqlite.write(run, folder / "run.sqlite", lambda line: None)
    return folder / "run.sqlite"


@pytest.mark.parametrize("export", [by_chrome, by_sqlite])
@pytest.mark.parametrize("table", COLUMNS)
def test_what_was_exported_comes_back(tmp_path: Path, export: Callable[[Run, Path], Path], table: str) -> None:
    run = read_run(build_run(tmp_path / "run"))
    (tmp_path / "out").mkdir()
    again = read_run(
        import_files([export(run, tmp_path / "out")], tmp_path / "again", name="x", export_report=_no_nsys)
    )
    assert rows(run, table)
    assert rows(again, table) == rows(run, table)


def _no_nsys(report: Path, target: Path) -> Path:
    raise AssertionError
