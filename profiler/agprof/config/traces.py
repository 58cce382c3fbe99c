"""`traces:` of a workload file: formats that are written at the end of a run."""

from typing import Literal, get_args

TraceFormat = Literal["nsys-rep", "nvtxt", "chrome", "perfetto", "parquet"]
TRACE_FORMATS: tuple[str, ...] = get_args(TraceFormat)
"""The names of `exporters.formats.EXPORTERS`, which stands too high to be imported here; a test compares them."""
