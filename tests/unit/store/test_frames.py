"""Reading a stream: an exact prefix of what was written, whatever happened to the file."""

import random
import zlib
from pathlib import Path

import msgspec
import pytest

from agprof.errors import StoreError
from agprof.store.frames import StreamFollower, unread_bytes
from agprof.store.layout import FRAME, MAGIC, MAX_FRAME_BYTES, PREAMBLE
from agprof.store.writer import StreamWriter

HEADER = {"kind": "rank", "rank": 3}
Record = tuple[str, list[list[object]]]


def frame(payload: object, raw: bytes | None = None) -> bytes:
    data = msgspec.msgpack.encode(payload) if raw is None else raw
    return FRAME.pack(len(data), zlib.crc32(data)) + data


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[Record]]:
    path = tmp_path_factory.mktemp("stream") / "s.agp"
    writer = StreamWriter(path, HEADER)
    generator = random.Random(5)
    for number in range(60):
        for _ in range(generator.randrange(1, 6)):
            row = (number, generator.random(), "é" * generator.randrange(9), None)
            writer.append(generator.choice(("marks", "facts")), row)
        writer.flush()
    writer.close()
    return path.read_bytes(), list(StreamFollower(path).poll())


def read(path: Path) -> tuple[list[Record], StreamFollower]:
    follower = StreamFollower(path)
    return list(follower.poll()), follower


def test_400_truncations_read_as_an_exact_prefix(tmp_path: Path, stream: tuple[bytes, list[Record]]) -> None:
    data, records = stream
    generator, path = random.Random(1), tmp_path / "s.agp"
    seen = set()
    for _ in range(400):
        cut = generator.randrange(len(data))
        path.write_bytes(data[:cut])
        got, follower = read(path)
        assert got == records[: len(got)]
        assert (follower.damage, follower.ended) == (None, None)
        assert unread_bytes(follower) + follower.offset == cut
        # Nothing that is whole is left out: what is unread is shorter than the frame that begins there.
        if follower.offset and cut - follower.offset >= FRAME.size:
            assert cut - follower.offset < FRAME.size + FRAME.unpack_from(data, follower.offset)[0]
        seen.add(len(got))
    assert len(seen) > 50


def test_400_bit_flips_give_no_wrong_record(tmp_path: Path, stream: tuple[bytes, list[Record]]) -> None:
    data, records = stream
    generator, path = random.Random(2), tmp_path / "s.agp"
    for _ in range(400):
        position = generator.randrange(len(data) * 8)
        flipped = bytearray(data)
        flipped[position // 8] ^= 1 << position % 8
        path.write_bytes(flipped)
        follower = StreamFollower(path)
        try:
            got = list(follower.poll())
        except StoreError:
            assert position // 8 < len(PREAMBLE)
            continue
        assert got == records[: len(got)]
        assert position // 8 >= len(PREAMBLE)
        # A flip in a length may look like a frame that is not whole yet; it is never taken for a clean end.
        assert follower.ended is None
        assert follower.damage is not None or unread_bytes(follower) > 0
        assert follower.offset <= position // 8


def test_following_a_growing_file_gives_the_same_as_reading_at_once(
    tmp_path: Path, stream: tuple[bytes, list[Record]]
) -> None:
    data, records = stream
    path = tmp_path / "s.agp"
    follower, got = StreamFollower(path), []
    assert list(follower.poll()) == []
    generator, position = random.Random(3), 0
    while position < len(data):
        position += generator.randrange(1, 200)
        path.write_bytes(data[:position])
        got += list(follower.poll())
    assert got == records
    assert (follower.header, follower.ended, follower.damage, follower.offset) == (HEADER, "clean", None, len(data))


def test_the_header_is_read_without_losing_what_follows(tmp_path: Path, stream: tuple[bytes, list[Record]]) -> None:
    data, records = stream
    path = tmp_path / "s.agp"
    follower = StreamFollower(path)
    assert follower.read_header() is None
    path.write_bytes(data[:20])
    assert follower.read_header() is None
    path.write_bytes(data)
    assert follower.read_header() == HEADER
    assert list(follower.poll()) == records


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04 a zip file", "not an agprof stream"),
        (b"x", "not an agprof stream"),
        (MAGIC + b"\x03", "stream version 3"),
        (MAGIC + b"\x00", "stream version 0"),
    ],
)
def test_a_foreign_or_newer_file_is_a_clear_error(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "s.agp"
    path.write_bytes(content)
    with pytest.raises(StoreError, match=message):
        list(StreamFollower(path).poll())


def test_a_directory_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="can't be read"):
        list(StreamFollower(tmp_path).poll())


@pytest.mark.parametrize(
    "hostile",
    [
        frame(None, b"\x91" * 100_000 + b"\x90"),
        frame(None, b"\xa1\xff"),
        frame(None, b""),
        frame(None, b"\x90\x90"),
        frame([]),
        frame(["marks"]),
        frame(["marks", 5]),
        frame(["marks", [5]]),
        frame([["marks"], [[1]]]),
        frame(["", [[1]]]),
        frame(["end", []]),
        frame(["end", [[1]]]),
        frame({"marks": []}),
        FRAME.pack(MAX_FRAME_BYTES + 1, 0),
        bytes(64),
    ],
)
def test_a_hostile_frame_is_damage_and_what_came_before_is_kept(tmp_path: Path, hostile: bytes) -> None:
    path = tmp_path / "s.agp"
    path.write_bytes(PREAMBLE + frame(HEADER) + frame(["marks", [[1]]]) + hostile + frame(["marks", [[2]]]))
    got, follower = read(path)
    assert got == [("marks", [[1]])]
    assert follower.damage is not None
    assert f"at byte {follower.offset}" in follower.damage
    assert list(follower.poll()) == []


@pytest.mark.parametrize("first", [["marks", [[1]]], {1: 2}, 5])
def test_a_stream_that_does_not_begin_with_a_header_is_damage(tmp_path: Path, first: object) -> None:
    path = tmp_path / "s.agp"
    path.write_bytes(PREAMBLE + frame(first) + frame(["marks", [[2]]]))
    got, follower = read(path)
    assert (got, follower.header) == ([], None)
    assert follower.damage is not None
