"""The parts of the profile step: one entry per instrument, in the order in which they begin and end.

Each makes its part, or None where this rank has none. What it needs is imported there: one that fails to be imported is
a fault of its own, and the others go on.
"""

from collections.abc import Callable, Sequence
from typing import Any

from agprof.instruments.profile_step import StepPart
from agprof.instruments.recorder import Recorder

Make = Callable[[Recorder, Any, int, Sequence[StepPart]], StepPart | None]
"""(recorder, torch, rank, parts made before)."""


def _flops(recorder: Recorder, torch: Any, rank: int, _before: Sequence[StepPart]) -> StepPart | None:
    from agprof.instruments.flops import FlopsPart

    return FlopsPart(recorder, torch) if rank == 0 else None


def _memory_account(recorder: Recorder, torch: Any, _rank: int, _before: Sequence[StepPart]) -> StepPart | None:
    from agprof.instruments.memory_account import MemoryAccount

    return MemoryAccount(recorder, torch) if recorder.settings.profile_step is not None else None


def _memory_history(recorder: Recorder, torch: Any, _rank: int, before: Sequence[StepPart]) -> StepPart | None:
    from agprof.instruments.memory_account import MemoryAccount
    from agprof.instruments.memory_history import MemoryHistory

    account = next((part for part in before if isinstance(part, MemoryAccount)), None)
    return None if account is None else MemoryHistory(recorder, torch, lambda: account.peak_sizes)


def _readbacks(recorder: Recorder, torch: Any, rank: int, _before: Sequence[StepPart]) -> StepPart | None:
    from agprof.instruments.readbacks import Readbacks

    return Readbacks(recorder, torch) if rank == 0 else None


def _repeats(recorder: Recorder, torch: Any, rank: int, _before: Sequence[StepPart]) -> StepPart | None:
    from agprof.instruments.repeats import Repeats

    return Repeats(recorder, torch) if rank == 0 else None


STEP_PARTS: dict[str, Make] = {
    "flops": _flops,
    "memory account": _memory_account,
    "memory history": _memory_history,
    "readbacks": _readbacks,
    "repeats": _repeats,
}
