"""A day of eight GPUs and eight ranks, every value of it noise: quick to analyse, a small page, no spike lost."""

import time

import polars as pl
import pytest

from agprof.analysis.run import analyse
from agprof_reports.run import render
from synthetic_system import BOOT_NS, SECOND, SystemRun

FIXED = {"time_ns", "period_ns", "node", "gpu", "rank", "core", "processes", "loaders", "clock_event_reasons"}
SAMPLED = ("gpu_samples", "gpu_states", "gpu_activity", "host_samples", "process_samples", "core_samples")


@pytest.mark.slow
def test_a_day_of_eight_gpus() -> None:
    system = SystemRun(seconds=24 * 3600, gpus=8, cores=128, step_s=60)
    for table in SAMPLED:
        frame = system.frames[table]
        noise = 0.6 + 0.4 * pl.select(pl.int_range(frame.height).shuffle(seed=1)).to_series() / frame.height
        system.frames[table] = frame.with_columns(
            (pl.col(name) * noise).cast(kind)
            for name, kind in frame.schema.items()
            if name not in FIXED and kind in (pl.Int64, pl.Float64)
        )
    at_ns = 40_000 * SECOND
    spike = (pl.col("time_ns") == BOOT_NS + at_ns) & (pl.col("gpu") == 3)
    run = system.where("gpu_samples", spike, power_mw=999_000).run()
    assert run.tables["gpu_samples"].height > 3_400_000
    begin = time.process_time()
    answers = analyse(run)
    assert time.process_time() - begin < 60
    power = next(curve for curve in answers.system.curves if curve.label == "GPU 3 power")
    assert (at_ns, 999.0) in zip(power.x_ns, power.y, strict=True)
    assert answers.system.decimation is not None
    assert len(render(answers)) < 3_000_000
