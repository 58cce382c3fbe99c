"""Fault table, F8, in the sampler's own process: what it writes and how it ends, whatever NVML does to it."""

import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from agprof.model.tables import BY_NAME
from agprof.store.frames import StreamFollower
from agprof.store.layout import node_stream
from agprof.store.reader import read_run
from busy_gpu import PCIE_BYTES_PER_S, busy
from fakes.nvml.build import FakeNvml
from nvml_rig import Row
from nvml_scenario import Scenario, inherited

PERIODS = ["--fast-period", "0.05", "--period", "0.1", "--slow-period", "0.1"]
WAIT_S = 5
"""No test waits longer than that for anything."""


class Process:
    """A sampler that runs, with what it has written so far."""

    def __init__(self, run: Path, environment: dict[str, str], *prelude: str) -> None:
        self.run = run
        self._follower: StreamFollower | None = None
        self._rows: defaultdict[str, list[Row]] = defaultdict(list)
        command = prelude or ("-m", "agprof.sampler")
        self.popen = subprocess.Popen(
            [sys.executable, *command, *PERIODS, "--run-dir", str(run)], stdin=subprocess.PIPE, env=environment
        )

    def rows(self, table: str, **equal: object) -> list[Row]:
        """What is in the file of a table by now, the rows whose columns have these values."""
        if self._follower is None and node_stream(self.run, 0).exists():
            self._follower = StreamFollower(node_stream(self.run, 0))
        if self._follower is not None:
            for name, rows in self._follower.poll():
                names = [column.name for column in BY_NAME[name].columns]
                self._rows[name] += [dict(zip(names, row, strict=False)) for row in rows]
            assert self._follower.damage is None
        return [row for row in self._rows[table] if all(row[name] == value for name, value in equal.items())]

    def values(self, table: str, column: str) -> list[Any]:
        return [row[column] for row in self.rows(table)]

    def count(self, table: str, **equal: object) -> int:
        return len(self.rows(table, **equal))

    def wait_for_rows(self, table: str, more: int, **equal: object) -> None:
        """Until the table has so many rows more than now."""
        wanted = self.count(table, **equal) + more
        self.wait_for(lambda: self.count(table, **equal) >= wanted)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline, "it did not come true in time"
            time.sleep(0.05)

    def end(self) -> float:
        """Close its stdin, as the end of the job does. Returns how long it took to end, in seconds."""
        assert self.popen.stdin is not None
        begin_s = time.monotonic()
        self.popen.stdin.close()
        assert self.popen.wait(WAIT_S) == 0
        return time.monotonic() - begin_s

    def said(self, field: str) -> list[tuple[str, str]]:
        return [(row["state"], row["reason"]) for row in self.rows("sampler_state", field=field)]

    def ended(self) -> str | None:
        """How its stream ended."""
        return read_run(self.run).streams[0].ended


@pytest.fixture
def started(tmp_path: Path, fake_nvml: FakeNvml) -> Iterator[Callable[..., Process]]:
    processes = []

    def start(scenario: Scenario | None, *prelude: str, library: Path | None = None) -> Process:
        environment = dict(os.environ)
        if scenario is not None:
            environment = inherited(scenario.environment(tmp_path, library or fake_nvml.build()))
        process = Process(tmp_path / "run", environment, *prelude)
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.popen.kill()
        process.popen.wait()


def test_a_healthy_session_has_the_values_of_its_scenario(started: Callable[..., Process]) -> None:
    process = started(busy(gpus=2))
    process.wait_for_rows("gpu_samples", 20, gpu=1)
    process.end()
    assert set(process.values("gpu_samples", "power_mw")) == {612_345}
    assert set(process.values("gpu_samples", "power_kind")) == {"instant"}
    assert set(process.values("gpu_states", "memory_temperature_c")) == {71}
    # The fake counts by its own clock, a little after the sampler looked at its own.
    rates = [rate for rate in process.values("gpu_samples", "pcie_sent_bytes_per_s") if rate is not None]
    assert len(rates) == process.count("gpu_samples") - 2
    assert abs(mean(rates) / PCIE_BYTES_PER_S[197] - 1) < 0.05
    assert process.said("gpu")[-1] == ("ok", "")
    assert process.ended() == "clean"


def test_without_a_library_the_host_is_sampled_and_the_reason_written(started: Callable[..., Process]) -> None:
    code = (
        "import sys, agprof.sampler.nvml as nvml; nvml.LIBRARY = 'libno-such-library.so.1'; "
        "from agprof.sampler.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    process = started(None, "-c", code)
    process.wait_for_rows("host_samples", 3)
    assert process.end() < 3
    state, reason = process.said("gpu")[-1]
    assert state == "unsupported"
    assert "libno-such-library.so.1 does not load" in reason
    for table in ("gpus", "gpu_samples", "gpu_states", "gpu_health"):
        assert process.count(table) == 0


@pytest.mark.parametrize("exits", ["init", "load"])
def test_a_look_alike_that_exits_leaves_what_was_read_before(
    started: Callable[..., Process], fake_nvml: FakeNvml, exits: str
) -> None:
    process = started(busy(), library=fake_nvml.build(exits=exits))  # type: ignore[arg-type]
    assert process.popen.wait(WAIT_S) == 1
    assert process.count("host_samples") >= 1
    assert [state for state, _ in process.said("gpu")] == ["retry"]
    assert "its library ended the sampler" in process.said("gpu")[0][1]
    assert process.count("gpu_samples") == 0


IN_CI_ONLY = ["nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetFieldValues", "nvmlDeviceGetMemoryInfo_v2",
              "nvmlDeviceGetComputeRunningProcesses_v3"]  # fmt: skip


@pytest.mark.parametrize(
    "call",
    ["nvmlInitWithFlags", "nvmlDeviceGetUtilizationRates", "nvmlEventSetWait_v2", "nvmlShutdown",
     *(pytest.param(call, marks=pytest.mark.slow) for call in IN_CI_ONLY)],
)  # fmt: skip
def test_while_a_call_hangs_the_host_is_sampled_and_the_end_does_not_wait(
    started: Callable[..., Process], call: str
) -> None:
    scenario = busy()
    after = 3 if call in ("nvmlDeviceGetUtilizationRates", "nvmlDeviceGetFieldValues") else 0
    scenario.hang(call, 60, after=after)
    process = started(scenario)
    process.wait_for_rows("host_samples", 10)
    if after:
        process.wait_for_rows("host_samples", 5)
        assert process.count("gpu_samples") <= after
    if call == "nvmlEventSetWait_v2":
        process.wait_for_rows("gpu_samples", 5)
    assert process.end() < 4.5
    assert process.ended() == "clean"
    assert 0 not in process.values("gpu_samples", "power_mw")


def test_a_signal_ends_it_while_a_call_hangs(started: Callable[..., Process]) -> None:
    scenario = busy()
    scenario.hang("nvmlInitWithFlags", 60)
    process = started(scenario)
    process.wait_for_rows("host_samples", 3)
    process.popen.send_signal(signal.SIGTERM)
    assert process.popen.wait(WAIT_S) == 0


def test_an_event_is_in_the_run_once(started: Callable[..., Process]) -> None:
    scenario = busy()
    scenario.event(1.5, 0, "xid", 79)
    process = started(scenario)
    process.wait_for(lambda: process.count("gpu_events") > 0)
    process.wait_for_rows("gpu_samples", 5)
    process.end()
    assert [(row["gpu"], row["kind"], row["code"]) for row in process.rows("gpu_events")] == [(0, "xid", 79)]


def test_a_library_that_is_lost_leaves_a_gap(started: Callable[..., Process]) -> None:
    scenario = busy()
    scenario.gone(0.8, until_s=1.2)
    process = started(scenario)
    process.wait_for(lambda: process.count("gpu_samples", power_mw=612_345) > 0)
    process.wait_for(lambda: process.said("gpu")[-1][0] == "retry" and "lost" in process.said("gpu")[-1][1])
    process.wait_for(lambda: process.said("gpu")[-1][0] == "ok")
    process.wait_for_rows("gpu_samples", 5)
    process.end()
    powers = process.values("gpu_samples", "power_mw")
    gap = [index for index, power in enumerate(powers) if power is None]
    assert gap == list(range(gap[0], gap[-1] + 1))
    assert 0 < gap[0] < gap[-1] < len(powers) - 1
    assert set(powers) == {612_345, None}
