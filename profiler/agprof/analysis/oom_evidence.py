"""Whether memory ran out, and how sure that is: what ranks noticed themselves, and what the kernel did.

Known: a rank's own error says so, or the kernel's counter of processes killed for want of memory rose for the job's
cgroup. Likely: a rank ended by SIGKILL while the machine's counter rose, or while memory was nearly full. Anything
else is not claimed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from agprof.analysis.ranks import failures_of
from agprof.analysis.view import View
from agprof.model.format import format_value, percent
from agprof.model.memory_answers import Space

FACT = "oom"
NEARLY_FULL = 0.95
LAST_NS = 5 * 10**9
"""Of samples those at the end count: the last ones before a rank was killed."""
Certainty = Literal["known", "likely"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Noticed:
    """What a rank wrote when an error said that memory ran out. Numbers that are none are None."""

    rank: int
    time_ns: int
    space: Space
    error: str
    wanted_bytes: int | None
    limit_bytes: int | None
    limit: str
    """device | cgroup | host | rlimit; empty when it is not known."""
    held_bytes: int | None
    """Of what the limit is about: the device's live tensors, the resident set, or the address space."""
    free_bytes: int | None
    """Of the device: what the driver has, and what the allocator holds unused."""
    step: int | None
    phase: str
    module: str
    count: int
    """Errors that the rank met so far."""
    uncaught: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Killed:
    """A process of the job that the kernel killed for want of host memory."""

    rank: int | None
    """None when it was none of the ranks, or it is not known which."""
    certainty: Certainty
    why: str
    limit_bytes: int | None
    limit: str


def first_noticed(view: View) -> Noticed | None:
    """The first error that ended a rank; where none did, the first that was caught, with its rank's last count."""
    found = noticed(view)
    return next((row for row in found if row.uncaught), found[0] if found else None)


def noticed(view: View) -> list[Noticed]:
    """The last word of each rank about it, in the order of time."""
    rows = view.tables["facts"].filter(pl.col("key") == FACT).sort("time_ns", "rank", maintain_order=True)
    last: dict[int, Noticed] = {}
    for rank, time_ns in rows.select("rank", "time_ns").iter_rows():
        value = view.facts.get(rank, {}).get(FACT)
        if isinstance(value, Mapping):
            last[rank] = _noticed(rank, time_ns, value)
    return sorted(last.values(), key=lambda row: (row.time_ns, row.rank))


def killed(view: View) -> Killed | None:
    """A kill by the kernel for want of memory, known or likely; None where it can't be claimed."""
    outcome = view.run.outcome
    if outcome is None or outcome.get("reason") not in ("failed", "killed"):
        return None
    memory = outcome.get("memory")
    told: Mapping[str, Any] = memory if isinstance(memory, Mapping) else {}
    rank = _killed_rank(view)
    by_signal = rank is not None or outcome.get("signal") == "SIGKILL"
    limit_bytes, limit = _count(told.get("limit_bytes")), str(told.get("limit") or "")
    kills = _count(told.get("cgroup_kills"))
    certainty: Certainty = "likely"
    if kills:
        certainty = "known"
        why = f"the kernel's counter oom_kill of the job's cgroup rose by {kills:,}"
    elif kills is None and by_signal and (on_host := _count(told.get("host_kills"))):
        why = f"SIGKILL, and the kernel's counter oom_kill of the machine rose by {on_host:,} during the run"
    elif kills is None and by_signal and (full := _nearly_full(view, limit_bytes)):
        why = f"SIGKILL, and {full}"
    else:
        return None
    return Killed(rank=rank, certainty=certainty, why=why, limit_bytes=limit_bytes, limit=limit)


def words_on_end(view: View, rank: int) -> str:
    """`out of device memory` and the like, behind how a rank ended; empty when memory is not why."""
    own = next((row for row in noticed(view) if row.rank == rank and row.uncaught), None)
    if own is not None:
        return f"out of {own.space} memory"
    found = killed(view)
    if found is None or found.rank != rank:
        return ""
    if found.certainty == "likely":
        return "probably for want of memory"
    return f"by the kernel, out of memory{limit_words(found.limit, found.limit_bytes)}"


def limit_words(limit: str, limit_bytes: int | None) -> str:
    """` (cgroup limit 8.00 GiB)`; empty when it is not known."""
    if limit_bytes is None:
        return ""
    name = {"cgroup": "cgroup limit", "host": "the machine has", "rlimit": "address space limit"}.get(limit, "limit")
    return f" ({name} {format_value(limit_bytes, 'bytes')})"


def _noticed(rank: int, time_ns: int, value: Mapping[str, Any]) -> Noticed:
    space: Space = "device" if value.get("space") == "device" else "host"
    limit = str(value.get("limit") or "")
    allocated, reserved = _count(value.get("allocated_bytes")), _count(value.get("reserved_bytes"))
    free, limit_bytes = _count(value.get("free_bytes")), _count(value.get("limit_bytes"))
    if space == "device":
        held = allocated
        if free is not None and allocated is not None and reserved is not None:
            free += max(0, reserved - allocated)
    else:
        held = _count(value.get("virtual_bytes" if limit == "rlimit" else "rss_bytes"))
        free = (
            max(0, limit_bytes - held) if limit == "rlimit" and limit_bytes is not None and held is not None else None
        )
    return Noticed(
        rank=rank,
        time_ns=time_ns,
        space=space,
        error=str(value.get("error") or value.get("type") or "")[:2000],
        wanted_bytes=_count(value.get("wanted_bytes")),
        limit_bytes=limit_bytes,
        limit=limit,
        held_bytes=held,
        free_bytes=free,
        step=_count(value.get("step")),
        phase=str(value.get("phase") or ""),
        module=str(value.get("module") or "")[:500],
        count=_count(value.get("count")) or 1,
        uncaught=value.get("uncaught") is True,
    )


def _killed_rank(view: View) -> int | None:
    """The rank that ended by SIGKILL before anybody asked for it."""
    for rank, failure in failures_of(view).items():
        if not failure.get("stopped"):
            return rank if failure.get("signal") == "SIGKILL" else None
    return None


def _nearly_full(view: View, limit_bytes: int | None) -> str:
    """What was nearly full at the end, in words: the ranks' memory beside the limit, or the machine's."""
    trees = view.tables["process_samples"]
    if limit_bytes and trees.height:
        size = pl.coalesce("pss_bytes", "rss_bytes")
        sums = _last(trees).group_by("node", "time_ns").agg(bytes=size.sum())
        most = sums["bytes"].max()
        if isinstance(most, int) and most >= NEARLY_FULL * limit_bytes:
            return f"the ranks of a node held {format_value(most, 'bytes')} of {format_value(limit_bytes, 'bytes')}"
    hosts = view.tables["host_samples"].drop_nulls(["memory_used_bytes", "memory_total_bytes"])
    if hosts.height:
        shares = _last(hosts).select(share=pl.col("memory_used_bytes") / pl.col("memory_total_bytes"))["share"]
        share = shares.max()
        if isinstance(share, float) and share >= NEARLY_FULL:
            return f"{percent(share)} of the machine's memory were in use"
    return ""


def _last(samples: pl.DataFrame) -> pl.DataFrame:
    return samples.filter(pl.col("time_ns") >= pl.col("time_ns").max().over("node") - LAST_NS)


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
