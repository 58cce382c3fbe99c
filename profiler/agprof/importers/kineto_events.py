"""What an event of a Kineto file is: its typed form, and how it becomes rows of the run folder's tables.

An event is classified by its category first and never by its name: a CPU operator that names a stream (Triton's do)
stays a CPU operator. Field names are the file's own; the order of the fields is the order in which Kineto writes them,
because the decoder looks for the next field first.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from agprof.model.trace_tables import CpuKind, GpuKind

Number = int | float
Label = int | str | None

GPU_KINDS: Mapping[str, GpuKind] = {
    "kernel": GpuKind.KERNEL,
    "Kernel": GpuKind.KERNEL,
    "gpu_memcpy": GpuKind.MEMCPY,
    "Memcpy": GpuKind.MEMCPY,
    "gpu_memset": GpuKind.MEMSET,
    "Memset": GpuKind.MEMSET,
    "cuda_sync": GpuKind.SYNC,
    "gpu_user_annotation": GpuKind.ANNOTATION,
    "mtia_ccp_events": GpuKind.KERNEL,
    "hpu_op": GpuKind.KERNEL,
    "collective_comm": GpuKind.OTHER,
    "mtia_insight": GpuKind.OTHER,
    "cuda_event": GpuKind.OTHER,
    "cuda_profiler_range": GpuKind.OTHER,
}
CPU_KINDS: Mapping[str, CpuKind] = {
    "cpu_op": CpuKind.OP,
    "Operator": CpuKind.OP,
    "cuda_runtime": CpuKind.RUNTIME,
    "Runtime": CpuKind.RUNTIME,
    "hip_runtime": CpuKind.RUNTIME,
    "xpu_runtime": CpuKind.RUNTIME,
    "glow_runtime": CpuKind.RUNTIME,
    "mtia_runtime": CpuKind.RUNTIME,
    "privateuse1_runtime": CpuKind.RUNTIME,
    "cuda_driver": CpuKind.DRIVER,
    "xpu_driver": CpuKind.DRIVER,
    "privateuse1_driver": CpuKind.DRIVER,
    "user_annotation": CpuKind.ANNOTATION,
    "python_function": CpuKind.PYTHON,
    "overhead": CpuKind.OVERHEAD,
}
NOT_WORK = frozenset({"Trace", "ac2g", "async", "async_cpu_to_gpu", "async_gpu", "fwdbwd"})
"""Categories of the profiler's own window and of arrows: counted, and no rows."""


class Args(msgspec.Struct, gc=False):
    """What the tables need of an event's `args`."""

    external_id: int | None = msgspec.field(default=None, name="External id")
    old_external_id: int | None = msgspec.field(default=None, name="external id")
    sequence: int | None = msgspec.field(default=None, name="Sequence number")
    forward_thread: int | None = msgspec.field(default=None, name="Fwd thread id")
    device: int | None = None
    stream: Label = None
    correlation: int | None = None
    bytes: int | None = None
    graph_node: int | None = msgspec.field(default=None, name="graph node id")
    collective: str | None = msgspec.field(default=None, name="Collective name")
    elements_in: int | None = msgspec.field(default=None, name="In msg nelems")
    elements_out: int | None = msgspec.field(default=None, name="Out msg nelems")
    group_size: int | None = msgspec.field(default=None, name="Group size")
    dtype: str | None = None
    group: Label = msgspec.field(default=None, name="Process Group Name")
    group_description: str | None = msgspec.field(default=None, name="Process Group Description")
    comm_sequence: int | None = msgspec.field(default=None, name="Seq")


NO_ARGS = Args()


class Complete(msgspec.Struct, gc=False, tag_field="ph", tag="X"):
    """An event with a begin and a duration, in microseconds."""

    cat: str = ""
    name: str = ""
    pid: Label = None
    tid: Label = None
    ts: Number | None = None
    dur: Number | None = None
    args: Args | None = None


class MemoryArgs(msgspec.Struct, gc=False):
    reserved_bytes: int | None = msgspec.field(default=None, name="Total Reserved")
    allocated_bytes: int | None = msgspec.field(default=None, name="Total Allocated")
    bytes: int | None = msgspec.field(default=None, name="Bytes")
    address: int | None = msgspec.field(default=None, name="Addr")
    device: int | None = msgspec.field(default=None, name="Device Id")
    device_type: int | None = msgspec.field(default=None, name="Device Type")


class Instant(msgspec.Struct, gc=False, tag_field="ph", tag="i"):
    """A point in time; of use when it is an allocation: `[memory]`."""

    cat: str = ""
    name: str = ""
    ts: Number | None = None
    args: MemoryArgs | None = None


class Counter(msgspec.Struct, tag_field="ph", tag="C"):
    """A sample of one or more counters, by their names in `args`."""

    cat: str = ""
    name: str = ""
    ts: Number | None = None
    args: dict[str, Any] | None = None


class Described(msgspec.Struct, gc=False, tag_field="ph", tag="M"):
    """The name of a process or thread."""


class ArrowStart(msgspec.Struct, gc=False, tag_field="ph", tag="s"):
    """Begin of an arrow. The ids in `args` say the same, and more."""


class ArrowEnd(msgspec.Struct, gc=False, tag_field="ph", tag="f"):
    """End of an arrow."""


class Begin(msgspec.Struct, gc=False, tag_field="ph", tag="B"):
    """Begin of a duration whose end is an event of its own."""

    cat: str = ""
    name: str = ""
    pid: Label = None
    tid: Label = None
    ts: Number | None = None
    args: Args | None = None


class End(msgspec.Struct, gc=False, tag_field="ph", tag="E"):
    """End of the innermost duration begun on the same track."""

    pid: Label = None
    tid: Label = None
    ts: Number | None = None


Event = Complete | Instant | Counter | Described | ArrowStart | ArrowEnd | Begin | End
EVENT_TYPES: Sequence[type[Event]] = (Complete, Instant, Counter, Described, ArrowStart, ArrowEnd, Begin, End)
