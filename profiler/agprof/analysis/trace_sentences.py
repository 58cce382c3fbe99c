"""What the traces say, in words: the answer first, with figures."""

from collections.abc import Mapping, Sequence

from agprof.model.format import format_value, percent
from agprof.model.trace_answers import CriticalPath, TraceBreakdown

CAUSE_WORDS: Mapping[str, str] = {
    "launch": "the host has not launched the next activity",
    "kernel wait": "what was launched waits on the device",
    "synchronisation": "the host stands in a synchronising call",
    "data": "the host waits for data",
    "unknown": "the trace does not say why",
}
PART_WORDS: Mapping[str, str] = {
    "compute_ns": "computes",
    "exposed_communication_ns": "communicates with nothing beside it",
    "exposed_memcpy_ns": "copies with nothing beside it",
    "exposed_memset_ns": "sets memory with nothing beside it",
    "exposed_other_ns": "does what HTA counts as neither",
    "idle_ns": "idles",
}


def totals(windows: Sequence[TraceBreakdown]) -> dict[str, int]:
    """The parts, summed over windows."""
    return {name: sum(getattr(row, name) for row in windows) for name in PART_WORDS}


def causes(windows: Sequence[TraceBreakdown]) -> dict[str, int]:
    """Idle time by cause, summed over windows."""
    return {cause: sum(row.idle_by_cause_ns[cause] for row in windows) for cause in CAUSE_WORDS}


def time_sentence(windows: Sequence[TraceBreakdown]) -> str:
    """Where the devices' time goes."""
    if not windows:
        return "No rank's trace holds device activities: where the device's time goes is not known."
    whole = sum(row.window_ns for row in windows)
    parts = totals(windows)
    who = "The device" if len(windows) == 1 else f"The mean device of {len(windows):,}"
    mean = format_value(whole / len(windows), "ns")
    if not whole:
        return f"{who} was active for no time at all."
    ordered = sorted((name for name in parts if parts[name] >= 0.0005 * whole), key=lambda name: -parts[name])
    said = ", ".join(f"{PART_WORDS[name]} {percent(parts[name] / whole)}" for name in ordered)
    words = f"{who} {said} of its {mean}."
    if parts["idle_ns"]:
        why = causes(windows)
        top = max(why, key=lambda cause: why[cause])
        if why[top] and top != "unknown":
            words += f" It idles mostly because {CAUSE_WORDS[top]} ({percent(why[top] / parts['idle_ns'])} of idle)."
    talking = sum(row.communication_ns for row in windows)
    if talking:
        hidden = sum(row.overlapped_communication_ns for row in windows)
        words += f" {percent(hidden / talking)} of communication runs beside compute."
    return words


def path_sentence(path: CriticalPath | None) -> str:
    """What the critical path is made of."""
    if path is None:
        return "No critical path: the trace holds nothing that it could run through."
    where = f"step {path.step}" if path.step is not None else "the window"
    total = format_value(path.total_ns, "ns")
    if not path.total_ns:
        return f"The critical path of {where} on rank {path.rank} is empty."
    ordered = sorted(path.by_category_ns.items(), key=lambda item: (-item[1], item[0]))
    said = ", ".join(f"{name} {percent(ns / path.total_ns)}" for name, ns in ordered[:4] if ns)
    note = f" {path.note}" if path.note else ""
    return f"The critical path of {where} on rank {path.rank} takes {total}: {said}.{note}"
