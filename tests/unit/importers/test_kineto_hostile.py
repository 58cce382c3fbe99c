"""Damaged and hostile Kineto files: an exact prefix that is said to be one, or a clear error; no wrong figure."""

import gzip
import json
import random
import shutil
import zlib
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from agprof.errors import TraceError
from agprof.importers import kineto_source, kineto_window
from agprof.importers.kineto import import_file
from agprof.store.traces import TraceMeta
from kineto_files import expected_rows, kernel, kineto_text, loaded, only_trace, op, rows_of, unpacked

Rows = dict[str, list[tuple[Any, ...]]]
BASE = {"baseTimeNanoseconds": 1_700_000_000_000_000_000}


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files are cut as large ones are."""
    monkeypatch.setattr(kineto_window, "CHUNK_BYTES", 9_000)
    monkeypatch.setattr(kineto_window, "_BEYOND_BYTES", 512)


def read(folder: Path, data: bytes) -> tuple[TraceMeta, Rows] | None:
    """What a file gives; None when it is refused with one line that names the file, and then nothing is left."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    file = folder / "trace.json"
    file.write_bytes(data)
    try:
        meta = import_file(file, folder / "run", 0)
    except TraceError as error:
        assert str(error).startswith(str(file)) and "\n" not in str(error) and len(str(error)) < 600
        assert not [path for path in (folder / "run").rglob("*") if path.is_file()]
        return None
    return meta, rows_of(only_trace(folder / "run"))


def parsed(data: bytes) -> Any:
    try:
        return loaded(data)
    except (ValueError, RecursionError):
        return None


def prefix_of(whole: Any, meta: TraceMeta, base: int) -> Rows:
    """The rows of as many events as were read."""
    count = sum(meta.events.values())
    return expected_rows({"traceEvents": whole["traceEvents"][:count], "baseTimeNanoseconds": base})


@pytest.fixture(scope="module")
def original(traces_dir: Path) -> bytes:
    """A real trace of 300 events; its base of times stands at the end."""
    return unpacked(traces_dir / "mi250_rocm62.json.gz")


def test_cut_anywhere_a_plain_file_gives_the_events_before(tmp_path: Path, original: bytes) -> None:
    whole, rng, read_some = loaded(original), random.Random(1), 0
    for _ in range(200):
        size = rng.randrange(len(original) - 3)
        found = read(tmp_path, original[:size])
        if found is None:
            assert size < original.index(b'"traceEvents"') + 16
            continue
        meta, rows = found
        assert meta.truncated is not None
        assert rows == prefix_of(whole, meta, base=0)
        assert not meta.events or any("baseTimeNanoseconds" in note for note in meta.notes)
        read_some += 1
    assert read_some > 150


def test_cut_anywhere_a_packed_file_gives_the_events_before(tmp_path: Path, original: bytes) -> None:
    whole, packed, rng = loaded(original), gzip.compress(original), random.Random(2)
    counts = []
    for _ in range(200):
        found = read(tmp_path, packed[: rng.randrange(len(packed))])
        if found is not None:
            meta, rows = found
            assert meta.truncated is not None
            base = whole["baseTimeNanoseconds"] if meta.time_base_ns else 0
            assert rows == prefix_of(whole, meta, base)
            counts.append(sum(meta.events.values()))
    assert len(counts) > 150 and max(counts) > 0.9 * len(whole["traceEvents"])


def test_a_flipped_bit_in_a_plain_file_is_seen_where_json_shows_it(tmp_path: Path, original: bytes) -> None:
    """Broken JSON is an error or a prefix that is said to be one. JSON that stayed whole (another digit, another
    letter of a name) is read as what it now says: no reader can see that."""
    whole, rng, seen = loaded(original), random.Random(3), 0
    for _ in range(200):
        damaged = bytearray(original)
        place = rng.randrange(len(damaged))
        damaged[place] ^= 1 << rng.randrange(8)
        found, now = read(tmp_path, bytes(damaged)), parsed(bytes(damaged))
        if found is None:
            seen += 1
            continue
        meta, rows = found
        if meta.truncated is None:
            assert now is not None
            assert without_names(rows) == without_names(expected_rows(now))
        else:
            seen += 1
            assert now is None or meta.truncated.startswith("what follows")
            assert rows in (prefix_of(whole, meta, base) for base in (0, whole["baseTimeNanoseconds"]))
    assert seen > 50


def without_names(rows: Rows) -> Rows:
    """Control characters in names are replaced in ours, and stay in the other reader's."""
    return {
        table: [tuple(value for value in row if not isinstance(value, str)) for row in found]
        for table, found in rows.items()
    }


def test_a_flipped_bit_in_a_packed_file_is_an_error(tmp_path: Path, original: bytes) -> None:
    rows, packed, rng = expected_rows(loaded(original)), gzip.compress(original, mtime=0), random.Random(4)
    refused = 0
    for _ in range(200):
        damaged = bytearray(packed)
        damaged[rng.randrange(len(packed))] ^= 1 << rng.randrange(8)
        found = read(tmp_path, bytes(damaged))
        if found is None:
            refused += 1
        elif found[0].truncated is None:  # only a byte of the header that says nothing of the data
            assert gzip.decompress(bytes(damaged)) == original and found[1] == rows
        else:
            assert found[1] == prefix_of(loaded(original), found[0], found[0].time_base_ns or 0)
    assert refused > 190


def bomb(blocks: int, begin: bytes = b'{"traceEvents": [') -> bytes:
    """A gzip file that unpacks to so many MiB of blanks, without an end: the same packed block again and again."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    head = packer.compress(begin) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(b" " * 2**20) + packer.flush(zlib.Z_FULL_FLUSH)
    return head + block * blocks


@pytest.mark.parametrize(
    "begin", [b'{"traceEvents": [', b'{"a": "', kineto_text([kernel(1), kernel(2)])[:-60].encode()]
)
def test_a_gzip_bomb_is_refused(tmp_path: Path, begin: bytes) -> None:
    assert read(tmp_path, bomb(10_000, begin)) is None


def test_a_limit_of_ones_own_allows_more_or_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kineto_source, "_RATIO_COUNTS_FROM", 2**20)
    text = kineto_text([kernel(1), kernel(2)]).encode() + b" " * 2**23
    file = tmp_path / "a.json.gz"
    file.write_bytes(gzip.compress(text))
    with pytest.raises(TraceError, match=r"unpack to more than [\d,]+, .*--max-size"):
        import_file(file, tmp_path / "run", 0)
    assert import_file(file, tmp_path / "run", 0, max_unpacked_bytes=2**24).events == {"kernel": 2}
    with pytest.raises(TraceError, match="unpack to more than 1,000"):
        import_file(file, tmp_path / "run", 0, max_unpacked_bytes=1000)


def test_names_are_kept_as_they_are(tmp_path: Path) -> None:
    names = ["<script>alert(1)</script>", "x" * 2**20, '},\n  {\n    "ph": "X"', "\ud800", "é\u2028", "", "a\x00b"]
    found = read(tmp_path, kineto_text([kernel(n, name=name) for n, name in enumerate(names)] + [kernel(50)]).encode())
    assert found is not None and found[0].truncated is None
    assert [row[3] for row in sorted(found[1]["gpu"])][:7] == [*names[:3], "?", *names[4:]]


def test_control_characters_and_broken_utf_8_cost_no_event(tmp_path: Path) -> None:
    text = kineto_text([kernel(n, name=f"k{n}_") for n in range(300)], **BASE).encode()
    text = text.replace(b"k7_", b"k\x01\x1f_").replace(b"k200_", b"k\xff\xfe_").replace(b"k201_", b"k\n_")
    found = read(tmp_path, text)
    assert found is not None and found[0].truncated is None and found[0].left_out == {}
    names = {row[3] for row in found[1]["gpu"]}
    assert len(found[1]["gpu"]) == 300
    assert {"k\ufffd\ufffd_", "k _"} <= names


USELESS = {
    "no time": [kernel("x"), kernel(None), kernel([1]), kernel(10**4000), kernel(2**63), kernel(True)],
    "no duration": [kernel(1, None), kernel(1, "soon"), kernel(1, {"a": 1})],
    "negative duration": [kernel(1, -1), kernel(1.5, -0.001)],
    "impossible duration": [kernel(1, 10**15)],
    "impossible time": [
        kernel(5 * 10**15),
        {"ph": "C", "name": "c", "ts": 9 * 10**15, "args": {"v": 1}},
        {"ph": "i", "name": "[memory]", "ts": 9 * 10**15, "args": {"Bytes": 1}},
    ],
    "no category": [kernel(1) | {"cat": ""}],
    "not an event": [5, None, "x", [1]],
    "no phase": [{}, {"name": "x"}],
    "unknown phase": [{"ph": "Q"}, {"ph": 7}],
}


@pytest.mark.parametrize("reason", USELESS)
def test_what_is_no_use_is_counted_and_left_out(tmp_path: Path, reason: str) -> None:
    events = [kernel(1), *USELESS[reason], kernel(2)]
    found = read(tmp_path, json.dumps(events).encode())
    assert found is not None
    meta, rows = found
    assert meta.left_out == {reason: len(USELESS[reason])}
    assert [row[0] for row in rows["gpu"]] == [1_000, 2_000]


def test_counters_too_large_to_be_true_are_not_sampled(tmp_path: Path) -> None:
    events = [{"ph": "C", "name": "c", "ts": n, "args": {"v": value}} for n, value in enumerate([1, 10**400, -2.5])]
    text = json.dumps([*events, kernel(1)])
    for whole in (text, text.replace('"ts": 2,', '"ts": "2",')):
        found = read(tmp_path, whole.encode())
        assert found is not None and found[0].left_out == {"impossible sample": 1}
        assert only_trace(tmp_path / "run").table("counters", "value").rows() == [(1.0,), (-2.5,)]


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "1e400", "1e19"])
def test_numbers_that_are_none_are_left_out(tmp_path: Path, word: str) -> None:
    text = kineto_text([kernel(1), kernel(777777), kernel(2, 888888), kernel(3)])
    found = read(tmp_path, text.replace("777777", word).replace("888888", word).encode())
    assert found is not None
    assert [row[0] for row in found[1]["gpu"]] == [1_000, 3_000]
    assert found[0].left_out == {"no time": 1, "no duration": 1}


@pytest.mark.parametrize("elements", [-5, 9 * 10**18, 2**62])
def test_sizes_of_collectives_that_cannot_be_are_none(tmp_path: Path, elements: int) -> None:
    """A negative or overflowing number of elements once gave -813,000 TiB a call."""
    args = {"Collective name": "_allgather_base", "In msg nelems": elements, "Out msg nelems": elements,
            "Group size": 10**18, "dtype": "Float"}  # fmt: skip
    found = read(tmp_path / "t", kineto_text([kernel(1.0, 10.0, **args)]).encode())
    assert found is not None
    table = only_trace(tmp_path / "t" / "run").table("comm_args")
    assert table.select("elements_in", "elements_out", "group_size").row(0) == (None, None, None)


def test_odd_types_cost_the_field_and_not_the_event(tmp_path: Path) -> None:
    odd = kernel(5, correlation="9", stream=[1], device={"a": 1}, bytes=1.0) | {"pid": None, "tid": 1.5}
    found = read(tmp_path, kineto_text([odd, op(7) | {"args": 5}, op(8) | {"args": None}]).encode())
    assert found is not None and found[0].left_out == {}
    assert found[1]["gpu"] == [(5_000, 10_000, 0, "gemm", None, None, 9, 3)]
    assert len(found[1]["cpu"]) == 2


def test_of_a_key_written_twice_the_last_counts(tmp_path: Path) -> None:
    text = kineto_text([kernel(1), kernel(2)]).replace('"ts": 2,', '"ts": 2, "ts": 9,')
    found = read(tmp_path, text.encode())
    assert found is not None and [row[0] for row in found[1]["gpu"]] == [1_000, 9_000]


@pytest.mark.parametrize("deep", ["[" * 200_000 + "]" * 200_000, "[" * 200_000])
def test_brackets_that_nest_too_deeply_are_said(tmp_path: Path, deep: str) -> None:
    text = kineto_text([kernel(1), kernel(2, nested=0), kernel(3)]).replace('"nested": 0', f'"nested": {deep}')
    found = read(tmp_path, text.encode())
    assert found is not None and found[0].truncated is not None
    assert [row[0] for row in found[1]["gpu"]] == [1_000]
    assert read(tmp_path, ('{"a": ' + deep + ', "traceEvents": []}').encode()) is None


def test_a_base_that_is_none_is_refused(tmp_path: Path) -> None:
    for base in (-1, 2**62, "soon", 1.5, True):
        assert read(tmp_path, kineto_text([kernel(1), kernel(2)], baseTimeNanoseconds=base).encode()) is None


def test_a_base_far_behind_the_events_is_found(tmp_path: Path) -> None:
    whole = {"traceEvents": [kernel(n) for n in range(50)], "INFO": ["x" * 1000] * 6000} | BASE
    text = json.dumps(whole)
    for data in (text.encode(), gzip.compress(text.encode())):
        found = read(tmp_path, data)
        assert found is not None and found[0].truncated is None
        assert found[1] == expected_rows(whole)


def test_a_control_character_between_values_is_damage(tmp_path: Path) -> None:
    text = kineto_text([kernel(n) for n in range(10)]).replace('"ts": 5', '"ts": \x015')
    found = read(tmp_path, text.encode())
    assert found is not None and found[0].truncated is not None and len(found[1]["gpu"]) == 5


def test_lists_of_objects_inside_events_do_not_mislead(tmp_path: Path) -> None:
    inner = [{"ph": "X", "cat": "kernel", "name": "not one", "ts": 1, "dur": 1, "args": {}}] * 5
    events = [op(n, nested=inner) for n in range(200)]
    for text in (kineto_text(events), json.dumps({"traceEvents": events}), json.dumps(events, separators=(",", ":"))):
        found = read(tmp_path, text.encode())
        assert found is not None and found[0].truncated is None
        assert found[1] == expected_rows(json.loads(json.dumps(events), parse_float=Decimal))


def test_a_second_list_of_events_is_said(tmp_path: Path) -> None:
    text = kineto_text([kernel(1), kernel(2)]).replace('"traceName": "x.json"', '"traceEvents": [{"ph": "X"}]')
    found = read(tmp_path, text.encode())
    assert found is not None and len(found[1]["gpu"]) == 2
    assert any("second list" in note for note in found[0].notes)


def test_text_after_the_end_is_said(tmp_path: Path) -> None:
    for text in (json.dumps([kernel(1), kernel(2)]) + "[", kineto_text([kernel(1), kernel(2)]) + "x"):
        found = read(tmp_path, text.encode())
        assert found is not None and found[0].truncated is not None and len(found[1]["gpu"]) == 2
