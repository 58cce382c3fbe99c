"""Limits, cores, memory, clock, storage and network of a node."""

from collections.abc import Iterator

from agprof.model.doctor_answers import Check, Status, Topic
from agprof.model.doctor_facts import NodeFacts, Place
from agprof.model.format import format_value

_HOST: Topic = "host"
_CLOCK: Topic = "clock"
_STORAGE: Topic = "storage"
GIB = 2**30
FEW_FILES = 4096
"""A rank with some DataLoader workers and shared-memory tensors comes close to 1,024, the usual soft limit."""
LITTLE_SHM_BYTES = 1 * GIB
"""Docker gives 64 MiB; DataLoader workers pass batches through it, gloo and NCCL their buffers."""
NO_SHM_BYTES = 128 * 2**20
LITTLE_SPACE_BYTES = 10 * GIB
NO_SPACE_BYTES = 1 * GIB
QUICK_CLOCKS = frozenset(
    {"tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page", "timebase", "riscv_clocksource"}
)
"""Those that are read without a call of the kernel. A clock read in the kernel (hpet, acpi_pm) takes 1 us and more."""
NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "cephfs", "cifs", "smb3", "fuse.sshfs", "afs", "9p", "wekafs"}
)
WIDE_CLOCK_ERROR_S = 0.1


def _size(value: int | None) -> str:
    return "unlimited" if value is None else format_value(value, "bytes")


def limits(facts: NodeFacts) -> Iterator[Check]:
    """Open files, and the memory that RDMA must lock."""
    known = {limit.name: limit for limit in facts.limits}
    if (files := known.get("open files")) is not None:
        few = files.soft is not None and files.soft < FEW_FILES
        hard = "unlimited" if files.hard is None else f"{files.hard:,}"
        yield Check(
            key="open-files",
            topic=_HOST,
            title="open files",
            status="warning" if few else "ok",
            found="unlimited" if files.soft is None else f"{files.soft:,} (hard limit {hard})",
            advice=f"`Too many open files` threatens with many DataLoader workers: ulimit -n {FEW_FILES} or more."
            if few
            else "",
        )
    if (locked := known.get("locked memory")) is not None:
        matters = bool(facts.infiniband) and locked.soft is not None
        yield Check(
            key="locked-memory",
            topic=_HOST,
            title="locked memory",
            status="problem" if matters else "ok",
            found=_size(locked.soft),
            advice="InfiniBand registers memory by locking it: ulimit -l unlimited (container: --ulimit memlock=-1)."
            if matters
            else "",
        )
    for name, what in (("address space", "a rank maps far more than it uses"), ("file size", "checkpoints are large")):
        limit = known.get(name)
        if limit is not None and limit.soft is not None:
            yield Check(
                key=name.replace(" ", "-"), topic=_HOST, title=name, status="warning", found=_size(limit.soft),
                advice=f"Lift it (ulimit): {what}.",
            )  # fmt: skip


def cores(facts: NodeFacts) -> Iterator[Check]:
    """Cores that this process may use."""
    if facts.usable_cores is None:
        return
    fewer = facts.cores is not None and facts.usable_cores < facts.cores
    text = f"{facts.usable_cores} usable" + (f" of {facts.cores}" if facts.cores is not None else "")
    text += f", {facts.cpu}" if facts.cpu else ""
    slow = facts.governor == "powersave"
    text += f", governor {facts.governor}" if facts.governor else ""
    status: Status = "note" if fewer or slow else "ok"
    advice = []
    if fewer:
        advice.append(
            "Affinity or a quota keeps the others away: ask the batch system for more if ranks x threads need them."
        )
    if slow:
        advice.append("The governor may hold the CPU's clock down: cpupower frequency-set -g performance.")
    yield Check(key="cores", topic=_HOST, title="cores", status=status, found=text, advice=" ".join(advice))


def memory(facts: NodeFacts) -> Iterator[Check]:
    """Memory and its limit."""
    if facts.memory_bytes is None:
        return
    limit = facts.memory_limit_bytes
    limited = limit is not None and limit < facts.memory_bytes
    swap = format_value(facts.swap_bytes, "bytes") if facts.swap_bytes else "none"
    text = f"{format_value(facts.memory_bytes, 'bytes')}, swap {swap}"
    text += f", the job's cgroup may use {format_value(limit, 'bytes')}" if limited and limit is not None else ""
    yield Check(
        key="memory",
        topic=_HOST,
        title="memory",
        status="note" if limited else "ok",
        found=text,
        advice="A rank is killed at that limit, however much the machine has: raise it where the job is submitted."
        if limited
        else "",
    )


def numa(facts: NodeFacts) -> Iterator[Check]:
    """NUMA nodes, and the program that binds ranks to them."""
    if facts.numa_nodes is None:
        return
    lacking = facts.numa_nodes > 1 and not facts.numactl
    there = "numactl found" if facts.numactl else "numactl not found"
    yield Check(
        key="numa",
        topic=_HOST,
        title="NUMA",
        status="note" if lacking else "ok",
        found=f"{facts.numa_nodes} node{'s' * (facts.numa_nodes > 1)}, {there}",
        advice="Install numactl: `deepspeed --bind_cores_to_rank` needs it, and a rank far from its memory is slower."
        if lacking
        else "",
    )


def topology(facts: NodeFacts) -> Iterator[Check]:
    """How GPUs are joined, by nvidia-smi's own word."""
    rows = [line for line in (facts.topology or "").splitlines() if line.startswith("GPU")]
    if len(rows) < 2:
        return
    links = {
        word
        for line in rows
        for word in line.split()[1:]
        if word in ("SYS", "NODE", "PHB", "PXB", "PIX") or word.startswith("NV")
    }
    crossing = "SYS" in links
    yield Check(
        key="topology",
        topic="GPU",
        title="GPU topology",
        status="note" if crossing else "ok",
        found=f"links between GPUs: {', '.join(sorted(links))} (nvidia-smi topo -m)",
        advice="SYS: some pairs talk through the link between CPU sockets; keep tensor-parallel groups off them."
        if crossing
        else "",
    )


def clock_source(facts: NodeFacts) -> Iterator[Check]:
    """Reading the time is cheap."""
    source = facts.clock.source
    if source is None:
        return
    quick = source in QUICK_CLOCKS
    yield Check(
        key="clock-source",
        topic=_CLOCK,
        title="clock source",
        status="ok" if quick else "warning",
        found=source,
        advice=""
        if quick
        else "Each reading of the time is a call of the kernel, and instruments read it often: choose tsc at boot "
        f"(available: {', '.join(facts.clock.available) or 'not told'}).",
    )


def clock_sync(facts: NodeFacts) -> Iterator[Check]:
    """Somebody keeps the wall clock right."""
    kept, error_s = facts.clock.synchronized, facts.clock.max_error_s
    if kept is None:
        return
    wide = kept and error_s is not None and error_s > WIDE_CLOCK_ERROR_S
    text = "synchronised" if kept else "not synchronised"
    text += f", off by at most {format_value(error_s * 1e9, 'ns')}" if kept and error_s is not None else ""
    yield Check(
        key="clock-sync",
        topic=_CLOCK,
        title="wall clock",
        status="note" if wide or not kept else "ok",
        found=f"{text} (the kernel's word)",
        advice="On one node nothing depends on it; on several, run chrony or systemd-timesyncd on each."
        if wide or not kept
        else "",
    )


def shared_memory(facts: NodeFacts) -> Iterator[Check]:
    """/dev/shm is large enough for DataLoader workers and for the backends' buffers."""
    place = next((place for place in facts.places if place.what == "/dev/shm"), None)
    if place is None or place.total_bytes is None or place.free_bytes is None:
        return
    status: Status = "ok"
    if place.free_bytes < NO_SHM_BYTES:
        status = "problem"
    elif place.free_bytes < LITTLE_SHM_BYTES:
        status = "warning"
    yield Check(
        key="shm",
        topic=_HOST,
        title="/dev/shm",
        status=status,
        found=f"{format_value(place.free_bytes, 'bytes')} free of {format_value(place.total_bytes, 'bytes')}",
        advice=""
        if status == "ok"
        else "DataLoader workers die with a bus error when it is full: start the container with --ipc=host or "
        "--shm-size=16g, or remove what killed jobs left there.",
    )


def places(facts: NodeFacts) -> Iterator[Check]:
    """Room where runs, temporary files and caches go."""
    for place in facts.places:
        if place.what != "/dev/shm":
            yield _place(place)


def _room(free: int | None) -> str:
    return "not known how much is" if free is None else format_value(free, "bytes")


def _place(place: Place) -> Check:
    free = place.free_bytes
    status: Status = "ok"
    advice = ""
    if place.kind in NETWORK_FILE_SYSTEMS:
        status, advice = (
            "note",
            "A network file system: runs work there, one writer per file; builds and caches are slow.",
        )
    if free is not None and free < LITTLE_SPACE_BYTES:
        status, advice = "warning", "Make room: a run with traces takes some GiB."
    if free is not None and free < NO_SPACE_BYTES:
        status, advice = "problem", "Make room, or choose another folder."
    if place.writable is False:
        status, advice = "problem", "It can't be written: choose another folder (--out, TMPDIR, AGPROF_CACHE)."
    return Check(
        key=f"place-{place.what.replace(' ', '-')}",
        topic=_STORAGE,
        title=place.what,
        status=status,
        found=f"{_room(free)} free, {place.kind or 'unknown file system'}, {place.path}",
        advice=advice,
    )


def network(facts: NodeFacts) -> Iterator[Check]:
    """Interfaces that other nodes could reach, and InfiniBand."""
    up = [found for found in facts.interfaces if found.up and found.name != "lo" and found.addresses]
    words = [
        f"{found.name} {found.addresses[0]}"
        + (f" ({format_value(found.speed_bits_per_s / 8, 'bytes/s')})" if found.speed_bits_per_s else "")
        for found in up
    ]
    text = ", ".join(words) or "no interface but loopback"
    text += f"; InfiniBand {', '.join(facts.infiniband)}" if facts.infiniband else "; no InfiniBand"
    chosen = {
        name: value for name, value in facts.environment.items() if name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")
    }
    names = {found.name for found in facts.interfaces}
    wrong = [
        f"{name}={value}"
        for name, value in chosen.items()
        if not any(known.startswith(word.lstrip("^=")) for word in value.split(",") for known in names)
    ]
    yield Check(
        key="network",
        topic="network",
        title="network",
        status="problem" if wrong else "ok",
        found=text,
        advice=f"{' and '.join(wrong)} names no interface of this node: mend or unset it." if wrong else "",
    )
