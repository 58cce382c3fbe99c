"""Events of a Kineto file become rows: sorted by kind, times put on the clock of the run, what is unusable counted."""

from collections import Counter as Count
from collections.abc import Sequence

from agprof.importers.kineto_events import (
    CPU_KINDS,
    GPU_KINDS,
    NO_ARGS,
    NOT_WORK,
    Args,
    Complete,
    Event,
    Instant,
    Label,
    MemoryArgs,
)
from agprof.importers.kineto_lax import exact_ns
from agprof.model.trace_tables import CpuKind
from agprof.store.traces import TraceWriter

MAX_DURATION_NS = 30 * 86_400 * 10**9
"""Thirty days: what claims to last longer is damage."""
OPERATIONS = {
    "allreduce": "all_reduce",
    "allreduce_coalesced": "all_reduce",
    "allgather": "all_gather",
    "_allgather_base": "all_gather",
    "allgather_coalesced": "all_gather",
    "allgather_into_tensor_coalesced": "all_gather",
    "all_gather": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "_reduce_scatter_base": "reduce_scatter",
    "reduce_scatter_tensor_coalesced": "reduce_scatter",
    "alltoall": "all_to_all",
    "all_to_all": "all_to_all",
    "all_to_allv": "all_to_all",
    "alltoall_base": "all_to_all",
    "broadcast_oop": "broadcast",
    "_broadcast_oop": "broadcast",
    "_reduce_oop": "reduce",
}
"""What PyTorch calls a collective in a trace, and what agprof does; others keep their name."""


class Rows:
    """Takes events, writes rows. One per writing process."""

    def __init__(self, writer: TraceWriter, offset_ns: int) -> None:
        """`offset_ns` is added to every time."""
        self.writer = writer
        self.offset_ns = offset_ns
        self.events: Count[str] = Count()
        self.left_out: Count[str] = Count()
        self.first_ns: int | None = None
        self.last_ns: int | None = None

    def add(self, events: Sequence[Event]) -> None:
        """Write the rows of some events. Raises OSError."""
        complete: list[tuple[Complete, int, int]] = []
        instants: list[Instant] = []
        for event in events:
            if isinstance(event, Complete):
                self.events[event.cat] += 1
                start_ns, duration_ns = exact_ns(event.ts), exact_ns(event.dur)
                if start_ns is None or duration_ns is None:
                    self.left_out["no time"] += 1
                elif duration_ns < 0:
                    self.left_out["negative duration"] += 1
                elif duration_ns > MAX_DURATION_NS:
                    self.left_out["impossible duration"] += 1
                else:
                    complete.append((event, start_ns + self.offset_ns, duration_ns))
            elif isinstance(event, Instant):
                self.events[event.cat or "ph i"] += 1
                instants.append(event)
            else:
                self.events[f"ph {event.__struct_config__.tag}"] += 1
        self._gpu([row for row in complete if row[0].cat in GPU_KINDS])
        self._cpu([row for row in complete if row[0].cat not in GPU_KINDS and row[0].cat not in NOT_WORK])
        self._memory(instants)
        self._collectives([row for row in complete if row[0].args is not None and row[0].args.collective])

    def _gpu(self, rows: list[tuple[Complete, int, int]]) -> None:
        if not rows:
            return
        args = [event.args or NO_ARGS for event, _, _ in rows]
        self._seen(rows)
        self.writer.append(
            "gpu",
            {
                "start_ns": [start for _, start, _ in rows],
                "duration_ns": [duration for _, _, duration in rows],
                "kind": [int(GPU_KINDS[event.cat]) for event, _, _ in rows],
                "device": [
                    a.device if a.device is not None else number(row[0].pid) for a, row in zip(args, rows, strict=True)
                ],
                "stream": [
                    number(a.stream) if a.stream is not None else number(row[0].tid)
                    for a, row in zip(args, rows, strict=True)
                ],
                "name": [self.writer.name(event.name) for event, _, _ in rows],
                "correlation": [a.correlation for a in args],
                "external_id": [external_id(a) for a in args],
                "bytes": [a.bytes for a in args],
                "graph_node": [a.graph_node for a in args],
            },
        )

    def _cpu(self, rows: list[tuple[Complete, int, int]]) -> None:
        if not rows:
            return
        args = [event.args or NO_ARGS for event, _, _ in rows]
        self._seen(rows)
        self.writer.append(
            "cpu",
            {
                "start_ns": [start for _, start, _ in rows],
                "duration_ns": [duration for _, _, duration in rows],
                "kind": [int(CPU_KINDS.get(event.cat, CpuKind.OTHER)) for event, _, _ in rows],
                "thread": [number(event.tid) for event, _, _ in rows],
                "name": [self.writer.name(event.name) for event, _, _ in rows],
                "correlation": [a.correlation for a in args],
                "external_id": [external_id(a) for a in args],
                "sequence": [a.sequence for a in args],
                "forward_thread": [a.forward_thread for a in args],
                "stream": [number(a.stream) for a in args],
            },
        )

    def _collectives(self, rows: list[tuple[Complete, int, int]]) -> None:
        if not rows:
            return
        args = [event.args or NO_ARGS for event, _, _ in rows]
        self.writer.append(
            "comm_args",
            {
                "start_ns": [start for _, start, _ in rows],
                "correlation": [a.correlation for a in args],
                "external_id": [external_id(a) for a in args],
                "op": [OPERATIONS.get(a.collective or "", a.collective) for a in args],
                "group": [group_name(a) for a in args],
                "group_size": [a.group_size for a in args],
                "dtype": [a.dtype for a in args],
                "elements_in": [a.elements_in for a in args],
                "elements_out": [a.elements_out for a in args],
                "sequence": [a.comm_sequence for a in args],
            },
        )

    def _memory(self, instants: list[Instant]) -> None:
        rows: list[tuple[int, int, MemoryArgs]] = []
        for event in instants:
            if event.name == "[memory]" and event.args is not None:
                time_ns, args = exact_ns(event.ts), event.args
                if time_ns is None or args.bytes is None:
                    self.left_out["no time" if time_ns is None else "no bytes"] += 1
                else:
                    rows.append((time_ns + self.offset_ns, args.bytes, args))
        if rows:
            columns = {
                "time_ns": [time for time, _, _ in rows],
                "on_device": [args.device_type != 0 for _, _, args in rows],
                "device": [args.device for _, _, args in rows],
                "address": [args.address for _, _, args in rows],
                "bytes": [size for _, size, _ in rows],
                "allocated_bytes": [args.allocated_bytes for _, _, args in rows],
                "reserved_bytes": [args.reserved_bytes for _, _, args in rows],
            }
            self.writer.append("memory_events", columns)

    def _seen(self, rows: list[tuple[Complete, int, int]]) -> None:
        first, last = min(start for _, start, _ in rows), max(start + duration for _, start, duration in rows)
        self.first_ns = first if self.first_ns is None else min(first, self.first_ns)
        self.last_ns = last if self.last_ns is None else max(last, self.last_ns)


def number(label: Label) -> int | None:
    """The number that a thread or stream is called by: 7, "7", "0x7" or "stream 7"; None where there is none."""
    if label is None or isinstance(label, int):
        return label
    text = label.removeprefix("stream ").strip()
    if len(text) > 20:
        return None
    try:
        found = int(text, 0)
    except ValueError:
        return None
    return found if abs(found) < 2**63 else None


def external_id(args: Args) -> int | None:
    return args.external_id if args.external_id is not None else args.old_external_id


def group_name(args: Args) -> str | None:
    """Name of a process group, with what it is for where the trace says so: `0 (default_pg)`."""
    name = None if args.group is None else str(args.group)
    described = args.group_description
    if described in (None, "", "undefined", name):
        return name
    return described if name is None else f"{name} ({described})"
