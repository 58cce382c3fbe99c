"""The sampler's curves: one small chart per kind."""

from collections import defaultdict
from collections.abc import Sequence

from agprof.model.answers import Curve, SystemAnswer
from agprof_reports.charts.curves import GPU, OWNER, curves_chart
from agprof_reports.charts.pieces import Span
from agprof_reports.data import Chart
from agprof_reports.tables import StepGroup
from agprof_reports.text import slug


def system_curves(system: SystemAnswer, groups: Sequence[StepGroup], run: Span) -> tuple[Chart, ...]:
    """One small chart per kind of curve, ranks or GPUs together; curves that are zero throughout are left to a line."""
    kinds: dict[tuple[str, str], list[Curve]] = defaultdict(list)
    for curve in system.curves:
        if any(curve.y):
            kinds[OWNER.sub("", curve.label), curve.unit].append(curve)
    kinds = _families(kinds)
    charts = []
    for index, ((kind, _), items) in enumerate(kinds.items()):
        title = f"{kind} per rank" if len(items) > 1 and items[0].rank is not None else kind
        title = f"GPU {title}" if GPU.search(items[0].label) else title
        last = index == len(kinds) - 1
        key = f"system-{index}-{slug(kind)}"
        charts.append(curves_chart(key, title, items, groups, run, height=144 if last else 128, titled=last))
    return tuple(charts)


def _families(kinds: dict[tuple[str, str], list[Curve]]) -> dict[tuple[str, str], list[Curve]]:
    """`network sent` and `network received` share a chart where each is one curve; `disk read` and `disk write` too."""
    out: dict[tuple[str, str], list[Curve]] = {}
    for (kind, unit), curves in kinds.items():
        family = kind.split(" ")[0]
        mates = [cs for (k, u), cs in kinds.items() if u == unit and k.split(" ")[0] == family]
        if family in ("network", "disk") and all(len(mate) == 1 for mate in mates):
            out[family, unit] = [curve for mate in mates for curve in mate]
        else:
            out[kind, unit] = curves
    return out


def silent_curves(system: SystemAnswer) -> tuple[str, ...]:
    """Kinds of curves that are zero or absent throughout."""
    loud = {OWNER.sub("", curve.label) for curve in system.curves if any(curve.y)}
    return tuple(dict.fromkeys(k for c in system.curves if (k := OWNER.sub("", c.label)) not in loud))
