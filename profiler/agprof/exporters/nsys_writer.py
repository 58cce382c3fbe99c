"""Reports of real NVTX events through `nsys_writer`, which came with Nsight Systems 2026: the first choice where it is.

Written from its documentation and from nvtx.writer, on which it is built: no machine of ours has its backend, so it is
tested against a stub.
"""

import os
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from agprof.exporters.lanes import Process, colour, processes
from agprof.exporters.nvtxt import Say
from agprof.exporters.pace import Pace
from agprof.launch.nsight import WRITER_VARIABLE
from agprof.store.reader import Run

_OPAQUE = 0xFF000000
"""Alpha of an ARGB colour."""


def is_installed() -> bool:
    """Whether Python finds nsys_writer: it is a package inside Nsight Systems, not on PyPI."""
    return find_spec("nsys_writer") is not None


def write(run: Run, report: Path, backend: Path, say: Say) -> None:
    """Write every span of every rank as NVTX ranges with domain, category and colour, on the wall clock.

    Raises what nsys_writer raises.
    """
    os.environ.setdefault(WRITER_VARIABLE, str(backend))
    writer: Any = import_module("nsys_writer")
    pace = Pace(say, f"{report.name}: ranges written:")
    with writer.Session(str(report.with_suffix(""))) as session:
        for process in processes(run):
            _write_process(session, process)
            pace.add(process.ranges)


def _write_process(session: Any, process: Process) -> None:
    for lane in process.lanes:
        domain = session.get_domain(lane.domain)
        with session.create_stream(f"{process.name}: {lane.name}", domain=domain) as stream:
            for category, name, start_ns, end_ns, _ in lane.spans.iter_rows():
                stream.write_pushpop(
                    start=start_ns, end=end_ns, message=name, color=_OPAQUE | colour(category), category=category
                )
    if not process.marks.height:
        return
    with session.create_stream(f"{process.name}: marks", domain=session.get_domain("agprof")) as stream:
        for name, time_ns in process.marks.select("name", "time_ns").iter_rows():
            stream.write_mark(time_ns, message=name, color=_OPAQUE | colour("mark"), category="mark")
