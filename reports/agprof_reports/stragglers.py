"""The part on ranks that others wait for: which, when, and why."""

from agprof.model.answers import RunAnswers
from agprof.model.format import percent
from agprof_reports import communication_tables
from agprof_reports.charts.stragglers import own_time
from agprof_reports.communication import nodes_of
from agprof_reports.compare_kpis import p_words
from agprof_reports.data import Part
from agprof_reports.figures import cards


def part(answers: RunAnswers) -> Part | None:
    """None where ranks were not compared, or nothing of it is known. Its sentence is the section's."""
    found = answers.stragglers
    if found is None or not (found.rows or found.own_time_ns):
        return None
    drawn = own_time(found, nodes_of(answers))
    lines = []
    if found.persistent and found.rows:
        p = "" if found.p_value is None else f", {p_words(found.p_value)}"
        slowest = found.rows[0]
        share = percent(slowest.slowest_share)
        lines.append(("watch", f"Rank {slowest.rank} is slowest in {share} of the steps: more than chance gives{p}."))
    elif found.p_value is not None:
        lines.append(("", f"No rank is slowest more often than chance gives, {p_words(found.p_value)}."))
    return Part(
        key="stragglers",
        title="Ranks that others wait for",
        sentence="",
        lines=tuple(lines),
        cards=cards(("lost", "lost to waiting", found.lost_per_step, "mean rank, per step")),
        charts=(drawn,) if drawn is not None else (),
        tables=(communication_tables.stragglers(found.rows),) if found.rows else (),
    )
