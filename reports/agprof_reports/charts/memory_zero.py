"""What a rank holds under each ZeRO stage, by formula."""

from collections.abc import Sequence

from agprof.model.memory_answers import ZeroRow
from agprof_reports import memory_tables
from agprof_reports.charts.memory_parts import StackRow, bar_of, layout_of, legend_of, stacked
from agprof_reports.data import Chart
from agprof_reports.text import scale


def zero_bars(rows: Sequence[ZeroRow]) -> Chart:
    drawn = [_row(row) for row in rows]
    divisor, unit = scale((size for row in drawn for size in (row.tick, sum(row.parts.values()))), "bytes")
    return Chart(
        key="memory-zero",
        title="Parameters, gradients and optimizer by ZeRO stage: device and host together",
        description="Stacked bars, one per ZeRO stage and offload: what a rank holds by formula, wherever it is.",
        height=56 + 28 * len(drawn),
        spec={
            "data": stacked(drawn, divisor, unit),
            "layout": layout_of(drawn, divisor, f"{unit} per rank", 176),
        },
        table=memory_tables.zero(rows),
        legend=(
            *legend_of(drawn),
            *((("tick", "of it on the device"),) if any(row.host_total for row in rows) else ()),
        ),
        note="Without activations and buckets. The table says where it is, and what DeepSpeed's estimators say.",
        bars=tuple(bar_of(row, divisor, unit) for row in drawn),
        bars_unit=unit,
    )


def _row(row: ZeroRow) -> StackRow:
    return StackRow(
        label=f"{memory_tables.stage(row)}{' · this run' if row.is_this_run else ''}",
        parts={
            "parameters": row.parameters,
            "gradients": row.gradients,
            "master-weights": row.master_weights,
            "optimizer-states": row.optimizer_states,
        },
        tick=row.device_total if row.host_total else None,
        tick_words="of it on the device",
    )
