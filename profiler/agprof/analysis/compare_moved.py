"""What moved most from the baseline to a candidate: modules, collectives, kernels, ranges, phases, in ns per step."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

from agprof.analysis.compare_sides import ComparedRun, ComparedSide
from agprof.analysis.run import communication_patterns
from agprof.analysis.trace_diff import diff_traces
from agprof.analysis.view import mean_parts
from agprof.model.communication_kernels import Communication
from agprof.model.compare_answers import MovedRow

MOST_ROWS = 60
"""Per candidate and kind."""
_LONGEST = 300

Kind = Literal["module", "collective", "kernel", "range", "phase"]
Amounts = dict[str, float]


def moved_rows(sides: Sequence[ComparedSide], baseline: int) -> tuple[MovedRow, ...]:
    """Of every candidate, largest change first."""
    rows: list[MovedRow] = []
    for at, side in enumerate(sides):
        if at != baseline:
            rows += sorted(_rows(sides[baseline], side, at), key=_by_change)
    return tuple(rows)


def _by_change(row: MovedRow) -> tuple[float, str, str]:
    return -abs(row.change), row.kind, row.name


def _rows(a: ComparedSide, b: ComparedSide, at: int) -> Iterator[MovedRow]:
    for kind, amounts in _KINDS:
        of_a, of_b = _side_mean(a, amounts), _side_mean(b, amounts)
        if of_a is not None and of_b is not None:
            yield from sorted(_changes(kind, of_a, of_b, at, "ns"), key=_by_change)[:MOST_ROWS]
    yield from sorted(_kernels(a, b, at), key=_by_change)[:MOST_ROWS]


def _changes(kind: Kind, a: Mapping[str, float], b: Mapping[str, float], at: int, unit: str) -> Iterator[MovedRow]:
    for name in dict.fromkeys([*a, *b]):
        change = b.get(name, 0.0) - a.get(name, 0.0)
        if change:
            yield MovedRow(
                kind=kind, name=name[:_LONGEST], side=at, baseline=a.get(name), candidate=b.get(name), change=change,
                unit=unit,
            )  # fmt: skip


def _side_mean(side: ComparedSide, amounts: Callable[[ComparedRun], Amounts | None]) -> Amounts | None:
    """Mean over the runs; a name that a run lacks counts 0 there. None where a run has no such amounts."""
    mean: Amounts = {}
    for run in side.runs:
        found = amounts(run)
        if found is None:
            return None
        for name, value in found.items():
            mean[name] = mean.get(name, 0.0) + value / len(side.runs)
    return mean


def _modules(run: ComparedRun) -> Amounts | None:
    """Own device time of each module in the profile step, without its children, over all its micro-steps."""
    timed = [row for row in run.answers.compute.modules if row.forward_ns is not None]
    if not timed:
        return None
    whole = {
        (row.root, row.path): float((row.forward_ns or 0) + (row.backward_ns or 0) + (row.recomputed_ns or 0))
        for row in timed
    }
    own = dict(whole)
    for row in timed:
        parent = (row.root, row.parent) if row.parent is not None else None
        if parent in own:
            own[parent] -= whole[row.root, row.path]
    many = len({row.root for row in timed}) > 1
    return {f"{f'tree {root}: ' if many else ''}{path or 'the model itself'}": ns for (root, path), ns in own.items()}


def _collectives(run: ComparedRun) -> Amounts | None:
    if not run.answers.time.steady_steps:
        return None
    amounts: Amounts = {}
    for row in run.answers.communication.rows:
        name = f"{row.op} in {row.caller}"
        amounts[name] = amounts.get(name, 0.0) + row.exposed_ns_per_step
    return amounts


def _ranges(run: ComparedRun) -> Amounts | None:
    return {row.name: row.ns_per_step for row in run.answers.time.ranges} if run.answers.time.steady_steps else None


def _phases(run: ComparedRun) -> Amounts | None:
    return dict(mean_parts(run.view.steady)) if run.answers.time.steady_steps else None


_KINDS: tuple[tuple[Kind, Callable[[ComparedRun], Amounts | None]], ...] = (
    ("phase", _phases),
    ("collective", _collectives),
    ("range", _ranges),
    ("module", _modules),
)


def _kernels(a: ComparedSide, b: ComparedSide, at: int) -> Iterator[MovedRow]:
    """Device activities of the first runs' traces, as `agprof diff` compares them."""
    traces = [side.first.view.run.traces for side in (a, b)]
    if not all(traces):
        return
    patterns = communication_patterns(a.first.view.run) | communication_patterns(b.first.view.run)
    found = diff_traces(
        traces[0], traces[1], labels=(a.label, b.label), communication=Communication.with_user(patterns)
    )
    of_what = "" if found.per == "step" else " (whole trace, per rank)"
    for row in found.device:
        if row.change_ns:
            yield MovedRow(
                kind="kernel", name=row.name[:_LONGEST] + of_what, side=at, change=row.change_ns, unit="ns",
                baseline=None if row.state == "appeared" else row.sum_a_ns / (found.a.units or 1),
                candidate=None if row.state == "vanished" else row.sum_b_ns / (found.b.units or 1),
            )  # fmt: skip
