"""Device time by what caused it: the operator, the module and the phase around the launch. docs/trace-analysis.md."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import polars as pl

from agprof.analysis.trace_activities import NONE, Device, gather, take, texts
from agprof.analysis.trace_idle import by_thread, rows_by
from agprof.analysis.trace_intervals import Bools, Disjoint, Ints
from agprof.analysis.trace_kernels import cut
from agprof.analysis.trace_nesting import innermost_at
from agprof.model.trace_answers import KernelGroup
from agprof.model.trace_tables import CpuKind
from agprof.store.traces import RankTrace

MAX_GROUPS = 500
"""Groups of one kind that are kept."""
NO_LAUNCH = "launch not in the trace"
_PHASES = ("optimizer", "backward", "forward", "other")
_NO_EVENT, _LOST = -1, -2
"""Stand for a name where there is none; ids of names are not negative."""
_MODULE = "nn.Module: "
_OPTIMIZER = re.compile(r"^Optimizer\.|\boptimi[sz]er\b", re.IGNORECASE)
_BACKWARD = re.compile(r"^autograd::engine::evaluate_function|\bbackward\b|\bbwd\b", re.IGNORECASE)
_FORWARD = re.compile(r"\bforward\b|\bfwd\b", re.IGNORECASE)
_STEP = re.compile(r"^ProfilerStep")


def group_sums(trace: RankTrace, device: Device) -> pl.DataFrame:
    """Rows `by`, `name` (text), `count`, `sum_ns` of one rank. The sums of one `by` add up to all activities' time."""
    ops = _events(trace, pl.col("kind") == int(CpuKind.OP))
    at, thread = device.launched_at(), device.launched_by()
    op = _by_external_id(trace, device, ops, innermost_at(ops.start, ops.end, ops.thread, at, thread))
    sums = [
        _sums("op", _codes(ops.name, op, device), device, _texts_of(trace, ops.name, op, "no operator")),
        _sums("phase", _phases(trace, device, ops, at, thread), device, dict(enumerate(_PHASES)) | {_LOST: NO_LAUNCH}),
    ]
    modules = _module_events(trace)
    if modules is not None:
        module = _modules(modules, ops, at, thread)
        named = _texts_of(trace, modules.name, module, "no module")
        named = {code: text.removeprefix(_MODULE) for code, text in named.items()}
        sums.append(_sums("module", _codes(modules.name, module, device), device, named))
    return pl.concat(sums)


def _codes(names: Ints, event: Ints, device: Device) -> Ints:
    """Name of each activity's event; _NO_EVENT where it has none, _LOST where its launch is not known."""
    none = np.where(device.known, _NO_EVENT, _LOST)
    return np.where(event >= 0, take(names, event), none)


def _texts_of(trace: RankTrace, names: Ints, event: Ints, none: str) -> dict[int, str]:
    used = take(names, event[event >= 0])
    return {i: cut(t) for i, t in texts(trace, np.unique(used)).items()} | {_NO_EVENT: none, _LOST: NO_LAUNCH}


def _sums(by: str, code: Ints, device: Device, text: dict[int, str]) -> pl.DataFrame:
    """Count and sum per code. Names that are the same in the end (of cut texts) are added up by `group_rows`."""
    found = (
        pl.DataFrame({"code": code, "duration": device.end - device.start})
        .group_by("code")
        .agg(count=pl.len().cast(pl.Int64), sum_ns=pl.col("duration").sum())
    )
    names = [text.get(each, f"name {each}") for each in found["code"].to_list()]
    return found.select(
        pl.lit(by).alias("by"), pl.Series("name", names, dtype=pl.String), pl.col("count"), pl.col("sum_ns")
    )


def group_rows(sums: Iterable[pl.DataFrame]) -> tuple[KernelGroup, ...]:
    """All ranks' groups: operators, modules, phases, each largest first."""
    parts = list(sums)
    if not parts:
        return ()
    merged = pl.concat(parts).group_by("by", "name").agg(pl.col("count", "sum_ns").sum())
    totals = {by: int(total) for by, total in merged.group_by("by").agg(pl.col("sum_ns").sum()).iter_rows()}
    rows = []
    for by in ("op", "module", "phase"):
        mine = merged.filter(pl.col("by") == by).sort(["sum_ns", "count", "name"], descending=[True, True, False])
        told = list(mine.head(MAX_GROUPS).select("name", "count", "sum_ns").iter_rows())
        if mine.height > MAX_GROUPS:
            rest = mine.slice(MAX_GROUPS)
            told.append((f"({rest.height:,} more names)", int(rest["count"].sum()), int(rest["sum_ns"].sum())))
        rows += [
            KernelGroup(by=by, name=name, count=count, sum_ns=sum_ns, share=sum_ns / totals[by] if totals[by] else 0.0)
            for name, count, sum_ns in told
        ]
    return tuple(rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Events:
    """Some host events, in the order of the trace's files."""

    wanted: pl.Expr
    start: Ints
    end: Ints
    thread: Ints
    name: Ints
    sequence: Ints
    """Autograd's number; NONE where it has none."""
    backward: Bools
    """Whether it belongs to a backward pass."""

    def __len__(self) -> int:
        return len(self.start)


def _events(trace: RankTrace, wanted: pl.Expr) -> _Events:
    sequence = pl.col("sequence")
    picked = (
        pl.col("start_ns").alias("start"),
        (pl.col("start_ns") + pl.col("duration_ns")).alias("end"),
        pl.col("thread").fill_null(int(NONE)),
        pl.col("name"),
        pl.when(sequence >= 0).then(sequence).otherwise(int(NONE)).alias("sequence"),
        (pl.col("forward_thread").fill_null(0) != 0).alias("backward"),
    )
    return _Events(wanted=wanted, **gather(trace, "cpu", wanted, picked))


def _by_external_id(trace: RankTrace, device: Device, ops: _Events, op: Ints) -> Ints:
    """For activities whose launch names no operator: the one that shares their external id, where one alone does."""
    missing = np.flatnonzero((op < 0) & (device.external_id != NONE) & (device.external_id != 0))
    if not len(missing):
        return op
    external = gather(trace, "cpu", ops.wanted, (pl.col("external_id").fill_null(int(NONE)),))["external_id"]
    known = np.flatnonzero(external != NONE)
    if not len(known):
        return op
    ids, first, counts = np.unique(external[known], return_index=True, return_counts=True)
    at = np.minimum(np.searchsorted(ids, device.external_id[missing]), len(ids) - 1)
    good = (ids[at] == device.external_id[missing]) & (counts[at] == 1)
    filled = op.copy()
    filled[missing[good]] = known[first[at[good]]]
    return filled


def _module_events(trace: RankTrace) -> _Events | None:
    """The calls of `nn.Module`s; None when the trace records none."""
    names = trace.tables["names"].filter(pl.col("text").str.starts_with(_MODULE)).collect()
    modules = _events(trace, pl.col("name").is_in(names["name"].implode())) if names.height else None
    return modules if modules is not None and len(modules) else None


def _modules(modules: _Events, ops: _Events, at: Ints, thread: Ints) -> Ints:
    """Innermost `nn.Module: Name_0` around each launch; for a backward launch around the forward operator that it
    belongs to (same autograd sequence number)."""
    module = innermost_at(modules.start, modules.end, modules.thread, at, thread)
    forward = _forward_of(ops, at, thread)
    there = (module < 0) & (forward >= 0)
    origin = forward[there]
    module[there] = innermost_at(modules.start, modules.end, modules.thread, ops.start[origin], ops.thread[origin])
    return module


def _forward_of(ops: _Events, at: Ints, thread: Ints) -> Ints:
    """The forward operator whose backward each launch belongs to, or -1."""
    numbered = ops.sequence != NONE
    backward, forward = np.flatnonzero(numbered & ops.backward), np.flatnonzero(numbered & ~ops.backward)
    if not len(backward) or not len(forward):
        return np.full(len(at), -1, dtype=np.int64)
    inside = innermost_at(ops.start[backward], ops.end[backward], ops.thread[backward], at, thread)
    wanted = np.where(inside >= 0, ops.sequence[backward[np.maximum(inside, 0)]], NONE)
    # Of the operators of one number the outermost is the one that autograd recorded.
    forward = forward[np.lexsort((-ops.end[forward], ops.start[forward], ops.sequence[forward]))]
    numbers = ops.sequence[forward]
    found = np.minimum(np.searchsorted(numbers, wanted, side="left"), len(numbers) - 1)
    return np.where(numbers[found] == wanted, forward[found], np.int64(-1))


def _phases(trace: RankTrace, device: Device, ops: _Events, at: Ints, thread: Ints) -> Ints:
    """Index in _PHASES by ranges of those names around the launch, else by autograd's own marks; _LOST."""
    ranges = _events(trace, pl.col("kind") == int(CpuKind.ANNOTATION))
    text = texts(trace, np.unique(np.concatenate((ops.name, ranges.name))))
    text = {i: t[:500] for i, t in text.items() if not _STEP.match(t)}
    optimizer = _spans((ranges, _named(ranges, text, _OPTIMIZER)), (ops, _named(ops, text, _OPTIMIZER)))
    backward = _spans((ranges, _named(ranges, text, _BACKWARD)), (ops, _named(ops, text, _BACKWARD)))
    recorded = (ops.sequence != NONE) & ~ops.backward
    forward = _spans((ranges, _named(ranges, text, _FORWARD)), (ops, recorded))
    mine = rows_by(thread)
    inside = [_holds(spans, at, mine) for spans in (optimizer, backward, forward)]
    return np.select([*inside, ~device.known], [0, 1, 2, _LOST], default=3).astype(np.int64)


def _named(events: _Events, text: dict[int, str], pattern: re.Pattern[str]) -> Bools:
    return np.isin(events.name, np.array([i for i, t in text.items() if pattern.search(t)], dtype=np.int64))


def _spans(*parts: tuple[_Events, Bools]) -> dict[int, Disjoint]:
    """Union per thread of the marked events."""
    thread = np.concatenate([events.thread[mask] for events, mask in parts])
    start = np.concatenate([events.start[mask] for events, mask in parts])
    end = np.concatenate([events.end[mask] for events, mask in parts])
    return by_thread(thread, start, end)


def _holds(spans: dict[int, Disjoint], at: Ints, rows: dict[int, Ints]) -> Bools:
    found = np.zeros(len(at), dtype=np.bool_)
    for number, covered in spans.items():
        if number in rows:
            found[rows[number]] = covered.holds(at[rows[number]])
    return found
