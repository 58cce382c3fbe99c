"""Findings on ranks that others wait for: one that is always slow, and all of them in turn."""

from agprof.analysis.evidence import Evidence, saving
from agprof.model.answers import Finding
from agprof.model.format import format_value, percent
from agprof.model.straggler_answers import Cause, StragglerRow

UNEVEN = 0.05
"""Of the step: waiting for others in turn, from which it is worth a word."""

_CHANGES: dict[Cause, str] = {
    "more work": "Give every rank as much work in the same step: batches of like length, and one seed for what each "
    "decides by chance.",
    "data": "Look at this rank's input: its share of the files, its disk, its DataLoader workers (num_workers).",
    "CPU taken away": "Keep other programs off this rank's cores, and start no more threads and workers than there are "
    "cores (OMP_NUM_THREADS, num_workers).",
    "lower clock": "Compare this GPU's power limit, application clocks and slot with the others' (nvidia-smi -q -d "
    "CLOCK,POWER).",
    "heat": "See to this GPU's cooling: fans, airflow, neighbours; the section on GPU and host has its temperature.",
    "memory pressure": "Give this rank's node more memory, or hold less in it.",
    "network": "Look at this node's interfaces: ethtool -S, perfquery; errors mean cable, optics or port.",
    "not known": "Give every rank the same work (batch, sequence lengths) and the same machine: look at this rank's "
    "CPU, clocks and neighbours in the section on GPU and host.",
}


def straggler(evidence: Evidence) -> Finding | None:
    """One rank is slower in its own work and the others wait for it in collectives."""
    found = evidence.straggler
    if found is None:
        return None
    row = _row(evidence, found.rank)
    why = f" Likely cause: {row.cause}: {row.evidence}." if row is not None and row.cause != "not known" else ""
    return Finding(
        key="straggler",
        title=f"Rank {found.rank} holds the others up",
        evidence=(
            f"Its own work takes {format_value(found.own_ns, 'ns')} a step, {format_value(found.others_ns, 'ns')} "
            f"on the others, most of the difference in {found.phase}; they stand "
            f"{format_value(found.waiting_ns, 'ns')} longer in collectives meanwhile.{why}"
        ),
        section="ranks",
        saving_ns_per_step=saving(
            found.lost_ns,
            evidence.time.step_time.n,
            "difference of own work, at most what others wait",
            measured=True,
        ),
        confidence="measured",
        change=_CHANGES[row.cause if row is not None else "not known"],
        check="all ranks show the same time in the phases, and communication falls on the others.",
    )


def _row(evidence: Evidence, rank: int) -> StragglerRow | None:
    rows = evidence.stragglers.rows if evidence.stragglers is not None else ()
    return next((row for row in rows if row.rank == rank), None)


def uneven_work(evidence: Evidence) -> Finding | None:
    """The ranks take turns at being slow, because each has more work in other steps than the others."""
    answer = evidence.stragglers
    if answer is None or answer.persistent or evidence.straggler is not None or not evidence.mean_ns:
        return None
    lost = answer.lost_per_step.value or 0.0
    busy = [row for row in answer.rows if row.cause == "more work"]
    if lost < UNEVEN * evidence.mean_ns or not busy:
        return None
    most = max(busy, key=lambda row: (row.slowest_share, -row.rank))
    return Finding(
        key="uneven-work",
        title=f"The ranks wait {percent(lost / evidence.mean_ns)} of the step for whichever has more work",
        evidence=(
            f"The mean rank waits {format_value(lost, 'ns')} a step for others, and no rank is slow more often than by "
            f"chance. Rank {most.rank}: {most.evidence}."
        ),
        section="ranks",
        saving_ns_per_step=saving(
            lost, answer.lost_per_step.n, "all of what the mean rank waits for others", measured=True
        ),
        confidence="measured",
        change=_CHANGES["more work"],
        check="the heat map of ranks and steps is even, and the mean rank waits less for others.",
    )
