"""The curves of GPUs over the run: plain charts of one GPU, a row per GPU of several, heat maps of many."""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from agprof.model.figure import Curve, Figure
from agprof.model.system_answers import GpuRow, SystemAnswer
from agprof_reports.charts import throttle
from agprof_reports.charts.curves import curves_chart, heat_chart, of_kept_points
from agprof_reports.charts.gpu_rows import GpuKey, rows_chart
from agprof_reports.charts.marks import add_gaps, events_over
from agprof_reports.charts.pieces import RUN_MARGIN, Span
from agprof_reports.data import Chart
from agprof_reports.tables import StepGroup
from agprof_reports.text import label, slug

MOST_ROWS = 16
"""GPUs that get a row each; more become heat maps."""
_HEAT_ROW = 5
"""Pixels of a GPU in a heat map."""
_GPU = re.compile(r"^(?:node \d+ )?GPU (\d+) (.+)$")


_ByName = dict[str, dict[GpuKey, Curve]]
"""Quantity -> curve of each GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """What one chart shows of a GPU."""

    title: str
    names: tuple[str, ...]
    """Curves of it, as their labels say after the GPU's name; the first is the main one."""
    words: tuple[str, ...] = ()
    """Labels of the lines, where they are not the names."""
    whole: float | None = None
    """Top of the scale, in the curves' unit; None: the highest value."""
    limit: bool = False
    """The second curve is a limit of the first: a dashed line."""
    ribbon: bool = False
    """The reasons for which clocks were held down stand beneath."""
    figure: Callable[[GpuRow], Figure] | None = None
    """What stands at the right of a GPU's row: of all samples, which the curves are not in long runs."""
    told: str = "its figure"
    """What that is."""


ACTIVITY = Quantity(
    title="activity",
    names=("utilization", "SM activity", "tensor activity", "DRAM activity", "memory busy"),
    words=("any kernel", "SMs", "tensor", "DRAM", "memory"),
    whole=1.0,
)
APART = (
    Quantity(
        title="utilisation (a kernel runs)", names=("utilization",), whole=1.0, figure=lambda row: row.utilization
    ),
    Quantity(title="SM activity", names=("SM activity",), whole=1.0, figure=lambda row: row.sm),
    Quantity(title="tensor cores", names=("tensor activity",), whole=1.0, figure=lambda row: row.tensor),
    Quantity(title="DRAM bandwidth", names=("DRAM activity",), whole=1.0, figure=lambda row: row.dram),
    Quantity(title="memory busy", names=("memory busy",), whole=1.0),
)
"""The same where each GPU has a row: one quantity per chart."""
OTHERS = (
    Quantity(
        title="memory",
        names=("memory", "memory total"),
        words=("in use", "total"),
        limit=True,
        figure=lambda row: row.memory_peak,
        told="its peak",
    ),
    Quantity(
        title="power",
        names=("power", "power limit"),
        words=("power", "limit"),
        limit=True,
        figure=lambda row: row.power,
    ),
    Quantity(
        title="temperature",
        names=("temperature", "memory temperature"),
        words=("core", "memory"),
        figure=lambda row: row.temperature_max,
        told="its highest",
    ),
    Quantity(
        title="clocks",
        names=("SM clock", "memory clock"),
        words=("SM", "memory"),
        ribbon=True,
        figure=lambda row: row.sm_clock,
    ),
    Quantity(
        title="NVLink",
        names=("NVLink sent", "NVLink received"),
        words=("sent", "received"),
        figure=lambda row: row.nvlink,
        told="sent and received together",
    ),
    Quantity(
        title="PCIe",
        names=("PCIe sent", "PCIe received"),
        words=("sent", "received"),
        figure=lambda row: row.pcie,
        told="sent and received together",
    ),
)
_KNOWN = {name for quantity in (ACTIVITY, *OTHERS) for name in quantity.names}


def is_of_gpu(curve: Curve) -> bool:
    """Whether the charts here draw it."""
    found = _GPU.match(curve.label)
    return found is not None and found.group(2) in _KNOWN


def gpu_charts(system: SystemAnswer, groups: Sequence[StepGroup], run: Span, points: int) -> tuple[Chart, ...]:
    """`points`: most points of one GPU's row; a plain chart's lines have twice as many."""
    by_name: _ByName = defaultdict(dict)
    for curve in system.curves:
        found = _GPU.match(curve.label)
        if found is not None and found.group(2) in _KNOWN and any(y is not None for y in curve.y):
            number = int(found.group(1)) if curve.gpu is None else curve.gpu
            by_name[found.group(2)].setdefault((curve.node or 0, number), curve)
    keys = sorted({key for curves in by_name.values() for key in curves})
    quantities = (ACTIVITY, *OTHERS) if len(keys) == 1 else (*APART, *OTHERS)
    shown = [_chosen(quantity, by_name, keys) for quantity in quantities if _is_worth(quantity, by_name)]
    charts: list[Chart] = []
    for index, quantity in enumerate(shown):
        there = [name for name in quantity.names if by_name.get(name)]
        curves = {name: by_name[name] for name in there}
        titled = index == len(shown) - 1
        if len(keys) == 1:
            charts.append(_plain(quantity, curves, keys[0], system, groups, run, 2 * points, titled=titled))
        elif len(keys) <= MOST_ROWS:
            charts.append(
                rows_chart(
                    f"gpu-{_slug(quantity)}",
                    f"GPU {quantity.title}",
                    keys,
                    [(_word(quantity, name), curves[name]) for name in there],
                    system,
                    groups,
                    run,
                    whole=quantity.whole,
                    limit=quantity.limit,
                    ribbon=quantity.ribbon,
                    figures={(row.node, row.gpu): quantity.figure(row) for row in system.gpus}
                    if quantity.figure
                    else {},
                    told=quantity.told,
                    most_points=points,
                    titled=titled,
                )
            )
        else:
            charts.append(_heat(quantity, curves[there[0]], system, run, titled=titled))
            if quantity.ribbon and system.throttles:
                charts.append(_ribbons(keys, system, run))
    return tuple(of_kept_points(chart) if system.decimation else chart for chart in charts)


def _chosen(quantity: Quantity, by_name: _ByName, keys: Sequence[GpuKey]) -> Quantity:
    """Rows and heat maps show the clock that is held down alone."""
    if quantity.ribbon and (len(keys) > 1 or not by_name.get(quantity.names[-1])):
        return replace(quantity, title=quantity.names[0], names=quantity.names[:1])
    return quantity


def _is_worth(quantity: Quantity, by_name: _ByName) -> bool:
    """A limit alone is not drawn, nor links over which nothing ever went."""
    there = [by_name[name] for name in (quantity.names[:1] if quantity.limit else quantity.names) if by_name.get(name)]
    moved = any(y for curves in there for curve in curves.values() for y in curve.y)
    return bool(there) and (moved or quantity.title not in ("NVLink", "PCIe"))


def _word(quantity: Quantity, name: str) -> str:
    return dict(zip(quantity.names, quantity.words, strict=False)).get(name, name)


def _slug(quantity: Quantity) -> str:
    return slug(quantity.title.partition(" (")[0])


def owner(key: GpuKey, keys: Sequence[GpuKey]) -> str:
    return f"GPU {key[1]}" if len({node for node, _ in keys}) == 1 else f"n{key[0]} GPU {key[1]}"


def _plain(
    quantity: Quantity,
    curves: dict[str, dict[GpuKey, Curve]],
    key: GpuKey,
    system: SystemAnswer,
    groups: Sequence[StepGroup],
    run: Span,
    points: int,
    *,
    titled: bool,
) -> Chart:
    lines = [replace(by_gpu[key], label=_word(quantity, name)) for name, by_gpu in curves.items()]
    spans = [s for s in system.throttles if (s.node, s.gpu) == key] if quantity.ribbon else []
    height = (184 if quantity.title == "activity" else 128) + (16 if titled else 0) + (24 if spans else 0)
    chart = curves_chart(
        f"gpu-{_slug(quantity)}",
        f"GPU {key[1]} {quantity.title}",
        lines,
        groups,
        run,
        height,
        titled=titled,
        whole=quantity.whole,
        below=0.3 if spans else 0.0,
        points=points,
    )
    layout = chart.spec["layout"]
    add_gaps(chart, system.gaps, [key[0]], run)
    lines_of, words_of = events_over(system.events, {key: "y"}, run, above=True)
    if lines_of:
        layout["shapes"] = [*layout["shapes"], *lines_of]
        layout["annotations"] = [*layout["annotations"], *words_of]
        layout["margin"] = {**layout["margin"], "t": 24}
    if not spans:
        return chart
    low = layout["yaxis"]["range"][0]
    chart.spec["data"].extend(throttle.ribbon(spans, run, f"GPU {key[1]}", "y", low * 0.95, -low * 0.7))
    layout["barmode"] = "overlay"
    return replace(chart, legend=throttle.legend_of(spans))


def _heat(quantity: Quantity, curves: dict[GpuKey, Curve], system: SystemAnswer, run: Span, *, titled: bool) -> Chart:
    keys = list(curves)
    named = [replace(curve, label=owner(key, keys)) for key, curve in sorted(curves.items())]
    title = f"GPU {quantity.title}"
    chart = heat_chart(
        f"gpu-{_slug(quantity)}", title, named, run, titled=titled, whole=quantity.whole, what="GPU", row=_HEAT_ROW
    )
    add_gaps(chart, system.gaps, [node for node, _ in keys], run)
    return chart


def _ribbons(keys: Sequence[GpuKey], system: SystemAnswer, run: Span) -> Chart:
    names = {key: label(owner(key, keys), 20) for key in keys}
    spec = throttle.rows(system.throttles, names, run)
    spec["layout"]["margin"] = {**RUN_MARGIN, "b": 24}
    return Chart(
        key="gpu-throttle",
        title="Clocks held down",
        description="Bars over time, one row per GPU: when its clocks were held down, coloured and hatched by reason.",
        height=32 + 9 * len(keys),
        spec=spec,
        table=None,
        legend=throttle.legend_of(system.throttles),
        axis="run",
    )
