"""The host's curves: one small chart per kind. Kinds with nothing to see in them are told in a line instead."""

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from agprof.model.figure import Curve
from agprof.model.system_answers import SystemAnswer
from agprof_reports.charts.curves import DRAWN_POINTS, Kind, curves_chart, heat_chart, kinds_of, of_kept_points
from agprof_reports.charts.gpus import is_of_gpu
from agprof_reports.charts.marks import add_gaps
from agprof_reports.charts.pieces import DIRECT_LABELS, Span
from agprof_reports.data import Chart
from agprof_reports.tables import StepGroup
from agprof_reports.text import clean, slug, with_unit

EVEN = 0.01
"""Curves of one kind that never differ by more are told in one figure when they are too many for lines."""


FEW_CORES = 4
"""Up to so many cores the host's CPU says it all."""
_TOLD = 1_000
"""Longest list of names in a line, in characters."""
_MOST_CORES = 128
"""Rows of the heat map; of more cores neighbours share one."""


def _is_even(kind: Kind) -> bool:
    values = kind.values
    return len(kind.curves) > DIRECT_LABELS and min(values) >= max(values) * (1 - EVEN) > 0


def system_curves(
    system: SystemAnswer, groups: Sequence[StepGroup], run: Span, points: int = DRAWN_POINTS
) -> tuple[Chart, ...]:
    """Charts of all curves that charts/gpus.py does not draw, each line of at most so many points."""
    drawn = _families([kind for kind in _kinds(system) if any(kind.values) and not _is_even(kind)])
    has_cores = len(system.cores) > FEW_CORES
    charts = []
    for index, kind in enumerate(drawn):
        last = index == len(drawn) - 1 and not has_cores
        key = f"system-{index}-{slug(kind.title)}"
        height = 144 if last else 128
        chart = curves_chart(key, kind.title, kind.curves, groups, run, height=height, titled=last, points=points)
        add_gaps(chart, system.gaps, [curve.node for curve in kind.curves], run)
        charts.append(of_kept_points(chart) if system.decimation else chart)
    if has_cores:
        charts.append(_cores(system, run))
    return tuple(charts)


def _kinds(system: SystemAnswer) -> list[Kind]:
    return kinds_of([curve for curve in system.curves if not is_of_gpu(curve)])


def _cores(system: SystemAnswer, run: Span) -> Chart:
    """Cores as rows, by node."""
    size = math.ceil(len(system.cores) / _MOST_CORES)
    rows = []
    for at in range(0, len(system.cores), size):
        mates = system.cores[at : at + size]
        rows.append(replace(mates[0], y=_means(mates)))
    chart = heat_chart("system-cores", "cores busy", rows, run, titled=True, whole=1.0, what="core")
    if size > 1:
        note = f"Each row is the mean of {size} neighbouring cores of {len(system.cores)}, each cell of its samples."
        return replace(chart, note=note)
    return chart


def _means(curves: Sequence[Curve]) -> tuple[float | None, ...]:
    """Sample by sample over the curves of neighbours, which were read at the same times."""
    if len(curves) == 1:
        return curves[0].y
    out: list[float | None] = []
    for values in zip(*(curve.y for curve in curves), strict=False):
        known = [value for value in values if value is not None]
        out.append(fmean(known) if known else None)
    return (*out, *([None] * (len(curves[0].y) - len(out))))


def undrawn_curves(system: SystemAnswer) -> tuple[str, ...]:
    """One sentence each for kinds that were not measured, are zero throughout, or the same everywhere."""
    kinds = _kinds(system)
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
    return tuple(f"{head}: {clean(', '.join(names), _TOLD)}." for head, names in sentences if names)


def _families(kinds: Sequence[Kind]) -> list[Kind]:
    """`network sent` and `network received` share a chart where each is one curve; so do disk's two and pressures."""
    out: dict[tuple[str, str], Kind] = {}
    for kind in kinds:
        family, unit = _family(kind.title), kind.curves[0].unit
        mates = [k for k in kinds if _family(k.title) == family and k.curves[0].unit == unit]
        if family and len(mates) > 1 and all(len(mate.curves) == 1 for mate in mates):
            out[family, unit] = Kind(family, tuple(curve for mate in mates for curve in mate.curves))
        else:
            out[kind.title, unit] = kind
    return list(out.values())


_FAMILIES = ("network", "disk", "swap", "cgroup")


def _family(title: str) -> str:
    first, _, last = title.partition(" ")
    if first == "interface":  # `interface eth0 sent`
        return title.rpartition(" ")[0]
    return first if first in _FAMILIES else "pressure" if last == "pressure" else ""
