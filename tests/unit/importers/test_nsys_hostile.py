"""Damaged and hostile SQLite exports: a clear error, or what is there with what was left out counted."""

import gzip
import random
import shutil
import sqlite3
from pathlib import Path

import pytest
from nsys_exports import kernel, nvtx, strings, write_export

from agprof.errors import TraceError
from agprof.importers import nsys
from agprof.store.traces import read_traces

Figures = dict[int, tuple[int, int, int, int]]


@pytest.fixture(scope="module")
def reference(traces_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A smaller export with all its tables: the reference's, with 300 rows each."""
    file = tmp_path_factory.mktemp("reference") / "x.sqlite"
    with gzip.open(traces_dir / "nsys_h100_2gpu_1s.sqlite.gz") as packed, file.open("wb") as out:
        shutil.copyfileobj(packed, out)
    with sqlite3.connect(file) as connection:
        for base in ("KERNEL", "MEMCPY", "RUNTIME", "OVERHEAD"):
            connection.execute(f"DELETE FROM CUPTI_ACTIVITY_KIND_{base} WHERE rowid > 300")
        connection.execute("DELETE FROM NVTX_EVENTS WHERE rowid > 300")
    connection = sqlite3.connect(file)
    connection.execute("VACUUM")
    connection.close()
    return file.read_bytes()


def figures(file: Path, run: Path) -> tuple[Figures, bool]:
    """Counts and sums by rank, and whether anything is said to be wrong."""
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir()
    head = nsys.peek(file)
    count = len(head.ranks)
    nsys.import_file(file, run, head, list(range(count)), rank_sources=["test"] * count)
    traces = read_traces(run)
    found = {}
    for rank, trace in traces.items():
        gpu, cpu = trace.table("gpu")["duration_ns"], trace.table("cpu")["duration_ns"]
        found[rank] = (len(gpu), int(gpu.sum()), len(cpu), int(cpu.sum()))
    return found, any(trace.meta.left_out or trace.meta.notes for trace in traces.values())


def test_a_file_that_is_cut_anywhere_is_refused(tmp_path: Path, reference: bytes) -> None:
    file = tmp_path / "x.sqlite"
    chance = random.Random(1)
    for _ in range(200):
        file.write_bytes(reference[: chance.randrange(len(reference))])
        with pytest.raises(TraceError, match=r"cut short|no SQLite file"):
            nsys.peek(file)


def test_a_flipped_bit_is_refused_or_said_or_moves_one_row_only(tmp_path: Path, reference: bytes) -> None:
    """SQLite keeps no checksums, so the low bits of one number can change unseen: one row of one rank, never more."""
    file = tmp_path / "x.sqlite"
    file.write_bytes(reference)
    whole, _ = figures(file, tmp_path / "run")
    chance = random.Random(2)
    unseen = 0
    for _ in range(200):
        damaged = bytearray(reference)
        damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        file.write_bytes(damaged)
        try:
            found, said = figures(file, tmp_path / "run")
        except TraceError as error:
            assert str(file) in str(error)
            continue
        if found == whole or said:
            continue
        unseen += 1
        assert set(found) == set(whole)
        changed = {rank: tuple(b - a for a, b in zip(whole[rank], found[rank], strict=True)) for rank in whole}
        assert sum(any(difference) for difference in changed.values()) == 1
        assert all(abs(gpu) <= 1 and abs(cpu) <= 1 for gpu, _, cpu, _ in changed.values())
    assert unseen <= 20


def test_views_and_virtual_tables_of_the_file_are_not_used(tmp_path: Path) -> None:
    file = write_export(
        tmp_path / "x.sqlite", {"StringIds": strings("k"), "CUPTI_ACTIVITY_KIND_KERNEL": [kernel(0, 5, 1)]}
    )
    endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x AS start FROM n"
    connection = sqlite3.connect(file)
    connection.execute(f"CREATE VIEW NVTX_EVENTS AS {endless}")
    connection.commit()
    connection.close()
    found, _ = figures(file, tmp_path / "run")
    assert found == {0: (1, 5, 0, 0)}


def test_hostile_names(tmp_path: Path) -> None:
    names = ["<script>alert(1)</script>", "x" * 10**6, "a\x00b\x1b[31m\u202e", "aéü"]
    rows = [nvtx(number * 10, number * 10 + 5, name) for number, name in enumerate(names)]
    file = write_export(tmp_path / "x.sqlite", {"NVTX_EVENTS": rows})
    figures(file, tmp_path / "run")
    assert set(read_traces(tmp_path / "run")[0].names().values()) == set(names)


def test_text_that_is_no_utf8(tmp_path: Path) -> None:
    file = write_export(tmp_path / "x.sqlite", {"NVTX_EVENTS": [nvtx(0, 5, "a")]})
    connection = sqlite3.connect(file)
    connection.execute("UPDATE NVTX_EVENTS SET text = CAST(x'61ff62' AS TEXT)")
    connection.commit()
    connection.close()
    figures(file, tmp_path / "run")
    assert list(read_traces(tmp_path / "run")[0].names().values()) == ["a�b"]


def test_extreme_numbers(tmp_path: Path) -> None:
    most = 2**63 - 1
    rows = [kernel(0, 5, 1), kernel(-most, most, 1), kernel(most, most, 1), kernel(0, 60 * 86_400 * 10**9, 1)]
    strange = kernel(0, 5, most, correlation=-1) | {"streamId": most}
    file = write_export(
        tmp_path / "x.sqlite", {"StringIds": strings("k"), "CUPTI_ACTIVITY_KIND_KERNEL": [*rows, strange]}
    )
    found, said = figures(file, tmp_path / "run")
    assert (found, said) == ({0: (2, 10, 0, 0)}, True)


@pytest.mark.parametrize(
    "content", [b"", b"SQLite format 3\x00", b"SQLite format 3\x00" + b"\xff" * 200, b"\x00" * 4096]
)
def test_what_is_no_database(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.sqlite"
    file.write_bytes(content)
    with pytest.raises(TraceError, match="export it again"):
        nsys.peek(file)


def test_a_folder_is_no_database(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="can't be read"):
        nsys.peek(tmp_path)


def test_a_table_without_its_most_important_columns(tmp_path: Path) -> None:
    file = write_export(tmp_path / "x.sqlite", {"CUPTI_ACTIVITY_KIND_KERNEL": [{"deviceId": 0, "start": 1}]})
    with pytest.raises(TraceError, match=r"none of its events can be used: \{'no time': 1\}"):
        figures(file, tmp_path / "run")
