"""What `agprof top` reads: a run folder that may still grow, or a folder that a sampler of its own fills."""

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agprof.analysis.live_findings import live_findings
from agprof.analysis.live_node import LiveNode
from agprof.cli.progress import RunFollower, duration
from agprof.cli.top_screen import Frame
from agprof.errors import StoreError
from agprof.store import layout
from agprof.store.clocks import read_clocks
from agprof.store.frames import StreamFollower

FRESH_S = 15.0
"""A run without an outcome whose newest stream grew within so many seconds is taken to be running."""
_LEAVES = "q or Ctrl-C leaves; the job goes on · "
SAME_BOOT_NS = 1_000_000_000


class NodeFollower:
    """Follows the node streams of a run folder."""

    def __init__(self, run: Path) -> None:
        self._folder = run / layout.NODES
        self._followers: dict[Path, StreamFollower] = {}
        self.nodes: dict[int, LiveNode] = {}

    def poll(self) -> None:
        """Take in what came since the last call; a stream that can't be read is left alone from then on."""
        for path in sorted(self._folder.glob(f"*{layout.SUFFIX}")):
            self._followers.setdefault(path, StreamFollower(path))
        for path, follower in list(self._followers.items()):
            try:
                batches = list(follower.poll())
            except (StoreError, OSError):
                del self._followers[path]
                continue
            if follower.header is None:
                continue
            number = follower.header.get("node", 0)
            node = self.nodes.setdefault(number, LiveNode(number))
            node.host_name = str(follower.header.get("host", ""))
            for table, rows in batches:
                node.fold(table, rows)

    def clock(self) -> dict[str, Any]:
        """The clocks in the header of the first stream; {} before there is one."""
        for follower in self._followers.values():
            if follower.header is not None and isinstance(follower.header.get("clock"), dict):
                return dict(follower.header["clock"])
        return {}


class RunWatch:
    """A run folder, as frames."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._ranks = RunFollower(run)
        self._nodes = NodeFollower(run)
        self._manifest = _json(run / layout.MANIFEST)
        self._total = _total_steps(self._manifest)
        self.outcome: dict[str, Any] | None = None

    def poll(self) -> None:
        """Read what is new."""
        # First: an outcome that is there now means that everything was written before.
        self.outcome = _json(self._run / layout.OUTCOME) or None
        self._ranks.poll()
        self._nodes.poll()

    def frame(self) -> Frame:
        """The newest state."""
        ranks = [self._ranks.ranks[rank] for rank in sorted(self._ranks.ranks)]
        nodes = [self._nodes.nodes[node] for node in sorted(self._nodes.nodes)]
        running = self.outcome is None
        now_ns = time.monotonic_ns() if running and self._is_here() else None
        return Frame(
            title=self._run.name,
            status=self._status(),
            ranks=ranks,
            nodes=nodes,
            findings=live_findings(ranks, nodes, now_ns),
            total_steps=self._total,
            world_size=self._ranks.world_size,
            waiting="waiting for ranks to begin" if running else "no rank began",
            footer=f"{_LEAVES if running else ''}all of it: agprof show {self._run.name}",
        )

    def _status(self) -> str:
        if self.outcome is not None:
            code = self.outcome.get("exit_code")
            return "ended well" if code == 0 else f"ended: exit code {code}"
        began = self._nodes.clock().get("realtime_ns")
        if not isinstance(began, int):
            return "starting"
        seconds = max(0.0, (time.time_ns() - began) / 1e9)
        return f"running {duration(seconds)}" if is_fresh(self._run) else f"began {duration(seconds)} ago, silent"

    def _is_here(self) -> bool:
        """Whether the ranks' monotonic clock is ours: the difference to the wall clock is the same."""
        theirs = self._nodes.clock()
        if not all(isinstance(theirs.get(name), int) for name in ("realtime_ns", "monotonic_ns")):
            return False
        ours = read_clocks()
        apart: int = (ours["realtime_ns"] - ours["monotonic_ns"]) - (theirs["realtime_ns"] - theirs["monotonic_ns"])
        return abs(apart) < SAME_BOOT_NS


class MachineWatch:
    """This machine without a job, as frames: read from the folder that a sampler fills."""

    def __init__(self, folder: Path) -> None:
        self._nodes = NodeFollower(folder)
        self.outcome: dict[str, Any] | None = None

    def poll(self) -> None:
        """Read what is new."""
        self._nodes.poll()

    def frame(self) -> Frame:
        """The newest state."""
        nodes = [self._nodes.nodes[node] for node in sorted(self._nodes.nodes)]
        return Frame(
            title="this machine",
            status="no job",
            ranks=(),
            nodes=nodes,
            findings=live_findings((), nodes, time.monotonic_ns()),
            waiting="" if nodes else "taking the first sample",
            footer="q or Ctrl-C leaves",
        )


@contextmanager
def watching_machine() -> Iterator[MachineWatch]:
    """A sampler of our own, in a process that ends with this block, writing into a folder that goes with it."""
    import sys

    from agprof.config.monitor import MonitorSection
    from agprof.launch.plan import sampler_argv
    from agprof.launch.sampler import SupervisedSampler

    with tempfile.TemporaryDirectory(prefix="agprof-top-") as name:
        folder = Path(name)
        sampler = SupervisedSampler(sampler_argv(MonitorSection(), folder, sys.executable), folder, cwd=Path.cwd())
        sampler.start()
        try:
            yield MachineWatch(folder)
        finally:
            sampler.end(2.0)


def running_run(out: Path) -> Path | None:
    """The newest run under `out` that seems to run; None when there is none."""
    try:
        runs = [folder for folder in out.iterdir() if (folder / layout.MANIFEST).is_file()]
    except OSError:
        return None
    alive = [run for run in runs if not (run / layout.OUTCOME).exists() and is_fresh(run)]
    return max(alive, key=lambda run: (run / layout.MANIFEST).stat().st_mtime, default=None)


def is_fresh(run: Path) -> bool:
    """Whether something was written into the run just now."""
    times = []
    for path in (run / layout.MANIFEST, *run.glob(f"{layout.RANKS}/*"), *run.glob(f"{layout.NODES}/*")):
        try:
            times.append(path.stat().st_mtime)
        except OSError:
            continue
    return bool(times) and time.time() - max(times) < FRESH_S


def _total_steps(manifest: dict[str, Any]) -> int | None:
    value: object = manifest
    for key in ("workload", "profile", "total_steps"):
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
