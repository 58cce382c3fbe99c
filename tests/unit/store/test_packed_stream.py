"""A node's stream: packed frames on the disk, the rows as before for whoever reads or follows it."""

import os
import random
import zlib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agprof.model.tables import BY_NAME
from agprof.store import columns, layout
from agprof.store.frames import StreamFollower, unread_bytes
from agprof.store.layout import FRAME, PACKED_PREAMBLE, PREAMBLE
from agprof.store.packed_writer import PackedStreamWriter
from agprof.store.reader import read_run
from agprof.store.writer import StreamWriter

HEADER = {"kind": "node", "node": 0}
Record = tuple[str, list[list[Any]]]


def frame(payload: object) -> bytes:
    data = msgspec.msgpack.encode(payload)
    return FRAME.pack(len(data), zlib.crc32(data)) + data


def gpu_row(time_ns: int, gpu: int, generator: random.Random) -> tuple[Any, ...]:
    return (time_ns, gpu, generator.randrange(101) / 100, None, None, generator.randrange(700_000), "instant",
            10**9 + time_ns // 10**6, 1980, 2619, None, 4)  # fmt: skip


def write_samples(writer: StreamWriter, flushes: int, seed: int = 5) -> list[Record]:
    """Write samples of two GPUs and of states in between. Returns (table, rows) as they were appended."""
    generator, written = random.Random(seed), []
    for number in range(flushes):
        rows = {"gpu_samples": [], "sampler_state": []}  # type: dict[str, list[list[Any]]]
        for tick in range(generator.randrange(1, 6)):
            time_ns = (number * 1000 + 200 * tick) * 10**6
            rows["gpu_samples"] += [list(gpu_row(time_ns, gpu, generator)) for gpu in (0, 1)]
        if generator.random() < 0.3:
            text = "é" * generator.randrange(9)
            rows["sampler_state"].append([number, "gpu.0", generator.choice(("ok", "retry")), text, None, None])
        for table, batch in rows.items():
            for row in batch:
                writer.append(table, tuple(row))
            if batch:
                written.append((table, batch))
        writer.flush()
    return written


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[Record]]:
    path = tmp_path_factory.mktemp("stream") / "s.agp"
    writer = PackedStreamWriter(path, HEADER)
    written = write_samples(writer, 80)
    writer.close()
    return path.read_bytes(), written


def read(path: Path) -> tuple[list[Record], StreamFollower]:
    follower = StreamFollower(path)
    return list(follower.poll()), follower


def test_followers_get_the_rows_in_order(tmp_path: Path, stream: tuple[bytes, list[Record]]) -> None:
    data, written = stream
    path = tmp_path / "s.agp"
    path.write_bytes(data)
    got, follower = read(path)
    assert got == written
    assert (follower.header, follower.ended, follower.damage) == (HEADER, "clean", None)
    assert data.startswith(PACKED_PREAMBLE)


def test_truncations_read_as_an_exact_prefix(tmp_path: Path, stream: tuple[bytes, list[Record]]) -> None:
    data, written = stream
    generator, path = random.Random(1), tmp_path / "s.agp"
    seen = set()
    for _ in range(200):
        cut = generator.randrange(len(data))
        path.write_bytes(data[:cut])
        got, follower = read(path)
        assert got == written[: len(got)]
        assert (follower.damage, follower.ended) == (None, None)
        assert unread_bytes(follower) + follower.offset == cut
        seen.add(len(got))
    assert len(seen) > 50


def test_bit_flips_give_no_wrong_record(tmp_path: Path, stream: tuple[bytes, list[Record]]) -> None:
    data, written = stream
    generator, path = random.Random(2), tmp_path / "s.agp"
    for _ in range(200):
        position = generator.randrange(8 * len(PREAMBLE), len(data) * 8)
        flipped = bytearray(data)
        flipped[position // 8] ^= 1 << position % 8
        path.write_bytes(flipped)
        got, follower = read(path)
        assert got == written[: len(got)]
        assert follower.ended is None
        assert follower.damage is not None or unread_bytes(follower) > 0


def test_following_a_growing_file_gives_the_same_as_reading_at_once(
    tmp_path: Path, stream: tuple[bytes, list[Record]]
) -> None:
    data, written = stream
    path = tmp_path / "s.agp"
    follower, got = StreamFollower(path), []
    generator, position = random.Random(3), 0
    while position < len(data):
        position += generator.randrange(1, 200)
        path.write_bytes(data[:position])
        got += list(follower.poll())
    assert got == written
    assert (follower.ended, follower.damage, follower.offset) == ("clean", None, len(data))


@pytest.mark.parametrize("rows_per_part", [7, 65_536])
def test_a_run_reads_the_same_packed_and_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_per_part: int
) -> None:
    monkeypatch.setattr(columns, "_ROWS_PER_PART", rows_per_part)
    runs = []
    for kind in (StreamWriter, PackedStreamWriter):
        run = tmp_path / kind.__name__
        (run / layout.NODES).mkdir(parents=True)
        writer = kind(layout.node_stream(run, 0), HEADER)
        write_samples(writer, 30)
        writer.close()
        runs.append(read_run(run))
    plain, packed = runs
    assert plain.problems == packed.problems
    for name, table in plain.tables.items():
        assert table.equals(packed.tables[name]), name
    assert packed.tables["gpu_samples"].height > 100


def test_rows_that_can_not_be_packed_are_written_as_they_are_and_keep_their_order(tmp_path: Path) -> None:
    path = tmp_path / "s.agp"
    writer = PackedStreamWriter(path, HEADER)
    rows: list[tuple[Any, ...]] = [(1, "a"), (2, "\udcff"), (3,), (4, "b" * 100_000), (2**70, "lost"), (6, "c")]
    for row in rows:
        writer.append("marks", row)
        writer.append("gpus", (1,))
        writer.flush()
    for row in rows:
        writer.append("marks", row)
    writer.close()
    got = [row for table, batch in StreamFollower(path).poll() if table == "marks" for row in batch]
    kept = [[1, "a"], [2, "\\udcff"], [3], [4, "b" * 100_000], [6, "c"]]
    assert got == kept * 2
    assert (writer.lost_rows, writer.rows_written) == (2, 16)


def test_a_disk_that_is_full_for_a_while_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.agp"
    writer = PackedStreamWriter(path, HEADER)
    written = write_samples(writer, 3)
    real = os.write

    def half(descriptor: int, data: bytes) -> int:
        real(descriptor, data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", half)
    written += write_samples(writer, 600, seed=6)
    monkeypatch.setattr(os, "write", real)
    written += write_samples(writer, 3, seed=7)
    writer.close()
    got, follower = read(path)
    assert (follower.damage, follower.ended, writer.lost_rows) == (None, "clean", 0)
    for name in ("gpu_samples", "sampler_state"):
        rows = [row for table, batch in got if table == name for row in batch]
        assert rows == [row for table, batch in written if table == name for row in batch]
    assert writer.rows_written == sum(len(batch) for _, batch in written)


@pytest.mark.parametrize(
    "hostile",
    [
        frame(["packed", b"", b""]),
        frame(["packed", b"x", b""]),
        frame(["packed", "x", "y"]),
        frame(["packed", b""]),
        frame(["packed", b"", b"", b""]),
        frame(["other", b"", b""]),
    ],
)
def test_a_packed_frame_that_can_not_be_unpacked_is_damage_and_what_came_before_is_kept(
    tmp_path: Path, hostile: bytes
) -> None:
    path = tmp_path / "s.agp"
    path.write_bytes(PACKED_PREAMBLE + frame(HEADER) + frame(["marks", [[1]]]) + hostile + frame(["marks", [[2]]]))
    got, follower = read(path)
    assert got == [("marks", [[1]])]
    assert follower.damage is not None
    assert f"at byte {follower.offset}" in follower.damage
    assert list(follower.poll()) == []


def test_a_packed_frame_in_a_stream_of_version_1_is_damage(tmp_path: Path, stream: tuple[bytes, list[Record]]) -> None:
    data, _ = stream
    path = tmp_path / "s.agp"
    path.write_bytes(PREAMBLE + data[len(PREAMBLE) :])
    got, follower = read(path)
    assert got == []
    assert follower.damage is not None


def test_columns_of_a_foreign_number_are_left_out_and_said(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / layout.NODES).mkdir(parents=True)
    writer = PackedStreamWriter(layout.node_stream(run, 0), HEADER)
    width = len(BY_NAME["gpus"].columns)
    for row in ((0, 1), (0, *[None] * (width - 1)), tuple(range(width + 1))):
        writer.append("gpus", row)
        writer.flush()
    writer.append("gpus", (0, *[None] * (width - 2), "text"))
    writer.close()
    found = read_run(run)
    assert found.tables["gpus"]["gpu"].to_list() == [0, 0, 0]
    assert found.problems[1:] == (
        "nodes/node-00000.0.agp: 1 rows of table gpus have a foreign shape; left out",
        "nodes/node-00000.0.agp: 1 values of gpus.uuid are of a foreign type; read as missing",
        "nodes/node-00000.0.agp: 1 values of gpus.numa_node are of a foreign type; read as missing",
    )


def test_packed_rows_take_less_than_a_third_of_the_bytes(tmp_path: Path) -> None:
    sizes = []
    for kind in (StreamWriter, PackedStreamWriter):
        path = tmp_path / kind.__name__
        writer = kind(path, HEADER)
        generator = random.Random(1)
        for second in range(50):
            for tick in range(5):
                time_ns = second * 10**9 + tick * 2 * 10**8 + generator.randrange(10**7)
                for gpu in range(8):
                    writer.append("gpu_samples", gpu_row(time_ns, gpu, generator))
            writer.flush()
        writer.close()
        sizes.append(path.stat().st_size)
    assert sizes[1] < sizes[0] / 3
    assert msgspec.msgpack.encode(HEADER) in path.read_bytes()
