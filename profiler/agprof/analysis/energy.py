"""What a run used of energy: from the GPUs' counters or their power, and from RAPL where it could be read."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import polars as pl

from agprof.analysis.energy_cost import co2, cost, declared
from agprof.analysis.energy_curve import EnergyCurve, Measured, total
from agprof.analysis.energy_sources import GpuSource, gpu_sources, host_sources
from agprof.analysis.energy_windows import SHORTEST_NS, Stretch, Window, long_enough, phase_windows, stretches
from agprof.analysis.statistics import nothing
from agprof.analysis.throughput import HOW_TO_TELL
from agprof.analysis.view import View
from agprof.model.energy_answers import EnergyAnswer, EnergyMethod, GpuEnergy, PhaseEnergy
from agprof.model.figure import Figure
from agprof.model.format import format_value, percent
from agprof.model.system_answers import GpuMapping

J_PER_KWH = 3.6e6
_SECOND_NS = 1_000_000_000
_MOST_IDLE_SECONDS = 3600
_WORDS: dict[EnergyMethod, str] = {
    "counter": "NVML's energy counter, on a line between the two samples around each end",
    "counter and integral": "NVML's energy counter; trapezoid of power where it began anew or was not read",
    "integral of instant power": "trapezoid of NVML's instant power",
    "integral of average power": "trapezoid of NVML's power averaged over 1 s, each reading moved to the middle of it",
}
_INTERVAL = (
    "interval: sensor ±5 % (NVML's documentation, of older GPUs), a counter up to 100 ms old at each end, "
    "of integrals 1.96 standard errors of the readings; upwards what was left out at the highest power seen"
)
_HOST_WORDS = "RAPL of all CPU packages, and of their memory where it is told apart; interval: 1 ms at each end"


@dataclass(frozen=True, slots=True)
class _Meter:
    """One instrument whose energy is in the sums."""

    label: str
    curve: EnergyCurve | None
    view: View
    node: int
    is_gpu: bool = True

    def over(self, windows: Iterable[Window]) -> Measured | None:
        """None when nothing was read."""
        if self.curve is None or self.curve.is_empty:
            return None
        return total(self.curve.window(self._local(start), self._local(end)) for start, end in windows)

    def begin_and_end(self) -> Window | None:
        """Of what was read, since the run's origin."""
        if self.curve is None:
            return None
        begin, end = self.curve.start_ns, self.curve.end_ns
        return self.view.since_origin(begin, node=self.node), self.view.since_origin(end, node=self.node)

    def _local(self, time_ns: int) -> int:
        return self.view.local(time_ns, node=self.node)

    def method(self, measured: Measured) -> EnergyMethod | None:
        if not self.is_gpu or self.curve is None:
            return None
        if measured.counter_ns:
            return "counter and integral" if measured.integral_ns else "counter"
        if not measured.integral_ns:
            return None
        return "integral of average power" if self.curve.integral == "average" else "integral of instant power"


def analyse_energy(view: View, mapping: Sequence[GpuMapping]) -> EnergyAnswer | None:
    """The energy section; None when no GPU was seen and no RAPL could be read. `mapping` is `map_gpus(view)`."""
    gpus, notes = gpu_sources(view, mapping)
    hosts = {node: _Meter(f"node {node}", curve, view, node, False)
             for node, curve in sorted(host_sources(view).items())}  # fmt: skip
    if not gpus and not hosts:
        return None
    meters = {(gpu.node, gpu.gpu): _gpu_meter(view, gpu) for gpu in gpus}
    used = [meters[gpu.node, gpu.gpu] for gpu in gpus if gpu.in_run]
    run = _run_window(used or list(meters.values()), hosts.values())
    of_hosts = {node: _energy([meter], [run]) for node, meter in hosts.items()}
    summed = [*used, *(hosts[node] for node, figure in of_hosts.items() if figure.value is not None)]
    steady = [stretch for stretch in stretches(view) if stretch.kind == "steady"]
    kept = [stretch for stretch in steady if stretch.duration_ns >= SHORTEST_NS]
    windows = [stretch.window for stretch in kept]
    whole = _energy(summed, [run])
    in_steady = _energy(summed, windows, _why_no_steady(steady))
    kwh = _scaled(whole, 1 / J_PER_KWH, "kWh", "energy of the run / 3.6 MJ")
    prices = declared(view)
    tokens = _per_count(view, in_steady, kept, "tokens")
    scope = _scope(len(used), [node for node, figure in of_hosts.items() if figure.value is not None], view, notes)
    per_step = _per(in_steady, sum(stretch.last - stretch.first + 1 for stretch in kept), "J", "steady steps")
    return EnergyAnswer(
        sentence=_sentence(scope, whole, kwh, per_step, tokens, _mean_power(in_steady, windows), view.steps.height > 0),
        scope=scope,
        gpus=tuple(_gpu_energy(view, gpu, meters[gpu.node, gpu.gpu], run, steady, windows) for gpu in gpus),
        host=tuple(of_hosts.items()),
        run=whole,
        steady=in_steady,
        per_step=per_step,
        per_sample=_per_count(view, in_steady, kept, "samples"),
        per_token=tokens,
        tokens_per_joule=_inverse(tokens, "tokens/J"),
        kwh=kwh,
        phases=tuple(_phase(name, parts, summed) for name, parts in phase_windows(view, run)),
        cost=cost(prices, kwh, len(used) * (run[1] - run[0]) / 3.6e12),
        currency=prices.currency,
        co2=co2(prices, kwh),
        declared=prices.text,
    )


def _gpu_meter(view: View, gpu: GpuSource) -> _Meter:
    return _Meter(f"GPU {gpu.gpu} of node {gpu.node}", gpu.curve, view, gpu.node)


def _run_window(gpus: Iterable[_Meter], hosts: Iterable[_Meter]) -> Window:
    """From the first sample to the last of the GPUs; of the hosts where there is no GPU."""
    for meters in (gpus, hosts):
        known = [ends for meter in meters if (ends := meter.begin_and_end()) is not None]
        if known:
            return min(start for start, _ in known), max(end for _, end in known)
    return 0, 0


# -- figures -------------------------------------------------------------------------------------------------------


def _energy(meters: Sequence[_Meter], windows: Sequence[Window], why_none: str = "") -> Figure:
    """J of all meters over all windows; None when one of them is not known, or no window is long enough."""
    if not meters:
        return nothing("J", "no rank of the run uses a GPU, and RAPL could not be read")
    if not windows or all(end - start < SHORTEST_NS for start, end in windows):
        longest = max((end - start for start, end in windows), default=0)
        return nothing("J", why_none or _too_short(longest))
    parts, methods, most_left_out = [], [], 0
    for meter in meters:
        measured = meter.over(windows)
        if measured is None:
            return nothing("J", f"{meter.label}: neither its energy counter nor its power could be read")
        if 2 * measured.left_out_ns > measured.duration_ns:
            known = 1 - measured.left_out_ns / measured.duration_ns
            return nothing("J", f"{meter.label}: its power is known for only {percent(known)} of the time")
        parts.append(measured)
        methods.append(meter.method(measured))
        most_left_out = max(most_left_out, measured.left_out_ns)
    whole = total(parts)
    return Figure(
        value=whole.joules, unit="J", source="measured", n=whole.samples, low=whole.low, high=whole.high,
        method=_method(methods, most_left_out),
    )  # fmt: skip


def _too_short(longest_ns: int) -> str:
    return f"{format_value(longest_ns, 'ns')} are too short: under 5 s the sensors can't tell"


def _method(methods: Sequence[EnergyMethod | None], left_out_ns: int) -> str:
    words = [text for name, text in _WORDS.items() if name in methods]
    if words:
        words.append(_INTERVAL)
    if None in methods:
        words.append(_HOST_WORDS)
    if left_out_ns:
        words.append(f"left out since nothing was read: {format_value(left_out_ns, 'ns')}")
    return "; ".join(words)


def _scaled(figure: Figure, factor: float, unit: str, method: str) -> Figure:
    if figure.value is None:
        return nothing(unit, figure.reason or "the energy is not known", method=method)
    low, high = (None if end is None else end * factor for end in (figure.low, figure.high))
    return Figure(
        value=figure.value * factor, unit=unit, source=figure.source, n=figure.n, low=low, high=high,
        method=f"{method}; {figure.method}",
    )  # fmt: skip


def _per(energy: Figure, count: int, unit: str, what: str) -> Figure:
    if energy.value is not None and not count:
        return nothing(unit, f"no {what} were seen")
    return _scaled(energy, 1 / count if count else 0.0, unit, f"energy of the steady steps / {count:,} {what}")


def _per_count(view: View, steady: Figure, kept: Sequence[Stretch], what: str) -> Figure:
    """J per sample or token of all ranks. `what`: a column of `steps`."""
    if steady.value is None:
        method = f"energy of the steady steps / {what} of all ranks"
        return nothing("J", steady.reason or "the energy is not known", method=method)
    inside = pl.any_horizontal([pl.col("step").is_between(stretch.first, stretch.last) for stretch in kept])
    counts = view.steady.filter(inside)[what]
    if counts.null_count():
        return nothing("J", HOW_TO_TELL[what])
    return _per(steady, int(counts.sum()), "J", f"{what} of all ranks")


def _inverse(figure: Figure, unit: str) -> Figure:
    if not figure.value:
        return nothing(unit, figure.reason or "no energy was used", method=figure.method)
    return Figure(
        value=1 / figure.value, unit=unit, source=figure.source, n=figure.n,
        low=1 / figure.high if figure.high else None, high=1 / figure.low if figure.low else None,
        method=f"tokens/s per W, which is tokens per J; {figure.method}",
    )  # fmt: skip


def _mean_power(energy: Figure, windows: Sequence[Window]) -> Figure:
    seconds = sum(end - start for start, end in windows) / 1e9
    return _scaled(energy, 1 / seconds if seconds else 0.0, "W", "energy / time")


def _why_no_steady(steady: Sequence[Stretch]) -> str:
    if not steady:
        return "no steady step was seen"
    longest = max(stretch.duration_ns for stretch in steady)
    return f"the steady steps last {format_value(longest, 'ns')} in a row: under 5 s the sensors can't tell"


# -- rows ----------------------------------------------------------------------------------------------------------


def _gpu_energy(
    view: View, gpu: GpuSource, meter: _Meter, run: Window, steady: Sequence[Stretch], windows: Sequence[Window]
) -> GpuEnergy:
    own_run = _energy([meter], [run])
    own_steady = _energy([meter], windows, _why_no_steady(steady))
    measured = meter.over([run])
    return GpuEnergy(
        node=gpu.node,
        gpu=gpu.gpu,
        name=gpu.name,
        run=own_run,
        steady=own_steady,
        mean_power=_mean_power(own_steady, windows),
        idle_power=_idle_power(view, meter),
        method=meter.method(measured) if measured is not None else None,
        resets=measured.resets if measured is not None else 0,
        in_run=gpu.in_run,
    )


def _idle_power(view: View, meter: _Meter) -> Figure:
    """The lowest of the whole seconds before the first step, of the last hour before it.

    Of a second in a gap the counter tells only what it could have been at most: taken where there is no other.
    """
    method = "lowest mean over a second before the first step"
    curve = meter.curve
    if curve is None or curve.is_empty or not view.steps.height:
        return nothing("W", "nothing was read before a first step", method=method)
    begin = meter.view.since_origin(curve.start_ns, node=meter.node)
    seconds = min(_MOST_IDLE_SECONDS, max(0, -begin // _SECOND_NS))
    means = [meter.over([(-(k + 1) * _SECOND_NS, -k * _SECOND_NS)]) for k in range(seconds)]
    known = [mean for mean in means if mean is not None and not mean.left_out_ns]
    if not known:
        return nothing("W", "no whole second was sampled before the first step", method=method)
    lowest = min([mean for mean in known if mean.low > 0] or known, key=lambda mean: mean.joules)
    return Figure(
        value=lowest.joules, unit="W", source="measured", n=len(known), low=lowest.low, high=lowest.high, method=method
    )


def _phase(name: str, windows: Sequence[Window], meters: Sequence[_Meter]) -> PhaseEnergy:
    kept, left_out_ns = long_enough(windows)
    reason = "" if kept else f"no stretch of 5 s or more: {_too_short(max(end - start for start, end in windows))}"
    energy = _energy(meters, kept, reason)
    return PhaseEnergy(
        phase=name,
        duration_ns=sum(end - start for start, end in kept),
        left_out_ns=left_out_ns,
        energy=energy,
        mean_power=_mean_power(energy, kept),
    )


# -- words ---------------------------------------------------------------------------------------------------------


def _scope(gpus: int, hosts: Sequence[int], view: View, notes: Sequence[str]) -> str:
    """`4 GPUs and the CPU packages of 1 node`; with how the GPUs were told, where they were not certain."""
    words = [f"{gpus:,} GPU{'' if gpus == 1 else 's'}"] if gpus else []
    if hosts:
        nodes = {*view.node_of.values(), *view.tables["host_samples"]["node"].unique().to_list()}
        of = "" if len(hosts) == len(nodes) else f" of {len(nodes)}"
        count = len(nodes) if of else len(hosts)
        words.append(f"the CPU packages of {len(hosts)}{of} node{'' if count == 1 else 's'}")
    text = " and ".join(words) or "nothing"
    return f"{text} ({'; '.join(notes)})" if notes else text


def _sentence(
    scope: str, run: Figure, kwh: Figure, per_step: Figure, per_token: Figure, power: Figure, has_steps: bool
) -> str:
    if run.value is None or kwh.value is None:
        return f"The energy is not known: {run.reason}."
    told = scope.partition(" (")[0]
    words = f"{told[:1].upper()}{told[1:]} used {format_value(run.value, 'J')} ({format_value(kwh.value, 'kWh')})"
    if not has_steps:
        return f"{words} over the run."
    if per_step.value is None:
        return f"{words} over the run; of the steady steps it is not known: {per_step.reason}."
    token = f" and {format_value(per_token.value, 'J')} a token" if per_token.value is not None else ""
    return (
        f"{words} over the run; a steady step takes {format_value(per_step.value, 'J')}{token}, "
        f"at {format_value(power.value, 'W')} in the mean."
    )
