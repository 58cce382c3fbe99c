"""What `agprof doctor` reads on one node, before anybody judges it. Not known is None, with the reason if there is one.

Plain data that goes over ssh as JSON: fields may be added at will, since a missing one has its default.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSeen:
    """A GPU as torch or NVML sees it."""

    name: str
    capability: str | None = None
    """9.0 ..."""
    uuid: str | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchFacts:
    """What `import torch` gives, in a process of its own."""

    version: str | None = None
    cuda: str | None = None
    """CUDA that it was built for; None: a build for CPUs."""
    nccl: str | None = None
    archs: tuple[str, ...] = ()
    """Architectures it has kernels for: sm_90 ..."""
    gpus: tuple[GpuSeen, ...] = ()
    """As this process may use them: CUDA_VISIBLE_DEVICES counts."""
    backends: tuple[str, ...] = ()
    """Of torch.distributed."""
    import_s: float | None = None
    error: str | None = None
    """Why it could not be imported."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldSeen:
    """One field of the sampler on this node."""

    field: str
    """host.pressure, gpu.0.energy ..."""
    state: str
    """ok | retry | unsupported"""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerFacts:
    """What the sampler really gets here."""

    gpus: tuple[GpuSeen, ...] = ()
    driver: str | None = None
    fields: tuple[FieldSeen, ...] = ()
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OpFacts:
    """One of DeepSpeed's compiled ops."""

    name: str
    built: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A folder and the file system that it lies on."""

    what: str
    """runs | temporary files | agprof's cache | /dev/shm"""
    path: str
    total_bytes: int | None = None
    free_bytes: int | None = None
    kind: str | None = None
    """ext4, nfs4, tmpfs ..."""
    writable: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A resource limit; None is `unlimited`."""

    name: str
    soft: int | None
    hard: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """A network interface."""

    name: str
    up: bool
    addresses: tuple[str, ...] = ()
    speed_bits_per_s: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockFacts:
    """Where time comes from, and whether somebody keeps it right."""

    source: str | None = None
    available: tuple[str, ...] = ()
    synchronized: bool | None = None
    """By the kernel's own word (adjtimex)."""
    max_error_s: float | None = None
    """Bound of the error, as the kernel estimates it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NsysFacts:
    """Nsight Systems."""

    path: str | None = None
    version: str | None = None
    importer: str | None = None
    """ImportNvtxt, which agprof merges ranges with."""
    importer_runs: bool | None = None
    """Whether it starts with its libraries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Permissions:
    """What this process may look at."""

    root: bool = False
    ptrace_scope: int | None = None
    """kernel.yama.ptrace_scope; None: the kernel has no Yama."""
    perf_event_paranoid: int | None = None
    ptrace_capable: bool | None = None
    """CAP_SYS_PTRACE."""
    perf_capable: bool | None = None
    """CAP_PERFMON or CAP_SYS_ADMIN."""
    gpu_counters_admin_only: bool | None = None
    """RmProfilingAdminOnly of NVIDIA's kernel module; None: no module."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """One node."""

    host: str
    boot_id: str | None = None
    """The kernel's own, new at each boot: tells machines apart."""
    user: str | None = None
    system: str = ""
    kernel: str = ""
    machine: str = ""
    container: str | None = None
    """docker, podman, singularity ...; None: no sign of one."""
    python: str = ""
    python_path: str = ""
    agprof: str = ""
    agprof_path: str = ""
    folder: str = ""
    """Working folder."""
    packages: dict[str, str | None] = field(default_factory=dict)
    torch: TorchFacts | None = None
    sampler: SamplerFacts | None = None
    driver: str | None = None
    """NVIDIA's kernel module; None: not loaded."""
    topology: str | None = None
    """`nvidia-smi topo -m`, as it stands."""
    cuda_visible_devices: str | None = None
    ops: tuple[OpFacts, ...] = ()
    ops_folder: str | None = None
    build_tools_missing: tuple[str, ...] = ()
    """Programs that DeepSpeed's ops can't be built without."""
    nsys: NsysFacts = field(default_factory=NsysFacts)
    permissions: Permissions = field(default_factory=Permissions)
    limits: tuple[Limit, ...] = ()
    places: tuple[Place, ...] = ()
    cpu: str | None = None
    cores: int | None = None
    """Online."""
    usable_cores: int | None = None
    """By affinity and quota."""
    governor: str | None = None
    numa_nodes: int | None = None
    numactl: bool = False
    memory_bytes: int | None = None
    memory_limit_bytes: int | None = None
    """Of the cgroup; None: the machine's memory is the limit."""
    swap_bytes: int | None = None
    clock: ClockFacts = field(default_factory=ClockFacts)
    interfaces: tuple[Interface, ...] = ()
    infiniband: tuple[str, ...] = ()
    """Ports that are up: mlx5_0/1."""
    environment: dict[str, str] = field(default_factory=dict)
    """NCCL_*, GLOO_*, MASTER_* and the like."""
