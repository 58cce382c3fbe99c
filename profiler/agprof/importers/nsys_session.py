"""What an Nsight Systems export says of its session: clock, host, version, devices, and what was captured."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agprof.importers.nsys_export import Export, quoted

HOUR_NS = 3600 * 10**9
_LARGEST = 2**62
_RANK_VARIABLES = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "SLURM_PROCID")
_SIZE_VARIABLES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_NTASKS")


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """Facts of a session."""

    base_ns: int | None
    """Add to a column's time for ns since the epoch; None where the export does not say when it was."""
    limit_ns: int | None
    """No event of the session can lie further from 0 than that; None where its length is not known."""
    host: str | None
    producer: str
    rank: int | None
    """RANK or the like in the environment of the process that nsys started. Nothing else of it is looked at."""
    world_size: int | None
    devices: Mapping[tuple[int | None, int], Mapping[str, Any]]
    """By (process, CUDA device); process None: of any."""


def read_session(export: Export) -> Session:
    """Read it. Raises TraceError when the file can't be read."""
    meta = _pairs(export, "META_DATA_EXPORT") | _pairs(export, "EXPORT_META_DATA")
    variables = _rank_variables(export)
    version = meta.get("EXPORT_PRODUCT_VERSION", "")
    return Session(
        base_ns=_base_ns(export, meta),
        limit_ns=_limit_ns(export),
        host=_environment(export).get("Hostname"),
        producer=f"Nsight Systems {version}".strip(),
        rank=next((variables[name] for name in _RANK_VARIABLES if name in variables), None),
        world_size=next((variables[name] for name in _SIZE_VARIABLES if name in variables), None),
        devices=_devices(export),
    )


def _pairs(export: Export, table: str) -> dict[str, str]:
    """A table of names and values; the first of a name counts."""
    found = export.table(table)
    if found is None or not {"name", "value"} <= set(export.columns(found)):
        return {}
    pairs: dict[str, str] = {}
    for name, value in export.query(f"SELECT name, value FROM {quoted(found)} LIMIT 100000"):
        pairs.setdefault(str(name), str(value))
    return pairs


def _environment(export: Export) -> dict[str, str]:
    return _pairs(export, "TARGET_INFO_SYSTEM_ENV")


def _rank_variables(export: Export) -> dict[str, int]:
    found = export.table("META_DATA_CAPTURE")
    if found is None or not {"name", "value"} <= set(export.columns(found)):
        return {}
    variables: dict[str, int] = {}
    sql = f"SELECT value FROM {quoted(found)} WHERE name LIKE 'PROCESS\\_%:ENVIRONMENT\\_VARIABLE' ESCAPE '\\'"
    for (value,) in export.query(sql):
        match = re.fullmatch(r'(\w+)="?(\d{1,9})"?', value) if isinstance(value, str) else None
        if match and match[1] in (*_RANK_VARIABLES, *_SIZE_VARIABLES):
            variables.setdefault(match[1], int(match[2]))
    return variables


def _base_ns(export: Export, meta: Mapping[str, str]) -> int | None:
    shift = meta.get("EXPORT_PARAM_TIME_SHIFT", "0")
    shift_ns = int(shift) if re.fullmatch(r"-?\d{1,18}", shift) else 0
    if meta.get("EXPORT_PARAM_TIME_NORMALIZE") == "true":
        return -shift_ns  # `nsys export --ts-normalize=true` wrote wall time already
    epoch = _first_int(export, "TARGET_INFO_SESSION_START_TIME", "utcEpochNs")
    return epoch - shift_ns if epoch is not None and 0 <= epoch < _LARGEST else None


def _limit_ns(export: Export) -> int | None:
    lengths = [_first_int(export, "ANALYSIS_DETAILS", column) for column in ("duration", "stopTime")]
    known = [length for length in lengths if length is not None and 0 < length < _LARGEST]
    return 2 * max(known) + HOUR_NS if known else None


def _first_int(export: Export, base: str, column: str) -> int | None:
    table = export.table(base)
    if table is None or column not in export.columns(table):
        return None
    value = export.query(f"SELECT {quoted(column)} FROM {quoted(table)} LIMIT 1")[0][0]
    return value if isinstance(value, int) else None


def _devices(export: Export) -> dict[tuple[int | None, int], dict[str, Any]]:
    table = export.table("TARGET_INFO_GPU")
    if table is None:
        return {}
    fields = {"id": "id", "name": "name", "totalMemory": "totalGlobalMem", "smCount": "numSms", "uuid": "uuid",
              "chipName": "chip", "memoryBandwidth": "memoryBandwidth", "computeMajor": "computeMajor",
              "computeMinor": "computeMinor"}  # fmt: skip
    wanted = ", ".join(export.expression(table, column) for column in fields)
    by_gpu: dict[int, dict[str, Any]] = {}
    for row in export.query(f"SELECT {wanted} FROM {quoted(table)} LIMIT 4096"):
        told = {key: value for key, value in zip(fields.values(), row, strict=True) if isinstance(value, int | str)}
        number = told.get("id")
        if isinstance(number, int):
            by_gpu[number] = told
    devices: dict[tuple[int | None, int], dict[str, Any]] = {(None, gpu): told for gpu, told in by_gpu.items()}
    cuda = export.table("TARGET_INFO_CUDA_DEVICE")
    if cuda is not None and {"gpuId", "cudaId", "pid"} <= set(export.columns(cuda)):
        for gpu, number, pid in export.query(f"SELECT gpuId, cudaId, pid FROM {quoted(cuda)} LIMIT 65536"):
            if gpu in by_gpu and isinstance(number, int) and isinstance(pid, int):
                devices[pid, number] = by_gpu[gpu] | {"id": number}
    return devices


def pid_of(process: int) -> int:
    """The process id in a process' number (a serialized global id without its thread)."""
    return process & 0xFFFFFF
