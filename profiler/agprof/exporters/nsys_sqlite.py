"""SQLite in the shape of `nsys export --type sqlite`, so that `nsys stats` and tools built on it answer of our spans.

Beside a report of the same name and newer than it, the file is what `nsys stats REPORT` reads (docs/nsight.md). What a
report made from NVTXT lacks is here: domains, categories and payloads; kernels are CUPTI rows.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from itertools import repeat
from pathlib import Path
from typing import Any

import polars as pl

from agprof.exporters.clocks import clocks
from agprof.exporters.lane_sources import OWN, TRACE
from agprof.exporters.lanes import COLOURS, Process, colour, epoch_ns, processes
from agprof.exporters.nsys_cupti import add_device_rows
from agprof.exporters.nsys_tables import ENUMS, TABLES, TABLES_WE_FILL, Names
from agprof.exporters.nvtxt import Say
from agprof.exporters.pace import Pace
from agprof.exporters.whole import whole
from agprof.model.version import __version__
from agprof.store.reader import Run

SUFFIX = ".sqlite"
PUSHPOP, MARK, CATEGORY, DOMAIN = 59, 34, 33, 75
"""Event types of NVTX_EVENTS."""
_VM = 1 << 48
_IN_CUPTI = pl.col("category").is_in(["kernel", "memory", "runtime"])
"""Of a device trace: what nsys has tables of its own for."""
CATEGORIES = {name: number for number, name in enumerate(COLOURS, start=1)}
_OWN_COLUMNS = "start, end, eventType, category, color, globalTid, textId, domainId, int64Value"


def write(run: Run, file: Path, say: Say) -> None:
    """A new database of the whole run. Raises OSError."""
    epoch = epoch_ns(run)
    with _replacing(file) as database:
        for table in TABLES:
            database.execute(table)
        _describe(database, epoch)
        for name, rows in ENUMS.items():
            database.executemany(f"INSERT INTO {name} VALUES (?, ?, ?)", rows)
        last = _add(database, run, epoch, say, file.name, domain="", only=None)
        database.execute("INSERT INTO ANALYSIS_DETAILS VALUES (?, ?, 0, ?)", (_VM, last, last))


def extend(run: Run, file: Path, say: Say, *, rank: int, epoch: int, domain: str) -> None:
    """Add what agprof measured on a rank to a database that nsys exported.

    `domain` stands before the names of our domains, so that they are not counted together with what nsys captured of
    the same run. Raises OSError.
    """
    with closing(_connect(file)) as database, database:
        for table in TABLES_WE_FILL:
            database.execute(table)
        _add(database, run, epoch, say, file.name, domain=domain, only=rank)


def category_id(name: str) -> int:
    return CATEGORIES.get(name, CATEGORIES["other"])


def session_start_ns(file: Path) -> int | None:
    """Wall time of time 0 of a database that nsys exported; None when it does not say."""
    try:
        with closing(sqlite3.connect(file)) as database:
            row = database.execute("SELECT utcEpochNs FROM TARGET_INFO_SESSION_START_TIME").fetchone()
    except sqlite3.Error:
        return None
    return row[0] if row and isinstance(row[0], int) else None


def _connect(file: Path) -> sqlite3.Connection:
    database = sqlite3.connect(file)
    database.execute("PRAGMA journal_mode = OFF")
    database.execute("PRAGMA synchronous = OFF")
    return database


@contextmanager
def _replacing(file: Path) -> Iterator[sqlite3.Connection]:
    """A database that takes its name only when it is whole. SQLite's own errors of a full disk become OSError."""
    try:
        with whole(file) as place, closing(_connect(place)) as database, database:
            yield database
    except sqlite3.OperationalError as error:
        raise OSError(f"{file.name}: {error}") from error


def _describe(database: sqlite3.Connection, epoch: int) -> None:
    start = datetime.fromtimestamp(epoch // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    database.execute("INSERT INTO TARGET_INFO_SESSION_START_TIME VALUES (?, ?, ?)", (epoch, start, start))
    about = [
        ("EXPORT_PRODUCT_NAME", "agprof"),
        ("EXPORT_PRODUCT_VERSION", __version__),
        ("EXPORT_SCHEMA_VERSION", "3.0.0"),
    ]
    # Nsight renamed the table in 2023; both are read.
    for table in ("EXPORT_META_DATA", "META_DATA_EXPORT"):
        database.executemany(f"INSERT INTO {table} VALUES (?, ?)", about)


def _add(
    database: sqlite3.Connection, run: Run, epoch: int, say: Say, label: str, *, domain: str, only: int | None
) -> int:
    """Returns the last time written."""
    names = Names(database)
    clock = clocks(run.streams)
    pace = Pace(say, f"{label}: ranges written:")
    last = 0
    for process in processes(run, trace=only is None):
        if only is None or process.rank == only:
            last = max(last, _add_process(database, process, names, epoch, domain, pace))
            if only is None and process.rank in run.traces:
                shift = clock.of_rank(process.rank) - epoch
                add_device_rows(database, run.traces[process.rank], names, shift, _VM | process.pid << 24)
    return last


def _add_process(
    database: sqlite3.Connection, process: Process, names: Names, epoch: int, domain: str, pace: Pace
) -> int:
    process_id = _VM | process.pid << 24
    database.execute(
        "INSERT INTO PROCESSES (globalPid, pid, name) VALUES (?, ?, ?)", (process_id, process.pid, process.name)
    )
    domains: dict[str, int] = {}
    last = 0
    for lane in process.lanes:
        spans = lane.spans.filter(pl.col("start_ns") >= epoch).with_columns(
            pl.col("start_ns") - epoch, pl.col("end_ns") - epoch
        )
        if not spans.height:
            continue
        last = max(last, int(spans["end_ns"].max()))  # type: ignore[arg-type]
        thread = process_id | lane.thread
        database.execute(
            "INSERT INTO ThreadNames (nameId, priority, globalTid) VALUES (?, 0, ?)", (names.id(lane.name), thread)
        )
        number = domains.setdefault(domain + lane.domain, len(domains) + 1)
        _add_ranges(database, spans.filter(~_IN_CUPTI) if lane.domain == TRACE else spans, names, thread, number, pace)
    _add_marks(database, process, names, epoch, domains.setdefault(domain + OWN, len(domains) + 1))
    _add_domains(database, domains, process_id)
    return last


def _add_ranges(
    database: sqlite3.Connection, spans: pl.DataFrame, names: Names, thread: int, domain: int, pace: Pace
) -> None:
    categories = spans["category"].to_list()
    rows = zip(
        spans["start_ns"].to_list(),
        spans["end_ns"].to_list(),
        repeat(PUSHPOP),
        map(category_id, categories),
        map(colour, categories),
        repeat(thread),
        map(names.id, spans["name"].to_list()),
        repeat(domain),
        spans["payload"].to_list(),
        strict=False,
    )
    _insert(database, "NVTX_EVENTS", _OWN_COLUMNS, pace.over(rows))


def _add_marks(database: sqlite3.Connection, process: Process, names: Names, epoch: int, domain: int) -> None:
    category, thread = category_id("mark"), _VM | process.pid << 24 | process.marks_thread
    rows = (
        (time_ns - epoch, None, MARK, category, colour("mark"), thread, names.id(name), domain, step)
        for name, time_ns, step in process.marks.select("name", "time_ns", "payload").iter_rows()
        if time_ns >= epoch
    )
    _insert(database, "NVTX_EVENTS", _OWN_COLUMNS, rows)


def _add_domains(database: sqlite3.Connection, domains: Mapping[str, int], process_id: int) -> None:
    """Names of the domains, and of the categories in each, as NVTX tells them: per process."""
    rows: list[Sequence[Any]] = []
    for text, number in domains.items():
        rows.append((0, DOMAIN, None, text, process_id, number))
        rows += [(0, CATEGORY, category_id(name), name, process_id, number) for name in CATEGORIES]
    _insert(database, "NVTX_EVENTS", "start, eventType, category, text, globalTid, domainId", rows)


def _insert(database: sqlite3.Connection, table: str, columns: str, rows: Iterable[Sequence[Any]]) -> None:
    marks = ", ".join("?" * (columns.count(",") + 1))
    database.executemany(f"INSERT INTO {table} ({columns}) VALUES ({marks})", rows)
