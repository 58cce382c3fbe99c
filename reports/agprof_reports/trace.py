"""The section on device traces. Only runs that hold a trace of a device, or of a host beside none, have one."""

from collections.abc import Iterable, Sequence

from agprof.model.format import percent
from agprof.model.trace_answers import KernelGroup, KernelRow, LaunchRow, TraceAnswer, TraceQuality
from agprof_reports import trace_tables
from agprof_reports.charts.trace_memory import memory
from agprof_reports.charts.trace_time import device_steps, device_time
from agprof_reports.charts.trace_timeline import slices
from agprof_reports.data import Most, Part, Section, Slices, Table
from agprof_reports.text import clean, with_unit

KEY, TITLE = "trace", "Device trace"
_DEFINITIONS = {
    "exact": "",
    "hta": "Device time per rank is by the definitions of HolisticTraceAnalysis 0.5 (`--compat hta`), which give "
    "no cause of idle; all else is by agprof's own.",
}
_NOTES = 12
_NO_CAUSE = frozenset({"launch not in the trace", "no operator", "no module", "other"})
"""Names of groups that say that a cause is not known: no answer to what caused most."""


def section(found: TraceAnswer, most_slices: int = Most().slices) -> Section:
    parts = (
        _time(found),
        _timeline(found, most_slices),
        _critical_path(found),
        _communication(found),
        _kernels(found),
        _groups(found),
        _launches(found),
        _memory(found),
        _stragglers(found),
        _quality(found),
    )
    lines = [("watch", _DEFINITIONS[found.definitions])] if _DEFINITIONS[found.definitions] else []
    return Section(
        key=KEY,
        title=TITLE,
        sentence=found.sentence or "The traces say nothing of a device.",
        lines=tuple(lines),
        parts=tuple(part for part in parts if part is not None),
    )


def _time(found: TraceAnswer) -> Part | None:
    """Under the section's own sentence: it says the same in figures."""
    if not found.windows:
        return None
    drawn = [device_time(found.windows)]
    whole = {(row.rank, row.start_ns, row.window_ns) for row in found.windows}
    lines: tuple[tuple[str, str], ...] = ()
    if not found.steps and found.definitions == "exact":
        lines = (("", "No profiler step is in the traces: only the whole window is divided."),)
    elif all((row.rank, row.start_ns, row.window_ns) in whole for row in found.steps):
        lines = (("", "Each rank's window is one profiler step."),) if found.steps else ()
    else:
        drawn.append(device_steps(found.steps))
    return Part(
        key="trace-time",
        title="Where the device's time goes",
        sentence=_time_sentence(found),
        lines=lines,
        charts=tuple(drawn),
    )


def _time_sentence(found: TraceAnswer) -> str:
    busy = [1 - row.idle_ns / row.window_ns for row in found.windows if row.window_ns]
    compute = [row.compute_ns / row.window_ns for row in found.windows if row.window_ns]
    if not busy:
        return "The window of the trace is empty."
    whose = "the device" if len(busy) == 1 else f"the devices of {len(busy)} ranks"
    verb = "is" if len(busy) == 1 else "are"
    return f"In the window, {whose} {verb} busy for {_span(busy)} of the time and computing for {_span(compute)}."


def _span(ratios: list[float]) -> str:
    low, high = _percent(min(ratios)), _percent(max(ratios))
    return low if low == high else f"{low} to {high}"


def _percent(ratio: float) -> str:
    return percent(ratio).replace(" ", "\u00a0")


def _timeline(found: TraceAnswer, most: int) -> Part | None:
    timeline = found.timeline
    drawn: Slices | None = None
    if timeline is not None and any(lane.start_ns for lane in timeline.lanes):
        drawn = slices(timeline, found.critical_path, most)
    if drawn is None or timeline is None:
        return None
    count = sum(len(lane.start_ns) for lane in timeline.lanes)
    return Part(
        key="trace-window",
        title="Time line",
        sentence=f"{count:,} slices on {len(timeline.lanes)} lanes in {with_unit(float(timeline.window_ns), 'ns')}.",
        slices=drawn,
    )


def _critical_path(found: TraceAnswer) -> Part | None:
    path = found.critical_path
    if path is None and not found.critical_path_sentence:
        return None
    tables: tuple[Table, ...] = ()
    lines: tuple[tuple[str, str], ...] = ()
    if path is not None:
        lines = (("", path.note),) if path.note and path.note not in found.critical_path_sentence else ()
        tables = (trace_tables.critical_path(path), trace_tables.path_by_name(path))
    return Part(
        key="trace-critical-path",
        title="Critical path",
        sentence=found.critical_path_sentence,
        lines=lines,
        tables=tables,
    )


def _communication(found: TraceAnswer) -> Part | None:
    if not found.has_device:
        return None
    tables = [trace_tables.collectives(found.collectives)] if found.collectives else []
    lines: list[tuple[str, str]] = []
    if found.unclassified:
        caption = "Counted as compute, with names that hint at communication"
        tables.append(trace_tables.kernels("table-trace-unclassified", caption, found.unclassified))
        lines.append(("watch", _unclassified(found.unclassified)))
    return Part(
        key="trace-communication",
        title="Communication on the device",
        sentence=found.communication_sentence or "No communication kernel is in the traces.",
        lines=tuple(lines),
        tables=tuple(tables),
    )


def _unclassified(rows: tuple[KernelRow, ...]) -> str:
    one = len(rows) == 1
    return (
        f"{len(rows):,} {'name of a kernel hints' if one else 'names of kernels hint'} at communication but "
        f"{'is' if one else 'are'} not known: {'it is' if one else 'they are'} counted as compute."
    )


def _kernels(found: TraceAnswer) -> Part | None:
    rows = found.kernels
    if not rows:
        return None
    total = sum(row.sum_ns for row in rows)
    top = rows[0]
    return Part(
        key="trace-kernels",
        title="Kernels",
        sentence=f"{_many(sum(row.count for row in rows), 'activity', 'activities')} under "
        f"{_many(len(rows), 'name', 'names')} take {with_unit(float(total), 'ns')} in sum over all ranks; the first, "
        f"{_code(top.name)}, takes {_percent(top.share)} of it in {_many(top.count, 'launch', 'launches')}.",
        tables=(trace_tables.kernels("table-trace-kernels", "Kernels", rows),),
    )


def _groups(found: TraceAnswer) -> Part | None:
    if not found.groups:
        return None
    told = [text for by in ("op", "module", "phase") if (text := _largest(by, found.groups))]
    return Part(
        key="trace-groups",
        title="What caused the device's time",
        sentence=f"Most device time comes from {'; '.join(told)}." if told else "No single cause is known by name.",
        tables=(trace_tables.groups(found.groups),),
    )


def _largest(by: str, groups: Iterable[KernelGroup]) -> str:
    known = (group for group in groups if group.by == by and group.name not in _NO_CAUSE)
    top = max(known, key=lambda group: group.sum_ns, default=None)
    words = {"op": "operator", "module": "module", "phase": "phase"}
    return f"{words[by]} {_code(top.name)} ({_percent(top.share)})" if top is not None else ""


def _launches(found: TraceAnswer) -> Part | None:
    rows = found.launches
    if not rows:
        return None
    return Part(
        key="trace-launches",
        title="Launches",
        sentence=_launch_sentence(rows),
        tables=(trace_tables.launches(rows),),
    )


def _launch_sentence(rows: tuple[LaunchRow, ...]) -> str:
    known = [row for row in rows if row.delay_median_ns is not None]
    missing = sum(row.without_launch for row in rows)
    graphs = sum(row.graph_kernels for row in rows)
    if not known:
        return "No launch could be matched with what it started on the device."
    delays = sorted(row.delay_median_ns or 0 for row in known)
    low, high = with_unit(float(delays[0]), "ns"), with_unit(float(delays[-1]), "ns")
    text = f"From launch to begin on the device it takes {low if low == high else f'{low} to {high}'} in the median"
    if missing:
        total = sum(row.activities for row in rows)
        text += f"; {missing:,} of {total:,} activities have no launch in the trace"
    if graphs:
        text += f"; {_many(graphs, 'kernel comes', 'kernels come')} from CUDA graphs"
    return f"{text}."


def _memory(found: TraceAnswer) -> Part | None:
    rows = [row for row in found.memory if row.x_ns]
    if not rows:
        return None
    top = max(rows, key=lambda row: row.peak_bytes)
    return Part(
        key="trace-memory-part",
        title="Memory over the trace",
        sentence=f"The peak is {with_unit(float(top.peak_bytes), 'bytes')}, rank {top.rank} on {_code(top.device)}, "
        + (
            "as the trace begins."
            if not top.peak_at_ns
            else f"{with_unit(float(top.peak_at_ns), 'ns')} into the trace."
        ),
        charts=(memory(rows),),
    )


def _stragglers(found: TraceAnswer) -> Part | None:
    if not found.stragglers and not (found.has_device and found.stragglers_sentence):
        return None
    return Part(
        key="trace-stragglers",
        title="Stragglers",
        sentence=found.stragglers_sentence,
        tables=(trace_tables.stragglers(found.stragglers),) if found.stragglers else (),
    )


def _quality(found: TraceAnswer) -> Part:
    return Part(
        key="trace-quality",
        title="Quality of the traces",
        sentence=found.quality_sentence,
        lines=tuple(_notes(found.quality)),
        tables=(trace_tables.quality(found.quality),) if found.quality else (),
    )


def _notes(rows: Sequence[TraceQuality]) -> list[tuple[str, str]]:
    """Each note once, with the ranks that it holds for."""
    ranks: dict[str, list[int]] = {}
    for row in rows:
        for note in row.notes:
            ranks.setdefault(note, []).append(row.rank)
    every = len({row.rank for row in rows})
    lines = [("watch", f"{_ranks(numbers, every)}: {note}") for note, numbers in ranks.items()]
    if len(lines) > _NOTES:
        lines = [*lines[:_NOTES], ("", f"{len(lines) - _NOTES} more notes; report.json has all.")]
    return lines


def _ranks(numbers: list[int], every: int) -> str:
    if len(numbers) == every > 1:
        return "All ranks"
    if len(numbers) == 1:
        return f"Rank {numbers[0]}"
    if len(numbers) <= 8:
        return f"Ranks {', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"
    return f"{len(numbers)} ranks"


def _many(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def _code(name: str) -> str:
    """A name inside a sentence: short, and without the mark that ends code."""
    return f"`{clean(name, 64).replace('`', chr(39))}`"
