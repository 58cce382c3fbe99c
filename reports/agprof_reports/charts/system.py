"""The sampler's curves: one small chart per kind. Kinds with nothing to see in them are told in a line instead."""

from collections.abc import Sequence

from agprof.model.system_answers import SystemAnswer
from agprof_reports.charts.curves import Kind, curves_chart, kinds_of
from agprof_reports.charts.pieces import DIRECT_LABELS, Span
from agprof_reports.data import Chart
from agprof_reports.tables import StepGroup
from agprof_reports.text import slug, with_unit

EVEN = 0.01
"""Curves of one kind that never differ by more are told in one figure when they are too many for lines."""


def _is_even(kind: Kind) -> bool:
    values = kind.values
    return len(kind.curves) > DIRECT_LABELS and min(values) >= max(values) * (1 - EVEN) > 0


def system_curves(system: SystemAnswer, groups: Sequence[StepGroup], run: Span) -> tuple[Chart, ...]:
    drawn = _families([kind for kind in kinds_of(system.curves) if any(kind.values) and not _is_even(kind)])
    charts = []
    for index, kind in enumerate(drawn):
        last = index == len(drawn) - 1
        key = f"system-{index}-{slug(kind.title)}"
        charts.append(curves_chart(key, kind.title, kind.curves, groups, run, height=144 if last else 128, titled=last))
    return tuple(charts)


def undrawn_curves(system: SystemAnswer) -> tuple[str, ...]:
    """One sentence each for kinds that were not measured, are zero throughout, or the same everywhere."""
    kinds = kinds_of(system.curves)
    absent = [kind.title for kind in kinds if not kind.values]
    zero = [kind.title for kind in kinds if kind.values and not any(kind.values)]
    even = [
        f"{kind.title} {with_unit(max(kind.values), kind.curves[0].unit)}"
        for kind in kinds
        if kind.values and _is_even(kind)
    ]
    sentences = (
        ("Not measured", absent),
        ("Zero throughout, hence not drawn", zero),
        ("The same within 1 % everywhere and throughout, hence not drawn", even),
    )
    return tuple(f"{head}: {', '.join(names)}." for head, names in sentences if names)


def _families(kinds: Sequence[Kind]) -> list[Kind]:
    """`network sent` and `network received` share a chart where each is one curve; `disk read` and `disk write` too."""
    out: dict[tuple[str, str], Kind] = {}
    for kind in kinds:
        family, unit = kind.title.split(" ")[0], kind.curves[0].unit
        mates = [k for k in kinds if k.title.split(" ")[0] == family and k.curves[0].unit == unit]
        if family in ("network", "disk") and len(mates) > 1 and all(len(mate.curves) == 1 for mate in mates):
            out[family, unit] = Kind(family, tuple(curve for mate in mates for curve in mate.curves))
        else:
            out[kind.title, unit] = kind
    return list(out.values())
