"""`run.json` of an imported run: what is known of the job, and that it was imported."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agprof.importers.trace_stream import EPOCH_FROM_NS
from agprof.model.tables import SCHEMA_VERSION
from agprof.model.version import __version__
from agprof.store import layout
from agprof.store.traces import RankTrace


def write_manifest(
    run: Path,
    *,
    name: str,
    traces: Mapping[int, RankTrace],
    files: Sequence[Mapping[str, Any]],
    communication: Mapping[str, str],
    notes: Sequence[str],
) -> None:
    """Write it; with it the folder is a run. Raises OSError."""
    manifest = describe(name=name, traces=traces, files=files, communication=communication, notes=notes)
    (run / layout.MANIFEST).write_text(json.dumps(manifest, indent=1, ensure_ascii=True) + "\n", encoding="utf-8")


def describe(
    *,
    name: str,
    traces: Mapping[int, RankTrace],
    files: Sequence[Mapping[str, Any]],
    communication: Mapping[str, str],
    notes: Sequence[str],
) -> dict[str, Any]:
    """The manifest. What the traces do not say is absent."""
    metas = [trace.meta for trace in traces.values()]
    sizes = [meta.world_size for meta in metas if meta.world_size]
    starts = [meta.first_ns for meta in metas if meta.first_ns is not None and meta.first_ns >= EPOCH_FROM_NS]
    hosts = {meta.host for meta in metas if meta.host}
    workload: dict[str, Any] = {
        "name": name,
        # A profiler's schedule has left the warm-up out already.
        "profile": {"warmup_steps": 0},
        "monitor": {"enabled": False},
    }
    if communication:
        workload["kernels"] = {"communication": dict(communication)}
    manifest: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "agprof": __version__,
        "name": name,
        "created_realtime_ns": min(starts, default=None),
        "ranks": _ranks(sizes, traces),
        "nodes": len(hosts) or None,
        "workload": workload,
        "imported": {
            "at_realtime_ns": time.time_ns(),
            "formats": sorted({meta.format for meta in metas}),
            "files": list(files),
            "ranks": {str(rank): trace.meta.rank_source for rank, trace in sorted(traces.items())},
            "notes": list(notes),
        },
    }
    return {key: value for key, value in manifest.items() if value is not None}


def _ranks(sizes: Sequence[int], traces: Mapping[int, RankTrace]) -> int | None:
    """Ranks of the job: what the traces say, else their number where none is missing between them; else not known."""
    if sizes:
        return max(*sizes, max(traces) + 1)
    return len(traces) if set(traces) == set(range(len(traces))) else None
