"""Which ranks an Nsight Systems export holds: one per process and device that worked, and which number each has."""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

from agprof.errors import TraceError
from agprof.importers import nsys_nccl
from agprof.importers.nsys_export import Export, quoted
from agprof.importers.nsys_session import Session, pid_of

GPU_TABLES = (
    "CUPTI_ACTIVITY_KIND_KERNEL",
    "CUPTI_ACTIVITY_KIND_MEMCPY",
    "CUPTI_ACTIVITY_KIND_MEMSET",
    "CUPTI_ACTIVITY_KIND_GRAPH_TRACE",
)
NVTX = "NVTX_EVENTS"
RUNTIME = "CUPTI_ACTIVITY_KIND_RUNTIME"
BESIDE = 0.01
"""Below this share of a process' activities a device is not its own: a context opened there by mistake."""
PROCESS_NAME = "name of the process"
_NAMED = re.compile(r"\brank[ _-]?0*(\d{1,6})\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class NsysRank:
    """A rank of an export."""

    process: int | None
    """Global id of the process without its thread (24 bits less); None where the export does not say whose."""
    device: int | None
    """CUDA device; None for a process without device activity."""
    rank: int | None
    """Its number, where the export says it."""
    rank_source: str
    world_size: int | None


def find_ranks(export: Export, session: Session) -> tuple[NsysRank, ...]:
    """The ranks, ordered by number where known, then by device and process. Raises TraceError when there are none."""
    found = _with_devices(export) or _by_process(export, NVTX, "eventType IN (34, 59, 60)")
    found = found or _by_process(export, RUNTIME, "1")
    if not found:
        raise TraceError(
            f"{export.file}: the export holds no GPU activity, NVTX range or CUDA call; its tables are "
            f"{', '.join(sorted(export.tables)[:12]) or 'none'}; capture with nsys profile --trace=cuda,nvtx"
        )
    hints = _hints(export)
    ranks = _without_copies([_numbered(rank, found, hints) for rank in found])
    if len(ranks) == 1 and ranks[0].rank is None and session.rank is not None:
        ranks = [replace(ranks[0], rank=session.rank, rank_source="environment", world_size=session.world_size)]
    if len({rank.rank for rank in ranks}) < len(ranks):
        # Some have a number and others not, or two have the same: then none of them can be trusted.
        known = [rank for rank in ranks if rank.rank is not None]
        if known:
            ranks = [replace(rank, rank=None, rank_source="") for rank in ranks]
    return tuple(sorted(ranks, key=lambda r: (r.rank is None, r.rank or 0, r.device or 0, r.process or 0)))


def process_of(global_id: int) -> int:
    """The process in a serialized global id: its upper 40 bits.

    >>> process_of(281476838981743) & 0xFFFFFF, 281476838981743 & 0xFFFFFF
    (111, 111)
    """
    return global_id >> 24


def _with_devices(export: Export) -> list[NsysRank]:
    counts: dict[int | None, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for base in GPU_TABLES:
        table = export.table(base)
        if table is None:
            continue
        columns = f"{export.expression(table, 'globalPid')}, {export.expression(table, 'deviceId')}"
        for process, device, rows in export.query(f"SELECT {columns}, count(*) FROM {quoted(table)} GROUP BY 1, 2"):
            if isinstance(device, int) and (process is None or isinstance(process, int)):
                counts[None if process is None else process_of(process)][device] += rows
    processes = _processes(export, RUNTIME)
    if set(counts) == {None} and len(processes) == 1:
        counts = defaultdict(lambda: defaultdict(int), {next(iter(processes)): counts[None]})
    return [
        NsysRank(process=process, device=device, rank=None, rank_source="", world_size=None)
        for process, devices in counts.items()
        for device, rows in devices.items()
        if process is None or rows >= BESIDE * sum(devices.values())
    ]


def _processes(export: Export, base: str, where: str = "1") -> set[int]:
    table = export.table(base)
    if table is None or "globalTid" not in export.columns(table):
        return set()
    if "eventType" in where and "eventType" not in export.columns(table):
        return set()
    sql = f"SELECT DISTINCT globalTid >> 24 FROM {quoted(table)} WHERE globalTid IS NOT NULL AND {where}"
    return {process for (process,) in export.query(sql) if isinstance(process, int)}


def _by_process(export: Export, base: str, where: str) -> list[NsysRank]:
    return [
        NsysRank(process=process, device=None, rank=None, rank_source="", world_size=None)
        for process in sorted(_processes(export, base, where))
    ]


def _without_copies(ranks: list[NsysRank]) -> list[NsysRank]:
    """Without processes that only by their name are of a rank that another process surely is: agprof's ranges, merged
    into the report of the rank itself (`agprof export --format nsys-rep`)."""
    sure = {rank.rank for rank in ranks if rank.rank is not None and rank.rank_source != PROCESS_NAME}
    return [rank for rank in ranks if rank.rank_source != PROCESS_NAME or rank.rank not in sure]


@dataclass(frozen=True, slots=True)
class _Hint:
    rank: int
    source: str
    world_size: int | None = None


def _hints(export: Export) -> Mapping[int, _Hint]:
    """What is said of processes' ranks; the surer word last, so that it wins."""
    hints: dict[int, _Hint] = {}
    hints |= {process: _Hint(rank, PROCESS_NAME) for process, rank in _process_names(export).items()}
    hints |= {process: _Hint(rank, "NCCL", size) for process, (rank, size) in nsys_nccl.ranks(export).items()}
    hints |= {process: _Hint(rank, "MPI") for process, rank in _mpi(export).items()}
    hints |= {process: _Hint(rank, "agprof.rank mark") for process, rank in _marks(export).items()}
    return hints


def _process_names(export: Export) -> dict[int, int]:
    """agprof's own exports call a process `rank 00 (host)`."""
    table = export.table("PROCESSES")
    if table is None or not {"globalPid", "name"} <= set(export.columns(table)):
        return {}
    found: dict[int, int] = {}
    for process, name in export.query(f"SELECT globalPid, name FROM {quoted(table)} LIMIT 1000000"):
        match = _NAMED.match(name) if isinstance(name, str) else None
        if match and isinstance(process, int):
            found[process_of(process)] = int(match[1])
    return found


def _mpi(export: Export) -> dict[int, int]:
    table = export.table("MPI_RANKS")
    if table is None or not {"globalTid", "rank"} <= set(export.columns(table)):
        return {}
    rows = export.query(f"SELECT globalTid, rank FROM {quoted(table)} LIMIT 1000000")
    return {process_of(tid): rank for tid, rank in rows if isinstance(tid, int) and isinstance(rank, int) and rank >= 0}


def _marks(export: Export) -> dict[int, int]:
    """Marks `agprof.rank`, whose payload (or what stands behind the name) is the rank."""
    table = export.table(NVTX)
    if table is None or not {"eventType", "globalTid"} <= set(export.columns(table)):
        return {}
    values = [export.expression(table, name) for name in ("int64Value", "uint64Value", "int32Value", "uint32Value")]
    ids = [number for (number,) in _named_strings(export)]
    by_id = f" OR textId IN ({','.join(map(str, ids))})" if ids and "textId" in export.columns(table) else ""
    text = export.expression(table, "text")
    sql = (
        f"SELECT globalTid, coalesce({', '.join(values)}), {text}, {export.expression(table, 'textId')} "
        f"FROM {quoted(table)} WHERE eventType = 34 AND ({text} LIKE 'agprof.rank%'{by_id}) LIMIT 100000"
    )
    found: dict[int, int] = {}
    for thread, value, own, number in export.query(sql):
        words = own if isinstance(own, str) else export.strings([number]).get(number, "")
        digits = re.search(r"(\d{1,9})\s*$", words)
        rank = value if isinstance(value, int) else int(digits[1]) if digits else None
        if isinstance(thread, int) and rank is not None and rank >= 0:
            found.setdefault(process_of(thread), rank)
    return found


def _named_strings(export: Export) -> list[tuple[int]]:
    if export.table("StringIds") is None:
        return []
    rows = export.query("SELECT id FROM StringIds WHERE value LIKE 'agprof.rank%' LIMIT 100")
    return [(number,) for (number,) in rows if isinstance(number, int)]


def _numbered(rank: NsysRank, all_ranks: list[NsysRank], hints: Mapping[int, _Hint]) -> NsysRank:
    """The rank with the number that its process has; a process with several devices has several ranks and no number."""
    hint = hints.get(rank.process) if rank.process is not None else None
    alone = sum(other.process == rank.process for other in all_ranks) == 1
    if hint is None or not alone:
        return rank
    return replace(rank, rank=hint.rank, rank_source=hint.source, world_size=hint.world_size)


def device_facts(session: Session, rank: NsysRank) -> tuple[Mapping[str, object], ...]:
    """What the export says of a rank's device."""
    if rank.device is None:
        return ()
    pid = None if rank.process is None else pid_of(rank.process)
    told = session.devices.get((pid, rank.device)) or session.devices.get((None, rank.device))
    return (dict(told),) if told else ()
