"""From what the agents of all nodes told to one outcome: which node or rank was first, and what the exit code is. Pure.

Times are those of agprof's own monotonic clock: agents tell ages, because clocks of nodes differ by more than what lies
between two failures.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from agprof.launch.node_plan import NodePlan
from agprof.launch.processes import signal_name
from agprof.model.outcome import NODE_LOST_EXIT_CODE, HostMemory, NodeEnd, Outcome, RankFailure, Reason

STOPPING = frozenset({"SIGTERM", "SIGKILL", "SIGINT"})
BEFORE_LOST_S = 1.0
"""A rank that failed on another node by so much earlier than a node was lost is the cause, and the loss is not."""


@dataclass(slots=True, kw_only=True)
class AgentEnd:
    """How the job ended on one node, as its agent told."""

    reason: Reason
    exit_code: int
    signal: str | None
    launcher_exit_code: int | None
    failures: list[tuple[float | None, RankFailure]]
    """(monotonic time of its end, failure)."""
    sampler_exit_code: int | None
    removed_shared_memory: list[str]
    memory: HostMemory | None
    notes: list[str]


@dataclass(slots=True)
class NodeState:
    """What is known of a node."""

    plan: NodePlan
    hello: dict[str, Any] = field(default_factory=dict)
    heard_at: float = field(default_factory=time.monotonic)
    problem: str | None = None
    """Why its agent could not go on."""
    end: AgentEnd | None = None
    told_code: int | None = None
    """Exit code of a rank that its launcher told of while it still ran."""
    trouble_at: float | None = None
    """When the first thing went wrong there."""
    lost_why: str | None = None
    lost_at: float | None = None
    way_ended: bool = False
    """Its agent can't be talked with any more."""
    files: str = "shared"

    @property
    def who(self) -> str:
        return f"node {self.plan.number} ({self.plan.host}, {self.plan.address})"

    @property
    def over(self) -> bool:
        return self.end is not None or self.way_ended or self.problem is not None

    @property
    def lost(self) -> str | None:
        return None if self.lost_why is None else f"{self.who} was lost: {self.lost_why}"

    @property
    def shared(self) -> bool:
        return bool(self.hello.get("shared", True))

    @property
    def folder(self) -> str:
        return str(self.hello.get("folder", self.plan.run_dir))

    def lose(self, why: str, at: float) -> None:
        if self.lost_why is None:
            self.lost_why, self.lost_at = why, at

    def note_trouble(self, at: float) -> None:
        self.trouble_at = at if self.trouble_at is None else min(at, self.trouble_at)

    def take_end(self, told: Mapping[str, Any], now: float) -> None:
        """Keep the agent's word on the end. Raises KeyError, TypeError or ValueError for what is none."""
        failures: list[tuple[float | None, RankFailure]] = []
        for row in told["failures"]:
            values = dict(row)
            ago_ns = values.pop("ago_ns")
            at = None if ago_ns is None else now - ago_ns / 1e9
            ended_ns = None if ago_ns is None else time.time_ns() - ago_ns
            values.update(last_lines=tuple(values["last_lines"]), ended_realtime_ns=ended_ns)
            failures.append((at, RankFailure(**values)))
        self.end = AgentEnd(
            reason=told["reason"],
            exit_code=int(told["exit_code"]),
            signal=told["signal"],
            launcher_exit_code=told["launcher_exit_code"],
            failures=failures,
            sampler_exit_code=told["sampler_exit_code"],
            removed_shared_memory=list(map(str, told["removed_shared_memory"])),
            memory=HostMemory(**told["memory"]) if told.get("memory") is not None else None,
            notes=[*map(str, told["notes"]), *map(str, told["verdict_notes"])],
        )
        if self.end.reason not in ("finished", "interrupted"):
            first = min((at for at, _ in failures if at is not None), default=now)
            self.note_trouble(first)


def merge(
    states: Mapping[int, NodeState],
    *,
    interrupted_by: int | None,
    interrupted_at: float | None,
    started_realtime_ns: int,
) -> Outcome:
    """The outcome of the job. Its notes are those of the agents, with the node's name in front, and who was lost."""
    failures = _failures(states)
    reason, code, signal = _cause(states, interrupted_by, interrupted_at)
    by_rank = reason in ("failed", "killed")
    ends = [state.end for state in states.values() if state.end is not None]
    return Outcome(
        exit_code=code,
        reason=reason,
        started_realtime_ns=started_realtime_ns,
        ended_realtime_ns=time.time_ns(),
        failures=tuple(
            replace(failure, stopped=not (by_rank and position == 0) and failure.signal in STOPPING)
            for position, failure in enumerate(failures)
        ),
        signal=signal,
        launcher_exit_code=states[0].end.launcher_exit_code if states[0].end is not None else None,
        sampler_exit_code=states[0].end.sampler_exit_code if states[0].end is not None else None,
        removed_shared_memory=tuple(sorted({name for end in ends for name in end.removed_shared_memory})),
        notes=tuple(_notes(states)),
        memory=states[0].end.memory if states[0].end is not None else None,
        nodes=tuple(_node_end(state) for state in states.values()),
    )


def _failures(states: Mapping[int, NodeState]) -> list[RankFailure]:
    """All ranks that did not end with 0, the first one first."""
    timed: list[tuple[float, bool, int, RankFailure]] = []
    for state in states.values():
        for at, failure in state.end.failures if state.end is not None else ():
            # One without a time ended before it was found: as early as anything went wrong on its node.
            when = at if at is not None else state.trouble_at or 0.0
            timed.append((when, failure.signal == "SIGTERM", failure.rank, failure))
    return [failure for *_, failure in sorted(timed, key=lambda row: row[:3])]


def _cause(
    states: Mapping[int, NodeState], interrupted_by: int | None, interrupted_at: float | None
) -> tuple[Reason, int, str | None]:
    troubled = sorted(
        (state for state in states.values() if state.trouble_at is not None),
        key=lambda state: (state.trouble_at or 0.0, state.plan.number),
    )
    lost = [state for state in states.values() if state.lost_at is not None]
    lost_at = min((state.lost_at for state in lost if state.lost_at is not None), default=None)
    first = troubled[0] if troubled else None
    at = min((time for time in (lost_at, first.trouble_at if first else None) if time is not None), default=None)
    if interrupted_by is not None and interrupted_at is not None and (at is None or at > interrupted_at):
        return "interrupted", 128 + interrupted_by, signal_name(interrupted_by)
    if lost_at is not None and (
        first is None
        or first.lost_at is not None
        or first.trouble_at is None
        or first.trouble_at > lost_at - BEFORE_LOST_S
    ):
        return "node-lost", NODE_LOST_EXIT_CODE, None
    if first is None:
        # Somebody ended the part of one node alone (an agent was sent SIGTERM).
        ended = next((state.end for state in states.values() if state.end and state.end.reason == "interrupted"), None)
        return ("finished", 0, None) if ended is None else ("interrupted", ended.exit_code or 1, ended.signal)
    if first.end is None:
        return "launch-failed", 3, None
    if first.end.reason in ("finished", "interrupted"):
        # Its agent had told of a rank that failed, and judged in the end that the job had been ended before.
        rank = next((failure for _, failure in first.end.failures), None)
        code = first.told_code or (rank.exit_code if rank is not None else None) or first.end.exit_code
        return ("killed" if rank is not None and rank.signal else "failed"), code or 1, rank.signal if rank else None
    return first.end.reason, first.end.exit_code or 1, first.end.signal


def _notes(states: Mapping[int, NodeState]) -> list[str]:
    notes = [state.lost for state in states.values() if state.lost is not None]
    for state in states.values():
        if state.problem is not None:
            notes.append(f"{state.who}: {state.problem}")
        notes.extend(f"{state.who}: {note}" for note in (state.end.notes if state.end is not None else ()))
    return notes


def _node_end(state: NodeState) -> NodeEnd:
    end = state.end
    hostname = state.hello.get("hostname")
    return NodeEnd(
        number=state.plan.number,
        host=state.plan.host,
        address=state.plan.address,
        hostname=None if hostname is None else str(hostname),
        reason=end.reason if end is not None else None,
        exit_code=end.exit_code if end is not None else None,
        lost=state.lost_why,
        files=state.files,
        sampler_exit_code=end.sampler_exit_code if end is not None else None,
    )
