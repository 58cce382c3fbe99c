"""NVTXT: the text format that Nsight Systems' ImportNvtxt reads (docs/nsight.md). Names, nesting, colours and times.

What the importer takes and drops was found by trial, with the versions of 2022 and 2023: TimeBase must be there; no
domains, categories or payloads survive; a quote can't be escaped; times pass through a double, so an epoch is off.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import polars as pl

from agprof.errors import TraceError
from agprof.exporters.lanes import Lane, Process, borders, colour, epoch_ns, processes
from agprof.exporters.pace import Pace
from agprof.exporters.whole import whole
from agprof.model.version import __version__
from agprof.store.reader import Run

SUFFIX = ".nvtxt"
MAX_TIME_NS = 2**53 - 1
"""The importer computes with doubles: above, times are rounded. 104 days after the epoch."""
MAX_NAME = 4000
"""Characters of a name; mangled kernels have some thousand, and no viewer shows more."""

Say = Callable[[str], None]

_BREAKS_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_HEADER = """\
# agprof {version}. Import it with ImportNvtxt of Nsight Systems: --cmd create -n THIS -o NAME.nsys-rep
# times are nanoseconds since {epoch_ns} ns (wall clock, Unix)
TimeBase = Relative
SetFileDisplayName, "{title}"
@RangePush, Time, ProcessId, ThreadId, Message, Color
@RangePop, Time, ProcessId, ThreadId
@Marker, Time, ProcessId, ThreadId, Message, Color
"""


@dataclass(slots=True)
class Written:
    """What a file holds, per rank."""

    epoch_ns: int
    ranges: dict[int, int] = field(default_factory=dict)
    marks: dict[int, int] = field(default_factory=dict)
    left_out: int = 0


def export(run: Run, folder: Path, say: Say) -> list[Path]:
    """Write `<name of the run>.nvtxt`. Raises OSError, and TraceError when times don't fit the format."""
    file = folder / f"{run.path.name}{SUFFIX}"
    written = write(run, file, say)
    if written.left_out:
        say(f"{file.name}: {written.left_out} spans that end before they begin are left out")
    return [file]


def write(run: Run, file: Path, say: Say, *, epoch: int | None = None, only: int | None = None) -> Written:
    """Write every span of every rank, since the least time of the run. With `only`: what agprof itself measured on that
    rank, since `epoch`; its device trace is what the report that this is for holds anyway.

    Spans that begin before `epoch` are left out: the format has no negative times.
    """
    epoch = epoch_ns(run) if epoch is None else epoch
    written = Written(epoch)
    pace = Pace(say, f"{file.name}: lines written:")
    with whole(file) as place, place.open("w", encoding="utf-8", newline="\n", buffering=2**20) as out:
        title = text(f"{run.path.name}, times since {epoch} ns")
        out.write(_HEADER.format(version=__version__, epoch_ns=epoch, title=title))
        for process in processes(run, trace=only is None):
            if only is None or process.rank == only:
                _write_process(out, process, written, pace)
    return written


def text(name: str) -> str:
    """A name as it may stand between the format's quotes.

    A quote would end it, a backslash before the closing quote would not let it end, a line break breaks the line.
    """
    name = name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…"
    name = _BREAKS_LINE.sub(" ", name).replace('"', "'")
    name = name.encode("utf-8", "replace").decode("utf-8")
    return name + " " if name.endswith("\\") else name


def _write_process(out: IO[str], process: Process, written: Written, pace: Pace) -> None:
    out.write(f'NameProcess, {process.pid}, "{text(process.name)}"\n')
    written.ranges[process.rank] = written.marks[process.rank] = 0
    written.left_out += process.left_out
    for lane in process.lanes:
        spans = lane.spans.filter(pl.col("start_ns") >= written.epoch_ns)
        written.left_out += lane.spans.height - spans.height
        written.ranges[process.rank] += spans.height
        kept = Lane(thread=lane.thread, name=lane.name, domain=lane.domain, spans=spans)
        # Nsight keeps a thread's name only if no other process has a thread of that name.
        out.write(f'NameOsThread, {process.pid}, {lane.thread}, "{text(f"{lane.name}, {process.short}")}"\n')
        out.writelines(pace.over(_lane_lines(process.pid, kept, written.epoch_ns)))
    marks = process.marks.filter(pl.col("time_ns") >= written.epoch_ns)
    if not marks.height:
        return
    written.marks[process.rank] = marks.height
    out.write(f'NameOsThread, {process.pid}, {process.marks_thread}, "marks, {process.short}"\n')
    for name, time_ns, _ in marks.select("name", "time_ns", "payload").iter_rows():
        time = _fitting(time_ns - written.epoch_ns)
        out.write(f'Marker, {time}, {process.pid}, {process.marks_thread}, "{text(name)}", {_argb("mark")}\n')


def _lane_lines(pid: int, lane: Lane, epoch: int) -> Iterable[str]:
    texts = {name: text(name) for name in lane.spans["name"].unique().to_list()}
    names, categories = lane.spans["name"].to_list(), lane.spans["category"].to_list()
    _fitting(max(lane.spans["end_ns"].to_list(), default=epoch) - epoch)
    for time_ns, row in borders(lane):
        where = f"{time_ns - epoch}, {pid}, {lane.thread}"
        if row is None:
            yield f"RangePop, {where}\n"
        else:
            yield f'RangePush, {where}, "{texts[names[row]]}", {_argb(categories[row])}\n'


def _argb(category: str) -> str:
    return f"0xFF{colour(category):06X}"


def _fitting(time: int) -> int:
    if time > MAX_TIME_NS:
        raise TraceError(
            f"a span lies {time / 8.64e13:.0f} days after the run's first one; NVTXT holds 104 days exactly: "
            "is the clock of one node wrong?"
        )
    return time
