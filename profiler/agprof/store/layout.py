"""Names of the files in a run folder, and the constants of the stream format.

A stream is one append-only file with one writer:

    magic "AGPROF\\0" | version u8 | frame*          all integers little-endian
    frame = length u32 | crc32(payload) u32 | payload (MessagePack)

The first frame's payload is the header, a map. Every later payload is a two-element array: the name of a table and a
list of its rows, or `["end", [[reason]]]`, written when the writer closed the stream in order. Any prefix of a stream
is valid up to its last whole frame.

In version 2, which nodes write, a payload may also be `["packed", shape, bits]`: rows of several tables, packed
(`packing.py`).
"""

import struct
from pathlib import Path

MAGIC = b"AGPROF\x00"
STREAM_VERSION = 2
"""The newest that is read."""
PREAMBLE = MAGIC + b"\x01"
PACKED_PREAMBLE = MAGIC + bytes([STREAM_VERSION])
FRAME = struct.Struct("<II")
MAX_FRAME_BYTES = 16 * 2**20
END = "end"
PACKED = "packed"

MANIFEST = "run.json"
KIND_MONITOR = "monitor"
"""`kind` in the manifest of a command that was sampled and not instrumented; a training job has no `kind`."""
WORKLOAD = "workload.yaml"
OUTCOME = "outcome.json"
PEAK = "peak.json"
"""What `agprof peak` measured on devices of the launching machine, as it was when the run began."""
COMM = "comm.json"
"""What `agprof bench-comm` measured on the launching machine, as it was when the run began."""
PLAN = "plan.json"
REPORT_JSON = "report.json"
REPORT_HTML = "report.html"
LAUNCHER_LOG = "launcher.log"
SAMPLER_LOG = "sampler.log"
FAILURES = "failures.json"
RANKS = "ranks"
NODES = "nodes"
SUFFIX = ".agp"
TRACES = "traces"
TRACE_META = "trace.json"
EXPORTS = "exports"
NSYS = "nsys"
"""Reports of nsys, one per rank, when the ranks ran under it."""
KINETO = "kineto"


def rank_stem(rank: int) -> str:
    return f"rank-{rank:05d}"


def node_stem(node: int) -> str:
    return f"node-{node:05d}"


def rank_stream(run: Path, rank: int, attempt: int = 0) -> Path:
    """The stream of one rank; a restarted rank writes the next attempt and never over an older one."""
    return run / RANKS / f"{rank_stem(rank)}.{attempt}{SUFFIX}"


def node_stream(run: Path, node: int, attempt: int = 0) -> Path:
    return run / NODES / f"{node_stem(node)}.{attempt}{SUFFIX}"


def launcher_log(run: Path, node: int = 0) -> Path:
    """What a node's launcher printed; node 0's lies where a run on one node has it. So do the two below."""
    return run / LAUNCHER_LOG if node == 0 else run / NODES / f"{node_stem(node)}.{LAUNCHER_LOG}"


def sampler_log(run: Path, node: int = 0) -> Path:
    return run / SAMPLER_LOG if node == 0 else run / NODES / f"{node_stem(node)}.{SAMPLER_LOG}"


def failures_file(run: Path, node: int = 0) -> Path:
    return run / FAILURES if node == 0 else run / NODES / f"{node_stem(node)}.{FAILURES}"


def rank_log(run: Path, rank: int, stream: str) -> Path:
    """`stream` is stdout or stderr."""
    return run / RANKS / f"{rank_stem(rank)}.{stream}.log"


def trace_folder(run: Path, rank: int) -> Path:
    """The Parquet tables of one rank's device trace, and `trace.json` beside them."""
    return run / TRACES / rank_stem(rank)


def kineto_file(run: Path, rank: int) -> Path:
    """What torch's profiler wrote in one rank; turned into the rank's tables when the run has ended."""
    return run / KINETO / f"{rank_stem(rank)}.json"
