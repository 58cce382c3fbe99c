"""Hand-made answers on communication and stragglers, for tests of what draws them."""

import random
from dataclasses import replace

from agprof.model.answers import CommunicationAnswer, RunAnswers
from agprof.model.comm_answers import ArrivalRow, CeilingRow, GroupRow, OverlapAnswer, SizeBin, TalkMatrix
from agprof.model.straggler_answers import StragglerAnswer, StragglerRow
from sample_answers import sample_answers
from sample_figures import MIB, MS, figure, missing

PER_NODE = 2
SLOW = 3
"""The rank that the others wait for."""


def comm_answers(ranks: int = 4, steps: int = 50) -> RunAnswers:
    """A run over ranks / 2 nodes, whose rank 3 is slow."""
    answers = sample_answers(ranks, steps)
    return replace(
        answers,
        communication=communication(answers.communication, ranks),
        stragglers=stragglers(ranks, steps),
        ranks=tuple(
            replace(row, node=row.rank // PER_NODE, host=f"agp-node-{row.rank // PER_NODE}") for row in answers.ranks
        ),
    )


def communication(base: CommunicationAnswer, ranks: int = 4) -> CommunicationAnswer:
    return replace(
        base,
        overlap=OverlapAnswer(
            in_flight=figure(96e6, "ns"),
            exposed=figure(84e6, "ns"),
            overlapped=figure(12e6, "ns"),
            issue=figure(1.1e6, "ns"),
            transfer=figure(61e6, "ns"),
            skew=figure(23e6, "ns"),
        ),
        sizes=(
            SizeBin(op="all_reduce", low_bytes=4, high_bytes=8, calls_per_step=2.0, bytes_per_step=8.0,
                    exposed_ns_per_step=0.3e6),
            SizeBin(op="reduce_scatter", low_bytes=2 * MIB, high_bytes=4 * MIB, calls_per_step=1.0,
                    bytes_per_step=2.6 * MIB, exposed_ns_per_step=9e6),
            SizeBin(op="reduce_scatter", low_bytes=4 * MIB, high_bytes=8 * MIB, calls_per_step=6.0,
                    bytes_per_step=25.2 * MIB, exposed_ns_per_step=64e6),
            SizeBin(op="all_gather", low_bytes=8 * MIB, high_bytes=16 * MIB, calls_per_step=1.0,
                    bytes_per_step=12.6 * MIB, exposed_ns_per_step=7e6),
        ),
        groups=(
            GroupRow(group="world", ranks=tuple(range(ranks)), nodes=max(ranks // PER_NODE, 1), kind="all",
                     evidence="holds all ranks", bytes_per_step=12.6 * MIB),
            GroupRow(group="dp_0", ranks=tuple(range(0, ranks, 2)), nodes=max(ranks // PER_NODE, 1), kind="data",
                     evidence="reduces gradients in backward", bytes_per_step=25.2 * MIB),
            GroupRow(group="tp_0", ranks=(0, 1), nodes=1, kind="tensor", evidence="all_reduce within forward",
                     bytes_per_step=3.1 * MIB),
        ),
        matrix=TalkMatrix(
            ranks=tuple(range(ranks)),
            bytes_per_step=tuple(
                tuple(25.2 * MIB if b == (a + 1) % ranks else 3.1 * MIB if b == a ^ 1 else 0.0 for b in range(ranks))
                for a in range(ranks)
            ),
            between_nodes=0.44,
        ),
        ceilings=(
            CeilingRow(op="reduce_scatter", group="dp_0", group_size=2, bytes=int(4.2 * MIB),
                       measured=figure(9.6e6, "ns"),
                       predicted=figure(3.1e6, "ns", "modelled", low=2.8e6, high=3.4e6),
                       reached=figure(0.32, "ratio", "modelled"), far_below=True, saving_ns_per_step=39e6),
            CeilingRow(op="all_gather", group="world", group_size=ranks, bytes=int(12.6 * MIB),
                       measured=figure(7.0e6, "ns"), predicted=figure(6.4e6, "ns", "modelled"),
                       reached=figure(0.91, "ratio", "modelled"), far_below=False, saving_ns_per_step=0.6e6),
            CeilingRow(op="all_reduce", group="world", group_size=ranks, bytes=4,
                       measured=missing("ns", "the ranks' calls can't be matched"), predicted=figure(51e3, "ns"),
                       reached=missing("ratio", "not measured"), far_below=False, saving_ns_per_step=0.0),
        ),
        arrivals=tuple(
            ArrivalRow(rank=rank, node=rank // PER_NODE, last=300 if rank == SLOW else 20,
                       first=5 if rank == SLOW else 100, matched=368,
                       lateness=figure(8.2e6 if rank == SLOW else 0.6e6, "ns"))
            for rank in range(ranks)
        ),
    )  # fmt: skip


def stragglers(ranks: int = 4, steps: int = 50) -> StragglerAnswer:
    rng = random.Random(11)
    own = tuple(
        tuple(
            None if rank == 1 and step == 7 else int((340 if rank == SLOW else 290) * MS * rng.gauss(1, 0.02))
            for step in range(3, steps)
        )
        for rank in range(ranks)
    )
    rows = tuple(
        StragglerRow(
            rank=rank, node=rank // PER_NODE, host=f"agp-node-{rank // PER_NODE}",
            slowest_share=0.81 if rank == SLOW else 0.19 / max(ranks - 1, 1),
            own_time=figure((340 if rank == SLOW else 290) * 1e6, "ns"),
            excess=figure((50 if rank == SLOW else 0) * 1e6, "ns"),
            cause="CPU taken away" if rank == SLOW else "not known",
            evidence="its CPU share is 61 % against 99 %" if rank == SLOW else "",
            confidence="measured",
        )
        for rank in sorted(range(ranks), key=lambda rank: rank != SLOW)
    )  # fmt: skip
    return StragglerAnswer(
        sentence="Rank 3 keeps the others waiting: 50.0 ms a step above the median rank, slowest in 81 % of the steps; "
        "its CPU is taken away.",
        steps=tuple(range(3, steps)),
        ranks=tuple(range(ranks)),
        own_time_ns=own,
        lost_per_step=figure(37e6, "ns"),
        persistent=True,
        p_value=1e-12,
        rows=rows,
    )


def hostile_comm(name: str) -> RunAnswers:
    """The sample with `name` wherever a name from outside can stand."""
    answers = comm_answers()
    found = answers.communication
    assert answers.stragglers is not None
    return replace(
        answers,
        communication=replace(
            found,
            sizes=tuple(replace(row, op=name) for row in found.sizes),
            groups=tuple(replace(row, group=name, evidence=name) for row in found.groups),
            ceilings=tuple(replace(row, op=name, group=name) for row in found.ceilings),
        ),
        stragglers=replace(
            answers.stragglers,
            sentence=name,
            rows=tuple(replace(row, host=name, evidence=name) for row in answers.stragglers.rows),
        ),
    )
