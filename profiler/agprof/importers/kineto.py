"""Kineto JSON, what `torch.profiler` writes, becomes the tables of a run folder."""

import gzip
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from agprof.errors import TraceError
from agprof.importers.kineto_lax import DECODER, event
from agprof.importers.kineto_rows import Rows
from agprof.importers.kineto_take import Exact
from agprof.store.traces import TraceMeta, TraceWriter, write_meta


@dataclass(frozen=True, slots=True, kw_only=True)
class KinetoHead:
    """What a file says of itself without its events."""

    rank: int | None
    world_size: int | None
    host: str | None
    metadata: Mapping[str, Any]
    """Everything at the file's top level but the events."""


def peek(file: Path) -> KinetoHead:
    """What the file says of itself. Raises TraceError when it is no Kineto file or can't be read."""
    return head_of(_load(file)[0])


def import_file(
    file: Path,
    run: Path,
    rank: int,
    *,
    rank_source: str = "",
    shift_ns: int = 0,
    processes: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> TraceMeta:
    """Write the tables of one rank from a Kineto file (.json, .json.gz), and its `trace.json`.

    Times are `baseTimeNanoseconds` plus the event's, in whole nanoseconds since the epoch, plus `shift_ns`.
    `progress` is told the part done, from 0 to 1. Raises TraceError with one sentence, and OSError when the run
    folder can't be written.
    """
    metadata, values = _load(file)
    head = head_of(metadata)
    base_ns = metadata.get("baseTimeNanoseconds")
    writer = TraceWriter(run, rank)
    rows = Rows(writer, (int(base_ns) if base_ns is not None else 0) + shift_ns)
    exact = Exact(rows)
    exact.take([found for value in values if (found := event(value, rows.left_out)) is not None])
    exact.close()
    tally = rows.finish()
    devices = metadata.get("deviceProperties")
    meta = TraceMeta(
        format="kineto",
        source=file.name,
        rank_source=rank_source,
        world_size=head.world_size,
        host=head.host,
        producer=f"schemaVersion {metadata['schemaVersion']}" if "schemaVersion" in metadata else "",
        devices=tuple(plain(device) for device in devices or () if isinstance(device, dict)),
        events=tally.events,
        left_out=tally.left_out,
        first_ns=tally.first_ns,
        last_ns=tally.last_ns,
        timestamp_unit="us",
    )
    write_meta(run, rank, meta)
    if progress is not None:
        progress(1.0)
    return meta


def head_of(metadata: Mapping[str, Any]) -> KinetoHead:
    distributed = metadata.get("distributedInfo")
    info = distributed if isinstance(distributed, dict) else {}
    host = metadata.get("host_name")
    return KinetoHead(
        rank=_count(info.get("rank")),
        world_size=_count(info.get("world_size")),
        host=host if isinstance(host, str) else None,
        metadata=metadata,
    )


def plain(value: Any) -> Any:
    """The value with decimals as floats, as JSON can hold it."""
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list) else value


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31 else None


def _load(file: Path) -> tuple[dict[str, Any], list[Any]]:
    try:
        data = file.read_bytes()
        if data.startswith(b"\x1f\x8b"):
            data = gzip.decompress(data)
        text = data.decode("utf-8-sig", "replace")
        whole = DECODER.decode(text)
    except (OSError, EOFError, ValueError, RecursionError) as error:
        raise TraceError(f"{file}: not a readable trace: {re.sub(r'[^ -~]', '?', str(error))[:200]}") from error
    if isinstance(whole, list):
        return {}, whole
    if not isinstance(whole, dict) or not isinstance(whole.get("traceEvents"), list):
        raise TraceError(f"{file}: no Kineto trace: it has no list of traceEvents")
    values = whole.pop("traceEvents")
    return whole, values
