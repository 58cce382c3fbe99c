"""The tables of device traces in a run folder: what Kineto and Nsight Systems recorded, one Parquet file set per rank.

They lie beside the rank's stream (`traces/rank-00000/`), because a trace has a thousand times as many rows. Importers
write them through `store.traces.TraceWriter`; `store.traces.read_traces` gives them back. All times are integer
nanoseconds on the clock of the rank's stream (for an imported trace: since the epoch, and so is the stream's).
Names are 63-bit hashes of the text (`store.traces.name_id`), so that parts, ranks and runs agree without talking; the
texts stand in table `names`.
"""

from enum import IntEnum

from agprof.model.tables import Table, table

TRACE_VERSION = 1
"""Version of these tables and of `trace.json`. Raised when a column changes its meaning or goes away."""


class GpuKind(IntEnum):
    """What an activity on the device is: by its category first; never by its name."""

    KERNEL = 0
    MEMCPY = 1
    MEMSET = 2
    SYNC = 3
    """A wait recorded on the device's side (cuda_sync); never counts as busy."""
    ANNOTATION = 4
    """A host range projected on the device (gpu_user_annotation); never counts as busy."""
    OTHER = 5


class CpuKind(IntEnum):
    """What an event on the host is."""

    OP = 0
    """An operator: cpu_op, of old traces Operator."""
    RUNTIME = 1
    """A call of the CUDA or HIP runtime."""
    DRIVER = 2
    """A call of the driver."""
    ANNOTATION = 3
    """A user's or a framework's range: user_annotation, NVTX."""
    PYTHON = 4
    """A Python function or `nn.Module: Name_0`."""
    OVERHEAD = 5
    """The profiler's own."""
    OTHER = 6


GPU = table(
    "gpu",
    "rank",
    "One row per activity on a device.",
    ("start_ns", "int", "begin"),
    ("duration_ns", "int", "duration, never negative"),
    ("kind", "int", "GpuKind: 0 kernel, 1 memcpy, 2 memset, 3 sync, 4 annotation, 5 other"),
    ("device", "int?", "device number as the trace gives it"),
    ("stream", "int?", "stream; None where the trace gives none"),
    ("name", "int", "id of the name"),
    ("correlation", "int?", "id shared with the host call that launched it"),
    ("external_id", "int?", "id shared with the operator that caused it"),
    ("bytes", "int?", "bytes of a memcpy or memset"),
    ("graph_node", "int?", "node of a CUDA graph, for kernels launched by one"),
)

CPU = table(
    "cpu",
    "rank",
    "One row per event on a host thread; events of one thread nest by time.",
    ("start_ns", "int", "begin"),
    ("duration_ns", "int", "duration, never negative"),
    ("kind", "int", "CpuKind: 0 op, 1 runtime, 2 driver, 3 annotation, 4 python, 5 overhead, 6 other"),
    ("thread", "int?", "thread id"),
    ("name", "int", "id of the name"),
    ("correlation", "int?", "id shared with the device activities it launched"),
    ("external_id", "int?", "id shared with the device activities it caused"),
    ("sequence", "int?", "autograd sequence number: the same on a forward op and on its backward"),
    ("forward_thread", "int?", "on a backward op: autograd's number of the thread of the forward"),
    ("stream", "int?", "stream that a host event names (Triton operators do); it is no device activity for that"),
)

COMM_ARGS = table(
    "comm_args",
    "rank",
    "What the trace says of a collective's size and group; sparse.",
    ("start_ns", "int", "begin of the event that says it"),
    ("correlation", "int?", "of the device activity that says it; None where a host event does"),
    ("external_id", "int?", "of the event that says it"),
    ("op", "str", "operation as agprof names it: all_reduce, all_gather, reduce_scatter, ..."),
    ("group", "str?", "name of the process group"),
    ("group_size", "int?", "ranks in the group"),
    ("dtype", "str?", "element type"),
    ("elements_in", "int?", "elements of the input"),
    ("elements_out", "int?", "elements of the output"),
    ("sequence", "int?", "number of the collective within its group, the same on every rank"),
)

MEMORY_EVENTS = table(
    "memory_events",
    "rank",
    "Allocations and frees, as the framework's allocator reported them.",
    ("time_ns", "int", "time"),
    ("on_device", "bool", "of a GPU; else of the host"),
    ("device", "int?", "device number"),
    ("address", "int?", "address"),
    ("bytes", "int", "allocated; negative: freed"),
    ("allocated_bytes", "int?", "allocated in total afterwards"),
    ("reserved_bytes", "int?", "held from the driver in total afterwards"),
)

COUNTERS = table(
    "counters",
    "rank",
    "Counter samples that a trace carries (GPU metrics and the like).",
    ("time_ns", "int", "time"),
    ("name", "int", "id of the counter's name"),
    ("value", "float", "value in the counter's own unit"),
)

EVENT_WAITS = table(
    "event_waits",
    "rank",
    "What the trace's own synchronisation events say beyond their row in `gpu`; sparse.",
    ("correlation", "int", "of the host's waiting call, and of the row in `gpu`"),
    ("waited_stream", "int?", "stream whose event is waited for"),
    ("record_correlation", "int?", "of the host call that recorded the event"),
)

NAMES = table(
    "names",
    "rank",
    "The texts behind the ids.",
    ("name", "int", "id"),
    ("text", "str", "text as it stood in the trace"),
)

TRACE_TABLES: tuple[Table, ...] = (GPU, CPU, COMM_ARGS, MEMORY_EVENTS, COUNTERS, EVENT_WAITS, NAMES)
