"""Horovod's timeline (HOROVOD_TIMELINE=file): what happened to each tensor, as rows.

The file is a Chrome trace that rank 0 writes while the job runs: one "process" per tensor, begin and end events that
nest (ALLREDUCE around MEMCPY_IN_FUSION_BUFFER, GLOO_ALLREDUCE...), microseconds. Its closing bracket is missing when
the job did not shut Horovod down, and its last event is cut short when the job was killed.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agprof.errors import TraceError


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorPhase:
    """One phase of one tensor."""

    tensor: str
    phase: str
    """As Horovod calls it: NEGOTIATE_ALLREDUCE, ALLREDUCE, QUEUE, MEMCPY_IN_FUSION_BUFFER, GLOO_ALLREDUCE..."""
    start_ns: int
    """Since Horovod's timeline began."""
    duration_ns: int


def read_timeline(path: Path) -> list[TensorPhase]:
    """All phases that ended, by start, an outer one before those inside it. Raises TraceError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise TraceError(f"{path}: the timeline can't be read: {reason}") from error
    return phases(_events(text, path))


def phases(events: list[dict[str, Any]]) -> list[TensorPhase]:
    """Match begin and end events per tensor. What never ended is left out, as is an end without a beginning."""
    tensors: dict[int, str] = {}
    open_phases: dict[int, list[tuple[str, int]]] = {}
    rows: list[TensorPhase] = []
    for event in events:
        kind, number = event.get("ph"), event.get("pid", 0)
        if kind == "M" and event.get("name") == "process_name":
            tensors[number] = str(event.get("args", {}).get("name", number))
        elif kind == "B":
            open_phases.setdefault(number, []).append((str(event.get("name", "")), _time_ns(event)))
        elif kind == "E" and open_phases.get(number):
            name, start_ns = open_phases[number].pop()
            tensor = tensors.get(number, str(number))
            duration_ns = max(0, _time_ns(event) - start_ns)
            rows.append(TensorPhase(tensor=tensor, phase=name, start_ns=start_ns, duration_ns=duration_ns))
    return sorted(rows, key=lambda row: (row.start_ns, -row.duration_ns))


def _time_ns(event: dict[str, Any]) -> int:
    return round(float(event.get("ts", 0)) * 1000)


def _events(text: str, path: Path) -> list[dict[str, Any]]:
    """The array's objects, up to the first that is not complete."""
    begin = text.find("[")
    if begin < 0 or text[:begin].strip():
        raise TraceError(f"{path}: is no timeline of Horovod; it begins with `[`, as HOROVOD_TIMELINE writes it")
    decoder, position = json.JSONDecoder(), begin + 1
    events: list[dict[str, Any]] = []
    while True:
        while position < len(text) and text[position] in " \t\r\n,":
            position += 1
        if position >= len(text) or text[position] == "]":
            return events
        try:
            event, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            if "\n" not in text[error.pos :].strip():
                return events  # the end of a file that was still being written
            line = text.count("\n", 0, error.pos) + 1
            raise TraceError(f"{path}:{line}: is no JSON: {error.msg}; is it a timeline of Horovod?") from error
        if isinstance(event, dict):
            events.append(event)
