"""The process between agprof and the launcher: nothing that the job started outlives it.

    python -m agprof.launch.guard STATUS_FD -- launcher's argv

It adopts every descendant of the launcher (PR_SET_CHILD_SUBREAPER), also those with a session of their own. Its stdin
is a pipe that agprof holds: a byte is an order, and its end means that agprof is gone, so that the job ends too when
agprof was killed with SIGKILL.

    I, T    SIGINT, SIGTERM to the launcher's process group
    A       SIGTERM to every descendant
    K       SIGKILL to every descendant

When the launcher has ended, one line of JSON goes to STATUS_FD: its wait status and the monotonic time; what it left
behind is ended, and the guard exits with the launcher's code (128 + n for a signal).
"""

import json
import os
import select
import signal
import subprocess
import sys
import time

from agprof.launch import processes
from agprof.model.settings import ENV_PASS

LEFTOVER_GRACE_S = 2.0
NOT_STARTED = 127


def main(argv: list[str]) -> int:
    status_fd, command = int(argv[0]), argv[2:]
    os.environ.pop(ENV_PASS, None)  # where no bootstrap did
    os.set_inheritable(status_fd, False)
    processes.set_child_subreaper(True)
    wake, woken = os.pipe()
    for end in (wake, woken):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    ordered_to_end: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: ordered_to_end.append(number))
    try:
        launcher = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            # This process has one thread, so that code between fork and exec is safe.
            preexec_fn=lambda: processes.set_parent_death_signal(signal.SIGKILL),  # noqa: PLW1509
        )
    except OSError as error:
        print(f"agprof: the launcher could not be started: {error}", file=sys.stderr)
        return NOT_STARTED
    status = _supervise(launcher.pid, wake, ordered_to_end)
    line = json.dumps({"status": status, "monotonic_ns": time.monotonic_ns()}) + "\n"
    try:
        os.write(status_fd, line.encode())
    except OSError:
        pass  # agprof is gone
    grace_s = LEFTOVER_GRACE_S if status is not None else 0.0
    processes.end_descendants(os.getpid(), grace_s=grace_s, hurry=_told_to_kill)
    launcher.returncode = 0  # waited for above; keeps Popen from asking again
    return processes.shell_code(status)[0] if status is not None else 128 + signal.SIGKILL


def _supervise(launcher: int, wake: int, ordered_to_end: list[int]) -> int | None:
    """Wait for the launcher; its wait status, or None when the job is to end at once."""
    control = sys.stdin.fileno()
    while True:
        readable, _, _ = select.select([control, wake], [], [], 1.0)
        if wake in readable:
            try:
                os.read(wake, 4096)
            except BlockingIOError:
                pass
        status = _reap(launcher)
        if status is not None:
            return status
        if ordered_to_end:
            return None
        if control in readable:
            orders = os.read(control, 64)
            if not orders or b"K" in orders:
                return None
            for order in orders:
                _obey(chr(order), launcher)


def _told_to_kill() -> bool:
    control = sys.stdin.fileno()
    if not select.select([control], [], [], 0)[0]:
        return False
    orders = os.read(control, 64)
    return not orders or b"K" in orders


def _obey(order: str, launcher: int) -> None:
    if order == "A":
        processes.send(processes.descendants(os.getpid()), signal.SIGTERM)
        return
    try:
        os.killpg(launcher, signal.SIGINT if order == "I" else signal.SIGTERM)
    except ProcessLookupError:
        pass


def _reap(launcher: int) -> int | None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return None
        if pid == 0:
            return None
        if pid == launcher:
            return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
