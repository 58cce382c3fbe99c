"""What optimizers keep between steps: bytes of their state on this rank."""

import importlib
from typing import Any

from agprof.instruments.recorder import Recorder

INSTRUMENT = "optimizer state"
LOOKED_AT_STEPS = 3
"""State is made in the first update of each parameter; who is not updated by then is not counted."""
FACT = "optimizer.state_bytes"


def arm(recorder: Recorder) -> None:
    """Record the fact `optimizer.state_bytes` after the first steps: tensors in `optimizer.state`, this rank's part."""
    sizes: dict[int, int] = {}
    """By the optimizer's id: holding the optimizer itself, weakly or not, could change when it goes."""

    def look(optimizer: Any) -> None:
        before = sum(sizes.values())
        sizes[id(optimizer)] = state_bytes(optimizer)
        total = sum(sizes.values())
        if total != before:
            recorder.fact(FACT, total)

    guarded = recorder.guard(INSTRUMENT, look)

    def step_hook(optimizer: Any, _args: Any, _kwargs: Any) -> None:
        if recorder.step <= LOOKED_AT_STEPS:
            guarded(optimizer)

    # a compiler that traces the optimizer's step must leave this out
    step_hook._torchdynamo_disable = True  # type: ignore[attr-defined]
    # torch.optim deletes the name `optimizer` from its namespace; the module is there all the same
    module = importlib.import_module("torch.optim.optimizer")
    recorder.patches.on_undo(module.register_optimizer_step_post_hook(step_hook).remove)


def state_bytes(optimizer: Any) -> int:
    """Bytes of the tensors that the optimizer keeps per parameter; of a sharded one (DTensor) this rank's part."""
    tensors = {}
    for state in list(optimizer.state.values()):
        for value in list(state.values()) if isinstance(state, dict) else ():
            local = getattr(value, "_local_tensor", value)
            if callable(getattr(local, "element_size", None)):
                tensors[id(local)] = int(local.numel()) * int(local.element_size())
    return sum(tensors.values())
