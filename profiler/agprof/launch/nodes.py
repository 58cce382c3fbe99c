"""Runs a job on several nodes to its end, through an agent on each, and says how it went.

    agprof ── transport ── node agent 0 ── guard ── launcher ── ranks         one conversation per node;
          └── transport ── node agent 1 ── guard ── launcher ── ranks         agents also hear one another over
                                                                              the network of the job (heartbeat)

Nothing starts until every agent has answered. The first failure anywhere, a node that is not heard of any more, and
Ctrl-C end the job everywhere. A thread holds the conversation, so that a slow display never delays an end.
"""

import os
import queue
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agprof.errors import LaunchError
from agprof.launch.execute import write_outcome
from agprof.launch.interrupts import Signals, catching_signals
from agprof.launch.node_agent import END_GRACE_S, TOKEN_FILE
from agprof.launch.node_files import Collection, collection_note
from agprof.launch.node_plan import NodePlan
from agprof.launch.node_transport import AgentCommand, Transport, why_it_ended
from agprof.launch.node_wire import Receiver, Sender
from agprof.launch.nodes_verdict import NodeState, merge
from agprof.launch.nsys import collect_reports
from agprof.launch.supervisor import TICK_S, Deadlines
from agprof.model.outcome import Outcome

HELLO_TIMEOUT_S = 60.0
PING_S = 1.0
SETTLE_S = 1.0
"""From the first report of a silent node until it is decided which one was lost: others may report too."""
LOST_GRACE_S = 3.0
"""For a lost node, which may still be there, to say how its job ended."""
COLLECT_IDLE_S = 30.0
"""Without a piece of a file from a node that is sending."""
AGENT_EXIT_S = 5.0
_LOOK_S = 0.05
_LAST_CHARS = 2000


def execute_nodes(
    plans: Sequence[NodePlan],
    transport: Transport,
    run_dir: Path,
    *,
    on_tick: Callable[[], None] | None = None,
    deadlines: Deadlines | None = None,
) -> Outcome:
    """Run the job and write `outcome.json`. Returns when no process of it is left on a node that can be reached.

    As `execute` for one node: `on_tick`, signals, and LaunchError when nothing could be started.
    """
    deadlines = deadlines or Deadlines()
    deadlines = deadlines.with_more(max(plan.more_time_s for plan in plans))
    token = secrets.token_hex(16)
    plans = [replace(plan, token=token) for plan in plans]
    started_ns = time.time_ns()
    token_file = run_dir / TOKEN_FILE
    try:
        token_file.write_text(token, encoding="ascii")
    except OSError as error:
        raise LaunchError(f"{run_dir} can't be written: {error.strerror or error}") from error
    with ExitStack() as stack:
        stack.callback(token_file.unlink, missing_ok=True)
        signals = stack.enter_context(catching_signals())
        coordinator = Coordinator(plans, transport, run_dir, signals, deadlines)
        stack.callback(coordinator.close)
        coordinator.start()
        tick_problem = _tick_until_ended(coordinator, on_tick)
        if coordinator.problem is not None:
            raise coordinator.problem
    outcome = merge(
        coordinator.states,
        interrupted_by=coordinator.interrupted_by,
        interrupted_at=coordinator.interrupted_at,
        started_realtime_ns=started_ns,
    )
    notes = [*plans[0].shortfall, *outcome.notes, *coordinator.notes, *collect_reports(run_dir)]
    if tick_problem is not None:
        notes.append(f"the live display stopped: {tick_problem}")
    return write_outcome(run_dir, replace(outcome, notes=tuple(notes)))


def _tick_until_ended(coordinator: "Coordinator", on_tick: Callable[[], None] | None) -> str | None:
    problem: str | None = None
    while True:
        coordinator.join(TICK_S)
        if on_tick is not None and problem is None:
            try:
                on_tick()
            except Exception as error:  # a display must not cost the user his job
                problem = f"{type(error).__name__}: {error}"
        if not coordinator.is_alive():
            return problem


@dataclass(slots=True)
class _Way:
    """A process that leads to the agents of some nodes."""

    command: AgentCommand
    process: "subprocess.Popen[bytes]"
    sender: Sender
    receiver: Receiver
    said: bytearray = field(default_factory=bytearray)
    """The end of its stderr."""


class Coordinator(threading.Thread):
    """The conversation with all agents, from their start to their end."""

    def __init__(
        self, plans: Sequence[NodePlan], transport: Transport, run_dir: Path, signals: Signals, deadlines: Deadlines
    ) -> None:
        super().__init__(name="agprof-nodes", daemon=True)
        self._transport = transport
        self._run_dir = run_dir
        self._signals = signals
        self._signals_passed = 0
        self._deadlines = deadlines
        self._ways: list[_Way] = []
        self.states = {plan.number: NodeState(plan) for plan in plans}
        self._collections: dict[int, Collection] = {}
        self._ping_at = 0.0
        self._silent: dict[int, set[int]] = {}
        """Node -> those that it does not hear."""
        self._silent_since: float | None = None
        self._end_at: float | None = None
        """When the job is to be ended everywhere; None: not yet known."""
        self._end_why = ""
        self._end_told_at: float | None = None
        self.interrupted_by: int | None = None
        self.interrupted_at: float | None = None
        self.notes: list[str] = []
        self.problem: Exception | None = None

    def run(self) -> None:
        try:
            self._run()
        except Exception as error:  # handed to the main thread
            self.problem = error

    def close(self) -> None:
        """End every way to an agent; an agent whose way ends ends its job."""
        for way in self._ways:
            way.sender.close()
        deadline = time.monotonic() + AGENT_EXIT_S
        for way in self._ways:
            silent = all(self.states[number].end is None and self.states[number].lost for number in way.command.nodes)
            try:
                way.process.wait(0.1 if silent else max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                way.process.kill()
                way.process.wait()

    def _run(self) -> None:
        plans = [state.plan for state in self.states.values()]
        for command in self._transport(plans):
            self._ways.append(_open(command))
        for way in self._ways:
            for number in way.command.nodes:  # one a line, and nobody is told what is none of its
                way.sender.send(plan=self.states[number].plan.to_dict(), to=number)
        if not self._greet():
            return
        port = self.states[0].hello.get("port")
        if len(plans) > 1:
            self._tell({"heartbeat": [self.states[0].plan.address, port]})
        self._tell({"begin": True})
        while not all(state.over for state in self.states.values()):
            self._take_all()
            self._pass_on_signals()
            self._keep_pinging()
            self._decide_who_was_lost()
            self._keep_ending()
        self._collect()
        self._tell({"bye": True})

    # ------------------------------------------------------------------------------------------------------- hearing

    def _greet(self) -> bool:
        """Wait until every agent answered. False when somebody interrupted before that. Raises LaunchError."""
        deadline = time.monotonic() + HELLO_TIMEOUT_S
        while waiting := [state for state in self.states.values() if not state.hello]:
            self._take_all()
            self._keep_pinging()
            if self._signals.received:
                self._pass_on_signals()
                return False
            for state in self.states.values():
                if state.problem is not None:
                    raise LaunchError(f"{state.who}: {state.problem}")
            if time.monotonic() > deadline:
                names = ", ".join(state.who for state in waiting)
                raise LaunchError(f"no answer within {HELLO_TIMEOUT_S:.0f} s from {names}; nothing was started")
        return True

    def _take_all(self) -> None:
        """Take what has come, waiting a moment for the first."""
        share_s = _LOOK_S / len(self._ways)
        for way in self._ways:
            was_over = way.receiver.ended
            message = way.receiver.next(share_s)
            while message is not None:
                self._take(message)
                message = way.receiver.next(0.0)
            if way.receiver.ended and not was_over:
                self._way_ended(way)
            elif was_over:
                time.sleep(share_s)

    def _take(self, message: Mapping[str, Any]) -> None:
        state = self.states.get(message.get("node", -1))
        if state is None:
            return
        now = time.monotonic()
        state.heard_at = now
        collection = self._collections.get(state.plan.number)
        if collection is not None and collection.take(message):
            return
        if "hello" in message:
            state.hello = dict(message)
        elif "problem" in message:
            state.problem = str(message["problem"])
            state.note_trouble(now)
            self._end_soon(f"{state.who}: {state.problem}", 0.0)
        elif "failed" in message:
            state.note_trouble(now - int(message["ago_ns"]) / 1e9)
            self._end_soon(f"rank {message['failed']} failed on {state.who}", self._deadlines.failure_s)
        elif "failed_code" in message:
            state.told_code = int(message["failed_code"])
            state.note_trouble(now)
            self._end_soon("a rank failed", self._deadlines.failure_s)
        elif "silent" in message:
            self._silent.setdefault(state.plan.number, set()).add(int(message["silent"]))
            self._silent_since = self._silent_since or now
        elif "ended" in message:
            state.take_end(message["ended"], now)
            if not any(other.plan.argv and not other.over for other in self.states.values()):
                self._end_soon("the job is over", 0.0)  # for nodes that only sample
            elif state.end is not None and state.end.reason != "finished":
                self._end_soon(f"the launcher on {state.who} ended", self._deadlines.failure_s)

    def _way_ended(self, way: _Way) -> None:
        with suppress(subprocess.TimeoutExpired):
            way.process.wait(2)
        for number in way.command.nodes:
            state = self.states[number]
            state.way_ended = True
            if state.end is not None or state.problem is not None:
                continue
            said = bytes(way.said).decode("utf-8", "replace")
            why = why_it_ended(state.plan, way.process.returncode, said, folder=Path.cwd(), python=sys.executable)
            if not state.hello:
                raise LaunchError(f"{state.who} can't be reached: {why}")
            state.lose(f"its agent ended: {_death(way.process.returncode) or why}", time.monotonic())
            self._end_soon(state.lost or "", 0.0)

    def _decide_who_was_lost(self) -> None:
        """From silence: of the control channels, and of the heartbeats that agents told."""
        now = time.monotonic()
        for state in self.states.values():
            silent_s = now - state.heard_at
            if not state.over and state.lost is None and silent_s > state.plan.lost_after_s:
                state.lose(f"nothing was heard for {silent_s:.0f} s", state.heard_at)
                self._end_soon(state.lost or "", 0.0)
        if self._silent_since is None or now < self._silent_since + SETTLE_S:
            return
        self._silent_since = None
        by_node_0 = self._silent.get(0, set())
        others = set(self.states) - {0}
        # When node 0 hears nobody and there are several others, it is node 0 that is cut off.
        lost = {0} if len(others) > 1 and by_node_0 >= others else by_node_0 or {
            number for number, deaf_to in self._silent.items() if 0 in deaf_to
        }  # fmt: skip
        for number in sorted(lost):
            state = self.states[number]
            if state.over or state.lost is not None:
                continue
            limit_s = state.plan.lost_after_s
            state.lose(f"nothing was heard for {limit_s:.3g} s over the network of the job", now - SETTLE_S - limit_s)
            self._end_soon(state.lost or "", 0.0)

    # ------------------------------------------------------------------------------------------------------- telling

    def _tell(self, message: Mapping[str, Any]) -> None:
        for way in self._ways:
            way.sender.send(**message)

    def _keep_pinging(self) -> None:
        if time.monotonic() >= self._ping_at:
            self._ping_at = time.monotonic() + PING_S
            self._tell({"ping": 1})

    def _pass_on_signals(self) -> None:
        while self._signals_passed < len(self._signals.received):
            number = self._signals.received[self._signals_passed]
            self._signals_passed += 1
            if self.interrupted_by is None:
                self.interrupted_by, self.interrupted_at = number, time.monotonic()
                self._end_soon("interrupted", self._deadlines.interrupt_s + self._deadlines.terminate_s)
            self._tell({"signal": number})

    def _end_soon(self, why: str, seconds: float) -> None:
        at = time.monotonic() + seconds
        if self._end_at is None or at < self._end_at:
            self._end_at, self._end_why = at, why

    def _keep_ending(self) -> None:
        now = time.monotonic()
        if self._end_at is None or now < self._end_at:
            return
        if self._end_told_at is None:
            self._end_told_at = now
            self._tell({"end": self._end_why})
        for state in self.states.values():
            more_s = self._deadlines.gone_s + self._deadlines.sampler_s if state.lost is None else LOST_GRACE_S
            if not state.over and now - max(self._end_told_at, state.heard_at) > END_GRACE_S + more_s:
                state.lose(state.lost_why or "it did not say how its job ended", state.heard_at)
                state.way_ended = True

    # ---------------------------------------------------------------------------------------------------- collection

    def _collect(self) -> None:
        """Bring the files of nodes that wrote into a folder of their own."""
        for number, state in self.states.items():
            if state.shared:
                state.files = "shared"
            elif state.end is not None and not state.way_ended:
                self._collections[number] = Collection(self._run_dir, number)
                self._tell({"collect": True, "to": number})
            else:
                state.files = "missing"
                self.notes.append(f"{state.who}: its files never came; they may lie there in {state.folder}")
        self._receive()
        for number, collection in self._collections.items():
            state, result = self.states[number], collection.close()
            state.files = "collected" if result.complete and not result.problems else "partly"
            if result.complete and not result.files:
                state.files = "none"
            note = collection_note(state.who, result)
            if note is not None:
                self.notes.append(note)

    def _receive(self) -> None:
        while waiting := [self.states[n] for n, one in self._collections.items() if not one.result.complete]:
            self._take_all()
            self._keep_pinging()
            now = time.monotonic()
            if all(state.way_ended or now - state.heard_at > COLLECT_IDLE_S for state in waiting):
                return
            if len(self._signals.received) > max(1, self._signals_passed):
                self.notes.append("the collection of files was interrupted")
                return


def _open(command: AgentCommand) -> _Way:
    try:
        process = subprocess.Popen(
            command.argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches agprof alone, which passes it on
        )
    except OSError as error:
        raise LaunchError(f"{command.argv[0]} could not be started: {error.strerror or error}") from error
    assert process.stdin is not None
    assert process.stdout is not None
    way = _Way(command, process, Sender(process.stdin), Receiver(process.stdout, queue.Queue(1024)))
    threading.Thread(target=_keep_errors, args=(way,), name="agprof-node-errors", daemon=True).start()
    return way


def _keep_errors(way: _Way) -> None:
    assert way.process.stderr is not None
    with suppress(OSError, ValueError):
        while data := os.read(way.process.stderr.fileno(), 4096):
            way.said += data
            del way.said[:-_LAST_CHARS]


def _death(code: int | None) -> str | None:
    return f"it was killed by signal {-code}" if code is not None and code < 0 else None
