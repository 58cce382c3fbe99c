"""The formats of `agprof export`, by name (docs/export.md)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol

from agprof.analysis.one_axis import on_one_axis
from agprof.store.reader import Run

Say = Callable[[str], None]


class Export(Protocol):
    """Writes a run's files of one format into a folder that is there; returns them.

    Streams to disk. `say` takes progress and what the user must know, a line at a time. Raises TraceError and OSError.
    """

    def __call__(self, run: Run, folder: Path, say: Say) -> list[Path]: ...


@dataclass(frozen=True, slots=True)
class Exporter:
    """A format: its module, whose function `export` is an `Export`, and one line on what it is for.

    The module is imported when the format is asked for.
    """

    module: str
    about: str
    own_times: bool = False
    """It writes each node's own times, and puts them on one axis beside."""

    def __call__(self, run: Run, folder: Path, say: Say) -> list[Path]:
        """Raises TraceError and OSError."""
        export: Export = import_module(f"agprof.exporters.{self.module}").export
        return export(run if self.own_times else on_one_axis(run, say), folder, say)


EXPORTERS: Mapping[str, Exporter] = {
    "nsys-rep": Exporter("nsys_report", "Nsight Systems: a report for nsys-ui, and SQLite for nsys stats"),
    "nvtxt": Exporter("nvtxt", "text that Nsight Systems' ImportNvtxt reads"),
    "chrome": Exporter("chrome", "Chrome trace JSON, for ui.perfetto.dev and chrome://tracing"),
    "perfetto": Exporter("perfetto", "Perfetto's protobuf, for ui.perfetto.dev"),
    "parquet": Exporter("parquet", "the tables of the run, for pandas, polars and DuckDB", own_times=True),
}
"""`traces:` of a workload file takes the same names (`config.traces`; a test compares them)."""
