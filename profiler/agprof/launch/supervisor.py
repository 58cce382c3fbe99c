"""Watches a job's ranks from a thread of its own, and ends what must end."""

import os
import select
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from agprof.launch import processes
from agprof.launch.interrupts import Signals
from agprof.launch.job import Job
from agprof.launch.judge import Observed, SeenRank
from agprof.launch.nsys import is_undecided, stands_above
from agprof.launch.plan import COMMAND, LaunchPlan
from agprof.launch.streams import AnnouncedRanks

TICK_S = 0.25
_SCAN_S = 0.02
"""Pause between looks for new ranks: a rank with a wrong argument lives for 50 ms."""


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


class Supervisor(threading.Thread):
    """Watches the job until the guard ended; ends it when a rank failed or somebody interrupted."""

    def __init__(self, job: Job, signals: Signals, plan: LaunchPlan, run_dir: Path, deadlines: Deadlines) -> None:
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
        self.on_first_failure: Callable[[int, int], None] = lambda rank, ended_ns: None
        """Told the first rank that failed and its end (monotonic), on this thread, as it is seen. Must not raise."""
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
        if first is not None and not had_failed:
            self.on_first_failure(first.number, first.ended_ns or now)
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
