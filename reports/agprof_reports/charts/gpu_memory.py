"""Who held the memory of each GPU at its fullest: ranks, other processes, the driver, and what is not explained."""

from collections.abc import Sequence

from agprof.model.system_answers import GpuMemory
from agprof_reports import system_tables
from agprof_reports.charts.memory_parts import StackRow, bar_of, layout_of, legend_of, stacked
from agprof_reports.data import Chart
from agprof_reports.text import scale, with_unit

_MOST = 32
"""GPUs that are drawn: the fullest."""


def fullest(accounts: Sequence[GpuMemory]) -> list[GpuMemory]:
    """Those that were measured, as many as are drawn, in their order."""
    known = [account for account in accounts if account.used.value is not None]
    kept = sorted(known, key=lambda account: -(account.used.value or 0.0))[:_MOST]
    return [account for account in known if account in kept]


def gpu_memory_bars(accounts: Sequence[GpuMemory]) -> Chart:
    drawn = fullest(accounts)
    several = len({account.node for account in accounts}) > 1
    rows = [_row(account, several=several) for account in drawn]
    divisor, unit = scale((size for row in rows for size in (row.tick, sum(row.parts.values()))), "bytes")
    note = (
        "The tick is the GPU's memory. Without the driver's reserve the parts and what is unexplained add up to what "
        "NVML says is in use."
    )
    if len(drawn) < len(accounts):
        note += f" Drawn: {len(drawn)} of {len(accounts)} GPUs, the fullest; the table has all."
    return Chart(
        key="gpu-memory-account",
        title="Memory of each GPU at its fullest",
        description="Stacked bars, one per GPU: what the ranks' allocators, their processes beyond that, other "
        "processes and the driver held of its memory, and what is not explained.",
        height=56 + 30 * len(rows),
        spec={"data": stacked(rows, divisor, unit), "layout": layout_of(rows, divisor, unit, 88)},
        table=system_tables.gpu_memory(accounts),
        legend=legend_of(rows),
        note=note,
        bars=tuple(bar_of(row, divisor, unit) for row in rows),
        bars_unit=unit,
    )


def _row(account: GpuMemory, *, several: bool) -> StackRow:
    rest = account.unexplained.value or 0.0
    parts = {
        "context": sum(beyond.value or 0.0 for _, _, beyond in account.ranks),
        "allocator": sum(held.value or 0.0 for _, held, _ in account.ranks),
        "tenant": account.others.value or 0.0,
        "reserved": account.reserved.value or 0.0,
        "unexplained": max(rest, 0.0),
    }
    return StackRow(
        label=f"n{account.node} GPU {account.gpu}" if several else f"GPU {account.gpu}",
        parts=parts,
        tick=account.total.value,
        tick_words="the GPU's memory",
        hover=f"; {with_unit(account.used.value, 'bytes')} in use",
        excess=max(-rest, 0.0),
    )
