"""One row per GPU: what it did over the steady window, each figure with its spread, its API, or why there is none."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from agprof.analysis.statistics import nothing
from agprof.analysis.system_samples import GAP_PERIODS, Samples, Window, inside
from agprof.analysis.system_states import Reasons, reasons_of
from agprof.analysis.system_throttles import POWER_BITS, THERMAL_BITS
from agprof.model.figure import Figure
from agprof.model.system_answers import GpuMapping, GpuRow

_BY = ["node", "gpu"]
_SPREAD = "5th to 95th percentile of samples"
_POWER_KINDS = {"instant": "at the instant", "average_1s": "averaged over 1 s by the driver"}
_NVLINK = ("nvlink_sent", "nvlink_received")
_BEFORE_HOPPER = ("kepler", "maxwell", "pascal", "volta", "turing", "ampere", "ada")

Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Gpu:
    """What is known of one GPU."""

    node: int
    gpu: int
    identity: Values
    """Its row of `gpus`."""
    samples: Values
    """Means, quantiles and counts of gpu_samples in the window."""
    states: Values
    activity: Values
    whole: Values
    """Peaks over the whole run."""
    health: Values
    events: Values
    reasons: Reasons
    window: Window

    def why(self, *fields: str, default: str = "not measured on this GPU") -> str:
        parent = self.identity.get("mig_parent")
        if parent is not None:
            default = f"NVML tells it of the whole GPU only: GPU {parent}"
        return self.reasons.of_gpu(self.node, self.gpu, *fields, default=default)


def gpu_rows(tables_of: Samples, window: Window, mapping: Sequence[GpuMapping]) -> tuple[GpuRow, ...]:
    """Rows by node and GPU: of all that `gpus` or a sample names. `energy` is filled in from the answer on energy."""
    view = tables_of.view
    samples, states = tables_of.of("gpu_samples", "gpu"), tables_of.of("gpu_states", "gpu")
    tables = {
        "identity": _rows(view.tables["gpus"].unique(_BY, keep="last", maintain_order=True)),
        "samples": _rows(_of_samples(samples, window)),
        "states": _rows(_of_states(inside(states, window))),
        "activity": _rows(_of_activity(inside(tables_of.of("gpu_activity", "gpu"), window))),
        "whole": _rows(_peaks(states if states.height else samples)),
        "health": _rows(_of_health(tables_of.of("gpu_health", "gpu"))),
        "events": _rows(
            view.tables["gpu_events"].filter(pl.col("kind") == "xid").drop_nulls("gpu").group_by(_BY).len("xids")
        ),
    }
    reasons = reasons_of(view)
    keys = sorted({*tables["identity"], *tables["samples"], *tables["whole"]})
    return tuple(
        _row(
            _Gpu(
                node=node,
                gpu=gpu,
                reasons=reasons,
                window=window,
                **{name: rows.get((node, gpu), {}) for name, rows in tables.items()},
            ),
            tuple(m.rank for m in mapping if (m.node, m.gpu) == (node, gpu)),
        )
        for node, gpu in keys
    )


def _rows(frame: pl.DataFrame) -> dict[tuple[int, int], Values]:
    return {(row["node"], row["gpu"]): row for row in frame.iter_rows(named=True)}


def _mean(name: str, value: pl.Expr | None = None, weight: pl.Expr | None = None) -> list[pl.Expr]:
    """Mean, percentiles and count of a column, as `name`, `name low`, `name high`, `name n`."""
    column = pl.col(name) if value is None else value
    mean = column.mean() if weight is None else _weighted(column, weight)
    return [
        mean.alias(name),
        column.quantile(0.05).alias(f"{name} low"),
        column.quantile(0.95).alias(f"{name} high"),
        column.count().alias(f"{name} n"),
    ]


def _weighted(column: pl.Expr, weight: pl.Expr) -> pl.Expr:
    total = weight.filter(column.is_not_null()).sum()
    return pl.when(total > 0).then((column * weight).sum() / total)


def _both_ways(name: str) -> pl.Expr:
    """Sent and received together; None unless both were read."""
    return pl.col(f"{name}_sent_bytes_per_s") + pl.col(f"{name}_received_bytes_per_s")


def _of_samples(samples: pl.DataFrame, window: Window) -> pl.DataFrame:
    """Of gpu_samples: `step_ns` is the time since the GPU's sample before, which its counters of time are over.

    A mean is over time: the sampler doubles its period where it costs too much. A sample stands for half of the time
    to each of its neighbours; where one is more than three times as far as the other, there is a gap between.
    """
    steps = samples.with_columns(step_ns=pl.col("at_ns").diff().over(_BY))
    before, after = pl.col("step_ns"), pl.col("step_ns").shift(-1).over(_BY)
    most = GAP_PERIODS * pl.min_horizontal(before, after)
    weight = (pl.min_horizontal(before.fill_null(after), most) + pl.min_horizontal(after.fill_null(before), most)) / 2
    rows = inside(steps.with_columns(weight=weight.fill_null(1)), window)
    of_time = pl.col("weight")
    reasons = pl.col("clock_event_reasons")
    return rows.group_by(_BY).agg(
        *_mean("utilization_ratio", weight=of_time),
        *_mean("power_mw", weight=of_time),
        *_mean("pcie", _both_ways("pcie"), of_time),
        *_mean("nvlink", _both_ways("nvlink"), of_time),
        *_mean("sm_clock_mhz"),
        pl.col("sm_clock_mhz").median().alias("sm_clock_mhz median"),
        pl.col("power_kind").drop_nulls().first(),
        *_throttled("throttled_power_ns"),
        *_throttled("throttled_thermal_ns"),
        ((reasons & POWER_BITS) != 0).mean().alias("power bits"),
        ((reasons & THERMAL_BITS) != 0).mean().alias("thermal bits"),
        reasons.count().alias("reasons n"),
    )


def _throttled(column: str) -> list[pl.Expr]:
    known = pl.col(column).is_not_null() & pl.col("step_ns").is_not_null()
    time = pl.col("step_ns").filter(known).sum()
    share = pl.when(time > 0).then(pl.col(column).filter(known).sum() / time)
    return [share.clip(0, 1).alias(column), known.sum().alias(f"{column} n")]


def _of_states(states: pl.DataFrame) -> pl.DataFrame:
    return states.group_by(_BY).agg(
        pl.col("memory_total_bytes").max(),
        pl.col("power_limit_mw").median(),
        pl.col("power_limit_mw").min().alias("power_limit_mw low"),
        pl.col("power_limit_mw").max().alias("power_limit_mw high"),
        pl.col("power_limit_mw").count().alias("power_limit_mw n"),
        pl.col("memory_total_bytes").count().alias("memory_total_bytes n"),
    )


def _of_activity(activity: pl.DataFrame) -> pl.DataFrame:
    weight = pl.col("period_ns").cast(pl.Float64)
    names = ("sm_ratio", "tensor_ratio", "dram_ratio")
    ratios = [e for name in names for e in _mean(name, pl.col(name), weight)]
    return activity.group_by(_BY).agg(*ratios, *_mean("pcie", _both_ways("pcie"), weight))


def _peaks(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.group_by(_BY).agg(
        pl.col("memory_used_bytes").max(),
        pl.col("temperature_c").max(),
        pl.col("memory_used_bytes").count().alias("memory_used_bytes n"),
        pl.col("temperature_c").count().alias("temperature_c n"),
    )


def _of_health(health: pl.DataFrame) -> pl.DataFrame:
    """Errors that came in the run: the counter's steps upward; it begins anew when the driver is loaded again."""
    steps = pl.col("ecc_uncorrected").drop_nulls().diff()
    return health.group_by(_BY, maintain_order=True).agg(
        steps.filter(steps > 0).sum().alias("ecc_uncorrected"),
        pl.col("ecc_uncorrected").count().alias("ecc_uncorrected n"),
    )


def _row(gpu: _Gpu, ranks: tuple[int, ...]) -> GpuRow:
    identity = gpu.identity
    return GpuRow(
        node=gpu.node,
        gpu=gpu.gpu,
        name=identity.get("name"),
        uuid=identity.get("uuid"),
        ranks=ranks,
        mig=bool(identity.get("mig_enabled")) or identity.get("mig_parent") is not None,
        utilization=_figure(
            gpu, "samples", "utilization_ratio", "ratio", "nvmlDeviceGetUtilizationRates", "utilization"
        ),
        sm=_activity(gpu, "sm_ratio", "SM_UTIL"),
        tensor=_activity(gpu, "tensor_ratio", "ANY_TENSOR_UTIL"),
        dram=_activity(gpu, "dram_ratio", "DRAM_BW_UTIL"),
        memory_peak=_peak(gpu, "memory_used_bytes", "bytes", "nvmlDeviceGetMemoryInfo version 2", "memory"),
        memory_total=_memory_total(gpu),
        power=_power(gpu),
        power_limit=_power_limit(gpu),
        temperature_max=_peak(gpu, "temperature_c", "°C", "NVML", "temperature"),
        sm_clock=_clock(gpu),
        sm_clock_max=_sm_clock_max(gpu),
        throttled_power=_throttle(gpu, "power", "power cap, power brake, board limit"),
        throttled_thermal=_throttle(gpu, "thermal", "thermal slowdown by software and hardware"),
        energy=nothing("J", gpu.why("energy"), method="see the section on energy"),
        pcie=_pcie(gpu),
        nvlink=_figure(gpu, "samples", "nvlink", "bytes/s", "NVML's NVLink payload counters, both ways", *_NVLINK),
        ecc_uncorrected=_ecc(gpu),
        xids=int(gpu.events.get("xids", 0)),
    )


def _figure(
    gpu: _Gpu, table: str, name: str, unit: str, api: str, *fields: str, factor: float = 1.0, default: str | None = None
) -> Figure:
    """The mean of a column in the window."""
    values: Values = getattr(gpu, table)
    value = values.get(name)
    if value is None:
        return nothing(unit, gpu.why(*fields, default=default or _no_sample(gpu)), method=api)
    return Figure(
        value=value * factor,
        unit=unit,
        source="measured",
        n=values[f"{name} n"],
        low=values[f"{name} low"] * factor,
        high=values[f"{name} high"] * factor,
        method=f"{api}; mean over {gpu.window.words}; {_SPREAD}",
    )


def _no_sample(gpu: _Gpu) -> str:
    return "not measured on this GPU" if gpu.samples else f"no sample fell into {gpu.window.words}"


def _activity(gpu: _Gpu, name: str, metric: str) -> Figure:
    architecture = str(gpu.identity.get("architecture") or "").lower()
    default = "no GPM before Hopper" if architecture.startswith(_BEFORE_HOPPER) else None
    fields = ("activity", "activity.metrics")
    return _figure(gpu, "activity", name, "ratio", f"NVML GPM {metric}", *fields, default=default)


def _pcie(gpu: _Gpu) -> Figure:
    """By counters; by GPM where the driver has no such counters."""
    if gpu.samples.get("pcie") is None and gpu.activity.get("pcie") is not None:
        return _figure(gpu, "activity", "pcie", "bytes/s", "NVML GPM PCIe rates, both ways")
    fields = ("pcie_sent", "pcie_received")
    return _figure(gpu, "samples", "pcie", "bytes/s", "NVML's PCIe byte counters, both ways", *fields)


def _power(gpu: _Gpu) -> Figure:
    kind = _POWER_KINDS.get(str(gpu.samples.get("power_kind")), "as the driver gives it")
    return _figure(gpu, "samples", "power_mw", "W", f"NVML power {kind}", "power", factor=1e-3)


def _power_limit(gpu: _Gpu) -> Figure:
    states, api = gpu.states, "nvmlDeviceGetEnforcedPowerLimit"
    if states.get("power_limit_mw") is not None:
        low, high = states["power_limit_mw low"] * 1e-3, states["power_limit_mw high"] * 1e-3
        return Figure(
            value=states["power_limit_mw"] * 1e-3,
            unit="W",
            source="measured",
            n=states["power_limit_mw n"],
            low=low,
            high=high,
            method=f"{api}; median over {gpu.window.words}; lowest to highest",
        )
    return _once(gpu, "power_limit_mw", "W", f"{api}, as the run began", "power_limit", factor=1e-3)


def _once(gpu: _Gpu, column: str, unit: str, method: str, *fields: str, factor: float = 1.0) -> Figure:
    """A figure that NVML was asked for once."""
    value = gpu.identity.get(column)
    if value is None:
        return nothing(unit, gpu.why(*fields), method=method)
    return Figure(value=value * factor, unit=unit, source="declared", n=1, method=method)


def _memory_total(gpu: _Gpu) -> Figure:
    states = gpu.states
    method = "nvmlDeviceGetMemoryInfo version 2: used, free and the driver's reserve"
    if states.get("memory_total_bytes") is None:
        return _once(gpu, "memory_total_bytes", "bytes", method, "memory")
    n = states["memory_total_bytes n"]
    return Figure(value=states["memory_total_bytes"], unit="bytes", source="declared", n=n, method=method)


def _peak(gpu: _Gpu, name: str, unit: str, api: str, field: str) -> Figure:
    value = gpu.whole.get(name)
    if value is None:
        return nothing(unit, gpu.why(field), method=api)
    n = gpu.whole[f"{name} n"]
    return Figure(value=value, unit=unit, source="measured", n=n, method=f"{api}; highest sample of the whole run")


def _clock(gpu: _Gpu) -> Figure:
    mean = _figure(gpu, "samples", "sm_clock_mhz", "Hz", "nvmlDeviceGetClockInfo", "sm_clock", factor=1e6)
    if mean.value is None:
        return mean
    return Figure(
        value=gpu.samples["sm_clock_mhz median"] * 1e6,
        unit="Hz",
        source="measured",
        n=mean.n,
        low=mean.low,
        high=mean.high,
        method=mean.method.replace("; mean over", "; median over"),
    )


def _sm_clock_max(gpu: _Gpu) -> Figure:
    return _once(gpu, "sm_clock_max_mhz", "Hz", "nvmlDeviceGetMaxClockInfo", "sm_clock", factor=1e6)


def _throttle(gpu: _Gpu, what: str, words: str) -> Figure:
    """Share of the time: by the driver's counters of time; without them by samples of the reasons' bits."""
    samples, counter = gpu.samples, f"throttled_{what}_ns"
    if samples.get(counter) is not None:
        return Figure(
            value=samples[counter],
            unit="ratio",
            source="counted",
            n=samples[f"{counter} n"],
            method=f"NVML's counters of time ({words}; the one that grew most) over {gpu.window.words}",
        )
    if samples.get(f"{what} bits") is not None:
        return Figure(
            value=samples[f"{what} bits"],
            unit="ratio",
            source="measured",
            n=samples["reasons n"],
            method=f"share of samples in {gpu.window.words} whose clock event reasons show it ({words}); "
            "this driver has no counters of time",
        )
    reason = gpu.why(f"throttled_{what}", "clock_event_reasons", default=_no_sample(gpu))
    return nothing("ratio", reason, method=f"NVML's counters of time or clock event reasons ({words})")


def _ecc(gpu: _Gpu) -> Figure:
    method = "NVML's count of uncorrected ECC errors, its rise over the whole run"
    n = gpu.health.get("ecc_uncorrected n", 0)
    if n < 2:
        default = "read once only" if n else "not measured on this GPU"
        return nothing("1", gpu.why("ecc_uncorrected", default=default), method=method)
    return Figure(value=gpu.health["ecc_uncorrected"], unit="1", source="counted", n=n, method=method)
