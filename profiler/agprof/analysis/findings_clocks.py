"""Findings on the clocks of GPUs: held down for power, for heat, by the hardware; lower than those of their peers."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import polars as pl

from agprof.analysis.evidence import Evidence, saving
from agprof.analysis.system_figures import gpus_of_run, name_gpu
from agprof.analysis.system_samples import inside, steady_window, timed
from agprof.analysis.system_throttles import KINDS, POWER_BITS, THERMAL_BITS, in_words
from agprof.model.answers import Finding
from agprof.model.figure import Figure
from agprof.model.format import format_value, percent
from agprof.model.system_answers import GpuRow

_POWER_SHARE, _OTHER_SHARE = 0.05, 0.01
"""Of the time with clocks held down, from which it is told."""
_CLOCK_LOSS = 0.01
_BUSY = 0.5
_SLOWER = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """The clock of one GPU while something holds it down, and while nothing does."""

    row: GpuRow
    share: float
    """Of the time."""
    held_hz: float | None
    free_hz: float | None
    """Median while it works and nothing holds it down; where that is never, the highest that it can have."""
    bits: int
    counted: bool
    """By the driver's counters of time; else by samples."""

    @property
    def loss(self) -> float | None:
        """Share of the clock that is lost while it is held down."""
        if not self.held_hz or not self.free_hz:
            return None
        return max(0.0, 1 - self.held_hz / self.free_hz)

    @property
    def lost(self) -> float:
        """Share of all time that the loss makes at most."""
        return self.share * (self.loss or 0.0)


def power_capped(evidence: Evidence) -> Finding | None:
    """The power limit holds clocks down."""
    found = [held for held in _held(evidence, "power") if held.share >= _POWER_SHARE]
    found = [held for held in found if held.loss is None or held.loss >= _CLOCK_LOSS]
    if not found:
        return None
    worst = max(found, key=lambda held: (held.lost, held.share))
    return Finding(
        key="gpu-power-capped",
        title=f"The power limit holds {_many(found, evidence)} down {_shares(found)} of the time",
        evidence=_clocks(evidence, worst, _draw(worst.row)),
        section="system",
        saving_ns_per_step=_saving(evidence, worst),
        confidence="modelled",
        change=_raise_limit(worst.row, _default_limit_mw(evidence, worst.row)),
        check="the share of time held down for power falls and the SM clock rises in the section on GPU and host.",
    )


def thermally_throttled(evidence: Evidence) -> Finding | None:
    """Heat holds clocks down."""
    found = [held for held in _held(evidence, "thermal") if held.share >= _OTHER_SHARE]
    if not found:
        return None
    worst = max(found, key=lambda held: (held.lost, held.share))
    hottest = worst.row.temperature_max
    told = f"it reaches {format_value(hottest.value, '°C')}" if hottest.value is not None else ""
    return Finding(
        key="gpu-thermal",
        title=f"Heat holds {_many(found, evidence)} down {_shares(found)} of the time",
        evidence=_clocks(evidence, worst, told),
        section="system",
        saving_ns_per_step=_saving(evidence, worst),
        confidence="modelled",
        change="Have the cooling looked at: fans, dust, air or water that comes in too warm, a neighbour that blows "
        "at it. A lower power limit (nvidia-smi -pl) costs less than heat does.",
        check="no thermal stretch is left in the ribbon under the SM clock.",
    )


def hardware_brake(evidence: Evidence) -> Finding | None:
    """The hardware itself slows a GPU down: power brake or slowdown from outside."""
    found = [held for held in _held(evidence, "hardware") if held.share >= _OTHER_SHARE]
    if not found:
        return None
    worst = max(found, key=lambda held: (held.lost, held.share))
    return Finding(
        key="gpu-hardware-slowdown",
        title=f"The hardware slows {_many(found, evidence)} down {_shares(found)} of the time",
        evidence=_clocks(evidence, worst, f"the driver says: {', '.join(in_words(worst.bits))}"),
        section="system",
        saving_ns_per_step=_saving(evidence, worst),
        confidence="modelled",
        change="Have the machine's power supply looked at: the board or the chassis pulls this brake when power or "
        "heat leaves its bounds. See nvidia-smi -q -d PERFORMANCE and the machine's own event log.",
        check="no hardware stretch is left in the ribbon under the SM clock.",
    )


def _held(evidence: Evidence, kind: str) -> list[Held]:
    """Of each GPU in use: how long it is held down and at which clock; nothing is looked at where that is never."""
    if not _ever(evidence, kind):
        return []
    rows = {(gpu.node, gpu.gpu): gpu for gpu in gpus_of_run(evidence.system)}
    clocks = _clock_rows(evidence, kind)
    found = []
    for (node, gpu), row in rows.items():
        known = clocks.get((node, gpu))
        figure = {"power": row.throttled_power, "thermal": row.throttled_thermal}.get(kind)
        share = figure.value if figure is not None else known["share"] if known is not None else None
        if not share:
            continue
        clock, free = (known["held"], known["free"]) if known is not None else (None, None)
        free_hz = free * 1e6 if free is not None else row.sm_clock_max.value
        found.append(
            Held(
                row=row,
                share=share,
                held_hz=None if clock is None else clock * 1e6,
                free_hz=free_hz,
                bits=int(known["bits"] or 0) if known is not None else 0,
                counted=figure is not None and figure.source == "counted",
            )
        )
    return found


def _ever(evidence: Evidence, kind: str) -> bool:
    used = gpus_of_run(evidence.system)
    if kind == "hardware":
        return any(span.kind == kind for span in evidence.system.throttles)
    return any(gpu.throttled_power.value if kind == "power" else gpu.throttled_thermal.value for gpu in used)


def _clock_rows(evidence: Evidence, kind: str) -> dict[tuple[int, int], dict[str, float | None]]:
    """Median SM clock by GPU while its clocks are held down for `kind`, and while it works and they are not."""
    bits = {"power": POWER_BITS, "thermal": THERMAL_BITS, "hardware": KINDS["hardware"]}[kind]
    view = evidence.view
    samples = inside(timed(view, "gpu_samples"), steady_window(view))
    reasons = pl.col("clock_event_reasons")
    held = (reasons & bits) != 0
    counter = {"power": "throttled_power_ns", "thermal": "throttled_thermal_ns"}.get(kind)
    if counter is not None:
        held = pl.coalesce(held, pl.col(counter) > 0)
    throttling = POWER_BITS | THERMAL_BITS | KINDS["hardware"]
    free = ((reasons & throttling) == 0) & (pl.col("utilization_ratio") >= _BUSY)
    rows = samples.group_by("node", "gpu").agg(
        held=pl.col("sm_clock_mhz").filter(held).median(),
        free=pl.col("sm_clock_mhz").filter(free).median(),
        share=held.mean(),
        bits=(reasons & bits).filter(held).bitwise_or(),
    )
    return {(row["node"], row["gpu"]): row for row in rows.iter_rows(named=True)}


def _many(found: Sequence[Held], evidence: Evidence) -> str:
    among = gpus_of_run(evidence.system)
    if len(found) == 1:
        return name_gpu(found[0].row, among)
    return f"all {len(among)} GPUs" if len(found) == len(among) else f"{len(found)} of {len(among)} GPUs"


def _shares(found: Sequence[Held]) -> str:
    low, high = percent(min(held.share for held in found)), percent(max(held.share for held in found))
    return low if low == high else f"{low} to {high}"


def _clocks(evidence: Evidence, held: Held, told: str) -> str:
    name = name_gpu(held.row, gpus_of_run(evidence.system))
    words = [f"{name} is held down {percent(held.share)} of the time"]
    if told:
        words.append(told)
    if held.held_hz and held.free_hz:
        words.append(
            f"its SM clock is {format_value(held.held_hz, 'Hz')} then and {format_value(held.free_hz, 'Hz')} otherwise"
        )
    by = "the driver's counters of time" if held.counted else "samples of the driver's reasons"
    return f"{'; '.join(words)} ({by})."


def _draw(row: GpuRow) -> str:
    if row.power.value is None:
        return ""
    limit = f" of {format_value(row.power_limit.value, 'W')}" if row.power_limit.value is not None else ""
    return f"it draws {format_value(row.power.value, 'W')}{limit}"


def _saving(evidence: Evidence, worst: Held) -> Figure | None:
    if worst.loss is None or not evidence.mean_ns:
        return None
    return saving(
        evidence.mean_ns * worst.lost,
        evidence.time.step_time.n,
        "at most: share of the time x loss of clock of the GPU that loses most, as if all of the step went with its "
        "clock",
    )


def _default_limit_mw(evidence: Evidence, row: GpuRow) -> int | None:
    gpus = evidence.view.tables["gpus"].filter((pl.col("node") == row.node) & (pl.col("gpu") == row.gpu))
    values = gpus["power_limit_default_mw"].drop_nulls().to_list()
    return values[-1] if values else None


def _raise_limit(row: GpuRow, default_mw: int | None) -> str:
    limit = row.power_limit.value
    if limit is None or default_mw is None:
        return "Compare the limit with the default and the highest one in nvidia-smi -q -d POWER, and raise it (-pl)."
    default = default_mw / 1000
    if limit < 0.99 * default:
        return (
            f"The limit of {format_value(limit, 'W')} is below the maker's {format_value(default, 'W')}: "
            f"nvidia-smi -i {row.gpu} -pl {default:.0f}, where power and cooling allow it."
        )
    return (
        f"The limit of {format_value(limit, 'W')} is the maker's: the GPU does what it can, and nothing is set wrong. "
        "A cooler GPU draws less at the same clock; energy per step may be better still at a lower limit."
    )


def slow_clock(evidence: Evidence) -> Finding | None:
    """One GPU runs at a lower clock than others of its kind that work as it does, and it is not heat nor the hardware.

    These two have findings of their own.
    """
    busy = [
        gpu
        for gpu in gpus_of_run(evidence.system)
        if gpu.sm_clock.value and (gpu.utilization.value is None or gpu.utilization.value >= _BUSY)
    ]
    if len(busy) < 2:
        return None
    slowest = min(busy, key=lambda gpu: gpu.sm_clock.value or 0.0)
    peers = [gpu.sm_clock.value or 0.0 for gpu in busy if gpu is not slowest and gpu.name == slowest.name]
    own = slowest.sm_clock.value or 0.0
    if not peers or own >= (1 - _SLOWER) * median(peers) or _is_told(evidence, slowest):
        return None
    typical = median(peers)
    name = name_gpu(slowest, busy)
    others = f"of {len(peers)} other GPUs of its kind" if len(peers) > 1 else "of the other GPU"
    return Finding(
        key="gpu-slow-clock",
        title=f"{name} runs at a clock {percent(1 - own / typical)} lower than its peers",
        evidence=f"Its median SM clock is {format_value(own, 'Hz')}, that {others} {format_value(typical, 'Hz')}"
        f"{_differences(slowest)}.",
        section="system",
        saving_ns_per_step=saving(
            evidence.mean_ns * (1 - own / typical),
            evidence.time.step_time.n,
            "at most: loss of clock x step, as if all ranks waited for this GPU and it for nothing else",
        )
        if evidence.mean_ns
        else None,
        confidence="modelled",
        change=f"Compare nvidia-smi -q -i {slowest.gpu} -d CLOCK,PERFORMANCE,POWER,TEMPERATURE with a peer: limit, "
        "locked or application clocks, temperature. If nothing differs, leave this GPU or node out.",
        check="the SM clocks of all GPUs lie in one band.",
    )


def _is_told(evidence: Evidence, gpu: GpuRow) -> bool:
    return any(
        held.share >= _OTHER_SHARE and held.row is gpu
        for kind in ("thermal", "hardware")
        for held in _held(evidence, kind)
    )


def _differences(gpu: GpuRow) -> str:
    words = [
        f"held down for {name} {percent(figure.value)} of the time"
        for name, figure in (("power", gpu.throttled_power), ("heat", gpu.throttled_thermal))
        if figure.value is not None and figure.value >= _OTHER_SHARE
    ]
    if gpu.power_limit.value is not None:
        words.append(f"limit {format_value(gpu.power_limit.value, 'W')}")
    if gpu.temperature_max.value is not None:
        words.append(f"up to {format_value(gpu.temperature_max.value, '°C')}")
    return f"; it: {', '.join(words)}" if words else ""
