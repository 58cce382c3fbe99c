"""What the instruments inside a rank are told, passed as JSON in one environment variable."""

import json
from dataclasses import asdict, dataclass
from typing import Literal

ENV_RUN_DIR = "AGPROF_RUN_DIR"
ENV_SETTINGS = "AGPROF_SETTINGS"
ENV_HOME = "AGPROF_HOME"
"""The source root of the agprof package, appended to sys.path where agprof is not installed."""
ENV_RANK_PID = "AGPROF_RANK_PID"
"""Process id of the rank. Set by the bootstrap, inherited by children, which therefore stay unarmed."""
ENV_NODE = "AGPROF_NODE"
"""Number of the node, from 0."""
ENV_FOREIGN = "AGPROF_FOREIGN"
"""Set below a command that agprof did not make itself: a process without RANK may be a rank there. FOREIGN_OPEN until
one is; then its process id, so that its children stay unarmed."""
FOREIGN_OPEN = "open"
ENV_PASS = "AGPROF_PASS"
"""The one process that is given it is none of the job's; it takes it out of its environment."""
ENV_NSYS = "AGPROF_NSYS_RUN"
"""How a rank is put under nsys: `NsysRun` as JSON. The bootstrap of a rank obeys it."""
ENV_UNDER_NSYS = "AGPROF_UNDER_NSYS"
"""Set below the process that holds nsys for a rank: UNDER_NSYS in the rank itself and its children, NSYS_HOLDER in
what stands above it, NSYS_FAILED in a rank that runs without nsys because nsys did not start it."""
ENV_NSYS_STARTED = "AGPROF_NSYS_STARTED"
"""The file in which a rank under nsys leaves its process id for its holder; it takes it out of its environment."""
UNDER_NSYS = "rank"
NSYS_GRACE_S = 15
"""Seconds more that a job under nsys may take to end, for the reports, when a rank failed or somebody interrupted."""
NSYS_HOLDER = "holder"
NSYS_FAILED = "failed"

Level = Literal["off", "light", "default"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KinetoSettings:
    """A Kineto trace of some steps of some ranks."""

    first_step: int = 5
    """Optimizer step at whose begin the profiler is prepared."""
    warmup: int = 1
    """Steps in which it is prepared and keeps nothing."""
    active: int = 3
    """Steps that it records."""
    ranks: tuple[int, ...] = (0,)
    shapes: bool = False
    stacks: bool = False
    memory: bool = False

    @property
    def last_step(self) -> int:
        """The last step that is recorded."""
        return self.first_step + self.warmup + self.active - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class NsysSettings:
    """Which steps a rank under nsys has captured, and by what nsys is told."""

    by: Literal["nvtx", "cuda", "whole"] = "nvtx"
    """nvtx: a range of ours; cuda: cudaProfilerStart and -Stop; whole: nobody tells, everything is captured."""
    first_step: int = 5
    steps: int = 3

    @property
    def last_step(self) -> int:
        """The last step that is captured."""
        return self.first_step + self.steps - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class NsysRun:
    """How the holder of a rank runs `nsys profile`."""

    arguments: tuple[str, ...]
    """nsys, `profile` and its options, without output and program."""
    ranks: tuple[int, ...] | None
    """Ranks that run under nsys; None: every one."""
    timeout_s: float
    """Seconds from the end of the rank to the end of nsys."""

    def includes(self, rank: int) -> bool:
        return self.ranks is None or rank in self.ranks

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> "NsysRun":
        """Read what `to_json` wrote. Raises ValueError, TypeError or KeyError on anything else."""
        values = json.loads(text)
        ranks = values["ranks"]
        return NsysRun(
            arguments=tuple(values["arguments"]),
            ranks=None if ranks is None else tuple(ranks),
            timeout_s=float(values["timeout_s"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class InstrumentSettings:
    """Settings of the instruments. The defaults are those of a run with `profile:` left out."""

    level: Level = "default"
    profile_step: int | None = 4
    """Optimizer step in which every operation is looked at (FLOPs, memory); None switches it off."""
    flush_period_s: float = 0.25
    capture_output: bool = True
    """Redirect the rank's stdout and stderr into the run folder."""
    nvtx: bool = True
    flight_recorder: bool = True
    total_steps: int | None = None
    """Optimizer steps the job will run, when known: for the ETA only."""
    kineto: KinetoSettings | None = None
    """None: no Kineto trace."""
    nsys: NsysSettings | None = None
    """None: no nsys."""

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> "InstrumentSettings":
        """Read what `to_json` wrote. Raises ValueError or TypeError on anything else."""
        values = json.loads(text)
        if values.get("kineto") is not None:
            kineto = values["kineto"]
            values["kineto"] = KinetoSettings(**{**kineto, "ranks": tuple(kineto["ranks"])})
        if values.get("nsys") is not None:
            values["nsys"] = NsysSettings(**values["nsys"])
        return InstrumentSettings(**values)
