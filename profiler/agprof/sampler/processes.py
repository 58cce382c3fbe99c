"""The process trees of the ranks, and of the command of `agprof monitor`: found, and read once per second."""

import os
import resource
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agprof.errors import StoreError
from agprof.sampler.families import Families, Key
from agprof.sampler.process_files import GONE, ProcessFiles, Reading, may_be_unnamed_loader, pss_bytes
from agprof.sampler.process_rows import row_of
from agprof.sampler.states import SECOND_NS, Append, States
from agprof.store import layout
from agprof.store.frames import StreamFollower

CHILDREN_PERIOD_NS = 2 * SECOND_NS
CHILDREN_SHARE = 0.003
"""Most of one core that looking for children may take: on a host with thousands of processes it is done less often."""
PSS_PERIOD_NS = 5 * SECOND_NS
PSS_SHARE = 0.0005
"""Of one core: the kernel walks through all pages of a process for its PSS, 5 ms for one that has imported torch."""
RESCAN_PERIOD_NS = 10 * SECOND_NS
CLOCK_SLACK_NS = 100_000_000
"""Start times of processes come in clock ticks of 10 ms."""
DESCRIPTORS_PER_PROCESS = 4
OTHER_DESCRIPTORS = 200
LOOKS_AT_PROGRAM = 2
"""A process that was just forked may be about to become another program: its command line is looked at again."""

_TICK_NS = SECOND_NS // os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Child:
    """A process below a root."""

    files: ProcessFiles
    may_be_loader: bool = False
    looks: int = 0


@dataclass(slots=True)
class Tree:
    """A rank's process, or the command of `agprof monitor`, and its children, with what was read last."""

    key: Key
    pid: int
    files: ProcessFiles
    header_ns: int
    last_ns: int | None = None
    pss_ns: int = 0
    """When PSS was read last."""
    last: dict[int, Reading] = field(default_factory=dict)
    children: dict[int, Child] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of its fields in sampler_state."""
        return f"process.{'command' if self.key is None else self.key}"

    def close(self) -> None:
        self.files.close()
        for child in self.children.values():
            child.files.close()


class RankTrees:
    """Appends one row of `process_samples` per rank, and one more for its children, per call.

    `root_pid` is the command of `agprof monitor`: its tree has rank None, and leaves ranks below it out. `root` is
    where /proc lies.
    """

    def __init__(
        self,
        run: Path,
        node: int,
        append: Append,
        states: States,
        root_pid: int | None = None,
        root: Path = Path("/"),
    ) -> None:
        self._folder = run / layout.RANKS
        self._node = node
        self._append = append
        self._states = states
        self._procfs = str(root / "proc")
        self._root_pid = root_pid
        self._families = Families(run, self._procfs)
        self._trees: dict[Key, Tree] = {}
        self._pids: Mapping[int, tuple[Key, str]] = {}
        self._waiting: dict[str, StreamFollower] = {}
        self._seen: set[str] = set()
        self._folder_mtime_ns: int | None = None
        self._rescan_ns = 0
        self._children_due_ns = 0
        self._pss_due_ns = 0
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._kept_open = max(0, limit - OTHER_DESCRIPTORS) // DESCRIPTORS_PER_PROCESS

    def pids(self) -> Mapping[int, tuple[Key, str]]:
        """Process id -> (rank, `rank` or `child`), as of the last look. Not changed later: for any thread."""
        return self._pids

    def sample(self, now_ns: int) -> int:
        """Append the rows. Returns the time spent on PSS, which has its own budget, in ns."""
        if self._root_pid is not None:
            pid, self._root_pid = self._root_pid, None
            self._take(now_ns, None, pid, 0, None)
        self._discover(now_ns)
        if now_ns >= self._children_due_ns and self._trees:
            self._find_children(now_ns)
        pss_ns = 0
        with_pss = self._next_for_pss(now_ns)
        for tree in list(self._trees.values()):
            try:
                pss_ns += self._sample_tree(tree, now_ns, tree is with_pss)
            except GONE:
                self._lose(tree)
                self._states.set(now_ns, tree.name, "unsupported", f"process {tree.pid} has ended")
        return pss_ns

    # -- finding ranks -------------------------------------------------------------------------------------------------

    def _discover(self, now_ns: int) -> None:
        try:
            mtime_ns = self._folder.stat().st_mtime_ns
            # The folder's time has the grain of a clock tick, or of a network file system's cache: look again anyway.
            if mtime_ns != self._folder_mtime_ns or now_ns >= self._rescan_ns:
                self._rescan_ns = now_ns + RESCAN_PERIOD_NS
                recent = abs(time.time_ns() - mtime_ns) < 2 * SECOND_NS
                self._folder_mtime_ns = None if recent else mtime_ns
                self._take_names(sorted(os.listdir(self._folder)))  # noqa: PTH208
        except FileNotFoundError:
            return
        for name, follower in list(self._waiting.items()):
            try:
                header = follower.read_header()
            except StoreError as error:
                del self._waiting[name]
                self._states.set(now_ns, f"process.{name}", "unsupported", str(error))
                continue
            if header is not None or follower.damage is not None:
                del self._waiting[name]
            if header is not None:
                self._adopt(now_ns, header)

    def _take_names(self, names: Iterable[str]) -> None:
        for name in names:
            if name.endswith(layout.SUFFIX) and name not in self._seen:
                self._seen.add(name)
                self._waiting[name] = StreamFollower(self._folder / name)

    def _adopt(self, now_ns: int, header: dict[str, Any]) -> None:
        rank, pid, node = header.get("rank"), header.get("pid"), header.get("node", 0)
        if type(rank) is not int or type(pid) is not int or pid <= 0 or node != self._node:
            return
        clock = header.get("clock")
        clock = clock if isinstance(clock, dict) else {}
        header_ns, boottime_ns = clock.get("monotonic_ns"), clock.get("boottime_ns")
        self._take(now_ns, rank, pid, header_ns if isinstance(header_ns, int) else 0, boottime_ns)

    def _take(self, now_ns: int, key: Key, pid: int, header_ns: int, boottime_ns: Any) -> None:
        """Make this process the root of a tree, unless a younger attempt of the same rank is there."""
        known = self._trees.get(key)
        if known is not None and known.header_ns > header_ns:
            return
        name = f"process.{'command' if key is None else key}"
        try:
            files = ProcessFiles(self._procfs, pid)
        except GONE:
            self._states.set(now_ns, name, "unsupported", f"process {pid} had ended before it was found")
            return
        if isinstance(boottime_ns, int) and files.start_ticks * _TICK_NS > boottime_ns + CLOCK_SLACK_NS:
            files.close()
            reason = f"process id {pid} belongs to a younger process: the rank has ended"
            self._states.set(now_ns, name, "unsupported", reason)
            return
        if known is not None and known.pid == pid and known.files.start_ticks == files.start_ticks:
            # The same process with another program in it (os.execv): its counters go on.
            files.close()
            known.header_ns = header_ns
            return
        if known is not None:
            self._lose(known)
        self._trees[key] = Tree(key, pid, files, header_ns)
        self._families.add(pid, key)
        self._children_due_ns = now_ns
        self._states.set(now_ns, name, "ok", f"process {pid}")

    def _lose(self, tree: Tree) -> None:
        tree.close()
        del self._trees[tree.key]
        self._families.remove(tree.key)
        self._publish()

    # -- finding children ----------------------------------------------------------------------------------------------

    def _find_children(self, now_ns: int) -> None:
        begin_ns = time.monotonic_ns()
        self._families.scan()
        for tree in self._trees.values():
            self._renew_children(tree)
        self._publish()
        cost_ns = time.monotonic_ns() - begin_ns
        self._children_due_ns = now_ns + max(CHILDREN_PERIOD_NS, int(cost_ns / CHILDREN_SHARE))

    def _renew_children(self, tree: Tree) -> None:
        found = self._families.children(tree.key)
        for pid in tree.children.keys() - found:
            tree.children.pop(pid).files.close()
        for pid in sorted(found):
            child = tree.children.get(pid)
            if child is None:
                try:
                    child = tree.children[pid] = Child(ProcessFiles(self._procfs, pid))
                except (*GONE, ValueError, IndexError):
                    self._families.forget(pid)
                    continue
            if child.looks < LOOKS_AT_PROGRAM:
                child.looks += 1
                child.may_be_loader = may_be_unnamed_loader(self._procfs, pid, self._families.parent(pid))

    def _publish(self) -> None:
        found: dict[int, tuple[Key, str]] = {}
        for tree in self._trees.values():
            found.update((pid, (tree.key, "child")) for pid in tree.children)
            found[tree.pid] = (tree.key, "rank")
        self._pids = found

    # -- reading -------------------------------------------------------------------------------------------------------

    def _sample_tree(self, tree: Tree, now_ns: int, with_pss: bool) -> int:
        period_ns = 0 if tree.last_ns is None else now_ns - tree.last_ns
        own = self._read(tree.files)
        if tree.files.denied:
            reason = "the rank belongs to another user: not all of its counters can be read"
            self._states.set(now_ns, f"{tree.name}.io", "unsupported", reason)
        readings: dict[int, Reading] = {}
        for pid, child in list(tree.children.items()):
            try:
                readings[pid] = self._read(child.files)
            except GONE:
                child.files.close()
                del tree.children[pid]
                self._families.forget(pid)
        pss: list[int | None] = [None, None]
        spent_ns = 0
        if with_pss:
            begin_ns = time.thread_time_ns()
            pss = [self._pss(now_ns, tree, [tree.pid]), self._pss(now_ns, tree, readings)]
            spent_ns = time.thread_time_ns() - begin_ns
            self._plan_pss(tree, now_ns, spent_ns)
        mine = {tree.pid: own}
        self._append("process_samples", row_of(now_ns, period_ns, tree.key, "rank", mine, tree.last, pss[0], False))
        if readings:
            unclear = any(child.may_be_loader for child in tree.children.values())
            row = row_of(now_ns, period_ns, tree.key, "worker", readings, tree.last, pss[1], unclear)
            self._append("process_samples", row)
        tree.last_ns = now_ns
        tree.last = mine | readings
        return spent_ns

    def _next_for_pss(self, now_ns: int) -> Tree | None:
        """The tree whose PSS is the oldest, when its turn has come; one per sample, so that none takes long."""
        oldest = min(self._trees.values(), key=lambda tree: tree.pss_ns, default=None)
        if oldest is None or now_ns < max(self._pss_due_ns, oldest.pss_ns + PSS_PERIOD_NS):
            return None
        return oldest

    def _plan_pss(self, tree: Tree, now_ns: int, spent_ns: int) -> None:
        """No PSS of any tree is read until the time spent is no more than its share."""
        tree.pss_ns = now_ns
        self._pss_due_ns = now_ns + int(spent_ns / PSS_SHARE)
        round_ns = len(self._trees) * int(spent_ns / PSS_SHARE)
        if round_ns > PSS_PERIOD_NS:
            reason = f"reading it of one tree takes {spent_ns / 1e6:.0f} ms: each has it about every "
            self._states.set(now_ns, "process.pss", "slowed", f"{reason}{round_ns / SECOND_NS:.0f} s")

    def _read(self, files: ProcessFiles) -> Reading:
        reading = files.read()
        if len(self._pids) > self._kept_open:
            files.close()
        return reading

    def _pss(self, now_ns: int, tree: Tree, pids: Iterable[int]) -> int | None:
        total: int | None = None
        for pid in pids:
            try:
                total = (total or 0) + pss_bytes(self._procfs, pid)
            except GONE:
                continue
            except (OSError, ValueError) as error:
                self._states.set(now_ns, f"{tree.name}.pss", "unsupported", f"{type(error).__name__}: {error}")
                return None
        return total
