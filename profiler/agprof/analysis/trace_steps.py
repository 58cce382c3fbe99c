"""The profiler's steps of one rank, on the host and on its device."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from agprof.analysis.trace_activities import Device
from agprof.model.trace_tables import CpuKind
from agprof.store.traces import RankTrace

_OWN = r"(?:train(?:ing)?[ _]?)?(?:step|iter|iteration"
WAYS: tuple[str, ...] = (
    r"^ProfilerStep ?#\d{1,18}$",
    r"^step \d{1,18}$",
    rf"(?i)^{_OWN}|global_step)[ _#:=-]*\d{{1,18}}$",
    rf"(?i)^{_OWN})$",
)
"""Names of steps, the surest first: torch's, agprof's own, numbered ranges of the user, ranges that are only counted.
One way makes all steps of a trace; they are those of `importers.trace_ranges`, and a test compares the two."""


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
    """The steps that the trace marks, in order. Of two that overlap or have one number the earlier counts."""
    text = pl.col("text").str.slice(0, 500)
    names = trace.tables["names"].filter(pl.any_horizontal(text.str.contains(way) for way in WAYS)).collect()
    if not names.height:
        return []
    marks = _marks(trace, names)
    for way in WAYS:
        mine = marks.filter(pl.col("text").str.contains(way))
        if mine.height:
            return _in_order(mine)
    return []


def _marks(trace: RankTrace, names: pl.DataFrame) -> pl.DataFrame:
    """start_ns, end_ns, text of the ranges of these names. Old traces hold torch's steps among the operators."""
    kind = pl.col("kind")
    wanted = kind.is_in((int(CpuKind.ANNOTATION), int(CpuKind.OP))) & pl.col("name").is_in(names["name"].implode())
    rows = trace.tables["cpu"].filter(wanted).select("start_ns", "duration_ns", "name", "kind").collect()
    told = rows.join(names.unique("name", keep="first", maintain_order=True), on="name", maintain_order="left")
    torchs = pl.col("text").str.starts_with("ProfilerStep")
    return told.filter(torchs | (kind == int(CpuKind.ANNOTATION))).select(
        "start_ns", pl.col("text").str.slice(0, 500), end_ns=pl.col("start_ns") + pl.col("duration_ns")
    )


def _in_order(marks: pl.DataFrame) -> list[HostStep]:
    number = pl.col("text").str.extract(r"(\d{1,18})$").cast(pl.Int64)
    kept: list[HostStep] = []
    seen: set[int] = set()
    for start, end, told in marks.select("start_ns", "end_ns", number).sort("start_ns", "end_ns").iter_rows():
        step = len(kept) if told is None else told
        if step not in seen and end > start and (not kept or start >= kept[-1].end):
            kept.append(HostStep(start, end, step))
            seen.add(step)
    return kept


def device_steps(device: Device, steps: list[HostStep]) -> list[DeviceStep]:
    """The steps on the device: from the end of all work launched before the step to the end of all launched by its end.

    So the wait for a step's first kernel belongs to that step, work that the device has not done when the host goes on
    counts where it was launched, and steps never overlap. Work whose launch is not known was launched before the trace
    where it begins before all work whose launch is known; else it moves no border. A step before which nothing was
    launched begins with the host's, so that its wait for the first kernel counts too. Where no launch is known at all
    the host's borders are the device's.
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
        earlier = _end_of_earlier_work(device)
        nothing_yet = np.minimum(borders, begin) if device.known[0] else earlier
        borders = np.where(before == 0, nothing_yet, np.maximum(done[np.maximum(before - 1, 0)], earlier))
        borders = np.minimum(borders, last)
    else:
        borders = np.clip(borders, begin, last)
    pairs = zip(steps, borders[::2], borders[1::2], strict=True)
    return [DeviceStep(step.number, int(start), int(end)) for step, start, end in pairs if end > start]


def _end_of_earlier_work(device: Device) -> int:
    """When the device is done with what was launched before the trace began; its first begin where there is none."""
    first_known = int(np.argmax(device.known))
    return int(device.end[:first_known].max(initial=device.start[0]))
