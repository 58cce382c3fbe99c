"""A day of a busy node at default periods stays below 200 MB, and its report below 3 MB."""

import resource
import time
from pathlib import Path

import pytest

from agprof.analysis.run import analyse
from agprof.model.tables import SCHEMA_VERSION
from agprof.store import layout
from agprof.store.reader import read_run
from agprof_reports.run import render
from day_of_samples import BOOT_NS, CORES, GPUS, INTERFACES, RANKS, record
from synthetic import EPOCH_NS, build_run

DAY_S = 86_400
DAY_BYTES = 200_000_000
REPORT_BYTES = 3_000_000
HEADER = {
    "kind": "node",
    "node": 0,
    "host": "node-a",
    "pid": 3999,
    "schema_version": SCHEMA_VERSION,
    "agprof_version": "0.1.0",
    "clock": {"realtime_ns": EPOCH_NS, "monotonic_ns": BOOT_NS, "boottime_ns": BOOT_NS},
    "period_s": 1.0,
    "fast_period_s": 0.2,
    "slow_period_s": 5.0,
}


def expected_rows(seconds: float) -> dict[str, float]:
    return {
        "gpu_samples": seconds * 5 * GPUS,
        "gpu_states": seconds * GPUS,
        "gpu_activity": seconds * GPUS,
        "gpu_health": seconds / 5 * GPUS,
        "gpu_processes": seconds / 5 * GPUS,
        "host_samples": seconds,
        "core_samples": seconds / 5 * CORES,
        "network_samples": seconds * len(INTERFACES),
        "process_samples": seconds * 2 * RANKS,
    }


def recorded(run: Path, seconds: float) -> Path:
    path = layout.node_stream(run, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = record(path, HEADER, seconds)
    assert writer.lost_rows == 0
    return path


def test_ten_minutes_take_their_share_of_a_day(tmp_path: Path) -> None:
    seconds = 600
    path = recorded(tmp_path, seconds)
    size = path.stat().st_size
    print(f"{size / seconds:.0f} bytes per second: {size / seconds * DAY_S / 1e6:.0f} MB a day")
    assert size < DAY_BYTES * seconds / DAY_S
    tables = read_run(tmp_path).tables
    for name, rows in expected_rows(seconds).items():
        assert tables[name].height == pytest.approx(rows, rel=0.02), name
    power = tables["gpu_samples"]["power_mw"]
    assert power.std() == pytest.approx(40_000, rel=0.05)
    # The noise is in the stream: rates are all different, and so are their last digits.
    rates = tables["gpu_samples"]["nvlink_sent_bytes_per_s"].drop_nulls()
    assert rates.n_unique() > 0.9 * len(rates)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_day_is_below_200_mb_and_its_report_below_3_mb(tmp_path: Path) -> None:
    step_s = 240
    steps = DAY_S // step_s
    run = build_run(
        tmp_path / "run", ranks=RANKS, gpus=GPUS, steps=steps, fast=True, sampler=False, data_ms=1000.0,
        forward_ms=step_s * 400 / 2, backward_ms=step_s * 550 / 2, optimizer_ms=step_s * 40,
    )  # fmt: skip
    begin = time.monotonic()
    size = recorded(run, DAY_S).stat().st_size
    stages = [("recording", time.monotonic() - begin)]
    begin = time.monotonic()
    read = read_run(run)
    stages.append(("reading", time.monotonic() - begin))
    assert read.problems == ()
    for name, rows in expected_rows(DAY_S).items():
        assert read.tables[name].height == pytest.approx(rows, rel=0.01), name
    begin = time.monotonic()
    answers = analyse(read)
    stages.append(("analysis", time.monotonic() - begin))
    begin = time.monotonic()
    page = render(answers)
    stages.append(("page", time.monotonic() - begin))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"stream {size / 1e6:.1f} MB, report {len(page) / 1e6:.2f} MB, most memory {peak / 2**20:.2f} GiB")
    print(", ".join(f"{name} {seconds:.0f} s" for name, seconds in stages))
    assert answers.time is not None
    assert size < DAY_BYTES
    assert len(page) < REPORT_BYTES
