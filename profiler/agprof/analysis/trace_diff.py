"""Two sets of device traces, compared: which kernels and operators appeared, vanished, changed their count or time."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import polars as pl

from agprof.analysis.trace_host import IntArray, innermost_pieces
from agprof.analysis.trace_likeness import match_names
from agprof.analysis.trace_path_device import BUSY, UNKNOWN
from agprof.analysis.trace_steps import HostStep, host_steps
from agprof.analysis.trace_window import Window, step_windows
from agprof.model.communication_kernels import Communication
from agprof.model.diff import DiffRow, DiffSide, Per, RowKind, RowState, TraceDiff
from agprof.model.trace_tables import CpuKind, GpuKind
from agprof.store.traces import RankTrace

_EXPLAINED = 0.8
"""A change is explained by the rows that make up this share of it."""
_MOST_NAMED = 3


@dataclass(slots=True)
class _Amount:
    """Count and time of one name."""

    count: int = 0
    sum_ns: int = 0


Amounts = dict[tuple[RowKind, str], _Amount]


@dataclass(slots=True, kw_only=True)
class _Side:
    label: str
    ranks: int
    steps: int
    step_ns: int
    units: int
    device: Amounts = field(default_factory=dict)
    operators: Amounts = field(default_factory=dict)


def diff_traces(
    a: Mapping[int, RankTrace],
    b: Mapping[int, RankTrace],
    *,
    labels: tuple[str, str] = ("A", "B"),
    communication: Communication | None = None,
) -> TraceDiff:
    """Compare two runs' traces.

    Per step (of all ranks) when every rank of both marks steps: then only what begins within a step counts. Else whole
    traces, per rank.
    """
    table = communication or Communication.with_user()
    steps_a, steps_b = _steps(a), _steps(b)
    per: Per = "step" if all(steps_a.values()) and all(steps_b.values()) and a and b else "rank"
    side_a = _side(a, steps_a, per, labels[0], table)
    side_b = _side(b, steps_b, per, labels[1], table)
    device = _rows(side_a.device, side_b.device, side_a.units, side_b.units)
    operators = _rows(side_a.operators, side_b.operators, side_a.units, side_b.units)
    return TraceDiff(
        a=_told(side_a, per),
        b=_told(side_b, per),
        per=per,
        sentence=_sentence("Device time", device, side_a, side_b, per),
        operator_sentence=_sentence("Operators' own time on the host", operators, side_a, side_b, per),
        device=device,
        operators=operators,
    )


def _steps(traces: Mapping[int, RankTrace]) -> dict[int, tuple[Window, ...]]:
    return {rank: step_windows(trace) for rank, trace in traces.items()}


def _side(
    traces: Mapping[int, RankTrace],
    steps: Mapping[int, tuple[Window, ...]],
    per: Per,
    label: str,
    communication: Communication,
) -> _Side:
    count = sum(len(windows) for windows in steps.values())
    side = _Side(
        label=label,
        ranks=len(traces),
        steps=count,
        step_ns=sum(window.end_ns - window.start_ns for windows in steps.values() for window in windows),
        units=(count if per == "step" else len(traces)) or 1,
    )
    for rank, trace in traces.items():
        names = trace.names()
        _add_device(side.device, trace, steps[rank] if per == "step" else None, names, communication)
        _add_operators(side.operators, trace, host_steps(trace) if per == "step" else None, names)
    return side


def _within(column: IntArray, starts: IntArray, ends: IntArray) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which times lie in one of some disjoint ascending windows."""
    place = np.searchsorted(starts, column, side="right") - 1
    return (place >= 0) & (column < ends[np.maximum(place, 0)])


def _add_device(
    amounts: Amounts,
    trace: RankTrace,
    windows: tuple[Window, ...] | None,
    names: dict[int, str],
    communication: Communication,
) -> None:
    rows = trace.table("gpu", "start_ns", "duration_ns", "kind", "name").filter(pl.col("kind").is_in(BUSY))
    if windows is not None:
        starts = np.array([window.start_ns for window in windows], dtype=np.int64)
        ends = np.array([window.end_ns for window in windows], dtype=np.int64)
        rows = rows.filter(pl.Series(_within(rows["start_ns"].to_numpy(), starts, ends), dtype=pl.Boolean))
    sums = rows.group_by("kind", "name").agg(pl.len().alias("count"), pl.col("duration_ns").sum())
    for kind, name, count, total in sums.iter_rows():
        text = names.get(name, "?")
        _add(amounts, _device_kind(GpuKind(kind), text, communication), text, count, total)


def _device_kind(kind: GpuKind, name: str, communication: Communication) -> RowKind:
    if kind == GpuKind.MEMCPY:
        return "memcpy"
    if kind == GpuKind.MEMSET:
        return "memset"
    return "communication" if communication.library(name) is not None else "compute"


def _add_operators(amounts: Amounts, trace: RankTrace, steps: list[HostStep] | None, names: dict[int, str]) -> None:
    """Operators with their own time: without that of operators they call."""
    rows = trace.table("cpu", "start_ns", "duration_ns", "kind", "name", "thread", "external_id")
    # Traces of 2020 and 2021 call the step itself an operator.
    steps_too = [each for each, text in names.items() if text.startswith("ProfilerStep")]
    rows = rows.filter(pl.col("kind") == int(CpuKind.OP), ~pl.col("name").is_in(steps_too))
    rows = rows.with_columns(pl.col("thread").fill_null(UNKNOWN))
    if steps is not None:
        starts = np.array([step.start for step in steps], dtype=np.int64)
        ends = np.array([step.end for step in steps], dtype=np.int64)
        rows = rows.filter(pl.Series(_within(rows["start_ns"].to_numpy(), starts, ends), dtype=pl.Boolean))
    # Of operators with the same begin and end the outer one was numbered first; their order in the file says nothing.
    rows = rows.sort("start_ns", "duration_ns", "external_id", descending=[False, True, False], maintain_order=True)
    for part in rows.partition_by("thread", maintain_order=True):
        start, name = part["start_ns"].to_numpy(), part["name"].to_numpy()
        end = start + part["duration_ns"].to_numpy()
        pieces = innermost_pieces(start, end, int(start.min()), int(end.max()))
        shown = pieces.event >= 0
        own = pl.DataFrame({"name": name[pieces.event[shown]], "ns": (pieces.end_ns - pieces.start_ns)[shown]})
        sums = dict(own.group_by("name").agg(pl.col("ns").sum()).iter_rows())
        for each, count in part.group_by("name").agg(pl.len()).iter_rows():
            _add(amounts, "operator", names.get(each, "?"), count, sums.get(each, 0))


def _add(amounts: Amounts, kind: RowKind, name: str, count: int, sum_ns: int) -> None:
    amount = amounts.setdefault((kind, name), _Amount())
    amount.count += count
    amount.sum_ns += sum_ns


def _rows(a: Amounts, b: Amounts, units_a: int, units_b: int) -> tuple[DiffRow, ...]:
    rows = [
        _row(kind, one, other, a, b, units_a, units_b)
        for kind in sorted({kind for kind, _ in (*a, *b)})
        for one, other in match_names(_times(a, kind), _times(b, kind))
    ]
    return tuple(sorted(rows, key=lambda row: (-abs(row.change_ns), row.kind, row.name, row.similar_name or "")))


def _times(amounts: Amounts, kind: RowKind) -> dict[str, int]:
    return {name: amount.sum_ns for (each, name), amount in amounts.items() if each == kind}


def _row(
    kind: RowKind, one: str | None, other: str | None, a: Amounts, b: Amounts, units_a: int, units_b: int
) -> DiffRow:
    amount_a = a[kind, one] if one is not None else _Amount()
    amount_b = b[kind, other] if other is not None else _Amount()
    count = Fraction(amount_b.count, units_b) - Fraction(amount_a.count, units_a)
    time = Fraction(amount_b.sum_ns, units_b) - Fraction(amount_a.sum_ns, units_a)
    state: RowState = "changed" if count or time or one != other else "same"
    if one is None or other is None:
        state = "appeared" if one is None else "vanished"
    return DiffRow(
        kind=kind,
        state=state,
        name=str(one if one is not None else other),
        similar_name=other if one is not None and one != other else None,
        count_a=amount_a.count,
        count_b=amount_b.count,
        sum_a_ns=amount_a.sum_ns,
        sum_b_ns=amount_b.sum_ns,
        change_count=float(count),
        change_ns=float(time),
    )


def _told(side: _Side, per: Per) -> DiffSide:
    return DiffSide(
        label=side.label,
        ranks=side.ranks,
        steps=side.steps,
        units=side.units,
        step_ns=side.step_ns / side.steps if per == "step" and side.steps else None,
        device_ns=sum(amount.sum_ns for amount in side.device.values()),
        operator_ns=sum(amount.sum_ns for amount in side.operators.values()),
    )


def _sentence(what: str, rows: tuple[DiffRow, ...], a: _Side, b: _Side, per: Per) -> str:
    before, after = sum(row.sum_a_ns for row in rows) / a.units, sum(row.sum_b_ns for row in rows) / b.units
    unit = "step and rank" if per == "step" else "rank (whole traces, because not all ranks mark steps)"
    if not rows:
        return f"{what}: none on either side."
    if all(row.state == "same" for row in rows):
        return f"{what} per {unit}: {milliseconds(before)} on both sides; no name changed its count or time."
    change = after - before
    share = f", {change / before:+.1%}" if before else ""
    values = f"{milliseconds(before)} -> {milliseconds(after)} ({milliseconds(change, sign=True)}{share})"
    said = f"{what} per {unit}: {values}."
    reasons = _reasons(rows, change)
    if not reasons:
        return said
    explained = sum(row.change_ns for row in reasons)
    named = ", ".join(f"{short_name(row.name)} {_verb(row)}{milliseconds(row.change_ns, sign=True)}" for row in reasons)
    return f"{said} {explained / change:.0%} of the change: {named}."


def _reasons(rows: Iterable[DiffRow], change_ns: float) -> list[DiffRow]:
    """The largest changes in the direction of the whole, until they explain most of it."""
    found: list[DiffRow] = []
    for row in rows:
        if row.change_ns * change_ns > 0 and len(found) < _MOST_NAMED:
            found.append(row)
            if sum(each.change_ns for each in found) / change_ns >= _EXPLAINED:
                break
    return found


def _verb(row: DiffRow) -> str:
    return f"{row.state} " if row.state in ("appeared", "vanished") else ""


def milliseconds(value_ns: float, *, sign: bool = False) -> str:
    """
    >>> milliseconds(1_234_000), milliseconds(-5_000, sign=True), milliseconds(12_345_678_900)
    ('1.234 ms', '-0.005 ms', '12345.7 ms')
    """
    value = value_ns / 1e6
    digits = 1 if abs(value) >= 1000 else 3
    return f"{value:{'+' if sign else ''}.{digits}f} ms"


def short_name(name: str, width: int = 48) -> str:
    """A kernel's name for a table: without `void` and PyTorch's own namespaces, cut to `width`.

    >>> short_name("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float> >(int)", 40)
    'vectorized_elementwise_kernel<4, CUDAFu…'
    """
    bare = name[: 20 * width].removeprefix("void ").replace("at::native::", "").replace("(anonymous namespace)::", "")
    clean = "".join(char if char.isprintable() else "?" for char in bare).strip() or "?"
    return clean if len(clean) <= width else clean[: width - 1] + "…"
