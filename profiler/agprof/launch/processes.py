"""Linux processes: who descends from whom, how one ended, and ending all of them. Standard library only."""

import ctypes
import fcntl
import os
import signal
import struct
import time
from collections.abc import Callable, Iterable
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PR_GET_CHILD_SUBREAPER = 37
_PROC = Path("/proc")
# struct pidfd_info of linux/pidfd.h in its first version: mask, cgroup, eleven ids, exit code.
_PIDFD_INFO = struct.Struct("QQ11Ii")
_PIDFD_INFO_EXIT = 1 << 3
_PIDFD_GET_INFO = (3 << 30) | (_PIDFD_INFO.size << 16) | (0xFF << 8) | 11  # _IOWR(0xFF, 11, struct pidfd_info)


def _prctl(option: int, argument: object) -> bool:
    try:
        return bool(ctypes.CDLL(None, use_errno=True).prctl(option, argument, 0, 0, 0) == 0)
    except (OSError, AttributeError):
        return False


def set_parent_death_signal(number: int) -> bool:
    """Have the kernel send this process a signal when the thread that started it ends."""
    return _prctl(_PR_SET_PDEATHSIG, number)


def set_child_subreaper(on: bool) -> bool:
    """Make orphaned descendants children of this process instead of init's."""
    return _prctl(_PR_SET_CHILD_SUBREAPER, int(on))


def is_child_subreaper() -> bool:
    value = ctypes.c_int(0)
    return _prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(value)) and bool(value.value)


def stat_fields(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the third on (state, ppid, ...); None when there is no such process."""
    try:
        text = (_PROC / str(pid) / "stat").read_bytes().decode("utf-8", "replace")
    except OSError:
        return None
    # The second field is the command in brackets and may hold anything, brackets too.
    return text[text.rfind(")") + 2 :].split()


def is_running(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    fields = stat_fields(pid)
    return fields is not None and fields[0] not in "ZX"


def zombie_status(pid: int) -> int | None:
    """The wait status of a process that ended and that its parent has not yet waited for; else None."""
    fields = stat_fields(pid)
    if fields is None or fields[0] not in "ZX" or len(fields) < 50:
        return None
    return int(fields[49])


def pidfd_status(pidfd: int) -> int | None:
    """The wait status of a process that its parent has waited for already, from a pidfd opened before that.

    None where the kernel can't tell (before Linux 6.15), or the process has not been waited for.
    """
    info = bytearray(_PIDFD_INFO.size)
    _PIDFD_INFO.pack_into(info, 0, _PIDFD_INFO_EXIT, 0, *[0] * 12)
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, info)
    except OSError:
        return None
    mask, *_, status = _PIDFD_INFO.unpack(info)
    return int(status) if mask & _PIDFD_INFO_EXIT else None


def shell_code(status: int) -> tuple[int, str | None]:
    """(exit code as a shell gives it, signal's name or None) of a wait status."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return 128 + number, signal_name(number)
    return os.WEXITSTATUS(status), None


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def environment(pid: int) -> dict[str, str]:
    """The environment a process was started with; {} when it can't be read."""
    try:
        data = (_PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return {}
    pairs = (entry.partition(b"=") for entry in data.split(b"\0") if entry)
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}


def pids() -> list[int]:
    return [int(entry) for entry in os.listdir(_PROC) if entry.isdigit()]  # noqa: PTH208


def descendants(root: int) -> list[int]:
    """Every living process below `root`, parents first, zombies left out."""
    children: dict[int, list[int]] = {}
    for pid in pids():
        fields = stat_fields(pid)
        # A zombie has no children: they were given to a reaper when it ended.
        if fields is not None and fields[0] not in "ZX":
            children.setdefault(int(fields[1]), []).append(pid)
    found: list[int] = []
    queue = [root]
    while queue:
        below = children.get(queue.pop(0), [])
        found.extend(below)
        queue.extend(below)
    return found


def send(targets: Iterable[int], number: int) -> None:
    """Signal each process; those that are gone meanwhile are passed over."""
    for pid in targets:
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            pass


def reap(keep: Iterable[int] = ()) -> None:
    """Wait for ended children of this process that are zombies, but not for those in `keep`."""
    kept = set(keep)
    own = os.getpid()
    for pid in pids():
        fields = stat_fields(pid)
        if fields is not None and fields[0] == "Z" and int(fields[1]) == own and pid not in kept:
            try:
                os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                pass


def end_descendants(
    root: int,
    *,
    keep: Iterable[int] = (),
    grace_s: float = 0.0,
    limit_s: float = 5.0,
    hurry: Callable[[], bool] = lambda: False,
) -> list[int]:
    """End every process below `root`: SIGTERM, `grace_s` later SIGKILL. Returns those alive after `limit_s`.

    `keep` and what is below them are left alone. `hurry` is asked now and then: true ends the grace. Repeats, because
    a process may fork while it is being killed.
    """
    begin = time.monotonic()
    told: set[int] = set()
    while True:
        kept = {pid for top in keep for pid in (top, *descendants(top))}
        alive = [pid for pid in descendants(root) if pid not in kept]
        waited = time.monotonic() - begin
        if not alive or waited > grace_s + limit_s:
            return alive
        if waited < grace_s and hurry():
            grace_s = 0.0
        if waited < grace_s:
            send([pid for pid in alive if pid not in told], signal.SIGTERM)
            told.update(alive)
        else:
            send(alive, signal.SIGKILL)
        if root == os.getpid():
            reap(kept)
        time.sleep(0.02)
