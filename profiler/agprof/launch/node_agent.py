"""Runs one node's part of a job: `python -m agprof.launch.node_agent NUMBER`, started there by agprof (`nodes.py`).

    agprof ── transport ── node agent ── guard ── launcher ── ranks
                                     └── sampler

It talks with agprof in lines of JSON over stdin and stdout. When stdin ends, when agprof, which should speak each
second, says nothing for `lost_after_s`, or when it is told to, it ends the node's job; nothing of it survives the
agent. NUMBER `slurm`: that of SLURM_NODEID.

From agprof, `to` naming one node or none:  plan | heartbeat | begin | ping | signal | end | collect | bye
To agprof:  hello | problem | alive | began | failed | failed_code | silent | ended | file... | sent
"""

import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from agprof.errors import AgprofError, LaunchError
from agprof.launch import host_memory, processes, shm
from agprof.launch.interrupts import Signals, catching_signals
from agprof.launch.job import Job, adopting_orphans, start_job
from agprof.launch.judge import judge, logged_failure
from agprof.launch.node_files import pieces
from agprof.launch.node_heartbeat import Caller, Listener
from agprof.launch.node_plan import DS_ENV_FILE, NodePlan
from agprof.launch.node_wire import Receiver, Sender
from agprof.launch.sampler import SupervisedSampler
from agprof.launch.supervisor import Deadlines, Supervisor
from agprof.model.outcome import RankFailure
from agprof.model.settings import ENV_RUN_DIR
from agprof.store import layout
from agprof.store.memory_limits import read_kills

SLURM = "slurm"
TOKEN_FILE = ".agents"
"""In the run folder: the coordinator's token. A node that reads it there sees the same folder."""
ALIVE_S = 1.0
PLANS_TIMEOUT_S = 60.0
BEGIN_TIMEOUT_S = 120.0
BYE_TIMEOUT_S = 30.0
END_GRACE_S = 2.0
"""From SIGTERM to SIGKILL when the job ends for the sake of others: ranks write what they have."""
LOG_PERIOD_S = 0.5
_LOOK_S = 0.05


class Agent:
    """The conversation with agprof, and the job that it is about."""

    def __init__(self, number: int, receiver: Receiver, sender: Sender, signals: Signals) -> None:
        self._number = number
        self._receiver = receiver
        self._sender = sender
        self._signals = signals
        self._begin = threading.Event()
        self._bye = False
        self._collect = False
        self._heartbeat: Listener | Caller | None = None
        self._heartbeat_at: tuple[str, int] | None = None
        self._silent: set[int] = set()
        self._end_told_at: float | None = None
        self._killed = False
        self._lost_after_s = PLANS_TIMEOUT_S
        self.end_reason: str | None = None
        """Why the job was ended from here, in words."""

    # -------------------------------------------------------------------------------------------------- conversation

    def plan(self) -> NodePlan:
        """This node's plan. Raises LaunchError when none comes."""
        deadline = time.monotonic() + PLANS_TIMEOUT_S
        while time.monotonic() < deadline and not self._receiver.ended and not self._signals.received:
            message = self._receiver.next(0.2)
            if message is not None and "plan" in message and message.get("to") == self._number:
                plan = NodePlan.from_dict(message["plan"])
                self._lost_after_s = plan.lost_after_s
                return plan
        raise LaunchError(f"no plan came for node {self._number}")

    def listen(self, plan: NodePlan, stack: ExitStack) -> int | None:
        """Node 0's port for the others' heartbeats; None on other nodes. Raises LaunchError."""
        if self._number != 0:
            return None
        try:
            listener = Listener(plan.address, plan.token, plan.nodes)
        except OSError as error:
            raise LaunchError(
                f"node 0 ({plan.host}) can't listen on {plan.address}: {error.strerror or error}; is it its address?"
            ) from error
        stack.callback(listener.close)
        self._heartbeat = listener
        return listener.port

    def wait_for_begin(self, plan: NodePlan, stack: ExitStack) -> bool:
        """False when the job is not to begin after all."""
        deadline = time.monotonic() + BEGIN_TIMEOUT_S
        while not self._begin.is_set():
            self.look(0.2)
            if self._end_told_at is not None or self._signals.received or time.monotonic() > deadline:
                return False
        if self._heartbeat_at is not None and self._number != 0:
            self._heartbeat = Caller(*self._heartbeat_at, plan.token, self._number)
            stack.callback(self._heartbeat.close)
        if self._heartbeat is not None:
            self._heartbeat.start()
        return True

    def look(self, timeout_s: float) -> None:
        """Take one message if there is one, and see who is silent."""
        message = self._receiver.next(timeout_s)
        if message is not None and message.get("to", self._number) == self._number:
            self._obey(message)
        if self._receiver.ended:
            time.sleep(timeout_s)
            self.end("agprof is gone")
        elif (silent_s := time.monotonic() - self._receiver.heard_at) > self._lost_after_s:
            self.end(f"nothing was heard of agprof for {silent_s:.0f} s")
        self._report_silences()
        self._keep_ending()

    def end(self, why: str) -> None:
        """Have the job end: SIGTERM now, SIGKILL after END_GRACE_S."""
        if self._end_told_at is None:
            self._end_told_at = time.monotonic()
            self.end_reason = why
            self._signals.received.append(signal.SIGTERM)

    @property
    def ending(self) -> bool:
        return self._end_told_at is not None

    def _obey(self, message: Mapping[str, Any]) -> None:
        if "heartbeat" in message:
            address, port = message["heartbeat"]
            self._heartbeat_at = (str(address), int(port))
        if message.get("begin"):
            self._begin.set()
        if "signal" in message:
            self._signals.received.append(int(message["signal"]))
        if "end" in message:
            self.end(str(message["end"]))
        self._collect = self._collect or bool(message.get("collect"))
        self._bye = self._bye or bool(message.get("bye"))

    def _keep_ending(self) -> None:
        if self._end_told_at is None or self._killed:
            return
        if time.monotonic() - self._end_told_at > END_GRACE_S:
            self._killed = True
            self._signals.received.append(signal.SIGTERM)  # the second one is SIGKILL

    def _report_silences(self) -> None:
        if self._heartbeat is None or not self._begin.is_set():
            return
        for number, seconds in self._heartbeat.silences().items():
            if seconds <= self._lost_after_s:
                self._silent.discard(number)
            elif number not in self._silent:
                self._silent.add(number)
                self._sender.send(silent=number, seconds=round(seconds, 3))

    # ------------------------------------------------------------------------------------------------ after the job

    def deliver(self, plan: NodePlan, shared: bool) -> None:
        """Answer to `collect`, and wait for `bye`; then a folder of this node alone is removed."""
        patience_s = plan.lost_after_s + BYE_TIMEOUT_S
        while not self._bye and not self._receiver.ended and time.monotonic() - self._receiver.heard_at < patience_s:
            message = self._receiver.next(0.2)
            if message is not None and message.get("to", self._number) == self._number:
                self._obey(message)
            if self._collect:
                self._collect = False
                for piece in pieces(plan.run_dir, without=frozenset(plan.files or ())):
                    self._sender.send(**piece)
        if self._bye and not shared:
            shutil.rmtree(plan.run_dir, ignore_errors=True)


def main(argv: list[str]) -> int:
    number = int(os.environ["SLURM_NODEID"]) if argv[0] == SLURM else int(argv[0])
    # Whatever else prints in this process must not come between the lines.
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sender = Sender(out, node=number)
    with ExitStack() as stack:
        signals = stack.enter_context(catching_signals())
        agent = Agent(number, Receiver(sys.stdin.buffer), sender, signals)
        try:
            _serve(agent, sender, signals, stack)
        except (AgprofError, KeyError, TypeError, ValueError) as error:
            sender.send(problem=str(error) if isinstance(error, AgprofError) else f"{type(error).__name__}: {error}")
            return LaunchError.exit_code
    return 0


def _serve(agent: Agent, sender: Sender, signals: Signals, stack: ExitStack) -> None:
    plan = agent.plan()
    folder, shared = find_folder(plan.run_dir, plan.token, plan.number)
    plan = plan.moved_to(folder)
    _prepare_folder(plan)
    port = agent.listen(plan, stack)
    sender.send(hello=1, hostname=socket.gethostname(), shared=shared, folder=str(folder), port=port)
    alive = threading.Event()
    stack.callback(alive.set)
    threading.Thread(target=_say_alive, args=(sender, alive), name="agprof-alive", daemon=True).start()
    if agent.wait_for_begin(plan, stack):
        _run(agent, plan, sender, signals)
        agent.deliver(plan, shared)
    elif not shared:
        shutil.rmtree(folder, ignore_errors=True)


def _say_alive(sender: Sender, ended: threading.Event) -> None:
    while not ended.wait(ALIVE_S) and not sender.broken:
        sender.send(alive=1)


def find_folder(run_dir: Path, token: str, number: int) -> tuple[Path, bool]:
    """Where this node writes, and whether that is the run folder itself. Raises LaunchError.

    Where the coordinator's token is not to be seen, a folder of the same name is made on this node.
    """
    with suppress(OSError):
        if (run_dir / TOKEN_FILE).read_text(encoding="ascii") == token:
            return run_dir, True
    try:
        try:
            run_dir.parent.mkdir(parents=True, exist_ok=True)
            run_dir.mkdir()
            return run_dir, False
        except OSError:  # somebody else's folder of that name, or a file system that can't be written
            return Path(tempfile.mkdtemp(prefix=f"{run_dir.name}-node{number}-")), False
    except OSError as error:
        raise LaunchError(f"node {number} can't make a folder for its part of the run: {error}") from error


def _prepare_folder(plan: NodePlan) -> None:
    try:
        for name in (layout.RANKS, layout.NODES):
            (plan.run_dir / name).mkdir(exist_ok=True)
        for name, text in (plan.files or {}).items():
            partial = plan.run_dir / f".{name}.{plan.number}"
            partial.touch(mode=0o600)  # an environment may hold secrets
            partial.write_text(text, encoding="utf-8")
            partial.replace(plan.run_dir / name)
    except OSError as error:
        raise LaunchError(f"node {plan.number} can't write its run folder: {error}") from error


def _run(agent: Agent, plan: NodePlan, sender: Sender, signals: Signals) -> None:
    """The node's job, from `began` to `ended`."""
    deadlines = Deadlines()
    if plan.more_time_s:
        deadlines = deadlines.with_more(plan.more_time_s)
    launch = plan.launch_plan(os.environ)
    buffers, kills = shm.buffers(), read_kills()
    supervisor: Supervisor | None = None
    with ExitStack() as stack:
        stack.enter_context(adopting_orphans())
        job: Job | None = None
        if plan.argv:
            job = start_job(launch, plan.run_dir, stack, node=plan.number)
            stack.callback(job.end_at_once)
        sampler = SupervisedSampler(
            plan.sampler_argv, plan.run_dir, cwd=plan.cwd, period_s=plan.sampler_period_s, node=plan.number
        )
        stack.callback(sampler.end, 0.0)
        sampler.start()
        sender.send(began=1)
        if job is not None:
            supervisor = Supervisor(job, signals, launch, plan.run_dir, deadlines)
            supervisor.on_first_failure = lambda rank, ended_ns: _tell_failure(sender, signals, rank, ended_ns)
            supervisor.start()
        watch = LogWatch(layout.launcher_log(plan.run_dir, plan.number)) if job and not plan.starts_ranks else None
        while supervisor.is_alive() if supervisor is not None else not agent.ending:
            agent.look(_LOOK_S)
            if watch is not None and (code := watch.failure()) is not None:
                sender.send(failed_code=code)
        if job is not None:
            job.end_at_once()
        if not plan.starts_ranks:
            _end_ranks_of(plan.run_dir)
            with suppress(OSError):
                (plan.run_dir / DS_ENV_FILE).unlink(missing_ok=True)
        sampler_code = sampler.end(deadlines.sampler_s)
    if supervisor is not None and supervisor.problem is not None:
        raise LaunchError(f"node {plan.number} can't watch its ranks: {supervisor.problem}")
    removed = shm.remove_left_behind(buffers, master_ports={plan.master_port})
    memory = host_memory.since(kills)
    notes = [*(supervisor.notes if supervisor is not None else ()), *sampler.notes, *host_memory.notes(memory)]
    if agent.end_reason is not None:
        notes.append(f"the job here was ended: {agent.end_reason}")
    sender.send(
        ended={
            **_verdict(supervisor, plan, launch.launcher),
            "sampler_exit_code": sampler_code,
            "removed_shared_memory": list(removed),
            "memory": asdict(memory),
            "notes": notes,
        }
    )


def _tell_failure(sender: Sender, signals: Signals, rank: int, ended_ns: int) -> None:
    if not signals.received:  # else it was asked to end
        sender.send(failed=rank, ago_ns=time.monotonic_ns() - ended_ns)


class LogWatch:
    """Looks into the log of DeepSpeed's own launcher, which goes on waiting for other nodes when one has failed."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._next = 0.0
        self._told = False

    def failure(self) -> int | None:
        """The exit code of the first failure, once."""
        if self._told or time.monotonic() < self._next:
            return None
        self._next = time.monotonic() + LOG_PERIOD_S
        code = logged_failure(self._log)
        self._told = code is not None
        return code


def _verdict(supervisor: Supervisor | None, plan: NodePlan, launcher: str) -> dict[str, Any]:
    if supervisor is None:
        return {"reason": "finished", "exit_code": 0, "signal": None, "launcher_exit_code": None, "failures": [],
                "verdict_notes": []}  # fmt: skip
    verdict = judge(supervisor.observed(), plan.run_dir, launcher=launcher, node=plan.number)
    return {
        "reason": verdict.reason,
        "exit_code": verdict.exit_code,
        "signal": verdict.signal,
        "launcher_exit_code": verdict.launcher_exit_code,
        "failures": [_failure(failure) for failure in verdict.failures],
        "verdict_notes": list(verdict.notes),
    }


def _failure(failure: RankFailure) -> dict[str, Any]:
    """Its time as an age: clocks of nodes differ, and by more than what lies between two failures."""
    ended = failure.ended_realtime_ns
    return {
        **asdict(replace(failure, ended_realtime_ns=None)),
        "ago_ns": None if ended is None else time.time_ns() - ended,
    }


def _end_ranks_of(run_dir: Path) -> None:
    """End ranks that a launcher started over ssh: they are nobody's here when its connection broke."""
    deadline = time.monotonic() + END_GRACE_S
    number = signal.SIGTERM
    while alive := [pid for pid in processes.pids() if _is_rank_of(pid, run_dir)]:
        processes.send(alive, number)
        if time.monotonic() > deadline + 5:
            return
        if time.monotonic() > deadline:
            number = signal.SIGKILL
        time.sleep(0.1)


def _is_rank_of(pid: int, run_dir: Path) -> bool:
    if pid == os.getpid() or not processes.is_running(pid):
        return False
    variables = processes.environment(pid)
    return variables.get(ENV_RUN_DIR) == str(run_dir) and "RANK" in variables


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
