"""The section on communication: collectives, then overlap, sizes, groups, ceilings and arrivals where known."""

from collections.abc import Mapping

from agprof.model.answers import CommunicationAnswer, RunAnswers
from agprof.model.format import format_value
from agprof_reports import communication_tables, tables
from agprof_reports.charts import comm_parts
from agprof_reports.charts.comm_matrix import matrix
from agprof_reports.charts.communication import collectives
from agprof_reports.data import Chart, Part, Section
from agprof_reports.figures import cards
from agprof_reports.text import with_unit

KEY, TITLE = "communication", "Communication"
_CALLERS = (
    "Exposed: the host's caller stands in it. How long devices do nothing else stands in the section Device trace."
)


def section(answers: RunAnswers) -> Section:
    found = answers.communication
    unseen = [row for row in found.unseen if row.recorded > row.seen]
    lines = [("watch" if unseen else "", found.ledger_sentence)] if found.ledger_sentence else []
    if found.rows and answers.trace is not None and answers.trace.collectives:
        lines.append(("", _CALLERS))
    shown_tables = [tables.collectives(found.rows)] if found.rows else []
    if unseen:
        shown_tables.append(tables.unseen(unseen))
    return Section(
        key=KEY,
        title=TITLE,
        sentence=found.sentence or "No collective was seen.",
        cards=cards(
            ("calls", "collectives per step", found.calls_per_step, "per rank"),
            ("bytes", "size per step", found.bytes_per_step, "per rank"),
            ("exposed", "exposed", found.exposed_per_step, "per step"),
            ("exposed_share", "exposed share", found.exposed_share, "of a step"),
            ("total", "total", found.total_per_step, "entry to completion, per step"),
        ),
        charts=(collectives(found),) if found.rows else (),
        tables=tuple(shown_tables),
        lines=tuple(lines),
        parts=tuple(part for part in _parts(found, nodes_of(answers)) if part is not None),
    )


def nodes_of(answers: RunAnswers) -> dict[int, int]:
    """Rank -> node, as far as it is known."""
    known = {row.rank: row.node for row in answers.communication.arrivals}
    return known | {row.rank: row.node for row in answers.ranks if row.node is not None}


def _parts(found: CommunicationAnswer, node_of: Mapping[int, int]) -> tuple[Part | None, ...]:
    return (_overlap(found), _sizes(found), _groups(found, node_of), _ceilings(found), _arrivals(found))


def _overlap(found: CommunicationAnswer) -> Part | None:
    answer = found.overlap
    if answer is None or answer.in_flight.value is None:
        return None
    drawn = comm_parts.overlap(answer)
    share = ""
    if answer.in_flight.value and answer.overlapped.value is not None:
        share = f"; {format_value(answer.overlapped.value / answer.in_flight.value, 'ratio')} of it is overlapped"
    return Part(
        key="communication-overlap",
        title="In flight, exposed, overlapped",
        sentence=f"Communication is in flight for {with_unit(answer.in_flight.value, 'ns')} a step{share}.",
        cards=cards(
            ("in_flight", "in flight", answer.in_flight, "union, per rank and step"),
            ("exposed_alone", "exposed", answer.exposed, "without compute"),
            ("overlapped", "overlapped", answer.overlapped, "while computing"),
            ("issue", "issue", answer.issue, "the host issues calls"),
            ("transfer", "transfer", answer.transfer, "shortest over the ranks"),
            ("skew", "skew", answer.skew, "waiting for the last rank"),
        ),
        charts=(drawn,) if drawn is not None else (),
    )


def _sizes(found: CommunicationAnswer) -> Part | None:
    if not found.sizes:
        return None
    most = max(found.sizes, key=lambda item: item.bytes_per_step)
    whole = sum(item.bytes_per_step for item in found.sizes)
    share = f"{format_value(most.bytes_per_step / whole, 'ratio')} of all bytes" if whole else "no bytes"
    return Part(
        key="communication-sizes",
        title="Sizes of messages",
        sentence=f"{share[0].upper()}{share[1:]} go in messages of `{most.op}` of {with_unit(most.low_bytes, 'bytes')} "
        f"to {with_unit(most.high_bytes, 'bytes')}.",
        charts=(comm_parts.sizes(found.sizes),),
        tables=(communication_tables.sizes(found.sizes),),
    )


def _groups(found: CommunicationAnswer, node_of: Mapping[int, int]) -> Part | None:
    if not found.groups and found.matrix is None:
        return None
    kinds = sorted({row.kind for row in found.groups})
    words = f"{len(found.groups):,} group{'s' * (len(found.groups) != 1)}: {', '.join(kinds)}." if kinds else ""
    lines: list[tuple[str, str]] = []
    drawn: tuple[Chart, ...] = ()
    if found.matrix is not None and len(found.matrix.ranks) > 1:
        drawn = (matrix(found.matrix, node_of),)
        share = format_value(found.matrix.between_nodes, "ratio")
        words = f"{words} {share} of all bytes leave their node.".strip()
        lines.append(
            (
                "",
                "Modelled: what the ring of each collective (of all-to-all and point to point: the direct way) passes.",
            )
        )
    return Part(
        key="communication-groups",
        title="Who talks with whom",
        sentence=words,
        lines=tuple(lines),
        charts=drawn,
        tables=(communication_tables.groups(found.groups),) if found.groups else (),
    )


def _ceilings(found: CommunicationAnswer) -> Part | None:
    if not found.ceilings:
        return None
    below = [row for row in found.ceilings if row.far_below]
    saving = sum(row.saving_ns_per_step for row in found.ceilings)
    sentence = (
        f"{len(below):,} of {len(found.ceilings):,} kinds of calls stay far below their link's ceiling"
        if below
        else "No kind of call stays far below its link's ceiling"
    )
    could = f"; at the ceiling a step would take {with_unit(saving, 'ns')} less" if saving > 0 else ""
    return Part(
        key="communication-ceilings",
        title="Against the link's ceiling",
        sentence=f"{sentence}{could}.",
        charts=(comm_parts.ceilings(found.ceilings),),
        tables=(communication_tables.ceilings(found.ceilings),),
    )


def _arrivals(found: CommunicationAnswer) -> Part | None:
    rows = [row for row in found.arrivals if row.matched]
    if not rows:
        return None
    last = max(rows, key=lambda row: row.last / row.matched)
    share = format_value(last.last / last.matched, "ratio")
    return Part(
        key="communication-arrivals",
        title="First and last arrival",
        sentence=f"Rank {last.rank} comes last to {share} of its collectives ({last.last:,} of {last.matched:,}).",
        charts=(comm_parts.arrivals(found.arrivals),),
        tables=(communication_tables.arrivals(found.arrivals),),
    )
