"""How complete the data is, in sentences, and what agprof itself cost."""

from collections.abc import Iterator, Mapping

import polars as pl

from agprof.analysis.clock_quality import clock_notes, clock_problems
from agprof.analysis.identity import imported_from, is_command, lost_nodes, world_size
from agprof.analysis.nsys import nsys_notes
from agprof.analysis.ranks import failures_of, how_it_ended, last_seen, name_ranks, rank_streams, where_it_ended
from agprof.analysis.sampler_quality import sampler_cpu, sampler_notes, sampler_problems
from agprof.analysis.statistics import nothing
from agprof.analysis.view import View
from agprof.model.answers import CommunicationAnswer, Quality
from agprof.model.figure import Figure, Kpi


def judge_quality(view: View, communication: CommunicationAnswer) -> Quality:
    """The quality section."""
    expected = world_size(view)
    present = len(rank_streams(view))
    problems = [
        *_missing(view, expected),
        *_nodes(view),
        *_ends(view),
        *view.run.problems,
        *_streams(view),
        *_rows(view),
        *clock_problems(view),
        *_faults(view),
        *([communication.ledger_sentence] if communication.unseen else []),
        *_sampler(view),
    ]
    return Quality(
        sentence=_sentence(expected, present, len(problems)),
        ranks_expected=expected,
        ranks_present=present,
        problems=tuple(dict.fromkeys(problems)),
        cost=_cost(view),
        notes=tuple(_notes(view)),
    )


def _nodes(view: View) -> Iterator[str]:
    """Nodes of a job on several that were lost, or whose files did not all come."""
    lost = lost_nodes(view)
    if lost is not None:
        yield f"{lost[:1].upper()}{lost[1:]}."
    for node in (view.run.outcome or {}).get("nodes") or ():
        if isinstance(node, Mapping) and node.get("files") in ("missing", "partly"):
            which = "Not all" if node["files"] == "partly" else "None"
            yield f"{which} of the files of node {node.get('number')} ({node.get('host')}) came into the run folder."


def _sentence(expected: int | None, present: int, problems: int) -> str:
    whole = expected is not None and present >= expected
    ranks = f"{present:,} of {expected:,} ranks" if expected is not None else f"{present:,} ranks"
    if whole:
        ranks = "The rank" if present == 1 else f"All {present:,} ranks"
    words = f"{ranks} {'is' if present == 1 else 'are'} here"
    if not problems:
        return f"{words} and the data is complete." if whole else f"{words}."
    return f"{words}; {problems} thing{'' if problems == 1 else 's'} to know about the data."


def _missing(view: View, expected: int | None) -> Iterator[str]:
    if is_command(view):
        return
    missing = sorted(set(range(expected or 0)) - set(rank_streams(view)))
    imported = imported_from(view) is not None
    if missing and imported:
        yield f"Of {name_ranks(missing)} no trace was imported."
    elif missing:
        verb = "leaves" if len(missing) == 1 else "leave"
        yield f"{_upper(name_ranks(missing))} {verb} no stream: never started, or the folder is incomplete."
    if not view.steps.height:
        if imported:
            yield "The trace names no step: neither ProfilerStep#, nor a range called step or iteration."
        else:
            yield "No optimizer step was seen on any rank: no step ended, or its framework was not recognised."
        return
    without = sorted(set(rank_streams(view)) - set(view.steps["rank"].unique().to_list()))
    if without:
        yield f"No optimizer step was seen on {name_ranks(without)}."


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _ends(view: View) -> Iterator[str]:
    failures = failures_of(view)
    for rank, failure in failures.items():
        _, phase = last_seen(view, [rank])[rank]
        last = f", last phase {phase}" if phase else ""
        yield f"Rank {rank} ended {where_it_ended(view, rank)}{last}: {how_it_ended(failure)}."
    open_ = [number for number, stream in rank_streams(view).items() if not stream.ended and number not in failures]
    if open_:
        yield f"The stream of {name_ranks(open_)} has no end record: killed, still running, or the file was cut."


def _streams(view: View) -> Iterator[str]:
    for stream in sorted(view.run.streams, key=lambda s: (s.scope, s.number, s.attempt)):
        if stream.damage is None and stream.unread_bytes:
            yield (
                f"The stream of {stream.scope} {stream.number} ends in the middle of a frame; "
                f"{stream.unread_bytes:,} bytes are not used."
            )
    again = sorted({stream.number for stream in view.run.streams if stream.scope == "rank" and stream.attempt})
    if again:
        yield f"{_upper(name_ranks(again))} restarted; of a step that ran twice the later run counts."


def _rows(view: View) -> Iterator[str]:
    lost = view.tables["cost"].group_by("rank").agg(pl.col("lost_rows").sum()).filter(pl.col("lost_rows") > 0)
    if lost.height:
        ranks = name_ranks(sorted(lost["rank"].to_list()))
        yield f"{int(lost['lost_rows'].sum()):,} rows were lost on {ranks}: the disk did not take them."
    for table, count in view.dropped.items():
        yield f"{count:,} rows of table {table} lack a required value and are left out."
    raw = view.tables["steps"]
    negative = raw.filter(pl.col("end_ns") < pl.col("start_ns")).height
    if negative:
        yield f"{negative:,} steps end before they begin and are left out."
    spans = view.tables["spans"]
    if backwards := spans.filter(pl.col("end_ns") < pl.col("start_ns")).height:
        yield f"{backwards:,} spans end before they begin and count nothing."
    bad = raw.filter(~pl.col("loss").is_finite())
    if bad.height:
        steps = sorted(set(bad["step"].to_list()))
        yield f"The loss is not finite at {bad['step'].n_unique():,} step(s), the first is step {steps[0]}."


def _faults(view: View) -> Iterator[str]:
    faults = (
        view.tables["faults"]
        .group_by("instrument", "where", "error")
        .agg(ranks=pl.col("rank").unique().sort(), count=pl.col("count").max())
        .sort("instrument", "where", "error")
    )
    for instrument, where, error, ranks, count in faults.iter_rows():
        times = "once" if count == 1 else f"{count:,} times"
        yield f"Instrument {instrument} failed {times} in {where} on {name_ranks(ranks)}: {error[:500]}."


def _sampler(view: View) -> Iterator[str]:
    if not any(stream.scope == "node" for stream in view.run.streams):
        if _monitor_wanted(view):
            yield "There is no sampler's stream: nothing is known of GPU, host and processes over time."
        return
    yield from sampler_problems(view)


def _monitor_wanted(view: View) -> bool:
    value: object = view.run.manifest
    for key in ("workload", "monitor", "enabled"):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value is not False


def _cost(view: View) -> tuple[Kpi, ...]:
    cost, state = view.tables["cost"], view.tables["sampler_state"].filter(pl.col("field") == "self")
    written = int(cost["bytes"].sum()) if cost.height else None
    rss = state["self_rss_bytes"].max()
    return (
        Kpi(key="flusher_cpu", label="Flusher's CPU share", figure=_flusher(view), note="of one core, highest rank"),
        Kpi(
            key="bytes_written",
            label="Written by the ranks",
            figure=_plain(written, "bytes", "sum of the cost table, all ranks", cost.height, "no cost was recorded"),
        ),
        Kpi(
            key="sampler_cpu", label="Sampler's CPU share", figure=sampler_cpu(state), note="of one core, highest node"
        ),
        Kpi(
            key="sampler_rss",
            label="Sampler's memory",
            figure=_plain(rss, "bytes", "highest resident set of a sampler", state.height, "no sampler ran"),
        ),
    )


def _plain(value: object, unit: str, method: str, n: int, reason: str) -> Figure:
    if not isinstance(value, int | float):
        return nothing(unit, reason, method=method)
    return Figure(value=value, unit=unit, source="measured", n=n, method=method)


def _flusher(view: View) -> Figure:
    method = "CPU time of the flusher thread over the time from the rank's first to its last step"
    cpu = view.tables["cost"].group_by("rank").agg(pl.col("flush_cpu_ns").sum())
    spans = view.steps.group_by("rank").agg(span=pl.col("end_ns").max() - pl.col("start_ns").min())
    shares = cpu.join(spans.filter(pl.col("span") > 0), on="rank").select(share=pl.col("flush_cpu_ns") / pl.col("span"))
    return _plain(shares["share"].max(), "ratio", method, shares.height, "no cost was recorded, or no step was seen")


def _notes(view: View) -> Iterator[str]:
    if imported_from(view) is not None:
        yield "An imported trace: what it does not hold (losses, samples, sampled power and memory) is not known."
        yield from _imported_notes(view)
    elif not any(stream.scope == "node" for stream in view.run.streams) and not _monitor_wanted(view):
        yield "The sampler was switched off (monitor.enabled: false)."
    incomplete = view.slowest.filter(pl.col("kind") == "incomplete").height
    if incomplete:
        yield f"{incomplete:,} step(s) are not on all ranks; they are drawn and left out of statistics."
    if view.fact("device.type") == "cuda":
        yield (
            "Phases are the host's time: work given to the GPU runs on after its phase has ended on the host, "
            "so that its time shows where the host next waits for it."
        )
    yield from clock_notes(view)
    yield from sampler_notes(view)
    if view.profiled:
        steps = ", ".join(map(str, view.profiled[:8]))
        yield (
            f"Step {steps}: left out of statistics, because an expensive instrument ran in it (FLOPs profiler, Kineto, "
            "or nsys beginning or ending its capture)."
        )
    yield from nsys_notes(view)
    yield from _outcome_notes(view)


def _imported_notes(view: View) -> list[str]:
    imported = view.run.manifest.get("imported")
    told = imported if isinstance(imported, Mapping) else {}
    notes, sources = told.get("notes"), told.get("ranks")
    by_source: dict[str, list[int]] = {}
    for rank, source in sources.items() if isinstance(sources, Mapping) else ():
        if str(rank).isdigit():
            by_source.setdefault(str(source)[:60], []).append(int(rank))
    known = [f"{_upper(name_ranks(ranks))}: numbered by {source}." for source, ranks in by_source.items()]
    return known + [str(note)[:500] for note in notes[:50]] if isinstance(notes, list) else known


def _outcome_notes(view: View) -> list[str]:
    notes = (view.run.outcome or {}).get("notes")
    return [str(note) for note in notes] if isinstance(notes, list | tuple) else []
