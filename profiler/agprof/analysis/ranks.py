"""The ranks one by one: where they ran, how fast, how they ended."""

import signal
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from agprof.analysis.statistics import median_figure
from agprof.analysis.view import View
from agprof.model.answers import RankRow
from agprof.store.reader import Stream


def rank_rows(view: View) -> tuple[RankRow, ...]:
    """One row per rank that left a stream or rows, and per rank that the outcome names."""
    failures = failures_of(view)
    streams = rank_streams(view)
    faults = dict(view.tables["faults"].group_by("rank").len().iter_rows())
    last = last_seen(view, sorted({*view.ranks, *failures}))
    return tuple(
        _row(view, rank, streams.get(rank), failures.get(rank), faults.get(rank, 0), seen)
        for rank, seen in last.items()
    )


def rank_streams(view: View) -> dict[int, Stream]:
    """The last attempt's stream of each rank."""
    streams = sorted((s for s in view.run.streams if s.scope == "rank"), key=lambda s: (s.number, s.attempt))
    return {stream.number: stream for stream in streams}


def failures_of(view: View) -> dict[int, Mapping[str, Any]]:
    """Ranks that did not end with 0, from outcome.json, causes first; what has no rank number is left out."""
    found: dict[int, Mapping[str, Any]] = {}
    listed = (view.run.outcome or {}).get("failures")
    for failure in listed if isinstance(listed, list | tuple) else ():
        if isinstance(failure, Mapping) and isinstance(failure.get("rank"), int):
            found.setdefault(failure["rank"], failure)
    return dict(sorted(found.items(), key=lambda item: bool(item[1].get("stopped"))))


def how_it_ended(failure: Mapping[str, Any]) -> str:
    """`killed (SIGKILL)`, `exit code 3`, `stopped with the job (SIGTERM)`."""
    name, code = failure.get("signal"), failure.get("exit_code")
    if not name and isinstance(code, int) and code < 0:
        name = _signal_name(-code)
    if failure.get("stopped"):
        return f"stopped with the job ({name})" if name else "stopped with the job"
    if name:
        return f"killed ({name})"
    return f"exit code {code}" if code is not None else "ended, nobody saw how"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def last_seen(view: View, ranks: Sequence[int]) -> dict[int, tuple[int | None, str | None]]:
    """Per rank: the last step of which it left anything, and the last phase that it finished."""
    steps: dict[int, int] = {}
    for name in ("steps", "spans", "memory", "collectives"):
        rows = view.tables[name].filter(pl.col("rank").is_in(ranks)).group_by("rank").agg(pl.col("step").max())
        for rank, step in rows.iter_rows():
            steps[rank] = max(step, steps.get(rank, step))
    phases = view.tables["spans"].filter(pl.col("rank").is_in(ranks) & (pl.col("category") == "phase"))
    last = phases.sort("rank", "end_ns", "span").group_by("rank").agg(pl.col("name").last())
    names = dict(last.iter_rows())
    return {rank: (steps.get(rank), names.get(rank)) for rank in ranks}


def where_it_ended(view: View, rank: int) -> str:
    """`at step 41` when something of that unfinished step was seen, `after step 40`, `before its first step`."""
    step, _ = last_seen(view, [rank])[rank]
    if step is None:
        return "before its first step"
    whole = view.steps.filter((pl.col("rank") == rank) & (pl.col("step") == step)).height
    return f"after step {step}" if whole else f"at step {step}"


def _row(
    view: View,
    rank: int,
    stream: Stream | None,
    failure: Mapping[str, Any] | None,
    faults: int,
    last: tuple[int | None, str | None],
) -> RankRow:
    header: Mapping[str, Any] = stream.header if stream else {}
    own = view.steps.filter(pl.col("rank") == rank)
    steady = own.filter(pl.col("kind") == "steady")
    step, phase = last
    if stream is not None and stream.ended in ("clean", "imported") and own.height:
        # what a rank does between its last update and its end looks like the begin of one more step
        step = int(own["step"].max())  # type: ignore[arg-type]
    device = view.facts.get(rank, {}).get("device.name")
    return RankRow(
        rank=rank,
        node=_integer(header.get("node")),
        host=_text(header.get("host")),
        pid=_integer(header.get("pid")),
        device=_text(device),
        steps=own.height,
        step_time=median_figure(
            steady["duration_ns"].to_list(), "ns", method="this rank's steady steps", reason="no steady step"
        ),
        ended=_ended(stream, failure),
        last_step=step,
        last_phase=phase,
        faults=faults,
    )


def _ended(stream: Stream | None, failure: Mapping[str, Any] | None) -> str:
    if failure is not None:
        return how_it_ended(failure)
    if stream is None or stream.ended is None:
        return "no end record" if stream else "no stream"
    return "ended by an exception" if stream.ended == "exception" else stream.ended


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def name_ranks(ranks: Sequence[int]) -> str:
    """`rank 3`, `ranks 0, 2 and 5`, `ranks 0, 1, 2, 3, 4, 5, 6, 7 and 56 more`."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    if len(ranks) <= 8:
        return f"ranks {', '.join(map(str, ranks[:-1]))} and {ranks[-1]}"
    return f"ranks {', '.join(map(str, ranks[:8]))} and {len(ranks) - 8} more"
