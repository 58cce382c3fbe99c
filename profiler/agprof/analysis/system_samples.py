"""The sampler's tables in time: put on the run's axis, cut to the steady window, their gaps found.

Everything here is an expression over whole tables: a day of eight GPUs has 3.5 million rows.
"""

from dataclasses import dataclass

import polars as pl
import polars.selectors

from agprof.analysis.view import View

GAP_PERIODS = 3
"""A stretch between two samples longer than this many typical periods is a gap."""
_TYPICAL_OVER = 31
"""Samples around one over which its typical period is taken: a tier's period may be doubled in mid-run."""
_ALWAYS = 2**62


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The time that figures are of, in ns since the run's origin; both ends belong to it."""

    start_ns: int
    end_ns: int
    steady: bool
    """Whether it is that of the steady steps; else the whole run."""

    @property
    def words(self) -> str:
        return "the steady steps" if self.steady else "the whole run"


def steady_window(view: View) -> Window:
    """From the begin of the first steady step to the end of the last, over all ranks; the whole run without one."""
    rows = view.steady.group_by("rank").agg(pl.col("start_ns").min(), pl.col("end_ns").max())
    if not rows.height:
        return Window(start_ns=-_ALWAYS, end_ns=_ALWAYS, steady=False)
    ends = [
        (view.since_origin(start, rank=rank), view.since_origin(end, rank=rank))
        for rank, start, end in rows.iter_rows()
    ]
    return Window(start_ns=min(start for start, _ in ends), end_ns=max(end for _, end in ends), steady=True)


def timed(view: View, table: str) -> pl.DataFrame:
    """A node's table with its time as `at_ns` since the run's origin, in the order in which it was written.

    A number that is none (NaN, infinite), which no sampler writes, is a missing value.
    """
    at = view.column_since_origin("time_ns", "node")
    floats = polars.selectors.float()
    return view.tables[table].with_columns(pl.when(floats.is_finite()).then(floats), at_ns=at)


def on_axis(view: View, table: str, *keys: str) -> pl.DataFrame:
    """The same sorted by node, `keys` and time."""
    frame = timed(view, table)
    same = pl.col("node") == pl.col("node").shift(1)
    if frame.select(((pl.col("at_ns").diff() < 0) & same).any()).item():
        return frame.sort("node", *keys, "at_ns", maintain_order=True)
    # A sampler writes in order of time: most often the keys alone are to be sorted by.
    return frame.sort("node", *keys, maintain_order=True) if keys else frame


class Samples:
    """The node's tables `on_axis`, each sorted once for all that ask for it."""

    def __init__(self, view: View) -> None:
        self.view = view
        self._known: dict[tuple[str, ...], pl.DataFrame] = {}

    def of(self, table: str, *keys: str) -> pl.DataFrame:
        """As `on_axis`."""
        wanted = (table, *keys)
        if wanted not in self._known:
            self._known[wanted] = on_axis(self.view, table, *keys)
        return self._known[wanted]


def inside(frame: pl.DataFrame, window: Window) -> pl.DataFrame:
    """The rows of a table `on_axis` that lie in the window."""
    return frame.filter(pl.col("at_ns").is_between(window.start_ns, window.end_ns))


def with_gaps_marked(frame: pl.DataFrame, *keys: str) -> pl.DataFrame:
    """A table `on_axis` with `gap_before`: whether nothing was sampled for long before this row, by its neighbours."""
    by = ["node", *keys]
    step = pl.col("at_ns").diff().over(by)
    typical = pl.col("step_ns").rolling_median(_TYPICAL_OVER, center=True, min_samples=2).over(by)
    return (
        frame.with_columns(step_ns=step)
        .with_columns(typical_ns=typical)
        .with_columns(
            gap_before=(
                pl.col("step_ns").is_not_null()
                & (pl.col("typical_ns") > 0)
                & (pl.col("step_ns") > GAP_PERIODS * pl.col("typical_ns"))
            ).fill_null(False)
        )
    )


def many_nodes(view: View) -> bool:
    """Whether labels have to name the node."""
    names = ("host_samples", "gpu_samples", "network_samples", "core_samples")
    return pl.concat([view.tables[name]["node"] for name in names]).n_unique() > 1


def prefix(several: bool, node: int) -> str:
    """How a label begins."""
    return f"node {node} " if several else ""
