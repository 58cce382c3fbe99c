"""The process of planning: `python -m agprof.instruments.plan REQUEST FD`.

Builds a workload's model on the meta device as often as there are configurations to look at, counts, and writes lines
of JSON to the file descriptor FD: {"progress": text}, {"note": text}, {"scenario": Scenario}, {"error": text,
"printed": bool}, and at the end {"done": true}. `printed`: why stands in stdout or stderr, to which the workload's own
prints go. Needs torch; holds no data and no weights.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict
from multiprocessing import get_context
from typing import Any, NamedTuple

from agprof.instruments.plan_function import (
    EndedError,
    FunctionError,
    Planned,
    call,
    error_text,
    find_function,
    search_first,
)
from agprof.instruments.plan_kernels import use_kernels_of
from agprof.instruments.plan_values import ValueQuestions
from agprof.model.plan_answers import Varied
from agprof.model.plan_measure import Job, Scenario


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
        except FunctionError as error:
            tell(error=str(error), printed=isinstance(error, EndedError))
            return 1
        tell(done=True)
    return 0


class Counter:
    """Builds the job in one way or another and counts it."""

    def __init__(self, request: dict[str, Any], torch: Any, questions: ValueQuestions) -> None:
        self._torch = torch
        self._arguments: list[str] = request["arguments"]
        self._always = {"device": "cuda" if request["device"] == "gpu" else "cpu", "ranks": request["ranks"]}
        self._function = find_function(request["function"])
        self.questions = questions

    def build(self, asked: dict[str, Any]) -> Planned:
        return call(self._function, self._arguments, {**self._always, **asked}, self._torch)

    def count(self, planned: Planned, varied: Varied, label: str, began: float) -> Scenario:
        from agprof.instruments.plan_count import count_scenario

        return count_scenario(planned, varied, label, self._torch, began)

    def variant(self, variant: Variant) -> dict[str, Any]:
        """What to tell of one variant."""
        began = time.monotonic()
        try:
            planned = self.build(variant.asked)
            return {"scenario": asdict(self.count(planned, variant.varied, variant.label, began))}
        except FunctionError as error:
            return {"note": f"{variant.label} can't be planned: the model function {error}"}


def plan(request: dict[str, Any], tell: Callable[..., None]) -> None:
    """`request`: function, arguments, folder or None, device, ranks, variants (whether any), budget_s, processes."""
    began = time.monotonic()
    tell(progress="importing torch")
    import torch

    torch.set_num_threads(1)
    use_kernels_of(request["device"], torch)
    questions = ValueQuestions(torch)
    questions.arm()
    if request.get("folder"):
        search_first(request["folder"])
    tell(progress=f"importing {request['function']}")
    counter = Counter(request, torch, questions)
    start = time.monotonic()
    tell(progress="building the model without data")
    written = counter.build({})
    job, can_change = written.job, written.can_change
    tell(progress=f"counting {len(written.kinds)} kind{'s' * (len(written.kinds) > 1)} of micro-step")
    tell(scenario=asdict(counter.count(written, "as written", "as written", start)))
    del written  # no more models at a time than there are processes
    if questions.asked:
        tell(note=_taken(questions.asked))
    if request["variants"]:
        variants = [variant for variant in variants_of(job) if variant.varied in can_change]
        deadline = began + request["budget_s"]
        _count_side_by_side(counter, variants, request["processes"], deadline, tell)


def _taken(values: int) -> str:
    what, were = ("value", "was") if values == 1 else ("values", "were")
    return f"{values} {what} that the job reads back in its micro-steps {were} taken as 1"


def _count_side_by_side(
    counter: Counter, variants: list[Variant], processes: int, deadline: float, tell: Callable[..., None]
) -> None:
    """In forked processes: torch and the job's modules are imported already."""
    _OF_THIS_PROCESS.append(counter)
    left = list(variants)
    with ProcessPoolExecutor(processes, mp_context=get_context("fork")) as pool:
        running: dict[Future[dict[str, Any]], Variant] = {}
        while left or running:
            while left and len(running) < processes and time.monotonic() < deadline:
                variant = left.pop(0)
                tell(progress=f"counting {variant.label}, {len(variants) - len(left)} of {len(variants)}")
                running[pool.submit(_count_variant, variant)] = variant
            if not running:
                names = ", ".join(variant.label for variant in left)
                tell(note=f"left out, as the time of --budget was over: {names}")
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                variant = running.pop(future)
                try:
                    tell(**future.result())
                except Exception as error:
                    tell(note=f"{variant.label} can't be planned: {error_text(error)}")


_OF_THIS_PROCESS: list[Counter] = []
"""Handed on to its forks."""


def _count_variant(variant: Variant) -> dict[str, Any]:
    return _OF_THIS_PROCESS[-1].variant(variant)


def variants_of(job: Job) -> Iterator[Variant]:
    """One change each, of what the job says about itself; the most telling first, as there may not be time for all."""
    if job.micro_batch is not None:
        yield _micro_batch(job.micro_batch * 2)
    if job.lora is not None:
        yield Variant("lora", f"{'without' if job.lora else 'with'} LoRA", {"lora": not job.lora})
    if job.checkpointing is not None:
        word = "without" if job.checkpointing else "with"
        yield Variant("checkpointing", f"{word} activation checkpointing", {"checkpointing": not job.checkpointing})
    if job.sequence_length is not None:
        yield _sequence(job.sequence_length * 2)
    if job.micro_batch is not None:
        yield from (_micro_batch(value) for value in (job.micro_batch // 2, job.micro_batch * 4) if value)
    if job.sequence_length is not None and job.sequence_length >= 2:
        yield _sequence(job.sequence_length // 2)


def _micro_batch(value: int) -> Variant:
    return Variant("micro_batch", f"micro-batch {value}", {"micro_batch": value})


def _sequence(value: int) -> Variant:
    return Variant("sequence_length", f"sequence length {value}", {"sequence_length": value})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
