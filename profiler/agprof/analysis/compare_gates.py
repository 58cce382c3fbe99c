"""Gates: conditions such as `step_time<=+5%` that a candidate must meet, their grammar and their outcome.

    condition = KEY OPERATOR BOUND       KEY: a row of the table of figures; OPERATOR: <= >= < >
    BOUND = SIGN NUMBER [UNIT]           against the baseline: +5%, -10%, +20ms, +100MiB
          | NUMBER [UNIT]                of the candidate itself: 400ms, 2GiB, 40%, 1200

The value itself decides, not the ends of its interval: those are told beside it.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from agprof.analysis.compare_kpis import QUANTITIES
from agprof.analysis.compare_waterfall import signed
from agprof.errors import ConfigError
from agprof.model.compare_answers import Change, GateRow, KpiRow
from agprof.model.figure import Figure
from agprof.model.format import format_interval, format_value, percent

Operator = Literal["<=", ">=", "<", ">"]

_CONDITION = re.compile(r"\s*([A-Za-z][\w.]*)\s*(<=|>=|<|>)\s*([+-]?)\s*(\d+(?:\.\d*)?|\.\d+)\s*([^\d\s]\S*)?\s*")
_UNITS: dict[str, dict[str, float]] = {
    "ns": {"ns": 1, "us": 1e3, "µs": 1e3, "ms": 1e6, "s": 1e9, "min": 60e9},
    "bytes": {
        "B": 1, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30,
        "TiB": 2**40,
    },
    "ratio": {"%": 0.01, "": 1},
    "J": {"mJ": 1e-3, "J": 1, "kJ": 1e3},
    "W": {"W": 1, "kW": 1e3},
    "FLOP/s": {"FLOP/s": 1, "GFLOP/s": 1e9, "TFLOP/s": 1e12},
    "samples/s": {"": 1, "samples/s": 1, "/s": 1},
    "tokens/s": {"": 1, "tokens/s": 1, "/s": 1},
}  # fmt: skip
_BY_KEY = {quantity.key: quantity for quantity in QUANTITIES}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """A condition, read."""

    text: str
    key: str
    operator: Operator
    bound: float
    """In the quantity's base unit, or a ratio."""
    against: Literal["baseline, relative", "baseline, absolute", "itself"]

    def holds(self, value: float) -> bool:
        if _same(value, self.bound):
            return self.operator in ("<=", ">=")
        return value < self.bound if self.operator in ("<=", "<") else value > self.bound


def _same(a: float, b: float) -> bool:
    """Equal up to what converting `+5%` into a float loses."""
    return math.isclose(a, b, rel_tol=1e-12, abs_tol=1e-15)


def read_gate(text: str) -> Gate:
    """Read a condition. Raises ConfigError that names the condition, the rule and a way out.

    >>> read_gate("step_time<=+5%").bound, read_gate("memory.peak < 2GiB").against
    (0.05, 'itself')
    """
    shown = text if len(text) <= 100 else f"{text[:99]}…"
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise ConfigError(
            f"the gate {shown!r} is no condition: write KEY, one of <= >= < >, and a bound, as 'step_time<=+5%' or "
            "'memory.peak<=2GiB'"
        )
    key, operator, sign, number, unit = match.groups(default="")
    quantity = _BY_KEY.get(key)
    if quantity is None:
        near = get_close_matches(key, _BY_KEY, 1, 0.5)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(_BY_KEY)}"
        raise ConfigError(f"the gate {shown!r} names {key!r}, which is no figure of a comparison; {hint}")
    value = float(number) * (-1 if sign == "-" else 1)
    if unit == "%" and sign:
        return Gate(text=text, key=key, operator=_operator(operator), bound=value / 100, against="baseline, relative")
    factor = _factor(shown, key, quantity.unit, sign, unit)
    against: Literal["baseline, absolute", "itself"] = "baseline, absolute" if sign else "itself"
    return Gate(text=text, key=key, operator=_operator(operator), bound=value * factor, against=against)


def _operator(text: str) -> Operator:
    return text  # type: ignore[return-value]


def _factor(shown: str, key: str, base: str, sign: str, unit: str) -> float:
    units = _UNITS[base]
    if unit in units:
        return units[unit]
    known = ", ".join(name for name in units if name)
    if unit == "%":
        raise ConfigError(
            f"the gate {shown!r} bounds {key} by a percentage without a sign; a share of the baseline has one: write "
            f"'+5%' for at most 5 % more, or a bound in {known}"
        )
    if not unit:
        raise ConfigError(f"the gate {shown!r} bounds {key} by a number without a unit; add one of {known}, or '+...%'")
    raise ConfigError(f"the gate {shown!r} bounds {key} in {unit!r}; it is measured in {known}")


def gate_rows(
    gates: Sequence[Gate], rows: Sequence[KpiRow], baseline: int, labels: Sequence[str]
) -> tuple[GateRow, ...]:
    """Each condition on every candidate; it passes when all of them pass, and is None when one can't be told."""
    return tuple(_gate_row(gate, rows, baseline, labels) for gate in gates)


def _gate_row(gate: Gate, rows: Sequence[KpiRow], baseline: int, labels: Sequence[str]) -> GateRow:
    row = next((row for row in rows if row.key == gate.key), None)
    if row is None:
        return GateRow(condition=gate.text, passed=None, found="not measured on any side")
    passed: list[bool | None] = []
    found: list[str] = []
    for at, value in enumerate(row.values):
        if at != baseline:
            verdict, words = _outcome(gate, row.values[baseline], value, row.changes[at])
            passed.append(verdict)
            found.append(f"{labels[at]}: {words}" if len(row.values) > 2 else words)
    whole = False if False in passed else None if None in passed else True
    return GateRow(condition=gate.text, passed=whole, found="; ".join(found))


def _outcome(gate: Gate, a: Figure, b: Figure, change: Change | None) -> tuple[bool | None, str]:
    """Whether it holds, and `+3.1 % [+1.0 %, +5.2 %]`."""
    if gate.against == "itself":
        if b.value is None:
            return None, f"not measured: {b.reason}"
        words = f"{format_value(b.value, b.unit)} {format_interval(b)}".rstrip()
        return gate.holds(b.value), words + _across(gate, b)
    if change is None:
        return None, f"not measured: {a.reason if a.value is None else b.reason}"
    figure = change.relative if gate.against == "baseline, relative" else change.absolute
    if figure.value is None:
        return None, f"not known: {figure.reason}"
    return gate.holds(figure.value), change_words(figure) + _across(gate, figure)


def _across(gate: Gate, figure: Figure) -> str:
    if figure.low is None or figure.high is None or not figure.low < gate.bound < figure.high:
        return ""
    return ", the bound lies within the interval: repeat the runs to be sure"


def change_words(figure: Figure) -> str:
    """A change with its interval, signs included, the interval in the unit of the value.

    >>> change_words(Figure(value=0.031, unit="ratio", source="measured", n=9, low=0.01, high=0.052))
    '+3.1 % [+1.0, +5.2]'
    """
    if figure.value is None:
        return "–"
    if figure.unit == "ratio":
        words = [_signed_percent(value) for value in (figure.value, figure.low, figure.high) if value is not None]
        low_high = [word.removesuffix(" %") for word in words[1:]]
        return f"{words[0]} [{', '.join(low_high)}]" if len(low_high) == 2 else words[0]
    if figure.low is None or figure.high is None:
        return signed(figure.value, figure.unit)
    return (
        f"{signed(figure.value, figure.unit)} [{signed(figure.low, figure.unit)}, {signed(figure.high, figure.unit)}]"
    )


def _signed_percent(ratio: float) -> str:
    return f"{'-' if ratio < 0 else '+' if ratio else ''}{percent(abs(ratio))}"
