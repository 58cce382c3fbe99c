"""The writer: what is appended is on disk or counted as lost, and nothing raises into the caller."""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from agprof.store import writer as writer_module
from agprof.store.frames import StreamFollower
from agprof.store.writer import StreamWriter

HEADER = {"kind": "rank", "rank": 0}


def rows_of(path: Path, table: str = "marks") -> list[list[object]]:
    follower = StreamFollower(path)
    rows = [row for name, batch in follower.poll() if name == table for row in batch]
    assert follower.damage is None
    return rows


def test_rows_come_back_in_order_and_the_end_is_marked(tmp_path: Path) -> None:
    writer = StreamWriter(tmp_path / "s.agp", HEADER)
    for number in range(10_000):
        writer.append("marks", (number, 0, "user", "x"))
    writer.close("clean")
    writer.close("again")
    follower = StreamFollower(tmp_path / "s.agp")
    rows = [row for _, batch in follower.poll() for row in batch]
    assert [row[0] for row in rows] == list(range(10_000))
    assert (follower.header, follower.ended, writer.rows_written, writer.lost_rows) == (HEADER, "clean", 10_000, 0)


def test_rows_that_threads_append_during_flushes_are_all_written_once(tmp_path: Path) -> None:
    writer = StreamWriter(tmp_path / "s.agp", HEADER, flush_period_s=0.001)
    writer.start()

    def work(thread: int) -> None:
        append = writer.rows("marks")
        for number in range(5_000):
            append((number, thread, "user", "x"))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close()
    rows = rows_of(tmp_path / "s.agp")
    for thread in range(4):
        assert [row[0] for row in rows if row[1] == thread] == list(range(5_000))


@pytest.mark.parametrize("fault", ["error", "short"])
def test_a_disk_that_fails_at_any_write_loses_nothing_that_fits_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    real = os.write
    for failing in range(2, 14):
        calls = 0

        def write(fd: int, data: bytes, failing: int = failing) -> int:
            nonlocal calls
            calls += 1
            if calls == failing and fault == "short":
                return real(fd, data[: len(data) // 2])  # a torn frame, and the rest fails at the next call
            if failing <= calls <= failing + 2:
                raise OSError(28, "No space left on device")
            return real(fd, data)

        path = tmp_path / f"{failing}.agp"
        monkeypatch.setattr(writer_module.os, "write", write)
        writer = StreamWriter(path, HEADER)
        for number in range(20):
            writer.append("marks", (number, 0, "user", "x" * 50))
            writer.flush()
        writer.close()
        monkeypatch.undo()
        assert [row[0] for row in rows_of(path)] == list(range(20))
        assert writer.lost_rows == 0


def test_rows_beyond_the_memory_bound_are_lost_oldest_first_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "MAX_PENDING_ROWS", 100)
    path = tmp_path / "s.agp"
    writer = StreamWriter(path, HEADER)
    size = path.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, hard))
    try:
        for number in range(250):
            writer.append("marks", (number, 0, "user", "x"))
            if number % 50 == 49:
                writer.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    writer.append("marks", (250, 0, "user", "x"))
    writer.close()
    rows = rows_of(path)
    assert [row[0] for row in rows] == list(range(150, 251))
    assert writer.lost_rows == 150


def test_lost_rows_are_reported_in_the_stream(tmp_path: Path) -> None:
    writer = StreamWriter(tmp_path / "s.agp", HEADER)
    writer.start()
    writer.append("marks", (1, 0, "user", object()))
    writer.close()
    assert [row[4] for row in rows_of(tmp_path / "s.agp", "cost")] == [1]


def test_a_header_that_can_not_be_written_raises_and_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer_module.os, "write", write)
    with pytest.raises(OSError, match="No space left"):
        StreamWriter(tmp_path / "s.agp", HEADER)
    assert list(tmp_path.iterdir()) == []


def test_an_odd_header_is_written_as_text(tmp_path: Path) -> None:
    StreamWriter(tmp_path / "s.agp", {"argv": ["a\udcff", 2**70], "where": tmp_path, 5: {"x": None}}).close()
    assert StreamFollower(tmp_path / "s.agp").read_header() == {
        "argv": ["a\\udcff", str(2**70)],
        "where": str(tmp_path),
        "5": {"x": None},
    }


def test_an_existing_stream_is_never_written_over(tmp_path: Path) -> None:
    StreamWriter(tmp_path / "s.agp", HEADER).close()
    with pytest.raises(FileExistsError):
        StreamWriter(tmp_path / "s.agp", HEADER)


def test_odd_values_are_converted_or_dropped_and_spare_their_batch(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    writer = StreamWriter(tmp_path / "s.agp", HEADER)
    kept = [
        (numpy.int64(7), 7),
        (numpy.float32(0.5), 0.5),
        (numpy.bool_(True), True),
        (numpy.str_("n"), "n"),
        (type("Sub", (str,), {})("sub"), "sub"),
        (type("Sub", (int,), {})(5), 5),
        ("a\ud800b", "a\\ud800b"),
        (float("inf"), float("inf")),
        (2**63, 2**63),
    ]
    dropped = [2**64, -(2**63) - 1, object(), numpy.array([1, 2]), 1j]
    for value, _ in kept:
        writer.append("marks", (value,))
    for value in dropped:
        writer.append("marks", (value,))
    writer.append("marks", 5)  # type: ignore[arg-type]
    writer.append("marks", (float("nan"),))
    writer.append("marks", ("last",))
    writer.close()
    values = [row[0] for row in rows_of(tmp_path / "s.agp")]
    assert values[: len(kept)] == [value for _, value in kept]
    assert values[-2] != values[-2]
    assert values[-1] == "last"
    assert writer.lost_rows == len(dropped) + 1


def test_frames_stay_small_and_a_row_above_the_limit_is_lost_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "SPLIT_FRAME_BYTES", 2000)
    monkeypatch.setattr(writer_module, "MAX_FRAME_BYTES", 5000)
    writer = StreamWriter(tmp_path / "s.agp", HEADER)
    for number in range(100):
        writer.append("marks", (number, "x" * (6000 if number == 50 else 3000 if number == 51 else 100)))
    writer.close()
    assert [row[0] for row in rows_of(tmp_path / "s.agp")] == [n for n in range(100) if n != 50]
    assert writer.lost_rows == 1


def test_a_hook_that_raises_is_a_fault_in_the_stream_and_off_after_the_third(tmp_path: Path) -> None:
    writer = StreamWriter(tmp_path / "s.agp", HEADER)
    calls: list[int] = []

    def hook() -> None:
        calls.append(1)
        raise RuntimeError("no event")

    writer.before_flush(hook)
    for number in range(5):
        writer.append("marks", (number,))
        writer.flush()
    writer.close()
    assert len(calls) == 3
    assert [row[0] for row in rows_of(tmp_path / "s.agp")] == list(range(5))
    assert [row[3:] for row in rows_of(tmp_path / "s.agp", "faults")] == [
        ["RuntimeError: no event", n] for n in (1, 2, 3)
    ]


def test_close_takes_less_than_two_seconds_when_the_disk_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release, hanging = threading.Event(), threading.Event()
    real = os.write

    def write(fd: int, data: bytes) -> int:
        hanging.set()
        release.wait(20)
        return real(fd, data)

    writer = StreamWriter(tmp_path / "s.agp", HEADER, flush_period_s=0.01)
    monkeypatch.setattr(writer_module.os, "write", write)
    writer.append("marks", (1,))
    writer.start()
    assert hanging.wait(10)
    begin = time.monotonic()
    writer.append("marks", (2,))
    writer.close()
    assert time.monotonic() - begin < 2
    release.set()
    assert writer._done.wait(10)
    assert [row[0] for row in rows_of(tmp_path / "s.agp")] == [1, 2]


def test_a_signal_handler_may_append_flush_and_close_in_the_middle_of_a_flush(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    for threaded in (False, True):
        path = tmp_path / f"{threaded}.agp"
        writer = StreamWriter(path, HEADER, flush_period_s=60)
        if threaded:
            writer.start()
        entered: list[int] = []

        def write(fd: int, data: bytes, writer: StreamWriter = writer, entered: list[int] = entered) -> int:
            if not entered:
                entered.append(1)
                os.kill(os.getpid(), signal.SIGUSR1)
                time.monotonic()
            return real(fd, data)

        def handler(number: int, frame: object, writer: StreamWriter = writer) -> None:
            writer.append("marks", (2,))
            writer.flush()
            writer.close("signal")

        before = signal.signal(signal.SIGUSR1, handler)
        monkeypatch.setattr(writer_module.os, "write", write)
        try:
            writer.append("marks", (1,))
            begin = time.monotonic()
            writer.flush()
            assert time.monotonic() - begin < 1
            if threaded:
                assert writer._done.wait(5)
        finally:
            signal.signal(signal.SIGUSR1, before)
            monkeypatch.undo()
        assert [row[0] for row in rows_of(path)] == [1, 2]
        assert StreamFollower(path).read_header() == HEADER


def test_a_signal_handler_that_raises_in_a_write_leaves_a_readable_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = StreamWriter(tmp_path / "s.agp", HEADER)
    real = os.write

    def write(fd: int, data: bytes) -> int:
        real(fd, data[:7])
        raise KeyboardInterrupt

    writer.append("marks", (1,))
    monkeypatch.setattr(writer_module.os, "write", write)
    with pytest.raises(KeyboardInterrupt):
        writer.flush()
    monkeypatch.undo()
    writer.append("marks", (2,))
    writer.close()
    assert [row[0] for row in rows_of(tmp_path / "s.agp")] == [1, 2]


def test_a_forked_child_writes_nothing_and_the_parent_goes_on(tmp_path: Path) -> None:
    code = """
import os, sys
from pathlib import Path
from agprof.store.writer import StreamWriter
w = StreamWriter(Path(sys.argv[1]), {"kind": "rank"}, flush_period_s=0.01)
w.start()
append = w.rows("marks")
append((1,))
pid = os.fork()
if pid == 0:
    append((99,)); w.append("marks", (98,)); w.append("facts", (97,)); w.flush(); w.sync(); w.close("child")
    sys.exit(0)
assert os.waitpid(pid, 0)[1] == 0
append((2,))
w.close("parent")
"""
    path = tmp_path / "s.agp"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=60)
    assert [row[0] for row in rows_of(path)] == [1, 2]
    follower = StreamFollower(path)
    list(follower.poll())
    assert follower.ended == "parent"


def test_after_sigkill_everything_older_than_a_second_is_there(tmp_path: Path) -> None:
    # The main thread appends for a while and then hangs in a sleep: the flusher goes on without it.
    code = """
import sys, time
from pathlib import Path
from agprof.store.writer import StreamWriter
w = StreamWriter(Path(sys.argv[1]), {"kind": "rank"})
w.start()
end = time.monotonic() + 0.5
n = 0
while time.monotonic() < end:
    w.append("marks", (n, time.monotonic_ns())); n += 1
    if n % 100 == 0: time.sleep(0.001)
print(n, flush=True)
time.sleep(1)
print("old", flush=True)
time.sleep(60)
"""
    path = tmp_path / "s.agp"
    child = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    count = int(child.stdout.readline())
    assert child.stdout.readline() == "old\n"
    child.kill()
    child.wait(10)
    child.stdout.close()
    assert [row[0] for row in rows_of(path)] == list(range(count))
