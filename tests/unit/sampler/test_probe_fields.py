"""Which fields a machine gives, as `agprof doctor` tells them."""

from typing import Any

from agprof.model.tables import BY_NAME
from agprof.sampler.probe import describe


def row(table: str, **values: Any) -> tuple[Any, ...]:
    return tuple(values.get(column.name) for column in BY_NAME[table].columns)


def energy_of(counters: list[int | None]) -> dict[str, str]:
    """The field `energy_mj` of GPUs with these counters; those that have none said why."""
    states = [
        row("sampler_state", time_ns=1, field=f"gpu.{gpu}.energy", state="unsupported", reason="not supported")
        for gpu, counter in enumerate(counters)
        if counter is None
    ]
    rows = {
        "gpus": [row("gpus", gpu=gpu, uuid=f"GPU-{gpu}") for gpu in range(len(counters))],
        "gpu_samples": [
            row("gpu_samples", time_ns=1, gpu=gpu, power_mw=1, energy_mj=value) for gpu, value in enumerate(counters)
        ],
        "sampler_state": states,
    }
    return next(field for field in describe(rows)["fields"] if field["field"] == "gpu.energy_mj")


def test_a_field_that_some_gpus_have_names_those_that_lack_it() -> None:
    assert energy_of([1, 2, 3]) == {"field": "gpu.energy_mj", "state": "ok", "reason": ""}
    assert energy_of([1, 2, None])["reason"] == "GPU 2 alone: not supported"
    assert energy_of([None, 2, None])["reason"] == "GPUs 0, 2: not supported"
    assert energy_of([None, None])["reason"] == "not supported"
