"""The section's figures and its sentence. Nothing here is a mean that would hide a GPU that stands idle."""

from collections.abc import Callable, Sequence
from statistics import mean, median

import polars as pl

from agprof.analysis.statistics import median_rank, nothing
from agprof.analysis.system_samples import Samples, Window, inside
from agprof.model.figure import Figure, Kpi
from agprof.model.format import format_value, percent
from agprof.model.system_answers import COMPUTES_ON_CPU, GpuMapping, GpuRow, SystemAnswer

MUCH_APART = 0.1
"""Shares of GPUs that differ by more are told apart."""
NOTABLE_THROTTLE = 0.01
"""Share of the time."""

Of = Callable[[GpuRow], Figure]


def used_gpus(gpus: Sequence[GpuRow], mapping: Sequence[GpuMapping]) -> tuple[GpuRow, ...]:
    """Those that ranks use; all where no rank's is known, none where every rank computes on the CPU."""
    if mapping and all(row.reason == COMPUTES_ON_CPU for row in mapping):
        return ()
    return tuple(gpu for gpu in gpus if gpu.ranks) or tuple(gpus)


def gpus_of_run(system: SystemAnswer) -> tuple[GpuRow, ...]:
    """Those that findings may speak of."""
    return used_gpus(system.gpus, system.mapping)


def system_figures(tables: Samples, window: Window, used: Sequence[GpuRow]) -> tuple[Kpi, ...]:
    """Host and processes as medians of samples; GPUs as means over those `used`, with the lowest and highest GPU."""
    host = inside(tables.of("host_samples"), window)
    process = inside(tables.of("process_samples"), window)
    why = None if _has_samples(tables) else "no sampler ran"
    own, workers = (process.filter(pl.col("role") == role) for role in ("rank", "worker"))
    kpis = [
        _kpi("host_cpu", "Host CPU busy", host, "cpu_ratio", "ratio", window, why),
        _kpi("rank_cpu", "CPU per rank", own, "cpu_cores", "cores", window, why),
        _kpi(
            "worker_cpu",
            "CPU of a rank's workers",
            workers,
            "cpu_cores",
            "cores",
            window,
            why or _no_workers(own, window),
        ),
        _kpi("host_memory", "Host memory in use", host, "memory_used_bytes", "bytes", window, why),
        _kpi("network_sent", "Network sent", host, "network_sent_bytes_per_s", "bytes/s", window, why),
        _kpi("loopback", "Loopback", host, "loopback_bytes_per_s", "bytes/s", window, why),
        _kpi("disk_read", "Disk read", host, "disk_read_bytes_per_s", "bytes/s", window, why),
    ]
    if used:
        limit = _one(used, lambda gpu: gpu.power_limit)
        kpis += [
            over_gpus("gpu_utilization", "GPU utilization", used, lambda gpu: gpu.utilization, "time with a kernel"),
            over_gpus("gpu_power", "GPU power", used, lambda gpu: gpu.power, f"of {limit}" if limit else "each"),
            _highest("gpu_memory", "GPU memory in use", used, lambda gpu: gpu.memory_peak),
        ]
        if any(gpu.tensor.value is not None for gpu in used):
            kpis.append(over_gpus("gpu_tensor", "Tensor cores", used, lambda gpu: gpu.tensor, "time in use"))
    return tuple(kpis)


def over_gpus(key: str, label: str, gpus: Sequence[GpuRow], of: Of, note: str) -> Kpi:
    """A figure of several GPUs as one: their mean, with the lowest and highest GPU as its interval."""
    known = [(of(gpu), gpu) for gpu in gpus if of(gpu).value is not None]
    if not known:
        return Kpi(key=key, label=label, figure=of(gpus[0]), note=note)
    values = [figure.value or 0.0 for figure, _ in known]
    first = known[0][0]
    lowest, highest = min(values), max(values)
    if len(known) == 1:
        return Kpi(key=key, label=label, figure=first, note=note)
    methods = dict.fromkeys(figure.method.split(";")[0] for figure, _ in known)
    figure = Figure(
        value=mean(values),
        unit=first.unit,
        source=first.source,
        n=sum(figure.n for figure, _ in known),
        low=lowest,
        high=highest,
        method=f"{' or '.join(methods)}; mean over {len(known)} GPUs, lowest to highest GPU",
    )
    if first.unit == "ratio" and highest - lowest > MUCH_APART:
        worst = known[values.index(lowest)][1]
        note = f"{note}; {name_gpu(worst, gpus)} {format_value(lowest, first.unit)}"
    return Kpi(key=key, label=label, figure=figure, note=note)


def _highest(key: str, label: str, gpus: Sequence[GpuRow], of: Of) -> Kpi:
    found = max(gpus, key=lambda gpu: of(gpu).value or -1.0)
    total = found.memory_total.value
    note = "fullest GPU" if len(gpus) > 1 else ""
    room = f"of {format_value(total, 'bytes')}" if total else ""
    return Kpi(key=key, label=label, figure=of(found), note=", ".join(filter(None, (room, note))))


def name_gpu(gpu: GpuRow, among: Sequence[GpuRow]) -> str:
    """`GPU 3`, with its node where there are several."""
    several = len({other.node for other in among}) > 1
    return f"GPU {gpu.gpu} of node {gpu.node}" if several else f"GPU {gpu.gpu}"


def _has_samples(tables: Samples) -> bool:
    return any(tables.view.tables[name].height for name in ("host_samples", "process_samples", "gpu_samples"))


def _no_workers(own: pl.DataFrame, window: Window) -> str | None:
    """Why there is no sample of workers where there are some of ranks."""
    return f"no rank had a child process in {window.words}" if own.height else None


def _kpi(
    key: str, label: str, samples: pl.DataFrame, column: str, unit: str, window: Window, why_empty: str | None = None
) -> Kpi:
    """Median of a column. `why_empty`: why `samples` has no row, where more is known than that."""
    method = f"sampler, column {column}, samples in {window.words}"
    values = samples[column].drop_nulls().sort()
    n = values.len()
    if not n:
        none = why_empty or f"no sample fell into {window.words}"
        reason = "not measured on this machine" if samples.height else none
        return Kpi(key=key, label=label, figure=nothing(unit, reason, method=method))
    k = median_rank(n)
    kind = "min..max: fewer than 6 values" if k is None else "95 % interval of order statistics"
    figure = Figure(
        value=float(str(values.median())),
        unit=unit,
        source="measured",
        n=n,
        low=float(values[0 if k is None else k - 1]),
        high=float(values[n - 1 if k is None else n - k]),
        method=f"{method}; median, {kind}",
    )
    return Kpi(key=key, label=label, figure=figure)


def system_sentence(tables: Samples, window: Window, used: Sequence[GpuRow], figures: Sequence[Kpi]) -> str:
    """What GPUs and host did, in figures."""
    if not _has_samples(tables):
        return "No sampler ran: nothing is known of GPU and host over time."
    values = {kpi.key: kpi.figure.value for kpi in figures}
    words = [*_of_gpus(used), *_throttled(used)] if used else []
    words += _of_hosts(tables, window)
    # What a command uses, its children too, is said by `monitor`.
    if tables.view.ranks and (cores := values.get("rank_cpu")) is not None:
        words.append(f"a rank uses {format_value(cores, 'cores')}")
    if not words:
        return f"The sampler ran, but no sample fell into {window.words}."
    return f"{'In' if window.steady else 'Over'} {window.words} {_joined(words)}."


def _joined(words: Sequence[str]) -> str:
    return ", ".join(words[:-1]) + " and " + words[-1] if len(words) > 1 else words[0]


def _of_gpus(gpus: Sequence[GpuRow]) -> list[str]:
    who = "the GPU" if len(gpus) == 1 else f"the {len(gpus)} GPUs"
    runs, draws = ("runs", "draws") if len(gpus) == 1 else ("run", "draw")
    words = []
    if busy := _busy(gpus, who, runs):
        active = _active(gpus)
        words.append(f"{busy} ({active} in use)" if active else busy)
    powers = [gpu.power.value for gpu in gpus if gpu.power.value is not None]
    if powers:
        limit = _one(gpus, lambda gpu: gpu.power_limit)
        each = " each" if len(gpus) > 1 else ""
        of = f" of {limit}" if limit else ""
        subject = "" if busy.startswith(who) else f"{who} "
        words.append(f"{subject}{draws} {_range(powers, 'W')}{of}{each}")
    return words


def _active(gpus: Sequence[GpuRow]) -> str:
    """`SMs 70 % to 74 %, tensor cores 40 %`, of what was measured."""
    units: tuple[tuple[str, Of], ...] = (("SMs", lambda gpu: gpu.sm), ("tensor cores", lambda gpu: gpu.tensor))
    known = {name: [value for gpu in gpus if (value := of(gpu).value) is not None] for name, of in units}
    return ", ".join(f"{name} {_range(values, 'ratio')}" for name, values in known.items() if values)


def _busy(gpus: Sequence[GpuRow], who: str, runs: str) -> str:
    known = [(gpu.utilization.value, gpu) for gpu in gpus if gpu.utilization.value is not None]
    if not known:
        return ""
    values = [value for value, _ in known]
    if max(values) - min(values) <= MUCH_APART:
        return f"{who} {runs} a kernel {_range(values, 'ratio')} of the time"
    middle = median(values)
    odd = [(value, gpu) for value, gpu in known if abs(value - middle) > MUCH_APART]
    rest = [value for value, _ in known if abs(value - middle) <= MUCH_APART]
    if len(odd) == 1 and rest:
        value, gpu = odd[0]
        others = f"the {len(rest)} others" if len(rest) > 1 else "the other"
        return f"{name_gpu(gpu, gpus)} runs a kernel {percent(value)} of the time, {others} {_range(rest, 'ratio')}"
    low, high = min(known, key=lambda item: item[0]), max(known, key=lambda item: item[0])
    return (
        f"{who} {runs} a kernel from {percent(low[0])} ({name_gpu(low[1], gpus)}) "
        f"to {percent(high[0])} ({name_gpu(high[1], gpus)}) of the time"
    )


def _throttled(gpus: Sequence[GpuRow]) -> list[str]:
    """How long clocks were held down, where it is notable on any GPU."""
    words = []
    kinds: tuple[tuple[str, Of], ...] = (
        ("power", lambda gpu: gpu.throttled_power),
        ("heat", lambda gpu: gpu.throttled_thermal),
    )
    for name, of in kinds:
        known = [(share, gpu) for gpu in gpus if (share := of(gpu).value) is not None]
        notable = [(share, gpu) for share, gpu in known if share >= NOTABLE_THROTTLE]
        if not notable:
            continue
        shares = _range([share for share, _ in notable], "ratio")
        if len(gpus) == 1:
            words.append(f"is held down for {name} {shares} of the time")
        elif len(notable) == len(gpus):
            words.append(f"are held down for {name} {shares} of the time")
        elif len(notable) == 1:
            words.append(f"{name_gpu(notable[0][1], gpus)} is held down for {name} {shares} of the time")
        else:
            words.append(f"{len(notable)} of them are held down for {name} {shares} of the time")
    return words


def _of_hosts(tables: Samples, window: Window) -> list[str]:
    rows = inside(tables.of("host_samples"), window).group_by("node").agg(pl.col("cpu_ratio").median())
    busy = sorted(rows["cpu_ratio"].drop_nulls().to_list())
    if not busy:
        return []
    if len(busy) == 1:
        return [f"the host's CPU is {percent(busy[0])} busy"]
    return [f"the {len(busy)} hosts' CPUs are {_range(busy, 'ratio')} busy"]


def _range(values: Sequence[float], unit: str) -> str:
    """`93 %`, or `91 % to 94 %` where they differ as printed."""
    low, high = format_value(min(values), unit), format_value(max(values), unit)
    return low if low == high else f"{low} to {high}"


def _one(gpus: Sequence[GpuRow], of: Of) -> str | None:
    """A figure as text when all GPUs have the same."""
    texts = {format_value(value, of(gpu).unit) for gpu in gpus if (value := of(gpu).value) is not None}
    return texts.pop() if len(texts) == 1 else None
