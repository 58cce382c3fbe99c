"""The rank's stream that a trace makes: steps, micro-steps, phases, ranges, collectives, memory, facts.

With it an imported trace is an ordinary run: what reads runs needs to know nothing of traces. Times are those of the
trace's tables, and the header's clock says that they are wall time.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from agprof.importers.trace_collectives import find_collectives
from agprof.importers.trace_phases import find_phases
from agprof.importers.trace_ranges import MICRO_STEP, RANGE, classified, host_ranges
from agprof.importers.trace_steps import find_steps, step_in_progress
from agprof.model.communication_kernels import Communication
from agprof.model.tables import SCHEMA_VERSION
from agprof.model.version import __version__
from agprof.store import layout
from agprof.store.traces import RankTrace
from agprof.store.writer import StreamWriter

MAX_RANGES = 300_000
"""Ranges kept per rank, the longest; the trace tables hold them all."""
EPOCH_FROM_NS = 946_684_800 * 10**9
"""The year 2000: times before it are no wall time."""
_ROWS_PER_FLUSH = 50_000


def write_stream(
    run: Path,
    trace: RankTrace,
    *,
    node: int,
    world_size: int | None,
    communication: Communication | None = None,
    allocations: Iterable[tuple[Any, ...]] = (),
) -> tuple[str, ...]:
    """Write the stream of one rank from its trace tables. Notes on what was left out. Raises OSError.

    `communication`: how communication kernels are known by their names; left out: those that agprof knows.
    `allocations`: rows of that table, from a memory snapshot.
    """
    communication = communication or Communication.with_user()
    names = classified(trace)
    ranges = host_ranges(trace, names)
    steps = find_steps(ranges)
    phases = find_phases(trace, ranges, steps)
    micro = _micro_steps(steps, ranges, phases)
    own = ranges.filter((pl.col("what") == RANGE) & (pl.col("end_ns") > pl.col("start_ns")))
    notes = []
    if own.height > MAX_RANGES:
        length = pl.col("end_ns") - pl.col("start_ns")
        notes.append(
            f"rank {trace.rank}: the longest {MAX_RANGES:,} of {own.height:,} ranges are in the table of spans"
        )
        own = own.sort(length, descending=True).head(MAX_RANGES)
    writer = StreamWriter(layout.rank_stream(run, trace.rank), _header(trace, node, world_size))
    time_ns = trace.meta.first_ns or 0
    counts = dict(micro.group_by("step").len().iter_rows())
    _append(writer, "steps", ((s, a, b, counts.get(s, 0), None, None, None, False, None)
                              for s, a, b in steps.select("step", "start_ns", "end_ns").iter_rows()))  # fmt: skip
    _append(writer, "micro_steps", ((s, m, a, b, None, None, None, None) for s, m, a, b in micro.iter_rows()))
    _append(writer, "spans", _spans(phases, own, steps, micro))
    _append(
        writer, "collectives", _collectives(find_collectives(trace, names, ranges, communication), phases, steps, micro)
    )
    _append(writer, "memory", _memory(trace, steps))
    _append(writer, "allocations", allocations)
    _append(writer, "facts", ((time_ns, k, json.dumps(v)) for k, v in _facts(trace, names).items()))
    writer.close("imported")
    return tuple(notes)


def _append(writer: StreamWriter, table: str, rows: Iterable[tuple[Any, ...]]) -> None:
    for number, row in enumerate(rows, 1):
        writer.append(table, row)
        if number % _ROWS_PER_FLUSH == 0:
            writer.flush()
    writer.flush()


def _header(trace: RankTrace, node: int, world_size: int | None) -> dict[str, Any]:
    header: dict[str, Any] = {
        "kind": "rank",
        "rank": trace.rank,
        "local_rank": None,
        "world_size": world_size,
        "node": node,
        "host": trace.meta.host,
        "pid": None,
        "schema_version": SCHEMA_VERSION,
        "agprof_version": __version__,
        "imported": trace.meta.format,
    }
    first_ns = trace.meta.first_ns
    if first_ns is not None and first_ns >= EPOCH_FROM_NS:
        header["clock"] = {"realtime_ns": first_ns, "monotonic_ns": first_ns}
    return header


_MICRO_SCHEMA = {"step": pl.Int64, "micro_step": pl.Int64, "start_ns": pl.Int64, "end_ns": pl.Int64}


def _micro_steps(steps: pl.DataFrame, ranges: pl.DataFrame, phases: pl.DataFrame) -> pl.DataFrame:
    """step, micro_step, start_ns, end_ns: agprof's own ranges `micro-step N` where there are any, else by passes."""
    named = ranges.filter(pl.col("what") == MICRO_STEP)
    if not named.height or not steps.height:
        return _passes(steps, phases)
    number = pl.col("text").str.extract(r"(\d{1,9})$").cast(pl.Int64)
    rows = named.select("start_ns", "end_ns", step_in_progress(steps, named["start_ns"]), micro_step=number)
    unique = rows.filter(pl.col("step").is_in(steps["step"].implode())).unique(
        ["step", "micro_step"], maintain_order=True
    )
    return unique.select(*_MICRO_SCHEMA)


def _passes(steps: pl.DataFrame, phases: pl.DataFrame) -> pl.DataFrame:
    """One micro-step per backward pass inside a step, each from the end of the one before."""
    backward = _outermost(phases.filter(pl.col("name") == "backward"))
    inside = backward.sort("start_ns").join_asof(
        steps.select("step", begin="start_ns", until="end_ns"),
        left_on="start_ns",
        right_on="begin",
        strategy="backward",
    )
    within = inside.filter(pl.col("end_ns") <= pl.col("until"))
    if not within.height:
        return pl.DataFrame(schema=_MICRO_SCHEMA)
    return within.with_columns(
        micro_step=pl.int_range(pl.len()).over("step"),
        start_ns=pl.coalesce(pl.col("end_ns").shift(1).over("step"), "begin"),
    ).select(pl.col(name).cast(dtype) for name, dtype in _MICRO_SCHEMA.items())


def _outermost(spans: pl.DataFrame) -> pl.DataFrame:
    """Without those inside an earlier one."""
    ordered = spans.sort("start_ns", "end_ns", descending=[False, True])
    before = pl.col("end_ns").cum_max().shift(1)
    return ordered.filter(before.is_null() | (pl.col("start_ns") >= before))


def _spans(
    phases: pl.DataFrame, ranges: pl.DataFrame, steps: pl.DataFrame, micro: pl.DataFrame
) -> Iterable[tuple[Any, ...]]:
    columns = ("start_ns", "end_ns", "thread")
    rows = pl.concat(
        [
            phases.select(*columns, "name", category=pl.lit("phase")),
            ranges.select(*columns, name="text", category=pl.lit("range")),
        ]
    ).sort("start_ns", "end_ns", descending=[False, True], maintain_order=True)
    step, micro_step = _places(rows["start_ns"], steps, micro)
    open_: dict[int, list[int]] = defaultdict(list)
    values = zip(step, micro_step, rows.iter_rows(named=True), strict=True)
    for number, (of_step, of_micro, row) in enumerate(values):
        thread, start, end = row["thread"] or 0, row["start_ns"], row["end_ns"]
        ends = open_[thread]
        while ends and ends[-1] <= start:
            ends.pop()
        yield number, of_step, of_micro, row["category"], row["name"], start, end, thread, len(ends)
        ends.append(end)


def _places(times: pl.Series, steps: pl.DataFrame, micro: pl.DataFrame) -> tuple[list[int], list[int]]:
    """Step and micro-step in progress at each time."""
    step = step_in_progress(steps, times)
    if not micro.height:
        return step.to_list(), [0] * len(times)
    # Steps follow one another, so the passes that have ended are those of earlier steps and the first of this one.
    ended = micro["end_ns"].sort().search_sorted(times, side="right").cast(pl.Int64)
    own, place = (steps["end_ns"].search_sorted(t, side="right") for t in (micro["start_ns"], times))
    earlier = own.sort().search_sorted(place, side="left").cast(pl.Int64)
    return step.to_list(), (ended - earlier).clip(0).to_list()


def _collectives(
    calls: pl.DataFrame, phases: pl.DataFrame, steps: pl.DataFrame, micro: pl.DataFrame
) -> Iterable[tuple[Any, ...]]:
    step, micro_step = _places(calls["start_ns"], steps, micro)
    named = phases.select("name", begin="start_ns", until="end_ns").sort("begin")
    callers = calls.select("start_ns").join_asof(named, left_on="start_ns", right_on="begin", strategy="backward")
    inside = (pl.col("start_ns") < pl.col("until")).fill_null(value=False)
    caller = callers.select(pl.when(inside).then("name").otherwise(pl.lit("other"))).to_series().to_list()
    for of_step, of_micro, phase, row in zip(step, micro_step, caller, calls.iter_rows(named=True), strict=True):
        yield (of_step, of_micro, row["op"], row["group"], row["group_size"], row["bytes"], row["dtype"], True,
               row["start_ns"], row["issue_end_ns"], row["end_ns"], 0, "trace", row["thread"], phase)  # fmt: skip


def _memory(trace: RankTrace, steps: pl.DataFrame) -> Iterable[tuple[Any, ...]]:
    """The device allocator at the end of each step, and its peak in the step."""
    events = trace.table("memory_events").filter(pl.col("on_device")).drop_nulls("allocated_bytes")
    if not events.height or not steps.height:
        return
    main = events.group_by("device").len().sort("len", descending=True)["device"][0]
    own = events.filter(pl.col("device").eq_missing(main)).sort("time_ns")
    peaks = (
        own.join_asof(steps.select("step", begin="start_ns", until="end_ns"), left_on="time_ns", right_on="begin")
        .filter(pl.col("time_ns") <= pl.col("until"))
        .group_by("step")
        .agg(peak=pl.col("allocated_bytes").max())
    )
    last = steps.join_asof(own, left_on="end_ns", right_on="time_ns", strategy="backward")
    rows = last.join(peaks, on="step", how="left", maintain_order="left")
    for row in rows.drop_nulls("allocated_bytes").iter_rows(named=True):
        yield (row["step"], 0, "step.end", row["end_ns"], None, None, row["allocated_bytes"], row["reserved_bytes"],
               row["peak"])  # fmt: skip


def _facts(trace: RankTrace, names: pl.DataFrame) -> dict[str, Any]:
    devices = trace.tables["gpu"].drop_nulls("device").group_by("device").len().sort("len", descending=True).collect()
    facts: dict[str, Any] = {"trace.format": trace.meta.format, "trace.file": trace.meta.source}
    facts |= {"trace.producer": trace.meta.producer} if trace.meta.producer else {}
    facts |= {"dist.world_size": trace.meta.world_size} if trace.meta.world_size else {}
    if devices.height:
        told = _device(trace.meta.devices, int(devices["device"][0]))
        facts["device.type"] = "cuda"
        facts |= {"device.name": str(told["name"])} if told.get("name") else {}
        memory = told.get("totalGlobalMem")
        facts |= {"device.memory_total_bytes": memory} if isinstance(memory, int) else {}
    elif trace.table("cpu", "start_ns").height:
        facts |= {"device.type": "cpu", "device.name": "CPU"}
    for framework, pattern in (
        ("ddp", r"^DistributedDataParallel\."),
        ("fsdp", r"^(?:FSDP::|FullyShardedDataParallel)"),
    ):
        if names["text"].str.contains(pattern).any():
            facts["framework"] = framework
    return facts


def _device(devices: Iterable[Mapping[str, Any]], number: int) -> Mapping[str, Any]:
    """What the trace says of a device; of one that it does not number, what all of them share."""
    known = list(devices)
    own = [device for device in known if device.get("id") == number]
    if own:
        return own[0]
    names = {str(device.get("name")) for device in known}
    return known[0] if len(names) == 1 and known else {}
