"""The run as the analyses see it: cleaned tables, steps with their parts and kind, clocks, facts. Computed once."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from agprof.analysis.clock_axis import ClockAxis, common_column
from agprof.analysis.clock_words import APART
from agprof.analysis.clocks import FittedClocks, fit_clocks
from agprof.analysis.parts import step_parts
from agprof.analysis.warmup import declared_warmup, detect_warmup
from agprof.model.tables import PHASES, TABLES, Table
from agprof.store.reader import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A run, prepared. Nothing here is shared with the run's own frames in a way that could change them."""

    run: Run
    tables: Mapping[str, pl.DataFrame]
    """Without rows whose required columns are missing, sorted by rank or node."""
    dropped: Mapping[str, int]
    """Rows left out per table."""
    steps: pl.DataFrame
    """Columns of `steps` + duration_ns + kind + one Int64 column per phase; one row per rank and step."""
    slowest: pl.DataFrame
    """One row per step: step, duration_ns of the slowest rank, ranks, kind."""
    ranks: tuple[int, ...]
    """Ranks that left anything."""
    facts: Mapping[int, Mapping[str, Any]]
    clocks: FittedClocks
    """How each node's monotonic times are put on one axis; with one node they are left as they are."""
    node_of: Mapping[int, int]
    origin_ns: int
    """When the run's first step began, on the common axis."""
    warmup_steps: int
    warmup_rule: str
    profiled: tuple[int, ...]

    @property
    def steady(self) -> pl.DataFrame:
        """The rows of `steps` that count in statistics."""
        return self.steps.filter(pl.col("kind") == "steady")

    @property
    def steady_durations(self) -> list[int]:
        """Slowest rank's duration of each steady step, in order."""
        return self.slowest.filter(pl.col("kind") == "steady")["duration_ns"].to_list()

    @property
    def mean_step_ns(self) -> float:
        """Mean duration over ranks and steady steps; 0 when there are none."""
        rows = self.steady
        return float(rows["duration_ns"].sum()) / rows.height if rows.height else 0.0

    def fact(self, key: str, default: Any = None) -> Any:
        """The value of a fact on the lowest rank that knows it."""
        return next((facts[key] for _, facts in sorted(self.facts.items()) if key in facts), default)

    @property
    def one_axis(self) -> bool:
        """Whether times of different nodes may be compared; `apart` says why not."""
        return self.clocks.state != "refused"

    @property
    def apart(self) -> str | None:
        """Why a figure that compares times of different nodes is None; None where it may be had."""
        return None if self.one_axis else f"the nodes' clocks can't be brought onto one axis. {APART}"

    def axis(self, *, rank: int | None = None, node: int | None = None) -> ClockAxis:
        """The axis of a node or of a rank's node."""
        if rank is not None:
            node = self.node_of.get(rank, 0)
        return self.clocks.axes.get(node or 0, ClockAxis())

    def since_origin(self, time_ns: int, *, rank: int | None = None, node: int | None = None) -> int:
        """A monotonic time of a rank or node, in ns since the run's first step began."""
        return self.axis(rank=rank, node=node).common(time_ns) - self.origin_ns

    def local(self, since_origin_ns: int, *, rank: int | None = None, node: int | None = None) -> int:
        """The monotonic time of a rank or node at so many ns since the run's first step began."""
        return self.axis(rank=rank, node=node).local(since_origin_ns + self.origin_ns)

    def column_since_origin(self, column: str | pl.Expr, scope: Literal["rank", "node"] = "rank") -> pl.Expr:
        """`since_origin` of a column of a table with `rank` or `node`; missing times stay missing."""
        axes = self.clocks.axes
        if scope == "rank":
            axes = {rank: axes[node] for rank, node in self.node_of.items() if node in axes}
        local = pl.col(column) if isinstance(column, str) else column
        return common_column(axes, pl.col(scope), local) - self.origin_ns


def prepare(run: Run) -> View:
    """Build the view of a run."""
    tables, dropped = {}, {}
    for table in TABLES:
        tables[table.name], lost = _clean(table, run.tables[table.name])
        if lost:
            dropped[table.name] = lost
    streams = sorted((s for s in run.streams), key=lambda s: (s.scope, s.number, s.attempt))
    node_of = {s.number: _int(s.header.get("node"), 0) for s in streams if s.scope == "rank"}
    clocks = fit_clocks(streams, tables, node_of)
    steps = _steps(tables["steps"])
    slowest, warmup, rule = _kinds(steps, run.manifest)
    steps = steps.join(slowest.select("step", "kind"), on="step", how="left", maintain_order="left")
    ranks = sorted({*node_of, *steps["rank"].unique().to_list()})
    return View(
        run=run,
        tables=tables,
        dropped=dropped,
        steps=step_parts(steps, tables["spans"], tables["collectives"], tables["waits"]),
        slowest=slowest,
        ranks=tuple(ranks),
        facts=_facts(tables["facts"]),
        clocks=clocks,
        node_of=node_of,
        origin_ns=_origin(steps, tables, node_of, clocks.axes),
        warmup_steps=warmup,
        warmup_rule=rule,
        profiled=tuple(sorted(slowest.filter(pl.col("kind") == "profiled")["step"].to_list())),
    )


def _int(value: Any, default: int) -> int:
    return value if isinstance(value, int) else default


def _clean(table: Table, frame: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    required = [table.scope, *(column.name for column in table.columns if not column.optional)]
    clean = frame.drop_nulls(required)
    if not clean[table.scope].is_sorted():
        clean = clean.sort(table.scope, maintain_order=True)
    return clean, frame.height - clean.height


def _steps(frame: pl.DataFrame) -> pl.DataFrame:
    """One row per rank and step; of a step written twice (a restarted rank) the later one; none that end too early."""
    return (
        frame.filter(pl.col("end_ns") >= pl.col("start_ns"))
        .sort("rank", "step", "start_ns", "end_ns")
        .unique(["rank", "step"], keep="last", maintain_order=True)
        .with_columns(duration_ns=pl.col("end_ns") - pl.col("start_ns"))
    )


def _kinds(steps: pl.DataFrame, manifest: Mapping[str, Any]) -> tuple[pl.DataFrame, int, str]:
    """Per step its slowest duration and its kind; the number of warm-up steps; their rule."""
    slowest = (
        steps.group_by("step")
        .agg(pl.col("duration_ns").max(), ranks=pl.len(), profiled=pl.col("profiled").any())
        .sort("step")
    )
    most = steps["rank"].n_unique()
    complete = slowest["ranks"] == most if (slowest["ranks"] == most).any() else slowest["ranks"] > 0
    slowest = slowest.with_columns(complete=complete)
    counted = slowest.filter(pl.col("complete") & ~pl.col("profiled"))
    declared = _declared_warmup(manifest)
    if declared is not None:
        first = slowest["step"].to_list()[:declared]
        count, rule = len(first), declared_warmup(declared)
    else:
        count, rule = detect_warmup(counted["duration_ns"].to_list())
        first = counted["step"].to_list()[:count]
    kind = (
        pl.when("profiled")
        .then(pl.lit("profiled"))
        .when(pl.col("step") <= (first[-1] if first else -1))
        .then(pl.lit("warm-up"))
        .when("complete")
        .then(pl.lit("steady"))
        .otherwise(pl.lit("incomplete"))
    )
    return slowest.with_columns(kind=kind).select("step", "duration_ns", "ranks", "kind"), count, rule


def _declared_warmup(manifest: Mapping[str, Any]) -> int | None:
    value: Any = manifest
    for key in ("workload", "profile", "warmup_steps"):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, int) and value >= 0 else None


def _facts(frame: pl.DataFrame) -> dict[int, dict[str, Any]]:
    facts: dict[int, dict[str, Any]] = {}
    for rank, key, text in (
        frame.sort("rank", "time_ns", maintain_order=True).select("rank", "key", "value").iter_rows()
    ):
        try:
            facts.setdefault(rank, {})[key] = json.loads(text)
        except (ValueError, RecursionError):
            facts.setdefault(rank, {})[key] = text
    return facts


def _origin(
    steps: pl.DataFrame,
    tables: Mapping[str, pl.DataFrame],
    node_of: Mapping[int, int],
    axes: Mapping[int, ClockAxis],
) -> int:
    def common(time_ns: int, node: int) -> int:
        return axes.get(node, ClockAxis()).common(time_ns)

    firsts = steps.group_by("rank").agg(pl.col("start_ns").min()).iter_rows()
    starts = [common(start, node_of.get(rank, 0)) for rank, start in firsts]
    if not starts:
        for name, scope in (("memory", "rank"), ("host_samples", "node"), ("process_samples", "node")):
            for number, time_ns in tables[name].group_by(scope).agg(pl.col("time_ns").min()).iter_rows():
                node = node_of.get(number, 0) if scope == "rank" else number
                starts.append(common(time_ns, node))
    return min(starts, default=0)


def mean_parts(rows: pl.DataFrame) -> dict[str, float]:
    """Mean ns of each phase over the given step rows; zeros when there are none."""
    if not rows.height:
        return dict.fromkeys(PHASES, 0.0)
    return {phase: float(rows[phase].sum()) / rows.height for phase in PHASES}
