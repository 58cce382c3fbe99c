"""A run folder read into tables: the declared columns, and a sentence for whatever can't be read."""

import json
import os
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agprof.errors import StoreError
from agprof.model.tables import BY_NAME, SCHEMA_VERSION, TABLES, Column, Table
from agprof.store import columns, layout
from agprof.store.frames import StreamFollower
from agprof.store.reader import read_run, schema
from agprof.store.writer import StreamWriter

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "int": st.integers(-(2**63), 2**63 - 1),
    "float": st.floats(allow_nan=False),
    "str": st.text(),
    "bool": st.booleans(),
}


def row_strategy(table: Table) -> st.SearchStrategy[tuple[Any, ...]]:
    def values(column: Column) -> st.SearchStrategy[Any]:
        return VALUES[column.type] | st.none() if column.optional else VALUES[column.type]

    return st.tuples(*(values(column) for column in table.columns))


def folder(path: Path, manifest: dict[str, Any] | None = None) -> Path:
    for name in (layout.RANKS, layout.NODES):
        (path / name).mkdir(parents=True)
    (path / layout.MANIFEST).write_text(json.dumps({"schema_version": SCHEMA_VERSION} | (manifest or {})))
    return path


def write(run: Path, scope: str, number: int, rows: list[tuple[str, Any]], attempt: int = 0, **header: Any) -> Path:
    place = layout.rank_stream if scope == "rank" else layout.node_stream
    writer = StreamWriter(place(run, number, attempt), {"kind": scope, scope: number, **header})
    for table, row in rows:
        writer.append(table, row)
    writer.close()
    return writer.path


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_random_rows_of_every_table_come_back(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    run = folder(tmp_path_factory.mktemp("run") / "r")
    table = data.draw(st.sampled_from(TABLES))
    rows = data.draw(st.lists(row_strategy(table), max_size=8))
    write(run, table.scope, 7, [(table.name, row) for row in rows])
    found = read_run(run)
    assert found.problems == ()
    assert found.tables[table.name].rows() == [(7, *row) for row in rows]
    for each in TABLES:
        assert dict(found.tables[each.name].schema) == schema(each)


def test_rows_converted_in_parts_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "_ROWS_PER_PART", 10)
    run = folder(tmp_path / "r")
    rows = [(number, number, "user", str(number)) for number in range(95)]
    write(run, "rank", 1, [("marks", row) for row in rows])
    assert read_run(run).tables["marks"].rows() == [(1, *row) for row in rows]


def test_values_of_a_foreign_type_are_missing_and_never_wrong_numbers(tmp_path: Path) -> None:
    run = folder(tmp_path / "r")
    rows = [(1, 0, "user", "a"), (2.5, "1", 3, b"x"), (2**63, 4.0, None, "b"), ([1], True, {}, "c")]
    write(run, "rank", 0, [("marks", row) for row in rows] + [("marks", (1, 2)), ("marks", ())])
    found = read_run(run)
    assert found.tables["marks"].rows() == [
        (0, 1, 0, "user", "a"),
        (0, None, None, None, None),
        (0, None, 4, None, "b"),
        (0, None, None, None, "c"),
    ]
    text = "\n".join(found.problems)
    assert "2 rows of table marks have a foreign shape" in text
    assert "3 values of marks.time_ns are of a foreign type" in text


def test_only_rows_of_a_foreign_shape_leave_the_table_empty(tmp_path: Path) -> None:
    run = folder(tmp_path / "r")
    write(run, "rank", 0, [("marks", (1,))])
    assert read_run(run).tables["marks"].height == 0


def test_rows_of_an_older_agprof_lack_the_optional_columns_at_the_end(tmp_path: Path) -> None:
    run = folder(tmp_path / "r")
    old, new = (0, 1, 2, 1, None, 4, 64, False), (1, 2, 3, 1, None, 4, 64, False, 60)
    write(run, "rank", 0, [("steps", old), ("steps", new), ("steps", old[:-1]), ("steps", (*new, 1))])
    found = read_run(run)
    assert found.tables["steps"].rows() == [(0, *old, None), (0, *new)]
    assert [text for text in found.problems if "steps" in text] == [
        "ranks/rank-00000.0.agp: 2 rows of table steps have a foreign shape; left out"
    ]


def test_unknown_tables_and_tables_of_the_other_scope_are_said(tmp_path: Path) -> None:
    run = folder(tmp_path / "r")
    write(run, "rank", 0, [("of_the_future", (1,)), ("gpus", (0, *[None] * 6))])
    text = "\n".join(read_run(run).problems)
    assert "1 rows of unknown table 'of_the_future'" in text
    assert "1 rows of table gpus of a node" in text


def test_a_killed_rank_and_a_damaged_one_keep_what_came_before(tmp_path: Path) -> None:
    run = folder(tmp_path / "r")
    torn = write(run, "rank", 0, [("marks", (1, 0, "user", "a"))])
    torn.write_bytes(torn.read_bytes()[:-3])
    flipped = write(run, "rank", 1, [("marks", (2, 0, "user", "a"))])
    data = bytearray(flipped.read_bytes())
    data[-1] ^= 1
    flipped.write_bytes(data)
    found = read_run(run)
    assert [stream.ended for stream in found.streams] == [None, None]
    assert found.streams[0].unread_bytes > 0
    assert found.tables["marks"]["time_ns"].to_list() == [1, 2]
    assert len(found.problems) == 1
    assert "ranks/rank-00001.0.agp: checksum mismatch" in found.problems[0]


def test_attempts_are_in_the_order_they_were_made(tmp_path: Path) -> None:
    run = folder(tmp_path / "r")
    for attempt in (10, 2, 0):
        write(run, "rank", 0, [], attempt=attempt)
    assert [stream.attempt for stream in read_run(run).streams] == [0, 2, 10]


@pytest.mark.parametrize("content", [b"", layout.PREAMBLE, layout.PREAMBLE + b"\x05\x00"])
def test_a_stream_without_a_header_is_a_sentence(tmp_path: Path, content: bytes) -> None:
    run = folder(tmp_path / "r")
    layout.rank_stream(run, 0).write_bytes(content)
    found = read_run(run)
    assert found.streams == ()
    assert found.problems == ("ranks/rank-00000.0.agp has no readable header: its writer died as it began; left out",)


def test_foreign_files_pipes_and_newer_streams_are_sentences(tmp_path: Path) -> None:
    run = folder(tmp_path / "r")
    layout.rank_stream(run, 0).write_bytes(b"PK\x03\x04")
    layout.rank_stream(run, 1).write_bytes(layout.MAGIC + b"\x09")
    os.mkfifo(layout.rank_stream(run, 2))
    (run / layout.RANKS / "notes.agp").write_bytes(b"")
    write(run, "rank", 3, [], schema_version=SCHEMA_VERSION + 1)
    write(run, "rank", 4, [], schema_version="1")
    StreamWriter(layout.rank_stream(run, 5), {"kind": "rank", "rank": "five"}).close()
    found = read_run(run)
    assert found.streams == ()
    text = "\n".join(found.problems)
    for part in ("not an agprof stream", "stream version 9", "rank-00002.0.agp is not a stream", "notes.agp",
                 f"schema version {SCHEMA_VERSION + 1}", "schema version '1'", "which rank it is of"):  # fmt: skip
        assert part in text


@pytest.mark.parametrize("version", [SCHEMA_VERSION + 1, "2", None, 0])
def test_a_run_of_another_version_is_refused(tmp_path: Path, version: object) -> None:
    with pytest.raises(StoreError, match="schema version"):
        read_run(folder(tmp_path / "r", {"schema_version": version}))


def test_what_is_no_run_folder_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(StoreError, match="is not a run folder"):
            read_run(path)


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000, "\xff"])
def test_a_manifest_that_can_not_be_read_is_one_sentence(tmp_path: Path, text: str) -> None:
    run = folder(tmp_path / "r")
    write(run, "rank", 0, [("marks", (1, 0, "user", "a"))])
    (run / layout.MANIFEST).write_text(text, encoding="latin-1")
    found = read_run(run)
    assert found.tables["marks"].height == 1
    assert len(found.problems) == 1


def test_following_gives_the_rows_that_reading_gives(tmp_path: Path) -> None:
    run = folder(tmp_path / "r")
    path = write(run, "node", 0, [("gpus", (n, *["x"] * 3, n, n, "y")) for n in range(20)])
    followed = [tuple(row) for _, batch in StreamFollower(path).poll() for row in batch]
    table = read_run(run).tables["gpus"]
    assert isinstance(table, pl.DataFrame)
    # Rows of an earlier recording lack the columns that came later; those are missing.
    later = (None,) * (len(BY_NAME["gpus"].columns) - 7)
    rows = table.select(column.name for column in BY_NAME["gpus"].columns).rows()
    assert rows == [row + later for row in followed]
