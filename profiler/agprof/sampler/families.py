"""Which processes belong to which rank: by descent, and by their environment where descent was lost.

/proc is listed every two seconds, and each process is looked at once, when it is new: a host has thousands that are
none of ours. What was found to belong to a rank stays with it when its parent ends. A daemon, whose parent had ended
before it was seen, is known by what it inherited: AGPROF_RUN_DIR and its rank.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from agprof.model.settings import ENV_FOREIGN, ENV_RANK_PID, ENV_RUN_DIR
from agprof.sampler.process_files import Stat, parse_stat

LOOK_AGAIN_SHARE = 15
"""One in so many of the known processes is looked at again in each scan: its number may have gone to another."""
MAX_DEPTH = 200
RANK_NAMES = ("RANK", "HOROVOD_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
"""What launchers call a rank's number, the ones that the instruments know first (`instruments.place`)."""
_KERNEL_THREADS = 2
"""Their parent, and its own number."""
_ENVIRONMENT_BYTES = 2**20

Key = int | None
"""A rank; None: the command of `agprof monitor`."""


class Claim(NamedTuple):
    """What a process without a root above it has inherited."""

    key: Key
    root: int | None
    """Process id of the rank, which the instruments put into the environment of what the rank starts."""


class Families:
    """The processes below each of some roots. A process that is a root itself belongs to no other."""

    def __init__(self, run: Path, procfs: str) -> None:
        self._run = os.path.realpath(run)
        self._procfs = procfs
        self._roots: dict[int, Key] = {}
        self._parents: dict[int, int] = {}
        self._starts: dict[int, int] = {}
        self._owners: dict[int, Key] = {}
        self._claims: dict[int, Claim] = {}
        self._unasked: set[int] = set()
        self._to_look_again: list[int] = []
        self._roots_changed = False

    def add(self, pid: int, key: Key) -> None:
        """Make `pid` the root of `key`, in place of the one before."""
        self.remove(key)
        self._roots[pid] = key
        self._owners.pop(pid, None)
        self._roots_changed = True

    def remove(self, key: Key) -> None:
        """What belongs to this root belongs to none, or to the one above it, from the next scan on."""
        roots = [pid for pid, each in self._roots.items() if each == key]
        for pid in roots:
            del self._roots[pid]
        if roots:
            self._owners = {pid: owner for pid, owner in self._owners.items() if owner != key}
            self._roots_changed = True

    def forget(self, pid: int) -> None:
        """This process has ended; its number is a new one if it is seen again."""
        for known in (self._parents, self._starts, self._owners, self._claims):
            known.pop(pid, None)
        self._unasked.discard(pid)

    def scan(self) -> None:
        """Look at what is new. Raises OSError when /proc can't be listed."""
        present = {int(name) for name in os.listdir(self._procfs) if name.isdigit()}  # noqa: PTH208
        for pid in self._parents.keys() - present:
            self.forget(pid)
        self._look_again()
        new = present - self._parents.keys()
        for pid in new:
            self._look(pid)
        changed, self._roots_changed = self._roots_changed, False
        candidates = (set(self._parents) if changed else new | self._unasked) - self._roots.keys()
        self._assign(candidates)
        self._ask([pid for pid in candidates if pid not in self._owners and pid in self._unasked])
        # What a daemon started comes after the daemon itself.
        self._assign(pid for pid in candidates if pid not in self._owners)

    def children(self, key: Key) -> set[int]:
        """Everything below this root as of the last scan, without the root."""
        return {pid for pid, owner in self._owners.items() if owner == key}

    def parent(self, pid: int) -> int | None:
        """The parent that this process had when it was seen first."""
        return self._parents.get(pid)

    def _look(self, pid: int) -> None:
        stat = self._stat(pid)
        if stat is not None and not stat.ended:
            self._parents[pid] = stat.parent
            self._starts[pid] = stat.start_ticks
            if _KERNEL_THREADS not in (pid, stat.parent):
                self._unasked.add(pid)

    def _look_again(self) -> None:
        if not self._to_look_again:
            self._to_look_again = list(self._starts)
        for _ in range(len(self._starts) // LOOK_AGAIN_SHARE + 1):
            if not self._to_look_again:
                break
            pid = self._to_look_again.pop()
            known = self._starts.get(pid)
            stat = None if known is None else self._stat(pid)
            if stat is None or stat.ended or stat.start_ticks != known:
                self.forget(pid)

    def _stat(self, pid: int) -> Stat | None:
        try:
            with open(f"{self._procfs}/{pid}/stat", "rb", buffering=0) as file:  # noqa: PTH123
                return parse_stat(file.read(4096))
        except (OSError, ValueError, IndexError):
            return None

    def _assign(self, pids: Iterable[int]) -> None:
        keys = set(self._roots.values())
        above = self._above_roots()
        for pid in list(pids):
            found, key = self._owner_of(pid, keys, above)
            if found:
                self._owners[pid] = key
                self._unasked.discard(pid)
            else:
                self._owners.pop(pid, None)

    def _owner_of(self, pid: int, keys: set[Key], above: set[int]) -> tuple[bool, Key]:
        """(whether it belongs to a root, whose). The nearest root above it; else what it has belonged to before."""
        kept: tuple[bool, Key] = (False, None)
        step: int | None = pid
        for _ in range(MAX_DEPTH):
            if step is None:
                break
            if step in self._roots:
                return True, self._roots[step]
            # A launcher may have a rank's number too, its own among launchers: it belongs to none of what it starts.
            if step not in above:
                claim = self._claims.get(step)
                if claim is not None and claim.root in self._roots:
                    return True, self._roots[claim.root]
                if claim is not None and claim.key in keys:
                    return True, claim.key
                if not kept[0] and step in self._owners:
                    kept = True, self._owners[step]
            step = self._parents.get(step)
        return kept

    def _above_roots(self) -> set[int]:
        above: set[int] = set()
        for root in self._roots:
            step = self._parents.get(root)
            while step is not None and step not in above:
                above.add(step)
                step = self._parents.get(step)
        return above

    def _ask(self, pids: list[int]) -> None:
        """Read the environment of processes without a root above them, once each."""
        for pid in pids:
            environment = self._environment(pid)
            # Empty for a moment while a program takes another's place: then it is asked again.
            if environment != b"":
                self._unasked.discard(pid)
            claim = self._claim(environment or b"")
            if claim is not None and pid != os.getpid():
                self._claims[pid] = claim

    def _environment(self, pid: int) -> bytes | None:
        try:
            with open(f"{self._procfs}/{pid}/environ", "rb", buffering=0) as file:  # noqa: PTH123
                return file.read(_ENVIRONMENT_BYTES)
        except OSError:
            return None

    def _claim(self, environment: bytes) -> Claim | None:
        if ENV_RUN_DIR.encode() not in environment:
            return None
        pairs = (pair.partition(b"=") for pair in environment.split(b"\0"))
        values = {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}
        if os.path.realpath(values.get(ENV_RUN_DIR, "")) != self._run:
            return None
        ranks = (_number(values.get(name)) for name in RANK_NAMES)
        roots = (_number(values.get(name)) for name in (ENV_RANK_PID, ENV_FOREIGN))
        return Claim(
            key=next((rank for rank in ranks if rank is not None), None),
            root=next((pid for pid in roots if pid is not None), None),
        )


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() and text.isascii() and len(text) < 19 else None
