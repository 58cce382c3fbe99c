"""Runs a command as a shell would, with the sampler beside it and nothing in it.

The command keeps the terminal, the environment and the process group of agprof. What the terminal sends (Ctrl-C)
reaches both; what somebody sends to agprof alone is passed on.
"""

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from agprof.config.monitor import MonitorSection
from agprof.errors import LaunchError
from agprof.launch import host_memory, processes
from agprof.launch.execute import write_outcome
from agprof.launch.plan import sampler_argv
from agprof.launch.sampler import SupervisedSampler
from agprof.model.outcome import CommandUsage, Outcome, Reason
from agprof.store.memory_limits import read_kills

LOOK_S = 0.25
SAMPLER_END_S = 5.0
_FROM_KERNEL = 0x80
"""si_code SI_KERNEL: the terminal sent it, to every process of its foreground group."""
_ENDING = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
_PASSED_ON = _ENDING | {signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}


@dataclass(slots=True)
class _Command:
    pid: int
    own_peak_bytes: int
    """Highest resident set of agprof when it started the command."""
    status: int | None = None
    """Wait status, once it ended."""
    usage: CommandUsage | None = None
    asked_to_end: list[int] = field(default_factory=list)
    """Signals to end it that came in."""

    def has_ended(self) -> bool:
        if self.status is None:
            pid, status, used = os.wait4(self.pid, os.WNOHANG)
            if pid:
                self.status = status
                peak = used.ru_maxrss * 1024
                # A process inherits this peak from the one that forked it, and keeps it over exec.
                known = peak if peak > 1.05 * self.own_peak_bytes else None
                self.usage = CommandUsage(cpu_s=round(used.ru_utime + used.ru_stime, 6), peak_rss_bytes=known)
        return self.status is not None

    def pass_on(self, number: int, sent_by_terminal: bool) -> None:
        if number in _ENDING:
            self.asked_to_end.append(number)
        try:
            if not sent_by_terminal or os.getpgid(self.pid) != os.getpgrp():
                os.kill(self.pid, number)
        except ProcessLookupError:
            pass


def run_monitored(command: Sequence[str], run_dir: Path, monitor: MonitorSection) -> Outcome:
    """Run `command` to its end, sampled, and write `outcome.json`. To be called on the main thread.

    Raises LaunchError when it can't be started. Nothing that the command leaves running is ended.
    """
    started_ns = time.time_ns()
    kills_before = read_kills()
    with _holding_signals() as before:
        # First the command: as long as this process has one thread, code between fork and exec is safe.
        process = _start(command, before)
        job = _Command(process.pid, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
        argv = sampler_argv(monitor, run_dir, sys.executable, root_pid=process.pid)
        sampler = SupervisedSampler(argv, run_dir, cwd=Path.cwd(), period_s=monitor.period_s)
        try:
            sampler.start()
            _wait(job)
            ended_ns = time.time_ns()
            sampler_code = sampler.end(SAMPLER_END_S)
        finally:
            sampler.end(0.0)
            process.returncode = 0 if job.status is not None else None  # waited for above
    assert job.status is not None
    memory = host_memory.since(kills_before)
    exit_code, killed_by = processes.shell_code(job.status)
    asked = job.asked_to_end[0] if job.asked_to_end else None
    outcome = Outcome(
        exit_code=exit_code,
        reason=_reason(exit_code, killed_by, asked),
        started_realtime_ns=started_ns,
        ended_realtime_ns=ended_ns,
        failures=(),
        signal=killed_by or (processes.signal_name(asked) if asked is not None else None),
        sampler_exit_code=sampler_code,
        notes=(*sampler.notes, *host_memory.notes(memory)),
        memory=memory,
        usage=job.usage,
    )
    return write_outcome(run_dir, outcome)


def _start(command: Sequence[str], mask: set[int]) -> "subprocess.Popen[bytes]":
    try:
        return subprocess.Popen(
            list(command),
            preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, mask),  # noqa: PLW1509
        )
    except OSError as error:
        how = error.strerror or str(error)
        if error.errno == errno.ENOEXEC:
            how = "it has no format that the kernel can execute: begin a script with #!"
        raise LaunchError(f"{command[0]!r} can't be executed: {how}") from error
    except ValueError as error:
        raise LaunchError(f"{command[0]!r} can't be executed: {error}") from error


def _wait(job: _Command) -> None:
    watched = _PASSED_ON | {signal.SIGCHLD}
    while not job.has_ended():
        told = signal.sigtimedwait(watched, LOOK_S)
        if told is not None and told.si_signo != signal.SIGCHLD:
            job.pass_on(told.si_signo, told.si_code == _FROM_KERNEL)
    # What ended the command may have come to both, and not yet been seen here.
    while (told := signal.sigtimedwait(_PASSED_ON, 0)) is not None:
        if told.si_signo in _ENDING:
            job.asked_to_end.append(told.si_signo)


@contextmanager
def _holding_signals() -> Iterator[set[int]]:
    """Signals wait until they are asked for; gives the mask of before. Threads begun meanwhile hold them too."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON | {signal.SIGCHLD})
    try:
        yield {int(number) for number in before}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _reason(exit_code: int, killed_by: str | None, asked: int | None) -> Reason:
    if exit_code == 0:
        return "finished"
    if asked is not None:
        return "interrupted"
    return "killed" if killed_by is not None else "failed"
