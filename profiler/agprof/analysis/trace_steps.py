"""The profiler's steps of one rank, on the host and on its device."""

import re
from dataclasses import dataclass

import numpy as np
import polars as pl

from agprof.analysis.trace_activities import Device, ints, texts
from agprof.model.trace_tables import CpuKind
from agprof.store.traces import RankTrace

_STEP = re.compile(r"ProfilerStep#?\s*(\d{1,18})|(?:agprof )?step (\d{1,18})")


@dataclass(frozen=True, slots=True, order=True)
class HostStep:
    """One profiler step as the host saw it."""

    start: int
    end: int
    number: int


@dataclass(frozen=True, slots=True)
class DeviceStep:
    """The window of a step on the device."""

    number: int
    start: int
    end: int


def host_steps(trace: RankTrace) -> list[HostStep]:
    """The steps that the trace marks (`ProfilerStep#3`, agprof's own `step 3`), in order, none of them overlapping."""
    kinds = (int(CpuKind.ANNOTATION), int(CpuKind.OP))
    marks = (
        trace.tables["names"].filter(pl.col("text").str.contains(r"^(ProfilerStep#?\s*\d|(agprof )?step \d)")).collect()
    )
    if not marks.height:
        return []
    wanted = pl.col("kind").is_in(kinds) & pl.col("name").is_in(marks["name"].implode())
    rows = trace.tables["cpu"].filter(wanted).select("start_ns", "duration_ns", "name").collect()
    text = texts(trace, ints(rows["name"]))
    found: list[HostStep] = []
    for start, duration, name in rows.iter_rows():
        match = _STEP.match(text.get(name, ""))
        if match is not None:
            found.append(HostStep(start, start + duration, int(match[1] or match[2])))
    kept: list[HostStep] = []
    for step in sorted(found):
        if not kept or step.start >= kept[-1].end:
            kept.append(step)
    return kept


def device_steps(device: Device, steps: list[HostStep]) -> list[DeviceStep]:
    """The steps on the device: from the end of all work launched before the step to the end of all launched by its end.

    So the wait for a step's first kernel belongs to that step, work that the device has not done when the host goes on
    counts where it was launched, and steps never overlap. Work whose launch is not known moves no border; where no
    launch is known at all the host's borders are the device's.
    """
    if not steps:
        return []
    begin, last = int(device.start[0]), int(device.end.max())
    known = device.known
    borders = np.array([edge for step in steps for edge in (step.start, step.end)], dtype=np.int64)
    if known.any():
        launched, ended = device.launched_at()[known], device.end[known]
        order = np.argsort(launched, kind="stable")
        done = np.maximum.accumulate(ended[order])
        before = np.searchsorted(launched[order], borders, side="left")
        borders = np.where(before == 0, begin, done[np.maximum(before - 1, 0)])
    borders = np.clip(borders, begin, last)
    pairs = zip(steps, borders[::2], borders[1::2], strict=True)
    return [DeviceStep(step.number, int(start), int(end)) for step, start, end in pairs if end > start]
