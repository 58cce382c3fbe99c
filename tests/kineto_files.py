"""Small Kineto files, and an independent reading of one: Python's json, decimals, one event at a time."""

import gzip
import json
from decimal import ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import Any

from agprof.store.traces import RankTrace, read_traces

GPU = {
    "kernel": 0,
    "Kernel": 0,
    "gpu_memcpy": 1,
    "Memcpy": 1,
    "gpu_memset": 2,
    "Memset": 2,
    "cuda_sync": 3,
    "gpu_user_annotation": 4,
}
CPU = {
    "cpu_op": 0,
    "Operator": 0,
    "cuda_runtime": 1,
    "Runtime": 1,
    "cuda_driver": 2,
    "user_annotation": 3,
    "python_function": 4,
    "overhead": 5,
}
MOST_NS = 30 * 86_400 * 10**9


def kernel(ts: Any, dur: Any = 10, name: str = "gemm", **args: Any) -> dict[str, Any]:
    given = {"device": 0, "stream": 7, "correlation": 5, "External id": 3} | args
    return {"ph": "X", "cat": "kernel", "name": name, "pid": 0, "tid": 7, "ts": ts, "dur": dur, "args": given}


def op(ts: Any, dur: Any = 10, name: str = "aten::mm", **args: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": "cpu_op", "name": name, "pid": 9, "tid": 9, "ts": ts, "dur": dur, "args": args}


def kineto_text(events: list[Any], **metadata: Any) -> str:
    """A file as Kineto itself formats it."""
    head = "".join(f'  "{key}": {json.dumps(value)},\n' for key, value in metadata.items())
    body = ",\n  ".join("{\n    " + json.dumps(event)[1:-1] + "\n  }" for event in events)
    return f'\n{{\n  "schemaVersion": 1,\n{head}  "traceEvents": [\n  {body}\n  ],\n  "traceName": "x.json"\n}}\n'


def unpacked(file: Path) -> bytes:
    data = file.read_bytes()
    return gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data


def loaded(text: bytes) -> Any:
    return json.loads(text.decode("utf-8-sig", "replace"), strict=False, parse_float=Decimal)


def nanoseconds(microseconds: Any) -> int | None:
    if isinstance(microseconds, bool) or not isinstance(microseconds, int | Decimal):
        return None
    exact = Decimal(microseconds) * 1000
    return int(exact.to_integral_value(ROUND_HALF_EVEN)) if exact.is_finite() else None


def expected_rows(whole: Any, most: int | None = None) -> dict[str, list[tuple[Any, ...]]]:
    """The rows of tables gpu, cpu and memory_events that the first `most` events of a decoded file make, sorted."""
    events, base = (
        (whole, 0) if isinstance(whole, list) else (whole["traceEvents"], whole.get("baseTimeNanoseconds", 0))
    )
    rows: dict[str, list[tuple[Any, ...]]] = {"gpu": [], "cpu": [], "memory_events": []}
    for event in events[:most]:
        row = _row(event, base)
        if row is not None:
            rows[row[0]].append(row[1])
    return {table: sorted(found, key=repr) for table, found in rows.items()}


def _row(event: Any, base: int) -> tuple[str, tuple[Any, ...]] | None:
    if not isinstance(event, dict):
        return None
    phase, category, name = event.get("ph"), event.get("cat", ""), event.get("name", "")
    args = event.get("args") if isinstance(event.get("args"), dict) else {}
    start, duration = nanoseconds(event.get("ts")), nanoseconds(event.get("dur"))
    if phase == "i" and name == "[memory]" and start is not None and "Bytes" in args:
        return "memory_events", (start + base, args["Bytes"], args.get("Addr"))
    if phase != "X" or start is None or duration is None or not 0 <= duration <= MOST_NS or abs(start) >= 2**62:
        return None
    correlation, external = args.get("correlation"), args.get("External id", args.get("external id"))
    if category in GPU:
        device, stream = args.get("device", event.get("pid")), args.get("stream", event.get("tid"))
        return "gpu", (start + base, duration, GPU[category], name, device, stream, correlation, external)
    if category in ("Trace", "ac2g", "async", "fwdbwd", ""):
        return None
    return "cpu", (start + base, duration, CPU.get(category, 6), name, correlation, external)


def rows_of(trace: RankTrace) -> dict[str, list[tuple[Any, ...]]]:
    """The same of an imported trace."""
    names = trace.names()
    columns = {
        "gpu": ("start_ns", "duration_ns", "kind", "name", "device", "stream", "correlation", "external_id"),
        "cpu": ("start_ns", "duration_ns", "kind", "name", "correlation", "external_id"),
        "memory_events": ("time_ns", "bytes", "address"),
    }
    found: dict[str, list[tuple[Any, ...]]] = {}
    for table, some in columns.items():
        at = some.index("name") if "name" in some else None
        rows = trace.table(table, *some).iter_rows()
        found[table] = sorted((r if at is None else (*r[:at], names[r[at]], *r[at + 1 :]) for r in rows), key=repr)
    return found


def only_trace(run: Path) -> RankTrace:
    """The one trace of a run, which has no problems."""
    problems: list[str] = []
    traces = read_traces(run, problems)
    assert not problems and len(traces) == 1
    return next(iter(traces.values()))
