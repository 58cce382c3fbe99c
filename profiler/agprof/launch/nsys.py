"""Ranks under `nsys profile`: the command that holds them, and what became of their reports.

    launcher ── rank's process = holder ── nsys ── the rank

The bootstrap of a rank turns its process into the holder (`launch.nsys_rank`), whatever launcher started it, so that no
launcher's command line has to be rewritten and every rank has nsys directly above it.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from agprof.config.workload import Workload
from agprof.model.format import format_value
from agprof.model.settings import ENV_NSYS, ENV_UNDER_NSYS, NSYS_HOLDER, NsysRun, NsysSettings
from agprof.store import layout

CAPTURE_RANGE = "agprof.capture"
"""The NVTX range by which a rank without a GPU tells nsys what to capture; `instruments.nsys` opens it."""
DOMAIN = "agprof"
GPU_TRACE = ("cuda", "nvtx", "osrt", "cublas", "cudnn")
CPU_TRACE = ("nvtx", "osrt")


@dataclass(frozen=True, slots=True, kw_only=True)
class NsysHere:
    """What a plan must know of this machine."""

    program: Path
    gpu: bool
    """The ranks will find a GPU."""


def sees_gpu(has_gpu: bool, env: Mapping[str, str]) -> bool:
    """Whether ranks with this environment use the machine's GPUs."""
    hidden = env.get("CUDA_VISIBLE_DEVICES")
    return has_gpu and (hidden is None or hidden.strip() not in {"", "-1", "NoDevFiles"})


def nsys_settings(workload: Workload, *, gpu: bool) -> NsysSettings | None:
    """What the instruments of each rank are told; None without `nsys:`."""
    section = workload.nsys
    if section is None:
        return None
    if section.steps is None:
        return NsysSettings(by="whole", first_step=0, steps=0)
    return NsysSettings(by=_told_by(section.trace, gpu), first_step=section.first_step, steps=section.steps)


def nsys_run(workload: Workload, here: NsysHere) -> NsysRun:
    """What the holder of each rank is told. `workload.nsys` is set."""
    section = workload.nsys
    assert section is not None
    trace = section.trace if section.trace is not None else (GPU_TRACE if here.gpu else CPU_TRACE)
    # Sampling and context switches off: with them nsys 2022.4 hung for ever at the end of some runs.
    words = [str(here.program), "profile", f"--trace={','.join(trace)}", "--sample=none", "--cpuctxsw=none"]
    if section.steps is not None:
        words += _capture(_told_by(section.trace, here.gpu))
    words += ["--wait=primary", *section.args]
    return NsysRun(
        arguments=tuple(words),
        ranks=None if section.ranks is None else tuple(section.ranks),
        timeout_s=section.timeout_s,
    )


def _told_by(trace: list[str] | None, gpu: bool) -> Literal["nvtx", "cuda"]:
    return "cuda" if gpu and (trace is None or "cuda" in trace) else "nvtx"


def _capture(by: Literal["nvtx", "cuda"]) -> list[str]:
    # The default end, stop-shutdown, sends the rank a SIGTERM.
    if by == "cuda":
        return ["--capture-range=cudaProfilerApi", "--capture-range-end=stop"]
    return ["--capture-range=nvtx", f"--nvtx-capture={CAPTURE_RANGE}@{DOMAIN}", "--capture-range-end=stop"]


def is_undecided(variables: Mapping[str, str]) -> bool:
    """Whether a process with this environment and a rank will go under nsys, or stands above one that is."""
    if ENV_NSYS not in variables or not variables.get("RANK", "").isdigit():
        return False
    role = variables.get(ENV_UNDER_NSYS)
    if role is not None:
        return role == NSYS_HOLDER
    try:
        return NsysRun.from_json(variables[ENV_NSYS]).includes(int(variables["RANK"]))
    except (ValueError, TypeError, KeyError):
        return False


def stands_above(variables: Mapping[str, str]) -> bool:
    """Whether a process with this environment is a rank, so that its children are none; nsys above a rank is not."""
    return "RANK" in variables and variables.get(ENV_UNDER_NSYS) != NSYS_HOLDER


# ------------------------------------------------------------------------------------------------------ after the run


def collect_reports(run_dir: Path) -> list[str]:
    """Remove what holders that were killed left half done, and say what nsys cost and left, in sentences.

    Called when no process of the job is left. Empty when no rank was held by nsys.
    """
    for unfinished in (run_dir / layout.NSYS).glob(".rank-*"):
        with suppress(OSError):
            unfinished.unlink()
    told = list(_told(run_dir))
    if not told:
        return []
    notes = []
    reports = [row for row in told if row.get("report")]
    if reports:
        notes.append(_cost_note(reports))
        notes.append(
            f"{layout.NSYS}/ holds {len(reports)} nsys report{'s' if len(reports) > 1 else ''}; a report carries the "
            "environment of the rank and may carry that of other processes, secrets too: look before you share it"
        )
    for row in told:
        if row.get("problem"):
            notes.append(f"rank {row.get('rank')}: {row['problem']}")
    return notes


def _told(run_dir: Path) -> Iterator[dict[str, Any]]:
    for path in sorted((run_dir / layout.NSYS).glob("rank-*.json")):
        with suppress(OSError, ValueError):
            row = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(row, dict):
                yield row


def _cost_note(rows: list[dict[str, Any]]) -> str:
    begin = _most(rows, "started_ns", "rank_started_ns")
    end = _most(rows, "rank_ended_ns", "ended_ns")
    words = [f"{begin} before a rank began" if begin else "", f"{end} after its end" if end else ""]
    ranks = "rank 0" if len(rows) == 1 and rows[0].get("rank") == 0 else f"{len(rows)} ranks"
    return f"nsys held {ranks}; it took at most {' and '.join(filter(None, words)) or 'an unknown time'}"


def _most(rows: list[dict[str, Any]], begin: str, end: str) -> str | None:
    spans = [row[end] - row[begin] for row in rows if isinstance(row.get(begin), int) and isinstance(row.get(end), int)]
    return format_value(max(spans), "ns") if spans else None
