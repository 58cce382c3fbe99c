"""Runs a job to its end: starts launcher and sampler, watches the ranks, ends what must end, says how it went.

    agprof ── guard ── launcher ── ranks          the guard adopts whatever the launcher loses (see guard.py)
          └── sampler

One thread supervises, so that a slow display never delays the end of a broken job. Linux only.
"""

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import IO

from agprof.errors import LaunchError
from agprof.launch import guard, host_memory, processes, shm
from agprof.launch.folder import write_json
from agprof.launch.judge import Observed, SeenRank, judge
from agprof.launch.nsys import collect_reports, is_undecided, stands_above
from agprof.launch.plan import COMMAND, LaunchPlan
from agprof.launch.streams import AnnouncedRanks, no_rank_note
from agprof.model.outcome import Outcome
from agprof.model.settings import ENV_PASS, ENV_RUN_DIR, ENV_SETTINGS, NSYS_GRACE_S
from agprof.store import layout
from agprof.store.memory_limits import read_kills

TICK_S = 0.25
_SCAN_S = 0.02
"""Pause between looks for new ranks: a rank with a wrong argument lives for 50 ms."""
_CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """How long the stages of an ending may take, in seconds."""

    failure_s: float = 8.0
    """From the first failed rank to SIGKILL for everything."""
    interrupt_s: float = 10.0
    """From the first Ctrl-C (or SIGTERM) to SIGTERM for everything."""
    terminate_s: float = 3.0
    """From there to SIGKILL."""
    gone_s: float = 10.0
    """From SIGKILL until agprof stops waiting for processes that the kernel does not let go."""
    sampler_s: float = 5.0
    """For the sampler to write what it has."""

    def with_more(self, seconds: float) -> "Deadlines":
        """The same for a job that has something to write at its end."""
        return replace(self, failure_s=self.failure_s + seconds, interrupt_s=self.interrupt_s + seconds)


def execute(
    plan: LaunchPlan,
    run_dir: Path,
    *,
    on_tick: Callable[[], None] | None = None,
    deadlines: Deadlines | None = None,
) -> Outcome:
    """Run the job and write `outcome.json`. Returns when no process of it is left.

    `on_tick` is called about four times a second, on the calling thread. Ctrl-C, SIGTERM and SIGHUP are caught
    meanwhile (when called on the main thread) and end the job; the second Ctrl-C ends it at once. Raises LaunchError
    when nothing could be started.
    """
    deadlines = deadlines or Deadlines()
    if plan.nsys is not None:
        deadlines = deadlines.with_more(NSYS_GRACE_S)
    started_ns = time.time_ns()
    buffers = shm.buffers()
    kills_before = read_kills()
    with ExitStack() as stack:
        stack.enter_context(_adopting_orphans())
        signals = stack.enter_context(_catching_signals())
        job = _start(plan, run_dir, stack)
        # Whatever happens in here, also an error of ours, the job ends with this block.
        stack.callback(job.end_at_once)
        sampler = _Sampler(plan, run_dir)
        stack.callback(sampler.end, 0.0)
        supervisor = _Supervisor(job, signals, plan, run_dir, deadlines)
        supervisor.start()
        tick_problem = _tick_until_ended(supervisor, on_tick)
        job.end_at_once()
        sampler_code = sampler.end(deadlines.sampler_s)
        notes = [*plan.shortfall, *supervisor.notes, *sampler.notes]
        if supervisor.problem is not None:
            raise supervisor.problem
    if tick_problem is not None:
        notes.append(f"the live display stopped: {tick_problem}")
    ports = supervisor.master_ports if plan.master_port is None else {plan.master_port}
    removed = shm.remove_left_behind(buffers, master_ports=ports)
    if plan.launcher == COMMAND and ENV_SETTINGS in plan.env:
        notes.extend(no_rank_note(run_dir))
    notes.extend(collect_reports(run_dir))
    memory = host_memory.since(kills_before)
    verdict = judge(supervisor.observed(), run_dir, launcher=plan.launcher)
    outcome = Outcome(
        exit_code=verdict.exit_code,
        reason=verdict.reason,
        started_realtime_ns=started_ns,
        ended_realtime_ns=time.time_ns(),
        failures=verdict.failures,
        signal=verdict.signal,
        launcher_exit_code=verdict.launcher_exit_code,
        sampler_exit_code=sampler_code,
        removed_shared_memory=removed,
        notes=(*notes, *verdict.notes, *host_memory.notes(memory)),
        memory=memory,
    )
    return _write_outcome(run_dir, outcome)


def _tick_until_ended(supervisor: "_Supervisor", on_tick: Callable[[], None] | None) -> str | None:
    problem: str | None = None
    while True:
        supervisor.join(TICK_S)
        if on_tick is not None and problem is None:
            try:
                on_tick()
            except Exception as error:  # a display must not cost the user his job
                problem = f"{type(error).__name__}: {error}"
        if not supervisor.is_alive():
            return problem


# ---------------------------------------------------------------------------------------------------- what is started


class _Job:
    """The guard and everything below it."""

    def __init__(self, process: subprocess.Popen[bytes], status_fd: int) -> None:
        self.process = process
        self.status_fd = status_fd

    @property
    def pid(self) -> int:
        return self.process.pid

    def order(self, letter: str) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(letter.encode())
            self.process.stdin.flush()
        except (OSError, ValueError):
            pass  # the guard is gone, and end_at_once takes over

    def launcher_end(self) -> tuple[int, int] | None:
        """(wait status, monotonic ns) of the launcher, once it ended and the guard could say so."""
        try:
            line = os.read(self.status_fd, 4096)
            value = json.loads(line) if line else None
        except (OSError, ValueError):
            return None
        if value is None or value["status"] is None:
            return None
        return int(value["status"]), int(value["monotonic_ns"])

    def end_at_once(self) -> None:
        """Kill what is left: the guard first told to, then by ourselves, as its adopters."""
        if self.process.stdin is not None and not self.process.stdin.closed:
            try:
                self.process.stdin.close()
            except OSError:
                pass
        try:
            self.process.wait(timeout=guard.LEFTOVER_GRACE_S + 6)
        except subprocess.TimeoutExpired:
            processes.send([*processes.descendants(self.pid), self.pid], signal.SIGKILL)
            self.process.wait(timeout=5)


def _start(plan: LaunchPlan, run_dir: Path, stack: ExitStack) -> _Job:
    log = stack.enter_context(_open_log(run_dir / layout.LAUNCHER_LOG))
    status_read, status_write = os.pipe()
    stack.callback(os.close, status_read)
    os.set_blocking(status_read, False)
    command = [sys.executable, "-P", "-m", "agprof.launch.guard", str(status_write), "--", *plan.argv]
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            # A command may have RANK from outside: the guard is no rank all the same.
            env={**plan.env, ENV_PASS: "1"},
            cwd=plan.cwd,
            # Out of the terminal's foreground group: Ctrl-C reaches agprof alone, which passes it on.
            start_new_session=True,
            pass_fds=(status_write,),
        )
    except OSError as error:
        raise LaunchError(f"{command[0]} could not be started in {plan.cwd}: {error.strerror or error}") from error
    finally:
        os.close(status_write)
    return _Job(process, status_read)


def _open_log(path: Path) -> IO[bytes]:
    try:
        return path.open("ab")
    except OSError as error:
        raise LaunchError(f"{path} can't be written: {error.strerror}; give another folder with --out") from error


class _Sampler:
    """The sampler process. Its failing is a note, never the job's end."""

    def __init__(self, plan: LaunchPlan, run_dir: Path) -> None:
        self.notes: list[str] = []
        self._process: subprocess.Popen[bytes] | None = None
        if plan.sampler_argv is None:
            return
        environment = {**os.environ, ENV_RUN_DIR: str(run_dir)}
        try:
            with (run_dir / layout.SAMPLER_LOG).open("ab") as log:
                self._process = subprocess.Popen(
                    plan.sampler_argv,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    env=environment,
                    cwd=plan.cwd,
                    start_new_session=True,
                )
        except OSError as error:
            self.notes.append(f"the sampler could not be started: {error}")

    def end(self, timeout_s: float) -> int | None:
        """End it by closing its stdin, by force when that takes too long. Its exit code (128 + n for a signal)."""
        process = self._process
        if process is None:
            return None
        if process.stdin is not None and not process.stdin.closed:
            try:
                process.stdin.close()
            except OSError:
                pass
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                process.wait(timeout=timeout_s)
                break
            except subprocess.TimeoutExpired:
                self.notes.append(f"the sampler did not end by itself and was sent {number.name}")
                process.send_signal(number)
                timeout_s = max(timeout_s, 1.0)
        code = process.wait()
        if code != 0 and not self.notes:
            self.notes.append(f"the sampler ended with {code}; see {layout.SAMPLER_LOG}")
        return 128 - code if code < 0 else code


@contextmanager
def _adopting_orphans() -> Iterator[None]:
    """Should the guard itself be killed, its descendants become ours, and end with this block."""
    before = processes.is_child_subreaper()
    already_there = set(processes.descendants(os.getpid()))
    processes.set_child_subreaper(True)
    try:
        yield
    finally:
        processes.end_descendants(os.getpid(), keep=already_there)
        processes.set_child_subreaper(before)


@dataclass(slots=True)
class _Signals:
    received: list[int] = field(default_factory=list)


@contextmanager
def _catching_signals() -> Iterator[_Signals]:
    signals = _Signals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return

    def note(number: int, _frame: FrameType | None) -> None:
        signals.received.append(number)

    before = {number: signal.getsignal(number) for number in _CAUGHT}
    for number, handler in before.items():
        # nohup asks for SIGHUP to be ignored, and it stays so.
        if handler is not signal.SIG_IGN:
            signal.signal(number, note)
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# -------------------------------------------------------------------------------------------------------- supervising


@dataclass(slots=True, kw_only=True)
class _Rank:
    number: int
    local_rank: int | None
    pid: int
    pidfd: int | None
    is_launcher: bool = False
    """It is the process that the guard itself started: the guard's word on its end is the rank's."""
    status: int | None = None
    """Wait status, when it was still to be seen."""
    ended_ns: int | None = None
    """Monotonic."""

    @property
    def failed(self) -> bool:
        return self.status is not None and self.status != 0


class _Supervisor(threading.Thread):
    """Watches the job until the guard ended; ends it when a rank failed or somebody interrupted."""

    def __init__(self, job: _Job, signals: _Signals, plan: LaunchPlan, run_dir: Path, deadlines: Deadlines) -> None:
        super().__init__(name="agprof-supervisor", daemon=True)
        self._job = job
        self._signals = signals
        self._expected = plan.ranks
        """None until a rank of a command tells how many there are on this node."""
        self._foreign = plan.launcher == COMMAND
        self._announced = AnnouncedRanks(run_dir) if self._foreign else None
        self.master_ports: set[int] = set()
        self._deadlines = deadlines
        self._stages: list[tuple[float, str]] = []
        """(monotonic time, order) still to come."""
        self._signals_obeyed = 0
        self._begin = time.monotonic()
        self._next_scan = 0.0
        self._killed_at: float | None = None
        self.ranks: dict[int, _Rank] = {}
        self.notes: list[str] = []
        self.problem: Exception | None = None
        self.interrupted_by: int | None = None
        self.interrupted_ns: int | None = None
        self.guard_code: int | None = None
        self.launcher_end: tuple[int, int] | None = None

    def run(self) -> None:
        try:
            self._run()
        except Exception as error:  # handed to the main thread, which ends the job
            self.problem = error
        finally:
            for rank in self.ranks.values():
                if rank.pidfd is not None:
                    os.close(rank.pidfd)
                    rank.pidfd = None

    @property
    def first_failure(self) -> _Rank | None:
        failed = [rank for rank in self.ranks.values() if rank.failed]
        return min(failed, key=lambda rank: (rank.ended_ns or 0, rank.number), default=None)

    def observed(self) -> Observed:
        """What was seen, once the thread has ended."""
        return Observed(
            ranks=tuple(
                SeenRank(
                    rank=rank.number,
                    local_rank=rank.local_rank,
                    pid=rank.pid,
                    status=rank.status,
                    ended_monotonic_ns=rank.ended_ns,
                )
                for rank in self.ranks.values()
            ),
            interrupted_by=self.interrupted_by,
            interrupted_monotonic_ns=self.interrupted_ns,
            guard_exit_code=self.guard_code,
            launcher_status=self.launcher_end[0] if self.launcher_end else None,
            launcher_ended_monotonic_ns=self.launcher_end[1] if self.launcher_end else None,
        )

    def _run(self) -> None:
        while self._job.process.poll() is None:
            self._find_ranks()
            self._wait()
            self._obey_signals()
            if self._give_up():
                break
        self.guard_code = self._job.process.poll()
        self._note_ended_ranks()
        self.launcher_end = self._job.launcher_end()
        for rank in self.ranks.values():
            if rank.is_launcher and rank.status is None and self.launcher_end is not None:
                rank.status = self.launcher_end[0]

    def _find_ranks(self) -> None:
        """Ranks are the outermost processes below the guard that have RANK in their environment.

        Below a command also those that were armed without it: their streams tell.
        """
        now = time.monotonic()
        if self._all_found() or now < self._next_scan:
            return
        known = {rank.pid for rank in self.ranks.values()}
        below = processes.descendants(self._job.pid)
        for pid in below:
            if pid in known:
                continue
            variables = processes.environment(pid)
            fields = processes.stat_fields(pid)
            if fields is None or not variables.get("RANK", "").isdigit() or is_undecided(variables):
                continue
            parent = int(fields[1])
            # Below the guard itself stands the launcher, which has no RANK, or an orphan that a rank let go and the
            # guard adopted. Only a foreign command may be a rank of its own.
            if not self._foreign if parent == self._job.pid else stands_above(processes.environment(parent)):
                continue
            self._found(int(variables["RANK"]), variables.get("LOCAL_RANK", ""), pid)
            if self._foreign:
                self._learn(variables)
        for rank, pid, world_size in self._announced.poll() if self._announced is not None else ():
            if pid in below and pid not in known and (rank not in self.ranks or self.ranks[rank].pid != pid):
                self._found(rank, "", pid)
                self._expected = self._expected or world_size
        # On a machine with many processes a look takes longer: never more than a tenth of a core.
        spent = time.monotonic() - now
        self._next_scan = now + min(1.0, max(_SCAN_S if now - self._begin < 60 else TICK_S, 10 * spent))

    def _all_found(self) -> bool:
        if self._expected is None or len(self.ranks) < self._expected:
            return False
        # A command may start its ranks again, or one job after the other.
        return not self._foreign or any(rank.ended_ns is None for rank in self.ranks.values())

    def _found(self, number: int, local_rank: str, pid: int) -> None:
        before = self.ranks.get(number)
        if before is not None and (not self._foreign or before.ended_ns is None):
            return
        fields = processes.stat_fields(pid)
        self.ranks[number] = _Rank(
            number=number,
            local_rank=int(local_rank) if local_rank.isdigit() else None,
            pid=pid,
            pidfd=_pidfd(pid),
            is_launcher=fields is not None and int(fields[1]) == self._job.pid,
        )

    def _learn(self, variables: dict[str, str]) -> None:
        """What a rank's environment says of its job."""
        here = variables.get("LOCAL_WORLD_SIZE") or variables.get("LOCAL_SIZE") or variables.get("WORLD_SIZE", "")
        if here.isdigit():
            self._expected = int(here)
        if variables.get("MASTER_PORT", "").isdigit():
            self.master_ports.add(int(variables["MASTER_PORT"]))

    def _wait(self) -> None:
        watched = [rank.pidfd for rank in self.ranks.values() if rank.pidfd is not None]
        timeout = TICK_S if self._all_found() else max(0.0, self._next_scan - time.monotonic())
        # A launcher may wait for its rank at once, and the rank's status is lost then: be quick.
        poll = select.poll()
        for fd in watched:
            poll.register(fd, select.POLLIN)
        poll.poll(min(timeout, TICK_S) * 1000)
        self._note_ended_ranks()
        self._keep_deadlines()

    def _note_ended_ranks(self) -> None:
        had_failed = self.first_failure is not None
        now = time.monotonic_ns()  # of the look: which of two was first within one, nobody saw
        for rank in self.ranks.values():
            if rank.ended_ns is not None or processes.is_running(rank.pid):
                continue
            rank.status = processes.zombie_status(rank.pid)
            if rank.status is None and rank.pidfd is not None:
                rank.status = processes.pidfd_status(rank.pidfd)
            rank.ended_ns = now
            if rank.pidfd is not None:
                os.close(rank.pidfd)
                rank.pidfd = None
        first = self.first_failure
        # What a failed rank means to the others is a command's own affair: it may start them again.
        if first is not None and not had_failed and not self._stages and not self._foreign:
            self._stages.append((time.monotonic() + self._deadlines.failure_s, "K"))

    def _obey_signals(self) -> None:
        while self._signals_obeyed < len(self._signals.received):
            number = self._signals.received[self._signals_obeyed]
            self._signals_obeyed += 1
            if self.interrupted_by is not None:
                self._stages = [(0.0, "K")]
                continue
            self.interrupted_by = number
            self.interrupted_ns = time.monotonic_ns()
            self._job.order("I" if number == signal.SIGINT else "T")
            ask = time.monotonic() + self._deadlines.interrupt_s
            self._stages = [(ask, "A"), (ask + self._deadlines.terminate_s, "K")]
        self._keep_deadlines()

    def _keep_deadlines(self) -> None:
        now = time.monotonic()
        while self._stages and now >= self._stages[0][0]:
            _, order = self._stages.pop(0)
            self._job.order(order)
            if order == "K":
                self._killed_at = now
                self.notes.append("the job did not end by itself in time and was killed")

    def _give_up(self) -> bool:
        return self._killed_at is not None and time.monotonic() - self._killed_at > self._deadlines.gone_s


def _pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except (OSError, AttributeError):
        return None  # an old kernel: ranks are looked at four times a second instead


def _write_outcome(run_dir: Path, outcome: Outcome) -> Outcome:
    try:
        write_json(run_dir / layout.OUTCOME, outcome.to_dict())
    except OSError as error:
        # The job is over and its result is what counts; the caller still has it in hand.
        return replace(outcome, notes=(*outcome.notes, f"{layout.OUTCOME} could not be written: {error.strerror}"))
    return outcome
