"""What the sampler really gets on this machine: `python -m agprof.sampler.probe` prints it as one line of JSON.

Two rounds of samples are taken by the sampler's own parts, a little apart so that counters have rates, and each column
of its tables is looked at. For `agprof doctor`, in a process of its own because a driver's library may hang or exit.
"""

import json
import sys
import time
from collections.abc import Iterable
from typing import Any

from agprof.model.tables import BY_NAME
from agprof.sampler.cores import Cores
from agprof.sampler.host import Host
from agprof.sampler.loop import Part
from agprof.sampler.network import Network
from agprof.sampler.nvml import Gpus, load_nvml
from agprof.sampler.nvml_errors import NoNvmlError
from agprof.sampler.states import States

APART_S = 0.3
"""GPM wants its readings 100 ms apart."""
_KEYS = frozenset({"time_ns", "period_ns", "gpu", "core", "interface", "kind", "pid", "owner", "rank", "name"})
_GPU_TABLES = ("gpu_samples", "gpu_states", "gpu_activity", "gpu_health")
_HOST_TABLES = ("host_samples", "core_samples")
_MOVED = frozenset({"gpu_samples.memory_used_bytes", "gpu_samples.temperature_c"})
"""Columns of earlier recordings."""
_OF_A_LIMIT = frozenset({"cgroup_memory_limit_bytes", "cgroup_cpu_limit_cores", "cgroup_throttled_ratio"})
"""None where there is no limit, which is no failure."""

Rows = dict[str, list[tuple[Any, ...]]]


def main() -> int:
    """Print what was found. Returns the exit code."""
    print(json.dumps(probe()), flush=True)
    return 0


def probe() -> dict[str, Any]:
    """A `model.doctor_facts.SamplerFacts` as plain data."""
    rows: Rows = {}

    def append(table: str, row: tuple[Any, ...]) -> None:
        rows.setdefault(table, []).append(row)

    states = States(append)
    try:
        gpus = Gpus(append, states, load_nvml())
    except NoNvmlError as error:
        gpus = Gpus(append, states, None, str(error))
    parts: list[Part] = [
        Host(append, states),
        Cores(append, states),
        Network(append, states),
        gpus.fast,
        gpus.medium,
        gpus.slow,
    ]
    for round_ in range(2):
        if round_:
            time.sleep(APART_S)
        for part in parts:
            part.sample(time.monotonic_ns())
    gpus.close()
    return describe(rows)


def describe(rows: Rows) -> dict[str, Any]:
    """What the rows say: GPUs, driver, and each column with its state."""
    reasons = {row[1]: (row[2], row[3]) for row in rows.get("sampler_state", ())}
    gpus = _named("gpus", rows.get("gpus", ()))
    fields = []
    if "gpu" in reasons and reasons["gpu"][0] != "ok":
        state, reason = reasons["gpu"]
        fields.append({"field": "gpu", "state": state, "reason": reason})
    elif gpus:
        fields += [field for table in _GPU_TABLES for field in _columns(table, rows, reasons, "gpu")]
    fields += [field for table in _HOST_TABLES for field in _columns(table, rows, reasons, "host")]
    return {
        "gpus": [
            {
                "name": gpu["name"] or "unnamed",
                "uuid": gpu["uuid"],
                "memory_bytes": gpu["memory_total_bytes"],
                "capability": gpu.get("compute_capability"),
            }
            for gpu in {gpu["gpu"]: gpu for gpu in gpus}.values()
            if gpu.get("mig_parent") is None
        ],
        "driver": next((gpu["driver_version"] for gpu in gpus), None),
        "fields": fields,
    }


def _named(table: str, rows: Iterable[tuple[Any, ...]]) -> list[dict[str, Any]]:
    names = [column.name for column in BY_NAME[table].columns]
    return [dict(zip(names, row, strict=False)) for row in rows]


def _columns(table: str, rows: Rows, reasons: dict[str, tuple[str, str]], prefix: str) -> Iterable[dict[str, str]]:
    """Each column with a value of its own. ok: a round had it (the second one rates), on every GPU."""
    having: dict[object, set[str]] = {}
    for row in _named(table, rows.get(table, ())):
        known = having.setdefault(row.get("gpu", row.get("core")), set())
        known.update(name for name, value in row.items() if value is not None)
    for column in BY_NAME[table].columns:
        if column.name in _KEYS or f"{table}.{column.name}" in _MOVED or column.name in _OF_A_LIMIT:
            continue
        lacking = [key for key, known in having.items() if column.name not in known]
        if having and not lacking:
            yield {"field": f"{prefix}.{column.name}", "state": "ok", "reason": ""}
        else:
            state, reason = _reason(column.name, reasons, prefix)
            which = _which(lacking) if prefix == "gpu" and len(lacking) < len(having) else ""
            yield {"field": f"{prefix}.{column.name}", "state": state, "reason": which + reason}


def _which(gpus: Iterable[object]) -> str:
    """`GPU 7 alone: `, for what the other GPUs have."""
    numbers = [str(gpu) for gpu in gpus]
    return f"GPU {numbers[0]} alone: " if len(numbers) == 1 else f"GPUs {', '.join(numbers)}: "


def _reason(column: str, reasons: dict[str, tuple[str, str]], prefix: str) -> tuple[str, str]:
    """What the sampler said of the field that stands closest to the column: `gpu.0.energy` of `energy_mj`."""
    best, length = ("unsupported", "not given"), 0
    for field, (state, reason) in reasons.items():
        parts = field.split(".")
        if parts[0] != prefix or state == "ok":
            continue
        word = parts[-1]
        if len(word) > length and (column.startswith(word) or word in column):
            best, length = (state, reason), len(word)
    return best


if __name__ == "__main__":
    sys.exit(main())
