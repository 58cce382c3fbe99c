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
from agprof.store import layout
from agprof.store.frames import StreamFollower
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


@pytest.mark.parametrize("bad", [["--period", "0"], ["--period", "nan"], ["--node", "-1"], ["--nvml", "on"]])
def test_bad_options_are_refused(tmp_path: Path, bad: list[str]) -> None:
    done = subprocess.run([*COMMAND, str(tmp_path), *bad], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert done.returncode == 2
    assert list(tmp_path.iterdir()) == []


def test_it_imports_nothing_heavy() -> None:
    code = (
        "import agprof.sampler.__main__, sys; "
        "heavy = {'polars', 'pydantic', 'rich', 'yaml', 'numpy', 'torch', 'pynvml', 'agprof.store.reader'}; "
        "print(*sorted(heavy & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"
