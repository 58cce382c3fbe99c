"""Runs a job to its end: starts launcher and sampler, watches the ranks, ends what must end, says how it went.

    agprof ── guard ── launcher ── ranks          the guard adopts whatever the launcher loses (see guard.py)
          └── sampler

One thread supervises, so that a slow display never delays the end of a broken job. Linux only.
"""

import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Any

from agprof.errors import LaunchError
from agprof.launch import guard, processes, shm
from agprof.launch.plan import LaunchPlan
from agprof.model.outcome import Outcome, RankFailure, Reason
from agprof.model.settings import ENV_RUN_DIR
from agprof.store import layout

TICK_S = 0.25
LAST_LINES = 20
_SCAN_S = 0.1
_CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_DEEPSPEED_END = re.compile(r"\[launch\.py:\d+:\w+\] .* exits with return code = (-?\d+)\s*$", re.MULTILINE)


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
    started_ns = time.time_ns()
    buffers = shm.buffers()
    with ExitStack() as stack:
        stack.enter_context(_adopting_orphans())
        signals = stack.enter_context(_catching_signals())
        job = _start(plan, run_dir, stack)
        # Whatever happens in here, also an error of ours, the job ends with this block.
        stack.callback(job.end_at_once)
        sampler = _Sampler(plan, run_dir)
        stack.callback(sampler.end, 0.0)
        supervisor = _Supervisor(job, signals, plan, deadlines)
        supervisor.start()
        tick_problem = _tick_until_ended(supervisor, on_tick)
        job.end_at_once()
        sampler_code = sampler.end(deadlines.sampler_s)
        notes = [*supervisor.notes, *sampler.notes]
        if supervisor.problem is not None:
            raise supervisor.problem
    if tick_problem is not None:
        notes.append(f"the live display stopped: {tick_problem}")
    removed = shm.remove_left_behind(buffers, master_port=plan.master_port)
    outcome = _judge(
        plan,
        run_dir,
        supervisor,
        started_ns=started_ns,
        sampler_code=sampler_code,
        removed=removed,
        notes=notes,
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
            env=dict(plan.env),
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
    status: int | None = None
    """Wait status, when it was still to be seen."""
    ended_ns: int | None = None
    """Monotonic."""

    @property
    def failed(self) -> bool:
        return self.status is not None and self.status != 0


class _Supervisor(threading.Thread):
    """Watches the job until the guard ended; ends it when a rank failed or somebody interrupted."""

    def __init__(self, job: _Job, signals: _Signals, plan: LaunchPlan, deadlines: Deadlines) -> None:
        super().__init__(name="agprof-supervisor", daemon=True)
        self._job = job
        self._signals = signals
        self._expected = plan.ranks
        self._deadlines = deadlines
        self._stages: list[tuple[float, str]] = []
        """(monotonic time, order) still to come."""
        self._signals_obeyed = 0
        self._begin = time.monotonic()
        self._last_scan = 0.0
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

    def _find_ranks(self) -> None:
        """Ranks are the outermost processes below the guard that have RANK in their environment."""
        now = time.monotonic()
        pause = _SCAN_S if now - self._begin < 60 else 1.0
        if len(self.ranks) >= self._expected or now - self._last_scan < pause:
            return
        self._last_scan = now
        known = {rank.pid for rank in self.ranks.values()}
        for pid in processes.descendants(self._job.pid):
            if pid in known:
                continue
            variables = processes.environment(pid)
            fields = processes.stat_fields(pid)
            if fields is None or not variables.get("RANK", "").isdigit():
                continue
            if "RANK" in processes.environment(int(fields[1])):
                continue
            number, local = int(variables["RANK"]), variables.get("LOCAL_RANK", "")
            if number not in self.ranks:
                self.ranks[number] = _Rank(
                    number=number, local_rank=int(local) if local.isdigit() else None, pid=pid, pidfd=_pidfd(pid)
                )

    def _wait(self) -> None:
        watched = [rank.pidfd for rank in self.ranks.values() if rank.pidfd is not None]
        timeout = TICK_S if len(self.ranks) >= self._expected else _SCAN_S
        # A launcher may wait for its rank at once, and the rank's status is lost then: be quick.
        poll = select.poll()
        for fd in watched:
            poll.register(fd, select.POLLIN)
        poll.poll(timeout * 1000)
        self._note_ended_ranks()
        self._keep_deadlines()

    def _note_ended_ranks(self) -> None:
        had_failed = self.first_failure is not None
        for rank in self.ranks.values():
            if rank.ended_ns is not None or processes.is_running(rank.pid):
                continue
            rank.status = processes.zombie_status(rank.pid)
            rank.ended_ns = time.monotonic_ns()
            if rank.pidfd is not None:
                os.close(rank.pidfd)
                rank.pidfd = None
        first = self.first_failure
        if first is not None and not had_failed and not self._stages:
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


# ------------------------------------------------------------------------------------------------------------ judging


@dataclass(frozen=True, slots=True)
class _Ended:
    """A rank's end, from whoever saw it."""

    rank: int
    local_rank: int | None
    pid: int | None
    code: int | None
    signal: str | None
    monotonic_ns: int | None


def _judge(
    plan: LaunchPlan,
    run_dir: Path,
    seen: _Supervisor,
    *,
    started_ns: int,
    sampler_code: int | None,
    removed: tuple[str, ...],
    notes: list[str],
) -> Outcome:
    launcher_code, launcher_signal, launcher_ns = None, None, None
    if seen.launcher_end is not None:
        launcher_code, launcher_signal = processes.shell_code(seen.launcher_end[0])
        launcher_ns = seen.launcher_end[1]
    ended = _failed_ranks(plan, run_dir, seen, launcher_code)
    reason, code, signal_ = _verdict(seen, ended, launcher_code, launcher_signal, launcher_ns, notes)
    return Outcome(
        exit_code=code,
        reason=reason,
        started_realtime_ns=started_ns,
        ended_realtime_ns=time.time_ns(),
        failures=tuple(
            _rank_failure(run_dir, end, first=position == 0 and reason in {"failed", "killed"} and code == end.code)
            for position, end in enumerate(ended)
        ),
        signal=signal_,
        launcher_exit_code=launcher_code,
        sampler_exit_code=sampler_code,
        removed_shared_memory=removed,
        notes=tuple(notes),
    )


def _failed_ranks(plan: LaunchPlan, run_dir: Path, seen: _Supervisor, launcher_code: int | None) -> list[_Ended]:
    """Ranks that did not end with 0, the first one first: our own eyes, then torchrun's, then DeepSpeed's log."""
    told = {row["rank"]: row for row in _read_failures(run_dir)}
    ended: list[_Ended] = []
    for rank in seen.ranks.values():
        row = told.get(rank.number, {})
        if rank.status is not None:
            code, name = processes.shell_code(rank.status)
        elif row:
            code, name = row.get("exitcode"), row.get("signal")
        else:
            # Nobody saw it: it is a failure only when the job as a whole was one.
            code, name = (None, None) if launcher_code != 0 else (0, None)
        if code != 0:
            ended.append(_Ended(rank.number, rank.local_rank, rank.pid, code, name, rank.ended_ns))
    for number, row in told.items():
        if number not in seen.ranks:
            ended.append(
                _Ended(number, row.get("local_rank"), row.get("pid"), row.get("exitcode"), row.get("signal"), None)
            )
    # Ranks that died before they were found carry no time of ours, and died before any other.
    ended.sort(key=lambda end: (end.monotonic_ns is not None, end.monotonic_ns or 0, end.rank))
    if ended and ended[0].code is None and plan.launcher == "deepspeed":
        code, name = _deepspeed_code(run_dir)
        first = ended[0]
        ended[0] = _Ended(first.rank, first.local_rank, first.pid, code, name, first.monotonic_ns)
    return ended


def _verdict(
    seen: _Supervisor,
    ended: list[_Ended],
    launcher_code: int | None,
    launcher_signal: str | None,
    launcher_ns: int | None,
    notes: list[str],
) -> tuple[Reason, int, str | None]:
    first = ended[0] if ended else None
    if seen.interrupted_by is not None:
        before = first is not None and first.monotonic_ns is not None and seen.interrupted_ns is not None
        if not before or first.monotonic_ns > seen.interrupted_ns:  # type: ignore[union-attr,operator]
            name = processes.signal_name(seen.interrupted_by)
            return "interrupted", 128 + seen.interrupted_by, name
    if launcher_signal is not None and (first is None or _is_after(first, launcher_ns)):
        notes.append(f"the launcher was ended by {launcher_signal}, and its ranks with it")
        return "killed", launcher_code or 1, launcher_signal
    if first is not None:
        code = first.code if first.code is not None else launcher_code
        return ("killed" if first.signal else "failed"), code or 1, first.signal
    if launcher_code == 0:
        return "finished", 0, None
    if launcher_code is None:
        code = seen.guard_code if seen.guard_code is not None else 1
        if code == guard.NOT_STARTED:
            return "launch-failed", LaunchError.exit_code, None
        notes.append("the process that guards the launcher was ended from outside")
        return "killed", 128 + signal.SIGKILL, "SIGKILL"
    if seen.ranks:
        return "failed", launcher_code, None
    deepspeed_code, name = _deepspeed_code_from(seen, launcher_code)
    if deepspeed_code is not None:
        return ("killed" if name else "failed"), deepspeed_code, name
    notes.append(f"the launcher ended with {launcher_code} before any rank ran; see {layout.LAUNCHER_LOG}")
    return "launch-failed", LaunchError.exit_code, None


def _is_after(end: _Ended, launcher_ns: int | None) -> bool:
    return launcher_ns is not None and end.monotonic_ns is not None and end.monotonic_ns > launcher_ns
