"""What an event of a Kineto file is: its typed form, and how it becomes rows of the run folder's tables.

An event is classified by its category first and never by its name: a CPU operator that names a stream (Triton's do)
stays a CPU operator. Field names are the file's own; the order of the fields is the order in which Kineto writes them,
because the decoder looks for the next field first.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from agprof.model.trace_tables import CpuKind, GpuKind

Number = int | float
Label = int | str
NOTHING = -(2**63)
"""Stands for "not given" in a column of integers, so that a column is one array; None in the tables."""

# Kineto's own names of its activity types (libkineto/include/ActivityType.h), old and new.
GPU_KINDS: Mapping[str, GpuKind] = {
    "kernel": GpuKind.KERNEL,
    "Kernel": GpuKind.KERNEL,
    "gpu_memcpy": GpuKind.MEMCPY,
    "Memcpy": GpuKind.MEMCPY,
    "gpu_memset": GpuKind.MEMSET,
    "Memset": GpuKind.MEMSET,
    "cuda_sync": GpuKind.SYNC,
    "xpu_sync": GpuKind.SYNC,
    "gpu_user_annotation": GpuKind.ANNOTATION,
    "mtia_ccp_events": GpuKind.KERNEL,
    "collective_comm": GpuKind.OTHER,
    "mtia_insight": GpuKind.OTHER,
    "mtia_workloadd": GpuKind.OTHER,
    "xpu_scope_profiler": GpuKind.OTHER,
    "cuda_event": GpuKind.OTHER,
    "cuda_profiler_range": GpuKind.OTHER,
}
CPU_KINDS: Mapping[str, CpuKind] = {
    "cpu_op": CpuKind.OP,
    "Operator": CpuKind.OP,
    "cuda_runtime": CpuKind.RUNTIME,
    "Runtime": CpuKind.RUNTIME,
    "runtime": CpuKind.RUNTIME,
    "hip_runtime": CpuKind.RUNTIME,
    "xpu_runtime": CpuKind.RUNTIME,
    "glow_runtime": CpuKind.RUNTIME,
    "mtia_runtime": CpuKind.RUNTIME,
    "hpu_op": CpuKind.RUNTIME,
    "privateuse1_runtime": CpuKind.RUNTIME,
    "cuda_driver": CpuKind.DRIVER,
    "driver": CpuKind.DRIVER,
    "xpu_driver": CpuKind.DRIVER,
    "privateuse1_driver": CpuKind.DRIVER,
    "user_annotation": CpuKind.ANNOTATION,
    "python_function": CpuKind.PYTHON,
    "overhead": CpuKind.OVERHEAD,
}
NOT_WORK = frozenset({"Trace", "ac2g", "async", "async_cpu_to_gpu", "async_gpu", "fwdbwd"})
"""Categories of the profiler's own window and of arrows: counted, and no rows."""


INSTANT = "cpu_instant_event"
if TYPE_CHECKING:
    Category = str
else:
    Category = Literal[tuple(dict.fromkeys([*GPU_KINDS, *CPU_KINDS, *NOT_WORK, INSTANT, ""]))]
    """The decoder makes no new text for a value that it knows. Others take the slower way, where they are any text."""


class Args(msgspec.Struct, gc=False, frozen=True):
    """What the tables need of an event's `args`."""

    external_id: int = msgspec.field(default=NOTHING, name="External id")
    old_external_id: int = msgspec.field(default=NOTHING, name="external id")
    sequence: int = msgspec.field(default=NOTHING, name="Sequence number")
    forward_thread: int = msgspec.field(default=NOTHING, name="Fwd thread id")
    device: int = NOTHING
    stream: Label = NOTHING
    correlation: int = NOTHING
    bytes: int = NOTHING
    graph_node: int = msgspec.field(default=NOTHING, name="graph node id")
    collective: str | None = msgspec.field(default=None, name="Collective name")
    elements_in: int = msgspec.field(default=NOTHING, name="In msg nelems")
    elements_out: int = msgspec.field(default=NOTHING, name="Out msg nelems")
    group_size: int = msgspec.field(default=NOTHING, name="Group size")
    dtype: str | None = None
    group: Label | None = msgspec.field(default=None, name="Process Group Name")
    group_description: str | None = msgspec.field(default=None, name="Process Group Description")
    comm_sequence: int = msgspec.field(default=NOTHING, name="Seq")
    waited_stream: int = msgspec.field(default=NOTHING, name="wait_on_stream")
    record_correlation: int = msgspec.field(default=NOTHING, name="wait_on_cuda_event_record_corr_id")
    thread: int = msgspec.field(default=NOTHING, name="agprof thread")
    """The thread, where `agprof export` had to give the event a made-up one for the sake of viewers."""


NO_ARGS = Args()


class Complete(msgspec.Struct, gc=False, tag_field="ph", tag="X"):
    """An event with a begin and a duration, in microseconds."""

    cat: Category = ""
    name: str = ""
    pid: Label = NOTHING
    tid: Label = NOTHING
    ts: Number | None = None
    dur: Number | None = None
    args: Args = NO_ARGS


class MemoryArgs(msgspec.Struct, gc=False, frozen=True):
    reserved_bytes: int = msgspec.field(default=NOTHING, name="Total Reserved")
    allocated_bytes: int = msgspec.field(default=NOTHING, name="Total Allocated")
    bytes: int = msgspec.field(default=NOTHING, name="Bytes")
    address: int = msgspec.field(default=NOTHING, name="Addr")
    device: int = msgspec.field(default=NOTHING, name="Device Id")
    device_type: int = msgspec.field(default=NOTHING, name="Device Type")
    """0 is the host."""


NO_MEMORY_ARGS = MemoryArgs()


class Instant(msgspec.Struct, gc=False, tag_field="ph", tag="i"):
    """A point in time; of use when it is an allocation: `[memory]`."""

    cat: Category = ""
    name: str = ""
    ts: Number | None = None
    args: MemoryArgs = NO_MEMORY_ARGS


class Counter(msgspec.Struct, gc=False, tag_field="ph", tag="C"):
    """A sample of one or more counters, by their names in `args`."""

    cat: str = ""
    name: str = ""
    ts: Number | None = None
    args: dict[str, Any] | None = None


class Described(msgspec.Struct, gc=False, tag_field="ph", tag="M"):
    """The name of a process or thread."""


class ArrowStart(msgspec.Struct, gc=False, tag_field="ph", tag="s"):
    """Begin of an arrow. The ids in `args` of what it joins say the same, and more."""


class ArrowEnd(msgspec.Struct, gc=False, tag_field="ph", tag="f"):
    """End of an arrow."""


class Begin(msgspec.Struct, gc=False, tag_field="ph", tag="B"):
    """Begin of a duration whose end is an event of its own."""

    cat: str = ""
    name: str = ""
    pid: Label = NOTHING
    tid: Label = NOTHING
    ts: Number | None = None
    args: Args = NO_ARGS


class End(msgspec.Struct, gc=False, tag_field="ph", tag="E"):
    """End of the innermost duration begun on the same track."""

    pid: Label = NOTHING
    tid: Label = NOTHING
    ts: Number | None = None


class ExactComplete(Complete, gc=False, tag_field="ph", tag="X"):
    """As Complete, of any category and with times of any type: what a float hook made of their text."""

    cat: str = ""
    ts: Any = None
    dur: Any = None


class ExactInstant(Instant, gc=False, tag_field="ph", tag="i"):
    cat: str = ""
    ts: Any = None


class ExactCounter(Counter, gc=False, tag_field="ph", tag="C"):
    ts: Any = None


class ExactBegin(Begin, gc=False, tag_field="ph", tag="B"):
    ts: Any = None


class ExactEnd(End, gc=False, tag_field="ph", tag="E"):
    ts: Any = None


Event = Complete | Instant | Counter | Described | ArrowStart | ArrowEnd | Begin | End
ExactEvent = ExactComplete | ExactInstant | ExactCounter | Described | ArrowStart | ArrowEnd | ExactBegin | ExactEnd
