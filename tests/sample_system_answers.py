"""Hand-made answers on GPU and host: a CPU-only machine, one GPU, eight with everything that can go wrong, MIG."""

import math
import random
from collections.abc import Callable
from dataclasses import replace

from agprof.model.figure import Curve, Figure, Kpi
from agprof.model.system_answers import (
    GpuEvent,
    GpuMapping,
    GpuMemory,
    GpuRow,
    GpuTenant,
    InterfaceRow,
    NotMeasured,
    SamplerGap,
    SystemAnswer,
    ThrottleSpan,
)
from sample_figures import GIB, MIB, MS, figure, missing

H100 = "NVIDIA H100 80GB HBM3"
NO_GPM = "GPM needs Hopper or later"
_LIMIT_W, _CLOCK_HZ = 700.0, 1.98e9


def times(end_ns: int, period_ns: int, most: int = 2_000) -> tuple[int, ...]:
    count = max(2, min(most, end_ns // period_ns))
    return tuple(end_ns * index // (count - 1) for index in range(count))


def cpu_system(rng: random.Random, ranks: int, end_ns: int, cores: int = 2) -> SystemAnswer:
    """A machine without a GPU, whose sampler read everything that a host has."""
    at = times(end_ns, 500 * MS)
    return SystemAnswer(
        sentence="The host's cores are 95.1 % busy; ranks use 0.94 cores each, and loopback carries 147 MB/s.",
        curves=(*_rank_curves(rng, ranks, at), *_host_curves(rng, at)),
        figures=(
            Kpi(key="host_cpu", label="host CPU", figure=figure(0.951, "ratio", n=40), note="mean, 2 cores"),
            Kpi(key="rank_cpu", label="CPU per rank", figure=figure(0.94, "1", n=80), note="cores"),
            Kpi(key="gpu", label="GPU utilization", figure=missing("ratio", "no GPU on this node"), note=""),
        ),
        cores=_cores(rng, at, cores) if cores > 2 else (),
        interfaces=(_interface("eth0", "ethernet", 3.6e6, 1.25e9), _interface("lo", "loopback", 1.47e8, None)),
        not_measured=(
            NotMeasured(
                node=0,
                field="gpu",
                state="unsupported",
                reason="no libnvidia-ml.so.1 on this machine",
                since_ns=0,
                until_ns=None,
            ),
        ),
    )


def _rank_curves(rng: random.Random, ranks: int, at: tuple[int, ...]) -> list[Curve]:
    curves = []
    for rank in range(ranks):
        cpu = tuple(0.92 + 0.05 * rng.random() for _ in at)
        rss = tuple((1_200 + 60 * (rank == 1) + 20 * rng.random()) * MIB for _ in at)
        curves.append(Curve(label=f"rank {rank} CPU", unit="cores", x_ns=at, y=cpu, rank=rank))
        curves.append(Curve(label=f"rank {rank} RSS", unit="bytes", x_ns=at, y=rss, rank=rank))
    return curves


def _host_curves(rng: random.Random, at: tuple[int, ...]) -> list[Curve]:
    host = tuple(None if 3 < index < 6 else 0.9 + 0.1 * rng.random() for index, _ in enumerate(at))
    network = tuple(1.3e8 * (1 + 0.3 * rng.random()) for _ in at)
    disk = tuple(4.1e7 * (index % 40 < 3) * rng.random() for index, _ in enumerate(at))
    shown: dict[str, tuple[str, tuple[float | None, ...]]] = {
        "host CPU": ("ratio", host),
        "host memory": ("bytes", tuple((31 + rng.random()) * GIB for _ in at)),
        "CPU pressure": ("ratio", tuple(0.1 * rng.random() for _ in at)),
        "memory pressure": ("ratio", tuple(0.0 for _ in at)),
        "network sent": ("bytes/s", tuple(v / 40 for v in network)),
        "network received": ("bytes/s", tuple(v / 46 for v in network)),
        "loopback": ("bytes/s", network),
        "disk read": ("bytes/s", disk),
        "disk write": ("bytes/s", tuple(v / 3 for v in disk)),
    }
    return [Curve(label=label, unit=unit, x_ns=at, y=y, node=0) for label, (unit, y) in shown.items()]


def _cores(rng: random.Random, at: tuple[int, ...], count: int) -> tuple[Curve, ...]:
    def busy(core: int) -> tuple[float, ...]:
        return tuple(min(1.0, (0.85 if core % 8 < 2 else 0.15) + 0.15 * rng.random()) for _ in at)

    return tuple(Curve(label=f"core {core}", unit="ratio", x_ns=at, y=busy(core), node=0) for core in range(count))


def _interface(name: str, kind: str, rate: float, speed: float | None) -> InterfaceRow:
    return InterfaceRow(
        node=0,
        interface=name,
        kind=kind,
        sent=figure(rate, "bytes/s", n=40),
        received=figure(rate * 0.9, "bytes/s", n=40),
        speed=figure(speed, "bytes/s", "declared") if speed else missing("bytes/s", "the interface does not say"),
        errors=figure(0.0, "1", "counted", n=40),
    )


def gpu_system(gpus: int = 8, end_ns: int = 20_000 * MS, ranks: int | None = None, points: int = 2_000) -> SystemAnswer:
    """Hopper GPUs of one node. Of eight: the fourth too hot, the sixth lost for a while, the last shared."""
    rng = random.Random(gpus)
    at = times(end_ns, 200 * MS, points)
    ranks = gpus if ranks is None else ranks
    gap = (int(end_ns * 0.62), int(end_ns * 0.70)) if gpus > 1 else None
    curves = [curve for gpu in range(gpus) for curve in _gpu_curves(rng, gpu, at, gap)]
    busy = figure(0.93, "ratio", n=90)
    eventful = gpus >= 8
    return SystemAnswer(
        sentence=f"{gpus} GPUs ran a kernel 93 % of the time at 641 W; GPU 3 was held down by heat 31 % of it."
        if eventful
        else "The GPU ran a kernel 93 % of the time at 641 W, 92 % of its limit.",
        curves=(*curves, *(_cut(c, gap) for c in (*_rank_curves(rng, ranks, at), *_host_curves(rng, at)))),
        figures=(
            Kpi(key="gpu_utilization", label="GPU utilization", figure=busy, note="time with a kernel"),
            Kpi(key="gpu_tensor", label="tensor cores", figure=figure(0.41, "ratio", n=90), note="of their cycles"),
            Kpi(key="gpu_power", label="GPU power", figure=figure(641.0, "W", n=90), note="of 700 W"),
            Kpi(key="host_cpu", label="host CPU", figure=figure(0.951, "ratio", n=40), note="mean, 32 cores"),
        ),
        decimation="One point for each 43 s; the lowest and highest of each stretch are kept."
        if points < 500
        else None,
        gpus=tuple(_gpu_row(gpu, ranks) for gpu in range(gpus)),
        mapping=tuple(_mapping(rank, gpus) for rank in range(ranks)),
        throttles=_throttles(gpus, end_ns),
        memory=tuple(_gpu_memory(gpu, ranks) for gpu in range(gpus)),
        tenants=_tenants(end_ns) if eventful else (),
        events=_events(end_ns) if eventful else (),
        interfaces=(_interface("ib0", "infiniband", 2.1e9, 50e9), _interface("eth0", "ethernet", 3.6e6, 1.25e9)),
        cores=_cores(rng, times(end_ns, 1_000 * MS, 240), 32),
        not_measured=(
            NotMeasured(
                node=0,
                field="gpu 5 fast",
                state="retry",
                reason="NVML says GPU is lost",
                since_ns=int(end_ns * 0.4),
                until_ns=int(end_ns * 0.5),
            ),
            NotMeasured(
                node=0,
                field="cpu_package_uj",
                state="unsupported",
                reason="RAPL can be read by root only",
                since_ns=0,
                until_ns=None,
            ),
        ),
        gaps=(SamplerGap(node=0, start_ns=gap[0], end_ns=gap[1], reason="its sampler was killed (SIGKILL)"),)
        if gap
        else (),
    )


def _cut(curve: Curve, gap: tuple[int, int] | None) -> Curve:
    """Without what was taken within the gap."""
    if gap is None:
        return curve
    y = tuple(None if gap[0] < x < gap[1] else value for x, value in zip(curve.x_ns, curve.y, strict=True))
    return replace(curve, y=y)


def _gpu_curves(rng: random.Random, gpu: int, at: tuple[int, ...], gap: tuple[int, int] | None) -> list[Curve]:
    end = at[-1] or 1
    hot = gpu == 3
    phase = 7.0 * gpu

    def there(x: int) -> bool:
        lost = gpu == 5 and 0.4 * end < x < 0.5 * end
        return not lost and not (gap and gap[0] < x < gap[1])

    def curve(quantity: str, unit: str, value: Callable[[int, float], float]) -> Curve:
        y = tuple(value(i, rng.random()) if there(x) else None for i, x in enumerate(at))
        return Curve(label=f"GPU {gpu} {quantity}", unit=unit, x_ns=at, y=y, node=0, gpu=gpu)

    def warm(i: int) -> float:
        return 1 - math.exp(-6.0 * i / len(at))

    return [
        curve("utilization", "ratio", lambda i, r: 0.12 if i % 23 == 5 else 0.88 + 0.12 * r),
        curve("SM activity", "ratio", lambda i, r: 0.72 + 0.1 * r),
        curve("tensor activity", "ratio", lambda i, r: 0.38 + 0.06 * r),
        curve("DRAM activity", "ratio", lambda i, r: 0.44 + 0.1 * r),
        curve("memory", "bytes", lambda i, r: (52 + 9 * warm(i) + (8 if gpu == 7 and i > len(at) // 2 else 0)) * GIB),
        curve("memory total", "bytes", lambda i, r: 79.6 * GIB),
        curve("power", "W", lambda i, r: 590 + 80 * math.sin(i / 9 + phase) + 30 * r),
        curve("power limit", "W", lambda i, r: _LIMIT_W),
        curve("temperature", "°C", lambda i, r: 38 + (46 if hot else 26) * warm(i) + r),
        curve("memory temperature", "°C", lambda i, r: 44 + (48 if hot else 30) * warm(i) + r),
        curve("SM clock", "Hz", lambda i, r: (1.41e9 if hot and i > len(at) // 2 else 1.935e9) + 3e7 * r),
        curve("NVLink sent", "bytes/s", lambda i, r: (90 + 60 * r) * 1e9),
        curve("NVLink received", "bytes/s", lambda i, r: (88 + 60 * r) * 1e9),
        curve("PCIe sent", "bytes/s", lambda i, r: (0.2 + 0.1 * r) * 1e9),
        curve("PCIe received", "bytes/s", lambda i, r: (1.1 + 0.4 * r) * 1e9),
    ]


def _gpu_row(gpu: int, ranks: int) -> GpuRow:
    hot = gpu == 3
    return GpuRow(
        node=0,
        gpu=gpu,
        name=H100,
        uuid=f"GPU-{gpu:08x}-4a1c-9d2e-77aa-0123456789ab",
        ranks=(gpu,) if gpu < ranks else (),
        mig=False,
        utilization=figure(0.93 - 0.01 * gpu, "ratio", n=90, method="mean of samples"),
        sm=figure(0.77, "ratio", n=18),
        tensor=figure(0.41, "ratio", n=18),
        dram=figure(0.49, "ratio", n=18),
        memory_peak=figure((61 + 8 * (gpu == 7)) * GIB, "bytes", n=20),
        memory_total=figure(79.6 * GIB, "bytes", n=20),
        power=figure(641.0 - 3 * gpu, "W", n=90, low=602.0, high=668.0, method="mean; 5th to 95th percentile"),
        power_limit=figure(_LIMIT_W, "W", n=20),
        temperature_max=figure(84.0 if hot else 64.0 + gpu, "°C", n=20),
        sm_clock=figure(1.52e9 if hot else 1.95e9, "Hz", n=90),
        sm_clock_max=figure(_CLOCK_HZ, "Hz", n=1),
        throttled_power=figure(0.22 + 0.01 * gpu, "ratio", n=90),
        throttled_thermal=figure(0.31 if hot else 0.0, "ratio", n=90),
        energy=figure(12_800.0 + 40 * gpu, "J", n=100),
        pcie=figure(1.6e9, "bytes/s", n=90),
        nvlink=figure(2.4e11, "bytes/s", n=90),
        ecc_uncorrected=figure(0.0, "1", "counted", n=5),
        xids=int(gpu == 5),
    )


def _mapping(rank: int, gpus: int) -> GpuMapping:
    if rank == 6:
        return GpuMapping(
            rank=rank, node=0, gpu=None, by=None, reason="CUDA_VISIBLE_DEVICES names no GPU of this node: `GPU-dead`"
        )
    return GpuMapping(rank=rank, node=0, gpu=rank % gpus, by="uuid" if gpus > 1 else "only GPU")


def _throttles(gpus: int, end_ns: int) -> tuple[ThrottleSpan, ...]:
    spans = []
    for gpu in range(gpus):
        for index in range(12):
            begin = int(end_ns * (0.05 + 0.08 * index)) + gpu * 90 * MS
            spans.append(_throttle(gpu, begin, begin + int(end_ns * 0.018), "power", "software power cap"))
    if gpus >= 4:
        spans.append(_throttle(3, end_ns // 2, int(end_ns * 0.62), "thermal", "software thermal slowdown"))
        spans.append(_throttle(3, int(end_ns * 0.70), end_ns, "thermal", "software thermal slowdown"))
        spans.append(_throttle(2, int(end_ns * 0.2), int(end_ns * 0.23), "hardware", "hardware slowdown"))
        spans.append(_throttle(1, 0, int(end_ns * 0.06), "application clocks", "clocks set by the application"))
        spans.append(_throttle(0, int(end_ns * 0.3), int(end_ns * 0.32), "sync boost", "sync boost"))
    return tuple(sorted(spans, key=lambda span: (span.gpu, span.start_ns)))


def _throttle(gpu: int, begin: int, end: int, kind: str, reason: str) -> ThrottleSpan:
    return ThrottleSpan(node=0, gpu=gpu, start_ns=begin, end_ns=end, kind=kind, reasons=(reason,))  # type: ignore[arg-type]


def _gpu_memory(gpu: int, ranks: int) -> GpuMemory:
    allocator = 58.0 if gpu < ranks else 0.0
    context = 1.9 if gpu < ranks else 0.0
    others = 8.0 if gpu == 7 else 0.0
    held = allocator + context + others + 1.1
    return GpuMemory(
        node=0,
        gpu=gpu,
        used=figure(held * GIB, "bytes", n=1),
        reserved=figure(0.61 * GIB, "bytes", n=1),
        total=figure(79.6 * GIB, "bytes", n=1),
        ranks=((gpu, figure(allocator * GIB, "bytes", n=1), figure(context * GIB, "bytes", n=1)),)
        if gpu < ranks
        else (),
        others=figure(others * GIB, "bytes", n=1),
        unexplained=figure(1.1 * GIB, "bytes", "modelled", n=1),
        sentence=f"GPU {gpu} holds {held:.1f} of 79.6 GiB at its fullest: rank {gpu} {allocator + context:.1f} GiB"
        + (", other processes 8.0 GiB" if others else "")
        + ", 1.10 GiB unexplained.",
    )


def _tenants(end_ns: int) -> tuple[GpuTenant, ...]:
    return (
        GpuTenant(
            node=0,
            gpu=7,
            pid=88_121,
            owner="other",
            name="python3 serve.py",
            peak_bytes=figure(8.0 * GIB, "bytes", n=3),
            start_ns=end_ns // 2,
            end_ns=end_ns,
        ),
        GpuTenant(
            node=0,
            gpu=2,
            pid=41,
            owner="not visible",
            name=None,
            peak_bytes=missing("bytes", "NVML does not say (no permission)"),
            start_ns=0,
            end_ns=end_ns,
        ),
    )


def _events(end_ns: int) -> tuple[GpuEvent, ...]:
    words = "GPU has fallen off the bus: check its power and seating, then reset the node."
    ecc = "uncorrected ECC error that was contained: the process that used the page was ended."
    return (
        GpuEvent(node=0, gpu=5, time_ns=int(end_ns * 0.4), kind="xid", code=79, meaning=words),
        GpuEvent(node=0, gpu=5, time_ns=int(end_ns * 0.405), kind="xid", code=94, meaning=ecc),
        GpuEvent(
            node=0,
            gpu=None,
            time_ns=int(end_ns * 0.8),
            kind="ecc_single_bit_storm",
            code=None,
            meaning="many corrected memory errors at once: the memory of a GPU wears out.",
        ),
    )


def older_system(end_ns: int = 20_000 * MS) -> SystemAnswer:
    """One GPU without GPM, NVLink and ECC: half of what is asked for is not there."""
    found = gpu_system(1, end_ns)
    absent: dict[str, Figure] = {
        **{name: missing("ratio", NO_GPM) for name in ("sm", "tensor", "dram")},
        "nvlink": missing("bytes/s", "no NVLink"),
        "ecc_uncorrected": missing("1", "this GPU has no ECC"),
    }
    gone = ("SM activity", "tensor activity", "DRAM activity", "NVLink sent", "NVLink received")
    return replace(
        found,
        curves=tuple(curve for curve in found.curves if not curve.label.endswith(gone)),
        gpus=(replace(found.gpus[0], name="Tesla T4", **absent),),  # type: ignore[arg-type]
        cores=(),
    )


def mig_system(end_ns: int = 20_000 * MS) -> SystemAnswer:
    """An H100 cut by MIG: NVML tells no utilisation of it, and nobody knows which part the rank uses."""
    found = gpu_system(1, end_ns)
    row = replace(found.gpus[0], mig=True, ranks=(), utilization=missing("ratio", "not told while MIG is on"), xids=0)
    reason = "CUDA_VISIBLE_DEVICES names a MIG device that NVML does not list: `MIG-1c5`"
    return replace(
        found,
        gpus=(row,),
        curves=tuple(curve for curve in found.curves if not curve.label.endswith("utilization")),
        mapping=(GpuMapping(rank=0, node=0, gpu=None, by=None, reason=reason),),
        memory=(),
        throttles=(),
    )


def hostile_system(name: str, end_ns: int = 20_000 * MS) -> SystemAnswer:
    """Eight GPUs with `name` wherever a name from outside can stand."""
    found = gpu_system(8, end_ns)
    rename = lambda items, **fields: tuple(replace(item, **fields) for item in items)  # noqa: E731
    return replace(
        found,
        sentence=name,
        decimation=name,
        curves=tuple(replace(curve, label=name if curve.gpu is None else curve.label) for curve in found.curves),
        gpus=rename(found.gpus, name=name, uuid=name),
        mapping=rename(found.mapping, reason=name, gpu=None),
        throttles=rename(found.throttles, reasons=(name, name)),
        memory=rename(found.memory, sentence=name),
        tenants=rename(found.tenants, name=name),
        events=rename(found.events, kind=name, meaning=name),
        interfaces=rename(found.interfaces, interface=name, kind=name),
        cores=rename(found.cores, label=name),
        not_measured=rename(found.not_measured, field=name, reason=name, state=name),
        gaps=rename(found.gaps, reason=name),
    )
