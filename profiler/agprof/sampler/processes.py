"""The ranks' process trees: found through the run folder, read through psutil."""

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from agprof.errors import StoreError
from agprof.sampler.states import SECOND_NS, Append, States
from agprof.store import layout
from agprof.store.frames import StreamFollower

CHILDREN_PERIOD_NS = 2 * SECOND_NS
CHILDREN_SHARE = 0.003
"""Most of one core that looking for children may take: on a host with thousands of processes it is done less often."""
PSS_PERIOD_NS = 5 * SECOND_NS
PSS_MAX_PERIOD_NS = 60 * SECOND_NS
SLOW_READ_NS = 50_000_000
RESCAN_PERIOD_NS = 10 * SECOND_NS
CLOCK_SLACK_NS = 100_000_000
"""Start times of processes come in clock ticks of 10 ms."""

_GONE = (psutil.NoSuchProcess, ProcessLookupError, FileNotFoundError)
_DENIED = (psutil.AccessDenied, PermissionError)


@dataclass(frozen=True, slots=True)
class Reading:
    """One process at one time; None where it can't be read."""

    cpu_s: float | None
    rss_bytes: int | None
    threads: int | None
    read_bytes: int | None
    write_bytes: int | None
    denied: bool = False


@dataclass(slots=True)
class Tree:
    """A rank's process and its children, with what was read last."""

    rank: int
    pid: int
    process: Any
    header_ns: int
    last_ns: int | None = None
    last: dict[int, Reading] = field(default_factory=dict)
    children: dict[int, Any] = field(default_factory=dict)


class RankTrees:
    """Appends one row of `process_samples` per rank, and one more for its children, per call.

    `source` is the psutil module, `procfs` the functions that read /proc; both have stand-ins in tests.
    """

    def __init__(
        self,
        run: Path,
        node: int,
        append: Append,
        states: States,
        source: Any = psutil,
        procfs: "Procfs | None" = None,
        root_pid: int | None = None,
    ) -> None:
        self._root_pid = root_pid
        self._folder = run / layout.RANKS
        self._node = node
        self._append = append
        self._states = states
        self._source = source
        self._procfs = procfs or Procfs()
        self._trees: dict[int, Tree] = {}
        self._waiting: dict[str, StreamFollower] = {}
        self._seen: set[str] = set()
        self._folder_mtime_ns: int | None = None
        self._rescan_ns = 0
        self._children_due_ns = 0
        self._pss_due_ns = 0
        self._pss_period_ns = PSS_PERIOD_NS

    def sample(self, now_ns: int) -> int:
        """Append the rows. Returns the time spent on PSS, which has its own budget, in ns."""
        self._discover(now_ns)
        if now_ns >= self._children_due_ns and self._trees:
            self._find_children(now_ns)
        with_pss = now_ns >= self._pss_due_ns
        pss_ns = 0
        for tree in list(self._trees.values()):
            try:
                pss_ns += self._sample_tree(tree, now_ns, with_pss)
            except _GONE:
                del self._trees[tree.rank]
                self._states.set(now_ns, f"process.{tree.rank}", "unsupported", f"process {tree.pid} has ended")
        if with_pss and self._trees:
            if pss_ns > SLOW_READ_NS:
                self._pss_period_ns = min(2 * self._pss_period_ns, PSS_MAX_PERIOD_NS)
                self._states.set(now_ns, "process.pss", "slowed", f"reading it took {pss_ns / 1e6:.0f} ms")
            self._pss_due_ns = now_ns + self._pss_period_ns
        return pss_ns

    def pids(self) -> dict[int, tuple[int | None, str]]:
        """Process id -> (rank, `rank` or `child`). May be called from any thread."""
        found: dict[int, tuple[int | None, str]] = {}
        for tree in list(self._trees.values()):
            found[tree.pid] = (tree.rank, "rank")
            found.update((pid, (tree.rank, "child")) for pid in list(tree.children))
        return found

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
        if not isinstance(rank, int) or not isinstance(pid, int) or pid <= 0 or node != self._node:
            return
        clock = header.get("clock")
        clock = clock if isinstance(clock, dict) else {}
        header_ns = clock.get("monotonic_ns") or 0
        known = self._trees.get(rank)
        if known is not None and known.header_ns > header_ns:
            return
        try:
            started_ns = self._procfs.started_boottime_ns(pid)
            process = self._source.Process(pid)
        except _GONE:
            self._states.set(now_ns, f"process.{rank}", "unsupported", f"process {pid} had ended before it was found")
            return
        boottime_ns = clock.get("boottime_ns")
        if isinstance(boottime_ns, int) and started_ns > boottime_ns + CLOCK_SLACK_NS:
            reason = f"process id {pid} belongs to a younger process: the rank has ended"
            self._states.set(now_ns, f"process.{rank}", "unsupported", reason)
            return
        self._trees[rank] = Tree(rank, pid, process, header_ns)
        self._children_due_ns = now_ns
        self._states.set(now_ns, f"process.{rank}", "ok", f"process {pid}")

    def _find_children(self, now_ns: int) -> None:
        begin_ns = time.monotonic_ns()
        by_parent: dict[int, list[int]] = {}
        for pid, parent in self._procfs.parents().items():
            by_parent.setdefault(parent, []).append(pid)
        roots = {tree.pid for tree in self._trees.values()}
        for tree in self._trees.values():
            known, tree.children = tree.children, {}
            queue = list(by_parent.get(tree.pid, ()))
            while queue:
                pid = queue.pop()
                if pid in tree.children or pid in roots:
                    continue
                try:
                    process = known.get(pid)
                    tree.children[pid] = process if process is not None else self._source.Process(pid)
                except _GONE:
                    continue
                queue.extend(by_parent.get(pid, ()))
        cost_ns = time.monotonic_ns() - begin_ns
        self._children_due_ns = now_ns + max(CHILDREN_PERIOD_NS, int(cost_ns / CHILDREN_SHARE))

    def _sample_tree(self, tree: Tree, now_ns: int, with_pss: bool) -> int:
        period_ns = 0 if tree.last_ns is None else now_ns - tree.last_ns
        own = self._read(tree.process)
        if own.denied:
            reason = "the rank belongs to another user: not all of its counters can be read"
            self._states.set(now_ns, f"process.{tree.rank}.io", "unsupported", reason)
        readings: dict[int, Reading] = {}
        for pid, process in list(tree.children.items()):
            try:
                readings[pid] = self._read(process)
            except _GONE:
                del tree.children[pid]
        pss: list[int | None] = [None, None]
        pss_ns = 0
        if with_pss:
            begin_ns = time.monotonic_ns()
            pss = [self._pss(now_ns, tree, [tree.pid]), self._pss(now_ns, tree, readings)]
            pss_ns = time.monotonic_ns() - begin_ns
        self._append_row(tree, now_ns, period_ns, "rank", {tree.pid: own}, pss[0])
        if readings:
            self._append_row(tree, now_ns, period_ns, "worker", readings, pss[1])
        tree.last_ns = now_ns
        tree.last = {tree.pid: own, **readings}
        return pss_ns

    def _read(self, process: Any) -> Reading:
        # is_running compares the time of creation: the number may have gone to another process.
        if not process.is_running():
            raise psutil.NoSuchProcess(process.pid)
        denied = False

        def may_be_denied(function: Callable[[], Any]) -> Any:
            nonlocal denied
            try:
                return function()
            except _DENIED:
                denied = True
                return None

        with process.oneshot():
            # A zombie has no memory and would be shown as 0 bytes.
            if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
                raise psutil.NoSuchProcess(process.pid)
            cpu = may_be_denied(process.cpu_times)
            memory = may_be_denied(process.memory_info)
            threads = may_be_denied(process.num_threads)
            io = may_be_denied(process.io_counters)
        return Reading(
            cpu_s=None if cpu is None else cpu.user + cpu.system,
            rss_bytes=None if memory is None else memory.rss,
            threads=threads,
            read_bytes=None if io is None else io.read_bytes,
            write_bytes=None if io is None else io.write_bytes,
            denied=denied,
        )

    def _pss(self, now_ns: int, tree: Tree, pids: Iterable[int]) -> int | None:
        total: int | None = None
        for pid in pids:
            try:
                total = (total or 0) + self._procfs.pss_bytes(pid)
            except _GONE:
                continue
            except (OSError, ValueError) as error:
                self._states.set(now_ns, f"process.{tree.rank}.pss", "unsupported", f"{type(error).__name__}: {error}")
                return None
        return total

    def _append_row(
        self, tree: Tree, now_ns: int, period_ns: int, role: str, readings: dict[int, Reading], pss_bytes: int | None
    ) -> None:
        def rate(name: str) -> float | None:
            # Over the processes that were there before too: for the others the beginning of the count is not known.
            deltas = []
            for pid, now in readings.items():
                before, value = tree.last.get(pid), getattr(now, name)
                last = None if before is None else getattr(before, name)
                if value is not None and last is not None:
                    if value < last:
                        return None
                    deltas.append(value - last)
            return sum(deltas) * SECOND_NS / period_ns if deltas and period_ns > 0 else None

        def total(name: str) -> int | None:
            values = [getattr(now, name) for now in readings.values()]
            return None if None in values else sum(values)

        self._append(
            "process_samples",
            (
                now_ns,
                period_ns,
                tree.rank,
                role,
                len(readings),
                rate("cpu_s"),
                total("rss_bytes"),
                pss_bytes,
                total("threads"),
                rate("read_bytes"),
                rate("write_bytes"),
                *(None,) * 5,
            ),
        )


class Procfs:
    """What is read from /proc directly, because psutil has no cheap call for it."""

    def __init__(self, root: Path = Path("/proc")) -> None:
        self._root = str(root)
        self._tick_ns = SECOND_NS // os.sysconf("SC_CLK_TCK")

    def started_boottime_ns(self, pid: int) -> int:
        """When the process began, on CLOCK_BOOTTIME. Raises FileNotFoundError or ProcessLookupError."""
        return int(self._stat(pid)[19]) * self._tick_ns

    def parents(self) -> dict[int, int]:
        """Process id -> its parent's, of every process that can be seen."""
        found = {}
        for name in os.listdir(self._root):  # noqa: PTH208
            if name.isdigit():
                try:
                    found[int(name)] = int(self._stat(int(name))[1])
                except OSError:
                    continue
        return found

    def pss_bytes(self, pid: int) -> int:
        """Proportional set size. Raises OSError or ValueError."""
        with open(f"{self._root}/{pid}/smaps_rollup", "rb") as file:  # noqa: PTH123
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
        # A process that is ending has no memory map left.
        raise ProcessLookupError(f"process {pid} has no memory map")

    def _stat(self, pid: int) -> list[bytes]:
        """Fields of /proc/PID/stat from the third (state) on: the second may hold spaces and parentheses."""
        with open(f"{self._root}/{pid}/stat", "rb") as file:  # noqa: PTH123
            return file.read().rpartition(b")")[2].split()
