"""The section on memory that ran out. It stands before the findings."""

from dataclasses import replace

from agprof.model.figure import Figure
from agprof.model.memory_answers import MemoryAnswer, OomAnswer
from agprof_reports import memory_tables
from agprof_reports.charts.curves import curves_chart
from agprof_reports.charts.memory_account import account_bars, size_of, waterfall
from agprof_reports.charts.pieces import DIRECT_LABELS, Span
from agprof_reports.columns import Field, table
from agprof_reports.data import Card, Chart, Section, Table
from agprof_reports.figures import cards
from agprof_reports.memory import account_sentence
from agprof_reports.tables import StepGroup
from agprof_reports.text import scale

KEY, TITLE = "oom", "Out of memory"


def section(found: MemoryAnswer, groups: tuple[StepGroup, ...], run: Span) -> Section | None:
    oom = found.oom
    if oom is None:
        return None
    lines = [("bad" if oom.certainty == "known" else "watch", oom.error)] if oom.error else []
    if oom.certainty == "likely":
        lines.append(
            ("", "No record says so: it is concluded from how the process ended while memory was nearly full.")
        )
    if oom.account is not None:
        lines.append(("", account_sentence(oom.account)))
    return Section(
        key=KEY,
        title=TITLE,
        sentence=oom.sentence,
        lines=tuple(lines),
        cards=_cards(oom),
        charts=tuple(_charts(found, oom, groups, run)),
        tables=tuple(_tables(oom)),
    )


def _cards(oom: OomAnswer) -> tuple[Card, ...]:
    def bytes_of(value: float | None, why: str, method: str) -> Figure:
        reason = None if value is not None else why
        return Figure(value=value, unit="bytes", source="measured", n=1, method=method, reason=reason)

    held = size_of(oom.account) if oom.account is not None else None
    where = f"rank {oom.rank}" if oom.rank is not None else "rank not known"
    note = ", ".join(part for part in (where, oom.phase, "" if oom.step is None else f"step {oom.step}") if part)
    return cards(
        ("oom_wanted", "asked for", bytes_of(oom.wanted_bytes, "the error does not say", "the error's text"), note),
        ("oom_held", "held", bytes_of(held, "no account was made", "the account of the moment"), oom.space),
        ("oom_limit", "limit", bytes_of(oom.limit_bytes, "it is not known", "device, cgroup or host"), oom.space),
    )


def _charts(found: MemoryAnswer, oom: OomAnswer, groups: tuple[StepGroup, ...], run: Span) -> list[Chart]:
    drawn: list[Chart] = []
    own = [curve for curve in found.curves if curve.x_ns and (oom.rank is None or curve.rank == oom.rank)]
    if own:
        whose = "the ranks" if oom.rank is None else f"rank {oom.rank}"
        chart = curves_chart("oom-curve", f"Memory of {whose} until it ran out", own, groups, run, height=220)
        drawn.append(_limited(chart, found, oom) if len(own) <= DIRECT_LABELS else chart)
    if oom.account is not None:
        drawn += [account_bars("oom-account", [oom.account]), waterfall("oom-waterfall", oom.account)]
    return drawn


def _limited(chart: Chart, found: MemoryAnswer, oom: OomAnswer) -> Chart:
    """With the limit as a line, where it is not far above what was used."""
    if oom.limit_bytes is None:
        return chart
    unit_of = [y for curve in found.curves if oom.rank is None or curve.rank == oom.rank for y in curve.y]
    divisor, unit = scale(unit_of, "bytes")
    limit = oom.limit_bytes / divisor
    layout = chart.spec["layout"]
    top = layout["yaxis"]["range"][1]
    if limit > top * 4:
        return replace(chart, note=f"{chart.note} The limit, {limit:,.3g} {unit}, is far above the chart.".strip())
    layout["yaxis"]["range"] = [layout["yaxis"]["range"][0], max(top, limit * 1.08)]
    line = {"color": "$bad", "width": 1, "dash": "dash"}
    layout["shapes"] = [
        *layout["shapes"],
        {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": limit, "y1": limit, "line": line},
    ]
    layout["annotations"] = [
        *layout["annotations"],
        {
            "text": "limit", "x": 1, "xref": "paper", "y": limit, "xanchor": "left", "xshift": 6, "showarrow": False,
            "font": {"size": 12, "color": "$text"},
        },
    ]  # fmt: skip
    return chart


def _tables(oom: OomAnswer) -> list[Table]:
    tables = []
    if oom.would_fit:
        tables.append(
            table(
                "table-would-fit",
                "What would have fitted",
                oom.would_fit,
                [
                    Field(label="change", get=lambda r: r[0].replace("`", ""), code=True),
                    Field(label="gives", get=lambda r: r[1]),
                ],
            )
        )
    if oom.allocations:
        caption = "Largest tensors when memory ran out"
        tables.append(memory_tables.allocations("table-oom-allocations", caption, oom.allocations))
    return tables
