"""From what agents told to one outcome: who was first, whatever order the words came in."""

import itertools
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from agprof.launch.node_plan import NodePlan
from agprof.launch.nodes_verdict import NodeState, merge
from agprof.model.outcome import Outcome, RankFailure

NOW = 1000.0


def state(number: int) -> NodeState:
    plan = NodePlan(
        number=number, nodes=3, host=f"h{number}", address=f"10.0.0.{number}", interface=None, launcher="torchrun",
        argv=("x",), env={}, cwd=Path("/"), run_dir=Path("/r"), ranks=1, first_rank=number, world_size=3,
        master_address="10.0.0.0", master_port=1, sampler_argv=None,
    )  # fmt: skip
    return NodeState(plan)


def failure(rank: int, code: int, signal: str | None = None, ago_s: float | None = 0.0) -> dict[str, Any]:
    values = asdict(
        RankFailure(
            rank=rank, local_rank=0, pid=1, exit_code=code, signal=signal, ended_realtime_ns=None, stopped=False,
            last_lines=("oh",),
        )
    )  # fmt: skip
    return {**values, "ago_ns": None if ago_s is None else int(ago_s * 1e9)}


def end(reason: str, code: int, *failures: dict[str, Any], signal: str | None = None) -> dict[str, Any]:
    return {
        "reason": reason, "exit_code": code, "signal": signal, "launcher_exit_code": 1, "failures": list(failures),
        "verdict_notes": [], "sampler_exit_code": 0, "removed_shared_memory": [], "memory": None, "notes": [],
    }  # fmt: skip


def outcome(states: list[NodeState], interrupted_at: float | None = None) -> Outcome:
    return merge(
        {one.plan.number: one for one in states},
        interrupted_by=None if interrupted_at is None else 2,
        interrupted_at=interrupted_at,
        started_realtime_ns=0,
    )


def test_the_rank_that_failed_first_decides_in_any_order_of_words():
    told = {0: end("failed", 1, failure(0, 1, ago_s=4.9)), 1: end("failed", 9, failure(1, 9, ago_s=5.0)),
            2: end("interrupted", 143, failure(2, 143, "SIGTERM", ago_s=1.0))}  # fmt: skip
    for order in itertools.permutations(told):
        states = [state(0), state(1), state(2)]
        for number in order:
            states[number].take_end(told[number], NOW)
        found = outcome(states)
        assert (found.reason, found.exit_code) == ("failed", 9)
        assert [(one.rank, one.stopped) for one in found.failures] == [(1, False), (0, False), (2, True)]


def test_ages_count_and_not_when_the_words_came():
    states = [state(0), state(1)]
    states[0].take_end(end("failed", 1, failure(0, 1, ago_s=1.0)), NOW)
    states[1].take_end(end("failed", 2, failure(1, 2, ago_s=20.0)), NOW + 10)
    assert outcome(states).exit_code == 2


def test_a_lost_node_is_the_cause_of_what_its_peers_say_after_it():
    states = [state(0), state(1)]
    states[1].lose("nothing was heard for 5 s", NOW - 5)
    states[0].take_end(end("failed", 1, failure(0, 1, ago_s=3.0)), NOW)
    found = outcome(states)
    assert (found.reason, found.exit_code) == ("node-lost", 6)
    assert found.notes[0] == "node 1 (h1, 10.0.0.1) was lost: nothing was heard for 5 s"
    assert found.failures[0].exit_code == 1


def test_a_rank_that_failed_long_before_is_the_cause_and_the_loss_is_told():
    states = [state(0), state(1)]
    states[0].take_end(end("failed", 4, failure(0, 4, ago_s=9.0)), NOW)
    states[1].lose("its agent ended", NOW)
    found = outcome(states)
    assert (found.reason, found.exit_code) == ("failed", 4)
    assert "node 1 (h1, 10.0.0.1) was lost: its agent ended" in found.notes


def test_a_rank_killed_on_the_node_that_is_then_lost_is_the_loss():
    states = [state(0), state(1)]
    states[0].take_end(end("interrupted", 143), NOW)
    states[1].note_trouble(NOW - 3)  # it told of its killed rank before it was killed itself
    states[1].lose("its agent ended: it was killed by signal 9", NOW - 2.9)
    assert outcome(states).reason == "node-lost"


@pytest.mark.parametrize(("interrupted_at", "reason"), [(NOW - 10, "interrupted"), (NOW - 1, "failed")])
def test_ctrl_c_counts_when_it_was_first(interrupted_at, reason):
    states = [state(0), state(1)]
    states[0].take_end(end("failed", 1, failure(0, 1, ago_s=5.0)), NOW)
    states[1].take_end(end("interrupted", 130), NOW)
    found = outcome(states, interrupted_at)
    assert found.reason == reason
    assert found.exit_code == (130 if reason == "interrupted" else 1)


def test_a_rank_that_nobody_saw_end_is_not_put_before_those_of_other_nodes():
    states = [state(0), state(1)]
    states[0].take_end(end("failed", 1, failure(0, 1, ago_s=5.0)), NOW)
    states[1].take_end(end("failed", 2, failure(1, 2, ago_s=None)), NOW)
    assert [one.rank for one in outcome(states).failures] == [0, 1]
    assert outcome(states).exit_code == 1


def test_a_node_that_was_ended_alone_is_no_success():
    states = [state(0), state(1)]
    states[0].take_end(end("finished", 0), NOW)
    states[1].take_end(end("interrupted", 143, signal="SIGTERM"), NOW)
    assert (outcome(states).reason, outcome(states).exit_code) == ("interrupted", 143)


def test_all_well():
    states = [state(0), state(1)]
    for one in states:
        one.take_end(end("finished", 0), NOW)
    assert (outcome(states).reason, outcome(states).exit_code) == ("finished", 0)


def test_an_agent_that_could_not_go_on_is_a_failed_launch():
    states = [state(0), state(1)]
    states[0].take_end(end("interrupted", 143), NOW)
    states[1].problem = "disk full"
    states[1].note_trouble(NOW)
    found = outcome(states)
    assert (found.reason, found.exit_code) == ("launch-failed", 3)
    assert "node 1 (h1, 10.0.0.1): disk full" in found.notes
