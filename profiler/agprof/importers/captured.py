"""What torch's profiler wrote inside a run (`kineto:` in the workload file) -> the run's own trace tables."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agprof.errors import AgprofError, TraceError
from agprof.store import layout
from agprof.store.frames import StreamFollower

RANK_SOURCE = "own capture"


def captured_files(run: Path) -> dict[int, Path]:
    """The files of torch's profiler that lie in a run folder, by rank."""
    files = sorted((run / layout.KINETO).glob("rank-*.json"))
    return {int(number): file for file in files if (number := file.stem.removeprefix("rank-")).isdigit()}


def keeps_files(run: Path) -> bool:
    """Whether the workload asks to keep them (`kineto.keep`)."""
    try:
        value: Any = json.loads((run / layout.MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True  # a folder that can't say so loses nothing
    for key in ("workload", "kineto", "keep"):
        value = value.get(key) if isinstance(value, dict) else None
    return bool(value)


def convert_captured(run: Path, *, keep: bool, progress: Callable[[str, float], None] | None = None) -> list[str]:
    """Turn every captured file into the rank's tables, on the clock of the rank's stream.

    What was converted is deleted unless `keep`; what can't be stays where it is. Returns what went wrong, in
    sentences.
    """
    from agprof.importers.kineto import import_file  # heavy, and most runs have nothing to convert

    problems: list[str] = []
    for rank, file in captured_files(run).items():
        if (layout.trace_folder(run, rank) / layout.TRACE_META).exists():
            continue  # kept from an earlier conversion
        try:
            shift_ns = _shift_ns(run, rank)
            tell = None if progress is None else _telling(progress, file.name)
            import_file(file, run, rank, rank_source=RANK_SOURCE, shift_ns=shift_ns, progress=tell)
        except (AgprofError, OSError) as error:
            problems.append(f"the Kineto trace of rank {rank} could not be read: {error}; it stays in {file.parent}")
            continue
        if not keep:
            file.unlink()
    if not keep and not problems:
        _remove_if_empty(run / layout.KINETO)
    return problems


def _telling(progress: Callable[[str, float], None], name: str) -> Callable[[float], None]:
    return lambda share: progress(name, share)


def _shift_ns(run: Path, rank: int) -> int:
    """ns to add to wall time for the clock of the rank's stream. Raises TraceError when there is no such stream."""
    attempts = sorted((run / layout.RANKS).glob(f"{layout.rank_stem(rank)}.*{layout.SUFFIX}"))
    for path in reversed(attempts):
        clock: Any = (StreamFollower(path).read_header() or {}).get("clock")
        if isinstance(clock, dict) and isinstance(clock.get("realtime_ns"), int):
            return int(clock["monotonic_ns"]) - int(clock["realtime_ns"])
    raise TraceError(f"there is no stream of rank {rank} in {run / layout.RANKS}, so its clock is not known")


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        pass  # not there, or somebody's own files are in it
