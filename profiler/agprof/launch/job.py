"""The processes of a job: the guard, and everything below it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from agprof.errors import LaunchError
from agprof.launch import guard, processes
from agprof.launch.plan import LaunchPlan
from agprof.model.settings import ENV_PASS
from agprof.store import layout


class Job:
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


def start_job(plan: LaunchPlan, run_dir: Path, stack: ExitStack, *, node: int = 0) -> Job:
    log = stack.enter_context(_open_log(layout.launcher_log(run_dir, node)))
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
    return Job(process, status_read)


def _open_log(path: Path) -> IO[bytes]:
    try:
        return path.open("ab")
    except OSError as error:
        raise LaunchError(f"{path} can't be written: {error.strerror}; give another folder with --out") from error


@contextmanager
def adopting_orphans() -> Iterator[None]:
    """Should the guard itself be killed, its descendants become ours, and end with this block."""
    before = processes.is_child_subreaper()
    already_there = set(processes.descendants(os.getpid()))
    processes.set_child_subreaper(True)
    try:
        yield
    finally:
        processes.end_descendants(os.getpid(), keep=already_there)
        processes.set_child_subreaper(before)
