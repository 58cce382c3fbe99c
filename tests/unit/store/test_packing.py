"""Packed rows come back: exactly, or as floats with 20 bits. What was not packed by us is an error within limits."""

import math
import random
import tracemalloc
import zlib
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agprof.store import bits, packing
from agprof.store.packing import MAX_UNPACKED_BYTES, Packed, UnpackableError, most_cells, pack
from agprof.store.unpacking import UnpackError, unpack

ENCODER = msgspec.msgpack.Encoder()
DECODER: "msgspec.msgpack.Decoder[Any]" = msgspec.msgpack.Decoder()
RELATIVE_ERROR = 6e-7

INTEGERS = st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(-3, 300), st.integers(10**12, 10**12 + 10**5))
FLOATS = st.one_of(st.floats(), st.integers(0, 100).map(lambda percent: percent / 100), st.just(0.0))
TEXTS = st.sampled_from(["instant", "rank", "", "é\0"]) | st.text(max_size=20)
COLUMN_VALUES = st.sampled_from([INTEGERS, FLOATS, TEXTS, st.booleans(), INTEGERS | FLOATS | TEXTS | st.booleans()])


@st.composite
def tables(draw: st.DrawFn) -> list[tuple[str, list[tuple[Any, ...]]]]:
    """Rows in samples of several rows each, as the sampler takes them, with any values."""
    found = []
    for name in draw(st.lists(st.sampled_from(["gpu_samples", "host_samples", "x"]), min_size=1, unique=True)):
        samples, lag = draw(st.integers(1, 6)), draw(st.integers(1, 5))
        count = samples * lag + draw(st.integers(0, 2))
        columns: list[list[Any]] = [[10**15 + 2 * 10**8 * (row // lag) for row in range(count)]]
        for values in draw(st.lists(COLUMN_VALUES, max_size=4)):
            kind = draw(st.sampled_from(["any", "with missing", "steps", "cycle", "counter", "missing"]))
            if kind == "steps":
                of_sample = draw(st.lists(values, min_size=samples + 1, max_size=samples + 1))
                columns.append([of_sample[min(row // lag, samples)] for row in range(count)])
            elif kind == "cycle":
                of_row = draw(st.lists(values, min_size=lag, max_size=lag))
                columns.append([of_row[row % lag] for row in range(count)])
            elif kind == "counter":
                begin = draw(st.lists(st.integers(-(2**60), 2**60), min_size=lag, max_size=lag))
                columns.append([begin[row % lag] + draw(st.integers(0, 300)) for row in range(count)])
            elif kind == "missing":
                columns.append([None] * count)
            else:
                some = values | st.none() if kind == "with missing" else values
                columns.append(draw(st.lists(some, min_size=count, max_size=count)))
        found.append((name, list(zip(*columns, strict=True))))
    return found


def same(before: Any, after: Any) -> bool:
    if isinstance(before, float) or isinstance(after, float):
        if math.isnan(before):
            return isinstance(after, float) and math.isnan(after)
        return before == after or abs(before - after) <= RELATIVE_ERROR * abs(before)
    return type(before) is type(after) and bool(before == after)


def unpacked(packed: Packed, dictionary: bytes = b"") -> list[tuple[str, list[tuple[Any, ...]]]]:
    found, after = unpack(DECODER, packed.shape, packed.bits, dictionary)
    assert after == packed.dictionary
    return [(name, list(zip(*columns, strict=True))) for name, count, columns in found]


@settings(deadline=None)
@given(tables())
@example([("x", [(1, 2**63 - 1), (2, -(2**63))])])
@example([("x", [(1, float("inf")), (2, -0.0), (3, 1e-300)])])
@example([("x", [(1, 3.4e38), (2, 1e39)])])
@example([("x", [(1, True), (2, 1), (3, 1.0)])])
def test_what_was_packed_comes_back(rows: list[tuple[str, list[tuple[Any, ...]]]]) -> None:
    try:
        packed = pack(ENCODER, rows, b"")
    except UnpackableError:
        # Only so many rows per byte; the writer writes these as they are.
        assert sum(len(table) * len(table[0]) for _, table in rows) > packing.SPARE_CELLS
        return
    got = unpacked(packed)
    assert [(name, len(table)) for name, table in got] == [(name, len(table)) for name, table in rows]
    for (_, before), (_, after) in zip(rows, got, strict=True):
        for row, other in zip(before, after, strict=True):
            assert all(map(same, row, other)), (row, other)


@settings(deadline=None)
@given(st.integers(0, 2**64 - 1), st.data())
def test_planes_of_bits_give_the_numbers_back_in_the_size_that_is_said(highest: int, data: st.DataObject) -> None:
    numbers = [*data.draw(st.lists(st.integers(0, highest), min_size=1, max_size=20)), highest]
    width = max(2, bits.even_bits(highest))
    packed = bits.put(numbers, width)
    assert len(packed) == bits.size(len(numbers), width)
    assert len(packed) <= len(numbers) * width / 8 + 1.5
    assert list(bits.get(packed, len(numbers), width)) == numbers


def test_hundredths_and_whole_numbers_are_exact() -> None:
    values = [percent / 100 for percent in range(101)] + [float(number) for number in range(10**6, 10**6 + 50)]
    rows = [(at, value) for at, value in enumerate(values)]
    assert unpacked(pack(ENCODER, [("x", rows)], b"")) == [("x", rows)]


def noisy(seed: int, rows: int = 40) -> list[tuple[str, list[tuple[Any, ...]]]]:
    generator = random.Random(seed)
    return [("x", [(at, generator.randrange(2**40), generator.random(), "a") for at in range(rows)])]


def test_the_dictionary_of_the_frame_before_makes_shapes_smaller_and_is_needed() -> None:
    first = pack(ENCODER, noisy(1), b"")
    alone, after = pack(ENCODER, noisy(2), b""), pack(ENCODER, noisy(2), first.dictionary)
    assert len(after.shape) < len(alone.shape)
    assert after.bits == alone.bits
    assert unpacked(after, first.dictionary) == unpacked(alone)
    with pytest.raises(UnpackError):
        unpack(DECODER, after.shape, after.bits, b"another")


@pytest.mark.parametrize(
    "rows",
    [
        [(1, 2), (1,)],
        [()],
        [(at, "x" * 10_000) for at in range(200)],
        [(at, "x" * 10_000 + str(at)) for at in range(200)],
        [(1, 2**63), (2, 0)],
        [(1, *range(500))] * 1000,
    ],
    ids=["ragged", "empty", "much text once", "much text", "above 64 bits", "more values than the size allows"],
)
def test_what_is_better_written_as_it_is_is_refused(rows: list[tuple[Any, ...]]) -> None:
    with pytest.raises(UnpackableError):
        pack(ENCODER, [("x", rows)], b"")


def frame(shape: Any) -> bytes:
    return zlib.compress(msgspec.msgpack.encode(shape))


HOSTILE: dict[str, Any] = {
    "no list": 5,
    "no columns": [["x", 3, []]],
    "no name": [["", 3, [[0, 1]]]],
    "no rows": [["x", 0, [[0, 1]]]],
    "rows that are no number": [["x", "3", [[0, 1]]]],
    "rows without end": [["x", 2**62, [[0, 1]]]],
    "many tables": [["x", 1000, [[0, 1]]]] * 50,
    "an unknown kind": [["x", 3, [[99, 1]]]],
    "no kind": [["x", 3, [[]]]],
    "a list as value": [["x", 3, [[0, [1]]]]],
    "much text, repeated": [["x", 1000, [[0, "x" * 2000]]]],
    "fewer values than rows": [["x", 3, [[10, [1]]]]],
    "lists as values": [["x", 2, [[10, [[1], [2]]]]]],
    "no bits": [["x", 3, [[1, 8, 0, 0]]]],
    "an odd width": [["x", 3, [[1, 3, 0, 0]]]],
    "a giant width": [["x", 3, [[1, 2**40, 0, 0]]]],
    "a giant shift": [["x", 3, [[1, 8, 2**40, 0]]]],
    "division by zero": [["x", 3, [[2, 0, [0, 1]]]]],
    "a scale of text": [["x", 3, [[2, "1", [0, 1]]]]],
    "floats from text": [["x", 3, [[3, [0, "1"]]]]],
    "floats of negative bits": [["x", 3, [[3, [0, -1]]]]],
    "differences across all": [["x", 3, [[5, 3, [0, 1], [0, 1]]]]],
    "steps that do not divide": [["x", 3, [[6, 2, [0, 1]]]]],
    "a cycle of none": [["x", 3, [[7, 0, [0, 1]]]]],
    "marks that do not fit": [["x", 3, [[8, b"\xff", [0, 1]]]]],
    "marks of another size": [["x", 3, [[8, b"\x01\x00", [0, 1]]]]],
    "an index outside": [["x", 3, [[9, 1, [0, 1], [10, [0, 0, 1]]]]]],
    "an index from the end": [["x", 3, [[9, 1, [0, 1], [0, -1]]]]],
    "more choices than rows": [["x", 3, [[9, 2**40, [0, 1], [0, 0]]]]],
    "columns without end": [["x", 4, [[6, 1, [6, 1, [6, 1, [6, 1, [6, 1, [6, 1, [6, 1, [6, 1, [6, 1, [0, 1]]]]]]]]]]]]],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_shape_is_an_error(name: str) -> None:
    with pytest.raises(UnpackError):
        unpack(DECODER, frame(HOSTILE[name]), b"", b"")


@pytest.mark.parametrize(
    "compressed",
    [
        zlib.compress(bytes(100 * MAX_UNPACKED_BYTES)),
        frame([["x", 1, [[0, 1]]]])[:-1],
        frame([["x", 1, [[0, 1]]]]) + b"x",
        b"",
        b"\x78\x9c nonsense",
        zlib.compress(b"\x91" * 100_000 + b"\x90"),
    ],
    ids=["a zip bomb", "cut", "with more behind", "empty", "no zlib", "deep"],
)
def test_what_does_not_decompress_within_its_limits_is_an_error_and_takes_little_memory(compressed: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(UnpackError):
            unpack(DECODER, compressed, b"", b"")
        assert tracemalloc.get_traced_memory()[1] < 4 * MAX_UNPACKED_BYTES
    finally:
        tracemalloc.stop()


def test_bits_that_nothing_reads_are_an_error() -> None:
    with pytest.raises(UnpackError, match="more bits"):
        unpack(DECODER, frame([["x", 3, [[0, 1]]]]), b"\0", b"")


def test_values_per_byte_are_bounded() -> None:
    bits_of_two = b"\0" * 100
    shape = frame([["x", 400, [[1, 2, 0, 0], *[[0, 1]] * 3]]])
    assert most_cells(len(shape) + 100) >= 1600
    (table,), _ = unpack(DECODER, shape, bits_of_two, b"")
    assert table[1] == 400
    bomb = frame([["x", 400, [[1, 2, 0, 0], *[[0, 1]] * 30]]])
    with pytest.raises(UnpackError, match="more values"):
        unpack(DECODER, bomb, bits_of_two, b"")


@settings(deadline=None)
@given(st.binary(max_size=60), st.binary(max_size=60))
def test_any_bytes_are_an_error_or_a_table_of_the_said_size(shape: bytes, noise: bytes) -> None:
    for compressed in (shape, zlib.compress(shape)):
        try:
            found, _ = unpack(DECODER, compressed, noise, b"")
        except UnpackError:
            continue
        assert all(len(column) == count for _, count, columns in found for column in columns)


def test_flipped_bytes_in_a_shape_raise_nothing_else() -> None:
    packed = pack(ENCODER, noisy(3), b"")
    shape = zlib.decompressobj(zdict=b"").decompress(packed.shape)
    generator = random.Random(4)
    for _ in range(2000):
        data = bytearray(shape)
        for _ in range(generator.randrange(1, 3)):
            data[generator.randrange(len(data))] = generator.randrange(256)
        try:
            found, _ = unpack(DECODER, zlib.compress(bytes(data)), packed.bits, b"")
        except UnpackError:
            continue
        assert all(len(column) == count for _, count, columns in found for column in columns)
