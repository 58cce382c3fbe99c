"""From what was seen of a job's end to its verdict: which rank was first, and what the exit code is.

A command's own exit code stands whatever its ranks ended with.

Three witnesses, in this order: our own look at each rank as it ended, torchrun's `failures.json` (written by
`launch.elastic`), and the last line of DeepSpeed's launcher in `launcher.log`.
"""

import json
import re
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agprof.errors import LaunchError
from agprof.launch import guard
from agprof.launch.plan import COMMAND
from agprof.launch.processes import shell_code, signal_name
from agprof.model.outcome import RankFailure, Reason
from agprof.store import layout

LAST_LINES = 20
_TAIL_BYTES = 16384
_DEEPSPEED_END = re.compile(r"\[launch\.py:\d+:\w+\] .* exits with return code = (-?\d+)\s*$", re.MULTILINE)
_STOPPING = frozenset({"SIGTERM", "SIGKILL", "SIGINT"})


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenRank:
    """A rank as the supervisor saw it."""

    rank: int
    local_rank: int | None
    pid: int
    status: int | None
    """Wait status; None when its launcher had waited for it before we could look."""
    ended_monotonic_ns: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What the supervisor saw of a job."""

    ranks: tuple[SeenRank, ...]
    interrupted_by: int | None
    interrupted_monotonic_ns: int | None
    guard_exit_code: int | None
    launcher_status: int | None
    """Wait status; None when the launcher was killed together with everything else."""
    launcher_ended_monotonic_ns: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The job's end in the words of `model.outcome`."""

    reason: Reason
    exit_code: int
    signal: str | None
    launcher_exit_code: int | None
    failures: tuple[RankFailure, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _End:
    rank: int
    local_rank: int | None
    pid: int | None
    code: int | None
    signal: str | None
    monotonic_ns: int | None


def judge(observed: Observed, run_dir: Path, *, launcher: str, node: int = 0) -> Verdict:
    """Decide how the job ended on a node. Reads failures.json, launcher.log and the ranks' logs in `run_dir`."""
    log = layout.launcher_log(run_dir, node)
    launcher_code, launcher_signal = None, None
    if observed.launcher_status is not None:
        launcher_code, launcher_signal = shell_code(observed.launcher_status)
    logged = _logged_by_deepspeed(log) if launcher == "deepspeed" and launcher_code != 0 else None
    ends = _failed_ranks(observed, _read_failures(layout.failures_file(run_dir, node)), launcher_code, logged)
    if launcher == COMMAND:
        # A launcher that waits for its ranks at once leaves nothing to see of those that ended well.
        ends = [end for end in ends if end.code is not None] or ends[:1]
        reason, code, name, notes = _decide_command(observed, ends, launcher_code, launcher_signal)
        if reason == "finished":
            ends = []
    else:
        reason, code, name, notes = _decide(observed, ends, logged, launcher_code, launcher_signal)
    caused = reason == "failed" or (reason == "killed" and not notes)
    return Verdict(
        reason=reason,
        exit_code=code,
        signal=name,
        launcher_exit_code=launcher_code,
        failures=tuple(_failure(run_dir, log, end, cause=caused and end is ends[0]) for end in ends),
        notes=tuple(notes),
    )


def _failed_ranks(
    observed: Observed, told: list[dict[str, Any]], launcher_code: int | None, logged: tuple[int, str | None] | None
) -> list[_End]:
    """The ranks that did not end with 0, the first one first."""
    by_rank = {int(row["rank"]): row for row in told}
    ends: list[_End] = []
    for seen in observed.ranks:
        row = by_rank.pop(seen.rank, None)
        code: int | None
        name: str | None
        if seen.status is not None:
            code, name = shell_code(seen.status)
        elif row is not None:
            code, name = row.get("exitcode"), row.get("signal")
        elif launcher_code == 0 or seen.ended_monotonic_ns is None:
            continue  # a failure that nobody saw needs a failed job, and an end
        else:
            code, name = None, None
        if code != 0:
            ends.append(_End(seen.rank, seen.local_rank, seen.pid, code, name, seen.ended_monotonic_ns))
    for rank, row in by_rank.items():
        ends.append(_End(rank, row.get("local_rank"), row.get("pid"), row.get("exitcode"), row.get("signal"), None))
    # A rank without a time of ours ended before we found it, and so before any other. Of two that were seen to have
    # ended at one look, the one that was asked to end is not the cause.
    ends.sort(key=lambda end: (end.monotonic_ns is not None, end.monotonic_ns or 0, end.signal == "SIGTERM", end.rank))
    if ends and ends[0].code is None and logged is not None:
        ends[0] = replace(ends[0], code=logged[0], signal=logged[1])
    # Of the others nothing is known but that the job failed: say nothing rather than guess.
    return [end for position, end in enumerate(ends) if position == 0 or end.code is not None]


def _decide(
    observed: Observed,
    ends: list[_End],
    logged: tuple[int, str | None] | None,
    launcher_code: int | None,
    launcher_signal: str | None,
) -> tuple[Reason, int, str | None, list[str]]:
    first = ends[0] if ends else None
    number = observed.interrupted_by
    if number is not None and (first is None or _later(first, observed.interrupted_monotonic_ns)):
        return "interrupted", 128 + number, signal_name(number), []
    if launcher_signal is not None and (first is None or _later(first, observed.launcher_ended_monotonic_ns)):
        note = f"the launcher was ended by {launcher_signal}, and its ranks with it"
        return "killed", launcher_code or 1, launcher_signal, [note]
    if observed.guard_exit_code is not None and observed.guard_exit_code < 0 and (first is None or first.code is None):
        note = "the process that guards the launcher was killed from outside, and the job with it"
        return "killed", 128 - observed.guard_exit_code, signal_name(-observed.guard_exit_code), [note]
    if first is not None:
        code = first.code if first.code is not None else launcher_code
        return ("killed" if first.signal else "failed"), code or 1, first.signal, []
    if launcher_code == 0:
        return "finished", 0, None, []
    return _decide_without_ranks(observed, logged, launcher_code)


def _decide_command(
    observed: Observed, ends: list[_End], launcher_code: int | None, launcher_signal: str | None
) -> tuple[Reason, int, str | None, list[str]]:
    """A command's own exit code is the job's, whatever its ranks ended with."""
    first = ends[0] if ends else None
    number = observed.interrupted_by
    if launcher_code is None or (
        number is not None and (first is None or _later(first, observed.interrupted_monotonic_ns))
    ):
        return _decide(observed, ends, None, launcher_code, launcher_signal)
    if launcher_code == 0:
        notes = [f"rank {end.rank} ended with {_words(end)}, and the command with 0" for end in ends]
        return "finished", 0, None, notes
    name = launcher_signal or (first.signal if first is not None else None)
    return ("killed" if name else "failed"), launcher_code, name, []


def _words(end: _End) -> str:
    return end.signal or f"exit code {end.code}"


def _decide_without_ranks(
    observed: Observed, logged: tuple[int, str | None] | None, launcher_code: int | None
) -> tuple[Reason, int, str | None, list[str]]:
    """The job failed, and no rank was seen to."""
    if launcher_code is None:
        if observed.guard_exit_code == guard.NOT_STARTED:
            return "launch-failed", LaunchError.exit_code, None, [f"see {layout.LAUNCHER_LOG}"]
        return "killed", 128 + signal.SIGKILL, "SIGKILL", ["the launcher was killed before any rank ran"]
    if logged is not None:
        return ("killed" if logged[1] else "failed"), logged[0], logged[1], []
    note = f"the launcher ended with {launcher_code} before any rank ran; see {layout.LAUNCHER_LOG}"
    return "launch-failed", LaunchError.exit_code, None, [note]


def _later(end: _End, monotonic_ns: int | None) -> bool:
    return end.monotonic_ns is not None and monotonic_ns is not None and end.monotonic_ns > monotonic_ns


def _failure(run_dir: Path, log: Path, end: _End, *, cause: bool) -> RankFailure:
    realtime_ns = None
    if end.monotonic_ns is not None:
        realtime_ns = end.monotonic_ns + time.time_ns() - time.monotonic_ns()
    return RankFailure(
        rank=end.rank,
        local_rank=end.local_rank,
        pid=end.pid,
        exit_code=end.code,
        signal=end.signal,
        ended_realtime_ns=realtime_ns,
        stopped=not cause and end.signal in _STOPPING,
        last_lines=last_lines(layout.rank_log(run_dir, end.rank, "stderr")) or (last_lines(log) if cause else ()),
    )


def last_lines(path: Path, count: int = LAST_LINES) -> tuple[str, ...]:
    """The last lines of a text file, of any size and content; () when there is none."""
    text = _tail(path).decode("utf-8", "replace")
    return tuple(line.rstrip() for line in text.splitlines()[-count:])


def _tail(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL_BYTES))
            data = file.read()
    except OSError:
        return b""
    return data if size <= _TAIL_BYTES else data.partition(b"\n")[2] or data


def _read_failures(path: Path) -> list[dict[str, Any]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get("rank"), int)]


def logged_failure(log: Path) -> int | None:
    """The exit code of the first node's launcher that DeepSpeed said failed, as a shell gives it; None: none yet."""
    codes = map(int, _DEEPSPEED_END.findall(_tail(log).decode("utf-8", "replace")))
    return next((128 - code if code < 0 else code for code in codes if code), None)


def _logged_by_deepspeed(log: Path) -> tuple[int, str | None] | None:
    codes = _DEEPSPEED_END.findall(_tail(log).decode("utf-8", "replace"))
    if not codes:
        return None
    code = int(codes[-1])
    return (128 - code, signal_name(-code)) if code < 0 else (code, None)
