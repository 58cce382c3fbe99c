"""Columns of the tables from lists of decoded events: one array per column, NOTHING where an event gives no value."""

from typing import Any

import numpy as np

from agprof.importers.kineto_events import NOTHING, Args, Complete, Label, MemoryArgs
from agprof.importers.kineto_time import MAX_INT, Int64s
from agprof.store.traces import TraceWriter

Columns = dict[str, Int64s | list[Any]]

FIRST_MADE_UP_THREAD = 1_000_000_000
"""Where `agprof export --format chrome` begins to number tracks that are no threads."""
OPERATIONS = {
    "allreduce": "all_reduce",
    "allreduce_coalesced": "all_reduce",
    "allgather": "all_gather",
    "_allgather_base": "all_gather",
    "allgather_coalesced": "all_gather",
    "allgather_into_tensor_coalesced": "all_gather",
    "_reduce_scatter_base": "reduce_scatter",
    "reduce_scatter_tensor_coalesced": "reduce_scatter",
    "alltoall": "all_to_all",
    "alltoall_base": "all_to_all",
    "all_to_allv": "all_to_all",
    "broadcast_oop": "broadcast",
    "_broadcast_oop": "broadcast",
    "_reduce_oop": "reduce",
}
"""What PyTorch calls a collective in a trace, and what agprof does; others keep their name."""
MOST_ELEMENTS, MOST_RANKS = 2**38, 2**20
"""More than any collective has; so bytes of all ranks (up to 16 per element) fit 64 bits."""


def gpu_columns(
    writer: TraceWriter,
    events: list[Complete],
    args: list[Args],
    kinds: Int64s,
    starts: Int64s,
    durations: Int64s,
) -> Columns:
    """Rows of table `gpu`. Device and stream are the event's own, or process and thread where it names none."""
    device, stream = int_column([a.device for a in args]), label_column([a.stream for a in args])
    if (device == NOTHING).any():
        device = np.where(device == NOTHING, label_column([event.pid for event in events]), device)
    if (stream == NOTHING).any():
        tids = label_column([event.tid for event in events])
        stream = np.where(stream == NOTHING, np.where(tids < FIRST_MADE_UP_THREAD, tids, NOTHING), stream)
    return {
        "start_ns": starts,
        "duration_ns": durations,
        "kind": kinds,
        "device": device,
        "stream": stream,
        "name": writer.name_ids([event.name for event in events]),
        "correlation": int_column([a.correlation for a in args]),
        "external_id": external_ids(args),
        "bytes": int_column([a.bytes for a in args]),
        "graph_node": int_column([a.graph_node for a in args]),
    }


def cpu_columns(
    writer: TraceWriter,
    events: list[Complete],
    args: list[Args],
    kinds: Int64s,
    starts: Int64s,
    durations: Int64s,
) -> Columns:
    """Rows of table `cpu`."""
    threads = label_column([event.tid for event in events])
    if (threads >= FIRST_MADE_UP_THREAD).any():
        own = int_column([a.thread for a in args])
        threads = np.where(own == NOTHING, threads, own)
    return {
        "start_ns": starts,
        "duration_ns": durations,
        "kind": kinds,
        "thread": threads,
        "name": writer.name_ids([event.name for event in events]),
        "correlation": int_column([a.correlation for a in args]),
        "external_id": external_ids(args),
        "sequence": int_column([a.sequence for a in args]),
        "forward_thread": int_column([a.forward_thread for a in args]),
        "stream": label_column([a.stream for a in args]),
    }


def comm_columns(args: list[Args], starts: Int64s) -> Columns:
    """Rows of table `comm_args`."""
    return {
        "start_ns": starts,
        "correlation": int_column([a.correlation for a in args]),
        "external_id": external_ids(args),
        "op": [OPERATIONS.get(a.collective or "", a.collective) for a in args],
        "group": [group_name(a) for a in args],
        "group_size": _counts([a.group_size for a in args], MOST_RANKS),
        "dtype": [a.dtype for a in args],
        "elements_in": _counts([a.elements_in for a in args], MOST_ELEMENTS),
        "elements_out": _counts([a.elements_out for a in args], MOST_ELEMENTS),
        "sequence": int_column([a.comm_sequence for a in args]),
    }


def _counts(values: list[int], most: int) -> Int64s:
    """Numbers of elements or ranks; NOTHING where one is negative or larger than can be true."""
    column = int_column(values)
    return np.where((column >= 0) & (column <= most), column, NOTHING)


def memory_columns(args: list[MemoryArgs], times: Int64s) -> Columns:
    """Rows of table `memory_events`."""
    return {
        "time_ns": times,
        "on_device": [a.device_type != 0 for a in args],
        "device": int_column([a.device for a in args]),
        "address": int_column([a.address for a in args]),
        "bytes": int_column([a.bytes for a in args]),
        "allocated_bytes": int_column([a.allocated_bytes for a in args]),
        "reserved_bytes": int_column([a.reserved_bytes for a in args]),
    }


def wait_columns(args: list[Args]) -> Columns:
    """Rows of table `event_waits`."""
    return {
        "correlation": int_column([a.correlation for a in args]),
        "waited_stream": int_column([a.waited_stream for a in args]),
        "record_correlation": int_column([a.record_correlation for a in args]),
    }


def external_ids(args: list[Args]) -> Int64s:
    """`External id`, or as old files write it, `external id`."""
    found = int_column([a.external_id for a in args])
    missing = np.flatnonzero(found == NOTHING)
    if len(missing):
        found[missing] = int_column([args[place].old_external_id for place in missing.tolist()])
    return found


def int_column(values: list[int]) -> Int64s:
    """An array of integers; what does not fit in 64 bits counts as not given."""
    try:
        return np.fromiter(values, np.int64, len(values))
    except OverflowError:
        return np.array([value if abs(value) <= MAX_INT else NOTHING for value in values], np.int64)


def label_column(values: list[Label]) -> Int64s:
    """An array of the numbers that threads or streams are called by."""
    try:
        return np.fromiter(values, np.int64, len(values))
    except (ValueError, TypeError, OverflowError):
        known: dict[Label, int] = {}
        return np.array([known.get(value) or known.setdefault(value, number(value)) for value in values], np.int64)


def number(label: Label) -> int:
    """The number that a thread or stream is called by: 7, "7", "0x7" or "stream 7"; NOTHING where there is none."""
    if isinstance(label, str):
        text = label.removeprefix("stream ").strip()
        try:
            label = int(text, 0) if len(text) <= 40 else NOTHING
        except ValueError:
            return NOTHING
    return label if abs(label) <= MAX_INT else NOTHING


def group_name(args: Args) -> str | None:
    """Name of a process group, with what it is for where the trace says so: `0 (default_pg)`."""
    name, described = None if args.group is None else str(args.group), args.group_description
    if described in (None, "", "undefined", name):
        return name
    return described if name is None else f"{name} ({described})"
