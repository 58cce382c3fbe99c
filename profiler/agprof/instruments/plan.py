"""The process of planning: `python -m agprof.instruments.plan REQUEST FD`.

Builds a workload's model on the meta device as often as there are configurations to look at, counts, and writes lines
of JSON to the file descriptor FD: {"progress": text}, {"note": text}, {"scenario": Scenario}, {"error": text}, and at
the end {"done": true}. The workload's own prints go to stdout and stderr. Needs torch; holds no data and no weights.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any, NamedTuple

from agprof.instruments.plan_function import Planned, WrongFunction, call, find_function, search_first
from agprof.model.plan_answers import Varied
from agprof.model.plan_measure import Job


class Variant(NamedTuple):
    """One thing that is asked to be otherwise."""

    varied: Varied
    label: str
    asked: dict[str, Any]


def main(argv: list[str]) -> int:
    request, descriptor = json.loads(argv[0]), int(argv[1])
    with os.fdopen(descriptor, "w", encoding="utf-8", buffering=1) as lines:

        def tell(**what: Any) -> None:
            lines.write(json.dumps(what) + "\n")

        try:
            plan(request, tell)
        except WrongFunction as error:
            tell(error=str(error))
            return 1
        tell(done=True)
    return 0


def plan(request: dict[str, Any], tell: Callable[..., None]) -> None:
    """`request`: function, arguments, folder or None, device, ranks, variants (whether any), budget_s."""
    began = time.monotonic()
    tell(progress="importing torch")
    import torch

    # Imported here: they need torch's place in the process first.
    from agprof.instruments.plan_count import count_scenario
    from agprof.instruments.plan_kernels import use_kernels_of

    torch.set_num_threads(1)
    use_kernels_of(request["device"], torch)
    if request.get("folder"):
        search_first(request["folder"])
    tell(progress=f"importing {request['function']}")
    function = find_function(request["function"])
    asked = {"device": "cuda" if request["device"] == "gpu" else "cpu", "ranks": request["ranks"]}

    def counted(varied: Varied, label: str, changes: dict[str, Any]) -> Planned:
        start = time.monotonic()
        tell(progress=f"{label}: building the model without data")
        planned = call(function, request["arguments"], {**asked, **changes}, torch)
        tell(progress=f"{label}: counting {len(planned.kinds)} kind{'s' * (len(planned.kinds) > 1)} of micro-step")
        tell(scenario=asdict(count_scenario(planned, varied, label, torch, start)))
        return planned

    written = counted("as written", "as written", {})
    job, can_change = written.job, written.can_change
    del written  # so that no more than one model is there at a time
    variants = [variant for variant in variants_of(job) if variant.varied in can_change]
    for number, (varied, label, changes) in enumerate(variants if request.get("variants", True) else []):
        if time.monotonic() - began > request["budget_s"]:
            left = ", ".join(variant.label for variant in variants[number:])
            tell(note=f"not planned, as that would take more than {request['budget_s']:g} s: {left}")
            break
        try:
            counted(varied, label, changes)
        except WrongFunction as error:
            tell(note=f"{label} can't be planned: the model function {error}")


def variants_of(job: Job) -> Iterator[Variant]:
    """One change each, of what the job says about itself."""
    batch, length = job.micro_batch, job.sequence_length
    for value in _around(batch, factors=(0.5, 2, 4)):
        yield Variant("micro_batch", f"micro-batch {value}", {"micro_batch": value})
    for value in _around(length, factors=(0.5, 2)):
        yield Variant("sequence_length", f"sequence length {value}", {"sequence_length": value})
    if job.checkpointing is not None:
        word = "without" if job.checkpointing else "with"
        yield Variant("checkpointing", f"{word} activation checkpointing", {"checkpointing": not job.checkpointing})
    if job.lora is not None:
        yield Variant("lora", f"{'without' if job.lora else 'with'} LoRA", {"lora": not job.lora})


def _around(value: int | None, factors: tuple[float, ...]) -> list[int]:
    if value is None:
        return []
    scaled = [value * factor for factor in factors]
    return [int(number) for number in scaled if number == int(number) and number >= 1]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
