"""What went over each network interface."""

import polars as pl

from agprof.analysis.statistics import nothing
from agprof.analysis.system_samples import Window, inside, on_axis
from agprof.analysis.view import View
from agprof.model.figure import Figure
from agprof.model.system_answers import InterfaceRow

MOST_INTERFACES = 64
"""Of a node, those with most traffic: a host of containers may have hundreds."""


def interface_rows(view: View, window: Window) -> tuple[InterfaceRow, ...]:
    """Rows by node and traffic: of interfaces that carried any, or whose speed is known."""
    rows = inside(on_axis(view, "network_samples", "interface"), window)
    found = (
        rows.group_by("node", "interface", "kind")
        .agg(
            *(e for name in ("sent_bytes_per_s", "received_bytes_per_s") for e in _spread(name)),
            errors=pl.col("errors").sum(),
            errors_n=pl.col("errors").count(),
            speed=pl.col("speed_bits_per_s").drop_nulls().last(),
        )
        .with_columns(traffic=pl.sum_horizontal("sent_bytes_per_s", "received_bytes_per_s").fill_null(0))
        .filter((pl.col("traffic") > 0) | pl.col("speed").is_not_null() | (pl.col("errors") > 0))
        .sort("node", pl.col("traffic"), "interface", descending=[False, True, False])
        .group_by("node", maintain_order=True)
        .head(MOST_INTERFACES)
    )
    return tuple(_row(row, window) for row in found.iter_rows(named=True))


def _spread(name: str) -> list[pl.Expr]:
    column = pl.col(name)
    return [
        column.mean(),
        column.quantile(0.05).alias(f"{name} low"),
        column.quantile(0.95).alias(f"{name} high"),
        column.count().alias(f"{name} n"),
    ]


def _row(row: dict[str, object], window: Window) -> InterfaceRow:
    speed, errors_n = row["speed"], int(str(row["errors_n"]))
    said = "speed of the link as the interface's driver tells it"
    return InterfaceRow(
        node=int(str(row["node"])),
        interface=str(row["interface"])[:100],
        kind=str(row["kind"])[:40],
        sent=_rate(row, "sent_bytes_per_s", window),
        received=_rate(row, "received_bytes_per_s", window),
        speed=Figure(value=float(str(speed)) / 8, unit="bytes/s", source="declared", n=1, method=said)
        if speed is not None
        else nothing("bytes/s", "the interface does not say", method=said),
        errors=Figure(
            value=int(str(row["errors"])),
            unit="1",
            source="counted",
            n=errors_n,
            method=f"packets dropped or in error, both ways, sum over {window.words}",
        )
        if errors_n
        else nothing("1", "the interface does not count them"),
    )


def _rate(row: dict[str, object], name: str, window: Window) -> Figure:
    value, low, high = (row[key] for key in (name, f"{name} low", f"{name} high"))
    method = f"the interface's counter; mean over {window.words}; 5th to 95th percentile of samples"
    if value is None or low is None or high is None:
        return nothing("bytes/s", "the interface does not count it", method=method)
    return Figure(
        value=float(str(value)),
        unit="bytes/s",
        source="measured",
        n=int(str(row[f"{name} n"])),
        low=float(str(low)),
        high=float(str(high)),
        method=method,
    )
