"""The waterfalls of the memory peak (parts of the account) and of the energy of a step (time x power)."""

from fractions import Fraction

from agprof.analysis.compare_sides import ComparedRun, ComparedSide
from agprof.analysis.compare_waterfall import Part, build
from agprof.model.compare_answers import Waterfall
from agprof.model.format import format_value
from agprof.model.memory_answers import MemoryAccount

_BEYOND = "beyond"
_UNEXPLAINED = "unexplained"
_ORDER = (
    "parameters", "gradients", "optimizer_states", "master_weights", "activations", "temporary", "buckets", "buffers",
    "kv_cache", "inputs", "context", "fragmentation", _UNEXPLAINED, _BEYOND,
)  # fmt: skip
_LABELS = {
    _UNEXPLAINED: "Unexplained by the account",
    _BEYOND: "Beyond the account's moment",
    "optimizer_states": "Optimizer states",
    "master_weights": "Master weights",
    "kv_cache": "KV cache",
}
_BEYOND_OF_HOST = {_BEYOND: "Python, libraries and other memory of the process"}
"""On a CPU the peak is the process's resident set, and the account that of torch's allocator."""
_GROUPS = {
    "parameters": "compute", "gradients": "compute", "optimizer_states": "optimizer", "master_weights": "optimizer",
    "activations": "data", "temporary": "data", "kv_cache": "data", "inputs": "data", "buckets": "communication",
}  # fmt: skip
"""Colours only."""
_METHODS = {
    _UNEXPLAINED: "remainder: the account's measured total less its parts",
    _BEYOND: "remainder: the run's peak less what the account's moment holds",
}

MEMORY_NOTE = "highest rank; parts at the highest moment of its profile step; of repeats the mean over runs"
ENERGY_NOTE = "mean over the steady window; of repeats the mean over runs"


def memory_waterfall(baseline: ComparedSide, candidate: ComparedSide, index: int) -> Waterfall | None:
    """None where a side's peak was not measured, or the one is of devices and the other of hosts."""
    kinds = {run.answers.memory.kind for side in (baseline, candidate) for run in side.runs}
    a, b = _mean_parts(baseline), _mean_parts(candidate)
    if a is None or b is None or len(kinds) != 1:
        return None
    names = sorted({*a, *b}, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))
    labels = _LABELS | _BEYOND_OF_HOST if kinds == {"host"} else _LABELS
    parts = [
        Part(
            key=f"memory.{name}",
            label=labels.get(name, name.replace("_", " ").capitalize()),
            group=_GROUPS.get(name, "other"),
            baseline=a.get(name, Fraction(0)),
            candidate=b.get(name, Fraction(0)),
            method=_METHODS.get(name, "the account's part; see the run's report"),
        )
        for name in names
    ]
    return build("memory peak", "bytes", index, parts, MEMORY_NOTE, (baseline.label, candidate.label))


def _mean_parts(side: ComparedSide) -> dict[str, Fraction] | None:
    """Bytes by part, mean over runs; they add up to the mean peak."""
    mean: dict[str, Fraction] = {}
    for run in side.runs:
        parts = _parts(run)
        if parts is None:
            return None
        for name, value in parts.items():
            mean[name] = mean.get(name, Fraction(0)) + value / len(side.runs)
    return mean


def _parts(run: ComparedRun) -> dict[str, Fraction] | None:
    memory = run.answers.memory
    if memory.peak.value is None:
        return None
    peak = Fraction(memory.peak.value)
    account = _account(run)
    if account is None or account.total.value is None:
        return {_BEYOND: peak}
    total = Fraction(account.total.value)
    parts: dict[str, Fraction] = {}
    for part in account.parts:
        if part.part != _UNEXPLAINED:
            parts[part.part] = parts.get(part.part, Fraction(0)) + Fraction(part.bytes)
    parts[_UNEXPLAINED] = total - sum(parts.values(), Fraction(0))
    parts[_BEYOND] = peak - total
    return parts


def _account(run: ComparedRun) -> MemoryAccount | None:
    """That of the rank with the highest peak, of the kind of memory that the peak is of; else the fullest one."""
    memory = run.answers.memory
    found = [row for row in memory.accounts if row.at == "peak" and row.space == memory.kind]
    highest = max((row for row in memory.ranks if row.peak.value is not None), key=_peak_of, default=None)
    of_rank = [row for row in found if highest is not None and row.rank == highest.rank]
    return max(of_rank or found, key=lambda row: (row.total.value or 0.0, -row.rank), default=None)


def _peak_of(row: object) -> tuple[float, int]:
    return (row.peak.value or 0.0, -row.rank)  # type: ignore[attr-defined]


def energy_waterfall(baseline: ComparedSide, candidate: ComparedSide, index: int) -> Waterfall | None:
    """J per step as step time x power. None where a side's energy per step was not measured, or covers other things."""
    a, b = _time_and_power(baseline), _time_and_power(candidate)
    if a is None or b is None:
        return None
    (joules_a, seconds_a), (joules_b, seconds_b) = a, b
    watts = [joules / seconds for joules, seconds in (a, b)]
    mean = sum(watts, Fraction(0)) / 2
    words = f"{format_value(float(watts[1]), 'W')} against {format_value(float(watts[0]), 'W')}"
    times = (
        f"{format_value(float(seconds_b * 10**9), 'ns')} against {format_value(float(seconds_a * 10**9), 'ns')} a step"
    )
    parts = [
        Part(
            key="energy.time", label="Time of a step", group="compute", baseline=seconds_a * mean,
            candidate=seconds_b * mean, evidence=times, method="mean step x the mean power of both sides",
        ),
        Part(
            key="energy.power", label="Power", group="other", baseline=joules_a - seconds_a * mean,
            candidate=joules_b - seconds_b * mean, evidence=words,
            method="remainder: energy less what the step's time takes at the mean power of both sides; power = energy "
            "/ mean step, of all that is summed",
        ),
    ]  # fmt: skip
    return build("energy per step", "J", index, parts, ENERGY_NOTE, (baseline.label, candidate.label))


def _time_and_power(side: ComparedSide) -> tuple[Fraction, Fraction] | None:
    """J of a step and its seconds, means over runs."""
    joules = seconds = Fraction(0)
    for run in side.runs:
        energy, mean_ns = run.answers.energy, run.view.mean_step_ns
        if energy is None or energy.per_step.value is None or not mean_ns:
            return None
        joules += Fraction(energy.per_step.value) / len(side.runs)
        seconds += Fraction(mean_ns) / 10**9 / len(side.runs)
    return joules, seconds
