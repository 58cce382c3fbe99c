"""The sampler as the launcher starts it: its own process, ended by its stdin, a signal or its parent's death."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agprof.model.tables import SCHEMA_VERSION
from agprof.sampler.__main__ import _syncing
from agprof.sampler.loop import Clock
from agprof.sampler.states import SECOND_NS
from agprof.store import layout
from agprof.store.frames import StreamFollower
from agprof.store.packed_writer import PackedStreamWriter
from agprof.store.reader import read_run
from agprof.store.writer import StreamWriter

COMMAND = [sys.executable, "-m", "agprof.sampler", "--period", "0.05", "--nvml", "off", "--run-dir"]


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)


def samples(run: Path, table: str) -> int:
    follower = StreamFollower(layout.node_stream(run, 0))
    try:
        return sum(len(rows) for name, rows in follower.poll() if name == table)
    finally:
        assert follower.damage is None


@pytest.fixture
def sampler(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([*COMMAND, str(tmp_path)], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def test_it_follows_a_rank_and_ends_with_its_stdin(tmp_path: Path, sampler: subprocess.Popen[bytes]) -> None:
    wait_for(lambda: samples(tmp_path, "host_samples") >= 2)
    (tmp_path / layout.RANKS).mkdir()
    rank = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    clock = {"boottime_ns": time.clock_gettime_ns(time.CLOCK_BOOTTIME), "monotonic_ns": time.monotonic_ns()}
    header = {"kind": "rank", "rank": 0, "pid": rank.pid, "node": 0, "clock": clock}
    StreamWriter(layout.rank_stream(tmp_path, 0), header).close()
    wait_for(lambda: samples(tmp_path, "process_samples") >= 3)
    rank.kill()
    rank.wait()
    assert rank.stdin is not None
    assert sampler.stdin is not None
    rank.stdin.close()
    sampler.stdin.close()
    assert sampler.wait(10) == 0
    run = read_run(tmp_path)
    (stream,) = [stream for stream in run.streams if stream.scope == "node"]
    assert (stream.ended, stream.number, stream.attempt) == ("clean", 0, 0)
    assert stream.header["pid"] == sampler.pid
    assert stream.header["schema_version"] == SCHEMA_VERSION
    assert stream.header["agprof_version"]
    assert set(stream.header["clock"]) == {"realtime_ns", "monotonic_ns", "boottime_ns"}
    trees = run.tables["process_samples"]
    assert set(trees["rank"]) == {0}
    assert trees["cpu_cores"][0] is None
    assert min(trees["rss_bytes"].drop_nulls()) > 0
    own = run.tables["sampler_state"].filter(run.tables["sampler_state"]["field"] == "self")
    assert own["self_cpu_ns"].to_list()[-1] > 0
    assert own["time_ns"].to_list()[-1] >= run.tables["host_samples"]["time_ns"].to_list()[-1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_in_order(tmp_path: Path, sampler: subprocess.Popen[bytes], number: signal.Signals) -> None:
    wait_for(lambda: samples(tmp_path, "host_samples") >= 1)
    sampler.send_signal(signal.SIGINT)
    count = samples(tmp_path, "host_samples")
    wait_for(lambda: samples(tmp_path, "host_samples") > count)
    sampler.send_signal(number)
    assert sampler.wait(10) == 0
    assert read_run(tmp_path).streams[0].ended == "clean"


def test_it_does_not_outlive_its_parent_even_when_its_stdin_stays_open(tmp_path: Path) -> None:
    # The pipe's other end is here; the process in between starts the sampler and is killed.
    code = "import subprocess, sys; p = subprocess.Popen(sys.argv[1:]); print(p.pid, flush=True); p.wait()"
    middle = subprocess.Popen(
        [sys.executable, "-c", code, *COMMAND, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert middle.stdout is not None
    assert middle.stdin is not None
    pid = int(middle.stdout.readline())
    wait_for(lambda: samples(tmp_path, "host_samples") >= 1)
    middle.kill()
    middle.wait()

    def ended() -> bool:
        return read_run(tmp_path).streams[0].ended is not None

    try:
        wait_for(ended)
    finally:
        if not ended():
            os.kill(pid, signal.SIGKILL)
        middle.stdin.close()
        middle.stdout.close()
    assert read_run(tmp_path).streams[0].ended == "parent gone"


HANGING = """
import sys, time
from agprof.sampler import __main__ as sampler, job_end
from agprof.sampler.host import Host
job_end.GRACE_S = 0.2
Host.sample = lambda self, now_ns: time.sleep(600)
sys.exit(sampler.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("how", ["stdin", "signal"])
def test_a_reading_that_hangs_does_not_keep_it_alive(tmp_path: Path, how: str) -> None:
    command = [sys.executable, "-c", HANGING, "--nvml", "off", "--run-dir", str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        wait_for(lambda: layout.node_stream(tmp_path, 0).exists())
        assert process.stdin is not None
        if how == "stdin":
            process.stdin.close()
        else:
            wait_for(lambda: catches(process.pid, signal.SIGTERM))
            process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    assert read_run(tmp_path).streams[0].ended == "a reading hung"


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether the process has a handler for the signal."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    mask = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:"))
    return bool(mask >> (number - 1) & 1)


def test_rows_are_on_the_disk_less_than_a_second_after_they_were_taken(
    tmp_path: Path, sampler: subprocess.Popen[bytes]
) -> None:
    follower = StreamFollower(layout.node_stream(tmp_path, 0))
    wait_for(lambda: samples(tmp_path, "host_samples") >= 1)
    ages = []
    deadline = time.monotonic() + 2.5
    while time.monotonic() < deadline:
        now_ns = time.monotonic_ns()
        ages += [(now_ns - row[0]) / 1e9 for table, rows in follower.poll() if table == "host_samples" for row in rows]
        time.sleep(0.01)
    # The first poll finds rows that lay there for as long as the start of this test took.
    assert len(ages) > 30
    assert max(ages[10:]) < 1


def test_a_kill_loses_less_than_a_second(tmp_path: Path, sampler: subprocess.Popen[bytes]) -> None:
    wait_for(lambda: samples(tmp_path, "host_samples") >= 30)
    sampler.kill()
    sampler.wait()
    killed_ns = time.monotonic_ns()
    run = read_run(tmp_path)
    assert run.streams[0].ended is None
    assert run.streams[0].damage is None
    last_ns = run.tables["host_samples"]["time_ns"].to_list()[-1]
    assert killed_ns - last_ns < 1e9


def test_a_second_start_is_a_new_attempt_and_closed_input_ends_it_at_once(tmp_path: Path) -> None:
    for attempt in (0, 1):
        subprocess.run([*COMMAND, str(tmp_path)], stdin=subprocess.DEVNULL, check=True, timeout=30)
        assert layout.node_stream(tmp_path, 0, attempt).exists()
    assert read_run(tmp_path).tables["host_samples"].height == 4


def test_a_folder_that_can_not_be_written_is_one_line_and_exit_code_4(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    command = [*COMMAND, str(tmp_path / "file")]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 4
    assert done.stderr.startswith("agprof sampler: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "bad",
    [
        ["--fast-period", "0.01"],
        ["--slow-period", "61"],
        ["--root-pid", "0"],
        ["--prometheus-port", "70000"],
        ["--period", "0"],
        ["--period", "nan"],
        ["--node", "-1"],
        ["--nvml", "on"],
    ],
)
def test_bad_options_are_refused(tmp_path: Path, bad: list[str]) -> None:
    done = subprocess.run([*COMMAND, str(tmp_path), *bad], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert done.returncode == 2
    assert list(tmp_path.iterdir()) == []


def test_the_disk_is_asked_to_sync_every_ten_seconds_where_rows_are_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_ns, syncs = [0], []
    writer = PackedStreamWriter(tmp_path / "s.agp", {"kind": "node"})
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: syncs.append(now_ns[0] // SECOND_NS))
    writer.before_flush(_syncing(writer, Clock(monotonic_ns=lambda: now_ns[0])))
    for _ in range(35):
        now_ns[0] += SECOND_NS
        writer.flush()
    assert syncs == [10, 20, 30]
    writer.close()


def test_it_imports_nothing_heavy() -> None:
    code = (
        "import agprof.sampler.__main__, sys; "
        "heavy = {'polars', 'pydantic', 'rich', 'yaml', 'numpy', 'torch', 'pynvml', 'prometheus_client', "
        "'agprof.store.reader'}; "
        "print(*sorted(heavy & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"
