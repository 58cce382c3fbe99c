"""The tables of the section on device traces."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from agprof.model.trace_answers import (
    CriticalPath,
    KernelGroup,
    KernelRow,
    LaunchRow,
    TraceBreakdown,
    TraceCollectiveRow,
    TraceMemory,
    TraceQuality,
    TraceStraggler,
)
from agprof_reports.columns import Field, Value, evenly, table
from agprof_reports.data import Cell, Table
from agprof_reports.text import NAME_LIMIT

BREAKDOWN_ROWS = 200
KERNEL_ROWS = 500
GROUP_ROWS = 150
"""Of each kind."""
NAMES_BYTES = 200_000
"""Characters of names in one table; the names behind are cut to SHORT_NAME."""
SHORT_NAME = 120


def breakdown(
    key: str,
    caption: str,
    rows: Sequence[TraceBreakdown],
    parts: Mapping[str, str],
    parts_of: Callable[[TraceBreakdown], Mapping[str, int]],
) -> Table:
    kept, note = evenly(rows, BREAKDOWN_ROWS)
    fields: list[Field[TraceBreakdown]] = [Field(label="rank", get=lambda r: r.rank, unit="1")]
    if any(row.step is not None for row in rows):
        fields.append(Field(label="step", get=lambda r: r.step, unit="1"))
    fields.append(Field(label="window", get=lambda r: r.window_ns, unit="ns", source="measured"))
    for name, word in parts.items():
        if not any(name in parts_of(row) for row in rows):
            continue
        fields.append(
            Field(label=word, get=lambda r, name=name: parts_of(r).get(name), unit="ns", source="measured")  # type: ignore[misc]
        )
    fields += [
        Field(label="idle", get=lambda r: r.idle_ns, unit="ns", source="measured", tip="all causes"),
        Field(label="communication", get=lambda r: r.communication_ns, unit="ns", source="measured"),
        Field(
            label="of it overlapped",
            get=lambda r: r.overlap_ratio,
            unit="ratio",
            source="measured",
            tip="while a compute kernel ran",
        ),
    ]
    return table(key, caption, kept, fields, note)


def kernels(key: str, caption: str, rows: Sequence[KernelRow]) -> Table:
    kept, note = rows[:KERNEL_ROWS], ""
    if len(rows) > KERNEL_ROWS:
        note = f"The {KERNEL_ROWS:,} of {len(rows):,} names with the most time; report.json has all."
    names = _within_budget([row.name for row in kept])
    return table(
        key,
        caption,
        [replace(row, name=name) for row, name in zip(kept, names, strict=True)],
        [
            Field(label="name", get=lambda r: r.name, code=True, fold=True),
            Field(label="class", get=_class_of),
            Field(label="count", get=lambda r: r.count, unit="1", source="counted", tip="all ranks"),
            Field(label="sum", get=lambda r: r.sum_ns, unit="ns", source="measured", tip="all ranks"),
            Field(
                label="share", get=lambda r: r.share, unit="ratio", source="measured", tip="of all device activities"
            ),
            Field(label="mean", get=lambda r: r.mean_ns, unit="ns", source="measured"),
            Field(label="shortest", get=lambda r: r.min_ns, unit="ns", source="measured"),
            Field(label="longest", get=lambda r: r.max_ns, unit="ns", source="measured"),
            Field(label="ranks", get=lambda r: r.ranks, unit="1", source="counted"),
        ],
        note,
        filter_by="class",
    )


def _class_of(row: KernelRow) -> str:
    return f"{row.kind}, {row.library[:40]}" if row.library else row.kind


def _within_budget(names: Sequence[str]) -> list[str]:
    out, left = [], NAMES_BYTES
    for name in names:
        left -= min(len(name), NAME_LIMIT)
        out.append(name if left > 0 or len(name) <= SHORT_NAME else name[: SHORT_NAME - 1] + "…")
    return out


def groups(rows: Sequence[KernelGroup]) -> Table:
    by_kind = {kind: [row for row in rows if row.by == kind] for kind in ("op", "module", "phase")}
    kept = [row for of_kind in by_kind.values() for row in of_kind[:GROUP_ROWS]]
    note = f"At most {GROUP_ROWS} of each kind, {len(kept):,} of {len(rows):,}; report.json has all."
    return table(
        "table-trace-groups",
        "Device time by what caused it",
        kept,
        [
            Field(label="by", get=lambda g: g.by),
            Field(label="name", get=lambda g: g.name, code=True, fold=True),
            Field(label="count", get=lambda g: g.count, unit="1", source="counted"),
            Field(label="sum", get=lambda g: g.sum_ns, unit="ns", source="measured"),
            Field(label="share", get=lambda g: g.share, unit="ratio", source="measured"),
        ],
        note if len(kept) < len(rows) else "",
        filter_by="by",
    )


def collectives(rows: Sequence[TraceCollectiveRow]) -> Table:
    kept, note = evenly(rows, KERNEL_ROWS)
    return table(
        "table-trace-collectives",
        "Communication kernels by library, operation, group and size",
        kept,
        [
            Field(label="library", get=lambda r: r.library),
            Field(label="operation", get=lambda r: r.op, code=True),
            Field(label="group", get=lambda r: r.group or "–", code=True),
            Field(label="ranks", get=lambda r: r.group_size, unit="1"),
            Field(label="type", get=lambda r: r.dtype or "–", code=True),
            Field(label="size of a call", get=lambda r: r.bytes_per_call, unit="bytes", source="counted"),
            Field(label="count", get=lambda r: r.count, unit="1", source="counted", tip="all ranks"),
            Field(label="sum", get=lambda r: r.sum_ns, unit="ns", source="measured", tip="all ranks"),
            Field(label="mean", get=lambda r: r.mean_ns, unit="ns", source="measured"),
            Field(label="shortest", get=lambda r: r.min_ns, unit="ns", source="measured"),
            Field(label="longest", get=lambda r: r.max_ns, unit="ns", source="measured"),
            Field(
                label="transfer",
                get=lambda r: r.transfer_ns,
                unit="ns",
                source="measured",
                tip="mean over matched calls of the shortest duration of any rank",
            ),
            Field(
                label="wait",
                get=lambda r: r.wait_ns,
                unit="ns",
                source="measured",
                tip="mean over matched calls and ranks of what is longer than the transfer",
            ),
            Field(label="algorithm bandwidth", get=lambda r: r.algorithm_bandwidth, unit="bytes/s", source="measured"),
            Field(label="bus bandwidth", get=lambda r: r.bus_bandwidth, unit="bytes/s", source="modelled"),
        ],
        note,
    )


def launches(rows: Sequence[LaunchRow]) -> Table:
    return table(
        "table-trace-launches",
        "Launches per rank",
        rows,
        [
            Field(label="rank", get=lambda r: r.rank, unit="1"),
            Field(label="activities", get=lambda r: r.activities, unit="1", source="counted"),
            Field(label="without launch", get=lambda r: r.without_launch, unit="1", source="counted"),
            Field(label="by CUDA graphs", get=lambda r: r.graph_kernels, unit="1", source="counted"),
            Field(
                label="median delay",
                get=lambda r: r.delay_median_ns,
                unit="ns",
                source="measured",
                tip="begin of the launch call to begin on the device",
            ),
            Field(label="95 % below", get=lambda r: r.delay_p95_ns, unit="ns", source="measured"),
            Field(label="longest delay", get=lambda r: r.delay_max_ns, unit="ns", source="measured"),
            Field(
                label="mean queue",
                get=lambda r: r.queue_mean,
                unit="1",
                source="measured",
                tip="activities launched and not yet begun, averaged over time",
            ),
            Field(label="longest queue", get=lambda r: r.queue_max, unit="1", source="counted"),
        ],
    )


def stragglers(rows: Sequence[TraceStraggler]) -> Table:
    return table(
        "table-trace-stragglers",
        "How ranks come to collectives",
        rows,
        [
            Field(label="rank", get=lambda r: r.rank, unit="1"),
            Field(label="collectives", get=lambda r: r.collectives, unit="1", source="counted", tip="matched"),
            Field(label="waits for others", get=lambda r: r.wait_ns, unit="ns", source="measured"),
            Field(label="comes last", get=lambda r: r.last_share, unit="ratio", source="measured"),
            Field(
                label="late by",
                get=lambda r: r.lateness_ns if r.last_share else None,
                unit="ns",
                source="measured",
                tip="mean after the rank before it, where it came last",
            ),
            Field(
                label="others waited",
                get=lambda r: r.caused_wait_ns,
                unit="ns",
                source="measured",
                tip="all of them, summed, in the collectives to which it came last",
            ),
            Field(label="delays the others", get=_delays),
        ],
    )


def _delays(row: TraceStraggler) -> Value:
    return Cell("yes", mark="watch") if row.is_straggler else "no"


def critical_path(path: CriticalPath) -> Table:
    off_path = path.slack_by_category_ns
    names = sorted(path.by_category_ns.keys() | off_path.keys(), key=lambda name: -path.by_category_ns.get(name, 0))
    return table(
        "table-trace-critical-path",
        "Critical path by category",
        names,
        [
            Field(label="category", get=str),
            Field(label="on the path", get=lambda n: path.by_category_ns.get(n, 0), unit="ns", source="measured"),
            Field(
                label="share of the path",
                get=lambda n: path.by_category_ns.get(n, 0) / path.total_ns if path.total_ns else None,
                unit="ratio",
                source="measured",
            ),
            Field(
                label="off the path",
                get=off_path.get,
                unit="ns",
                source="measured",
                tip="work of the category that has slack",
            ),
        ],
    )


@dataclass(frozen=True, slots=True)
class _Piece:
    """All pieces of the path of one category and name."""

    category: str
    name: str
    on_device: bool
    durations_ns: tuple[int, ...]


def path_by_name(path: CriticalPath, most: int = 100) -> Table:
    found: dict[tuple[str, str, bool], list[int]] = defaultdict(list)
    for segment in path.segments:
        found[segment.category, segment.name, segment.on_device].append(segment.duration_ns)
    pieces = [_Piece(*key, tuple(durations)) for key, durations in found.items()]
    pieces.sort(key=lambda p: (-sum(p.durations_ns), p.category, p.name))
    notes = []
    if len(pieces) > most:
        notes.append(f"The {most} of {len(pieces):,} with the most time.")
    if path.segments_left_out:
        notes.append(f"{path.segments_left_out:,} pieces, the shortest ones, are not in these sums.")
    return table(
        "table-trace-critical-names",
        "Critical path by name",
        pieces[:most],
        [
            Field(label="name", get=lambda p: p.name or "–", code=True, fold=True),
            Field(label="category", get=lambda p: p.category),
            Field(label="on", get=lambda p: "device" if p.on_device else "host"),
            Field(label="times", get=lambda p: len(p.durations_ns), unit="1", source="counted"),
            Field(label="sum", get=lambda p: sum(p.durations_ns), unit="ns", source="measured"),
            Field(
                label="share of the path",
                get=lambda p: sum(p.durations_ns) / path.total_ns if path.total_ns else None,
                unit="ratio",
                source="measured",
            ),
            Field(label="longest", get=lambda p: max(p.durations_ns), unit="ns", source="measured"),
        ],
        " ".join(notes),
        filter_by="category",
    )


def memory(rows: Sequence[TraceMemory]) -> Table:
    return table(
        "table-trace-memory",
        "Memory peaks in the trace",
        rows,
        [
            Field(label="rank", get=lambda r: r.rank, unit="1"),
            Field(label="device", get=lambda r: r.device),
            Field(label="peak", get=lambda r: r.peak_bytes, unit="bytes", source="measured", tip="allocated"),
            Field(label="at", get=lambda r: r.peak_at_ns, unit="ns", source="measured", tip="since the trace began"),
            Field(
                label="most reserved",
                get=lambda r: max((b for b in r.reserved_bytes if b is not None), default=None),
                unit="bytes",
                source="measured",
            ),
            Field(label="samples", get=lambda r: len(r.x_ns), unit="1", source="counted"),
        ],
    )


def quality(rows: Sequence[TraceQuality]) -> Table:
    return table(
        "table-trace-quality",
        "Traces and what they lack",
        rows,
        [
            Field(label="rank", get=lambda r: r.rank, unit="1"),
            Field(label="source", get=lambda r: r.source, code=True, fold=True),
            Field(label="format", get=lambda r: r.format),
            Field(label="events", get=lambda r: r.events, unit="1", source="counted"),
            Field(label="left out", get=_left_out),
            Field(label="dropped", get=lambda r: r.dropped_events, unit="1", source="counted", tip="by the tracer"),
            Field(label="cut short", get=lambda r: Cell(r.truncated, mark="watch") if r.truncated else "no"),
            Field(label="steps", get=lambda r: r.steps, unit="1", source="counted"),
            Field(label="kernels without launch", get=lambda r: r.kernels_without_launch, unit="1", source="counted"),
            Field(
                label="collectives with size",
                get=lambda r: f"{r.collectives_with_size:,} of {r.collectives:,}" if r.collectives else "–",
            ),
            Field(label="written in", get=lambda r: r.timestamp_unit),
        ],
    )


def _left_out(row: TraceQuality) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in row.left_out.items()) or "–"
