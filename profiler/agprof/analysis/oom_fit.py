"""What would have fitted: changes, and about how many bytes each gives back. All of it is modelled.

From the account of the moment (half of the activations, all but what checkpointing keeps of them) and from the formulas
of `model.zero` (stages, offload). Whether a change would have been enough is said for the allocation that failed; what
the step would have asked for after it is not known.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

import polars as pl

from agprof.analysis.view import View
from agprof.model.format import format_value
from agprof.model.memory_answers import MemoryAccount, Space
from agprof.model.zero import STAGES, ModelStates, StateBytes, highest, with_stage

WORTH_RATIO = 0.01
"""A change that frees less of what is held is not named."""
KEPT_BY_CHECKPOINTS = 2 / 34
"""Of a transformer block's activations: its input, 2sbh of 34sbh bytes (Korthikanti et al. 2022, arXiv 2205.05198)."""
MIN_BLOCKS = 3


@dataclass(frozen=True, slots=True)
class Change:
    """A change and what it gives."""

    change: str
    frees_bytes: float
    how: str


def would_fit(
    view: View,
    space: Space,
    account: MemoryAccount | None,
    states: ModelStates | None,
    missing_bytes: int | None,
) -> tuple[tuple[str, str], ...]:
    """(change, what it gives), what gives most first. `missing_bytes`: by how much the allocation was too large."""
    found: list[Change] = []
    held = (account.total.value if account is not None else None) or 0.0
    if account is not None:
        found.extend(_of_activations(view, account))
    if states is not None:
        found.extend(_of_states(view, space, states))
    worth = [change for change in found if change.frees_bytes > WORTH_RATIO * held and change.frees_bytes >= 1]
    return tuple((c.change, _words(c, missing_bytes)) for c in sorted(worth, key=lambda c: (-c.frees_bytes, c.change)))


def _words(change: Change, missing_bytes: int | None) -> str:
    frees = f"frees about {format_value(change.frees_bytes, 'bytes')} ({change.how})"
    if missing_bytes is None:
        return frees
    return f"{frees}: {'would fit' if change.frees_bytes >= missing_bytes else 'would not fit'}"


def _of_activations(view: View, account: MemoryAccount) -> Iterator[Change]:
    sizes = {part.part: part.bytes for part in account.parts}
    activations = sizes.get("activations", 0.0)
    batch = _micro_batch(view)
    if batch is None or batch >= 2:
        halved = (activations + sizes.get("inputs", 0.0)) / 2
        yield Change(_half_batch(view, batch), halved, "modelled: half of the activations and inputs")
    blocks = _blocks(view)
    if blocks >= MIN_BLOCKS and not _recomputes(view):
        freed = activations * (1 - 1 / blocks - KEPT_BY_CHECKPOINTS)
        how = f"modelled: of {blocks} blocks' activations one's stay, and the others' inputs"
        yield Change("activation checkpointing", freed, how)


def _half_batch(view: View, batch: int | None) -> str:
    if batch is None:
        return "half the micro-batch"
    if isinstance(view.fact("deepspeed.micro_batch"), int):
        return f"train_micro_batch_size_per_gpu: {batch // 2}"
    return f"a micro-batch of {batch // 2} instead of {batch}"


def _micro_batch(view: View) -> int | None:
    """Samples of a micro-step on one rank."""
    told = view.fact("deepspeed.micro_batch")
    if isinstance(told, int) and told > 0:
        return told
    seen = view.tables["micro_steps"]["samples"].drop_nulls().to_list()
    return int(median(seen)) if seen else None


def _blocks(view: View) -> int:
    """Most modules of one type under one parent (the blocks of a transformer); 0 where no module tree was seen."""
    rows = view.tables["modules"].drop_nulls(["parent"]).filter((pl.col("calls") > 0) & (pl.col("params") > 0))
    counts = rows.group_by("root", "parent", "type").agg(n=pl.len(), weight=pl.col("params").sum())
    if not counts.height:
        return 0
    return int(counts.sort("weight", "n", descending=True).row(0, named=True)["n"])


def _recomputes(view: View) -> bool:
    calls = view.tables["modules"]["recomputed_calls"].drop_nulls()
    return bool(calls.len() and (calls > 0).any())


def _of_states(view: View, space: Space, states: ModelStates) -> Iterator[Change]:
    on_gpu = view.fact("device.type") == "cuda"

    def held(bytes_: StateBytes) -> float:
        # Without a GPU the host is the device that trains.
        return bytes_.total if not on_gpu else bytes_.device if space == "device" else bytes_.host

    now = held(highest(states))
    if states.ranks > 1 and states.framework in ("deepspeed", "ddp"):
        for stage in STAGES[states.stage + 1 :]:
            then = with_stage(
                states, stage, offload_optimizer=states.offload_optimizer, offload_param=states.offload_param
            )
            words = "DeepSpeed with zero_optimization.stage" if states.framework == "ddp" else "zero_optimization.stage"
            yield Change(
                f"{words}: {stage}", now - held(highest(then)), f"modelled: model states over {states.ranks} ranks"
            )
    if on_gpu and space == "device" and states.framework == "deepspeed" and not states.offload_optimizer:
        then = with_stage(states, max(1, states.stage), offload_optimizer=True, offload_param=states.offload_param)
        name = "zero_optimization.offload_optimizer.device: cpu"
        yield Change(
            name if states.stage else f"{name} with stage 1", now - held(highest(then)), "modelled: to the host"
        )
    if on_gpu and space == "host" and states.offload_optimizer:
        then = with_stage(states, states.stage, offload_param=states.offload_param)
        name = "zero_optimization.offload_optimizer.device: none"
        yield Change(name, now - held(highest(then)), "modelled: to the device")
