"""How a job ended."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Reason = Literal["finished", "failed", "killed", "interrupted", "launch-failed", "node-lost"]
"""finished: every rank ended with 0. failed: a rank ended with another code. killed: a rank, or the launcher, ended by
a signal that nobody asked agprof for. interrupted: Ctrl-C, SIGTERM or SIGHUP to agprof ended the job. launch-failed:
the launcher ended before any rank ran. node-lost: a node of several was not heard of any more."""

NODE_LOST_EXIT_CODE = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class RankFailure:
    """A rank that did not end with 0."""

    rank: int
    local_rank: int | None
    pid: int | None
    exit_code: int | None
    """As a shell gives it: 128 + n when signal n ended the rank. None when nobody saw it."""
    signal: str | None
    """SIGKILL, SIGSEGV ...; None when the rank ended by itself."""
    ended_realtime_ns: int | None
    stopped: bool
    """Ended by the launcher or by agprof because the job was ending: a consequence, not a cause."""
    last_lines: tuple[str, ...]
    """The end of its stderr."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostMemory:
    """What the kernel says of host memory on the node that launched: its limit, and whom it killed during the run."""

    limit_bytes: int | None
    limit: str | None
    """What sets it: cgroup | host."""
    cgroup_kills: int | None
    """Processes of the job's cgroup that were killed for want of memory; None: no such counter."""
    host_kills: int | None
    """The same of the whole machine; others' processes too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandUsage:
    """What the kernel counted for a command and those of its descendants that were waited for (getrusage)."""

    cpu_s: float
    """CPU time, user and system."""
    peak_rss_bytes: int | None
    """Highest resident set of the largest of these processes, not their sum. None: no more than agprof's own, which
    the kernel counts for whatever agprof starts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeEnd:
    """How a job on several nodes ended on one of them."""

    number: int
    host: str
    """As the setup calls it."""
    address: str
    hostname: str | None
    """As the node calls itself; None when it never said."""
    reason: str | None
    """As `Outcome.reason`, of this node's launcher alone; None when it never said."""
    exit_code: int | None
    lost: str | None
    """Why it counts as lost, in words; None: it does not."""
    files: str
    """shared: it wrote into the run folder itself. collected: its files were sent. partly, missing: some or all of
    them never came. none: there were none."""
    sampler_exit_code: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a job ended, as `outcome.json` keeps it."""

    exit_code: int
    """What `agprof run` exits with: the first failed rank's code, 128 + n for signals, 3 for launch-failed, 6 for
    node-lost."""
    reason: Reason
    started_realtime_ns: int
    ended_realtime_ns: int
    failures: tuple[RankFailure, ...]
    """The first one is the cause; those behind it are ordered by time."""
    signal: str | None = None
    """The signal that interrupted the job, or that killed it."""
    launcher_exit_code: int | None = None
    sampler_exit_code: int | None = None
    """None when no sampler ran."""
    removed_shared_memory: tuple[str, ...] = ()
    """Names under /dev/shm that the job left behind and that were removed."""
    notes: tuple[str, ...] = ()
    """What else there is to say about the end, in sentences."""
    memory: HostMemory | None = None
    """None in outcomes of before there was this."""
    usage: CommandUsage | None = None
    """Of a command under `agprof monitor`."""
    nodes: tuple[NodeEnd, ...] = ()
    """Of a job on several nodes."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_dict(value: Mapping[str, Any]) -> "Outcome":
        """Read what `to_dict` gave, also after a round through JSON. Raises TypeError or KeyError on anything else."""
        data = dict(value)
        data["failures"] = tuple(
            RankFailure(**{**failure, "last_lines": tuple(failure["last_lines"])}) for failure in data["failures"]
        )
        for key in ("removed_shared_memory", "notes"):
            data[key] = tuple(data.get(key, ()))
        memory = data.get("memory")
        data["memory"] = None if memory is None else HostMemory(**memory)
        usage = data.get("usage")
        data["usage"] = None if usage is None else CommandUsage(**usage)
        data["nodes"] = tuple(NodeEnd(**node) for node in data.get("nodes", ()))
        return Outcome(**data)
