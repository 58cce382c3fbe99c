"""Frozen modules that are given the same inputs again: what they say is known already.

In the profile step every outermost frozen module is looked at, in a few steps after it only those that take time. A
call counts when nothing that it says can differ: no input requires a gradient, and no dropout is at work in it.
"""

import contextlib
import statistics
import threading
from collections.abc import Iterator
from time import perf_counter_ns, thread_time_ns
from typing import Any

from agprof.instruments.fingerprints import Fingerprint, Fingerprints
from agprof.instruments.op_watch import OpWatch
from agprof.instruments.profile_step import StepPart
from agprof.instruments.recorder import Recorder

INSTRUMENT = "repeats"
LATER_STEPS = 8
"""Steps after the profile step in which inputs are still compared."""
MIN_SHARE = 0.02
"""Of the profile step's time: what a module must take to be looked at later."""
MAX_COST = 0.01
"""Of a step's time: what comparing may cost before the step is marked as profiled."""
MAX_CALLS = 20_000
MAX_ARGUMENTS = 200


class _Call:
    """One call of a frozen module."""

    __slots__ = ("duration_ns", "fingerprints", "micro_step", "module", "others", "start_ns", "step")

    def __init__(self, module: "_Frozen", step: int, micro_step: int) -> None:
        self.module = module
        self.step = step
        self.micro_step = micro_step
        self.start_ns = 0
        self.duration_ns: int | None = None
        self.fingerprints: list[Fingerprint] | None = None
        """Of the tensors that went in; None when the inputs can't be compared."""
        self.others: tuple[Any, ...] = ()
        """What went in beside tensors."""


class _Frozen:
    """A frozen module, where it stands, and the hooks on it."""

    def __init__(self, repeats: "Repeats", root: int, path: str, random: bool) -> None:
        self.root = root
        self.path = path
        self.random = random
        self._repeats: Repeats | None = repeats
        self._handles: list[Any] = []

    def hook(self, module: Any) -> None:
        self._handles = [
            module.register_forward_pre_hook(self.called, with_kwargs=True),
            module.register_forward_hook(self.returned, always_call=True),
        ]

    def unhook(self) -> None:
        self._repeats = None
        while self._handles:
            self._handles.pop().remove()

    def called(self, module: Any, args: Any, kwargs: Any) -> None:
        if self._repeats is not None:
            self._repeats.before(self, module, args, kwargs)

    def returned(self, _module: Any, _args: Any, _output: Any) -> None:
        if self._repeats is not None:
            self._repeats.after(self)

    def __deepcopy__(self, memo: Any) -> "_Frozen":
        """A module copied meanwhile keeps our hooks, which end with the original's."""
        return self

    def __reduce__(self) -> Any:
        """A module pickled meanwhile must not fail; its hooks come back as ones that do nothing."""
        return (_Unpickled, ())


class _Unpickled:
    """Stands for `_Frozen` in a module that was pickled with our hooks on it."""

    def called(self, _module: Any, _args: Any, _kwargs: Any) -> None:
        return None

    def returned(self, _module: Any, _args: Any, _output: Any) -> None:
        return None


class _Inside(threading.local):
    """Calls of frozen modules in progress on this thread, outermost first."""

    def __init__(self) -> None:
        self.calls: list[_Call | None] = []


class Repeats(StepPart):
    """Writes `repeats`."""

    def __init__(self, recorder: Recorder, torch: Any) -> None:
        self._recorder = recorder
        self._torch = torch
        self._fingerprints = Fingerprints(torch)
        self._frozen: dict[int, _Frozen] = {}
        self._calls: list[_Call] = []
        self._inside = _Inside()
        self._watch: OpWatch | None = None
        self._first_step: int | None = None
        self._step_start_ns = 0
        self._cost_ns = 0
        """CPU time: what other processes take on a busy machine is none of it."""
        self.before = recorder.guard(INSTRUMENT, self._before)
        self.after = recorder.guard(INSTRUMENT, self._after, ends=True)

    def begin(self, step: int, watch: OpWatch) -> None:
        self._watch, self._first_step = watch, step
        self._step_start_ns = perf_counter_ns()
        self._recorder.patches.on_undo(self.abandon)
        self._recorder.on_finish.append((INSTRUMENT, self._finish))
        self._recorder.on_fork.append(self.abandon)

    def root(self, module: Any, number: int) -> None:
        for path, inner in module.named_modules():
            if id(inner) not in self._frozen and _is_frozen(inner):
                frozen = self._frozen[id(inner)] = _Frozen(self, number, path, _has_dropout(inner))
                frozen.hook(inner)

    def end(self, step: int) -> None:
        now = perf_counter_ns()
        self._watch = None
        self._keep_only_what_takes_time(now - self._step_start_ns)
        self._step_start_ns, self._cost_ns = now, 0
        self._recorder.on_step_end.append(self._recorder.guard(INSTRUMENT, self._step_ended, ends=True))
        self._recorder.on_step_border.append(self._recorder.guard(INSTRUMENT, self._judge_cost))

    def abandon(self) -> None:
        for frozen in self._frozen.values():
            frozen.unhook()
        self._frozen.clear()
        self._calls.clear()
        self._inside.calls.clear()
        self._first_step = None

    # -- hooks -------------------------------------------------------------------------------------------------------

    def _before(self, frozen: _Frozen, module: Any, args: Any, kwargs: Any) -> None:
        begin = thread_time_ns()
        inside, recorder = self._inside.calls, self._recorder
        outermost = not inside and not (frozen.random and module.training) and len(self._calls) < MAX_CALLS
        if not outermost or self._torch._C._current_graph_task_id() != -1:
            inside.append(None)  # a call inside another one, or a recomputation
            return
        tensors, others = _taken_apart(self._torch, (args, kwargs))
        if any(tensor.requires_grad for tensor in tensors):
            inside.append(None)
            return
        call = _Call(frozen, recorder.step, recorder.micro_step)
        inside.append(call)
        self._calls.append(call)
        with self._unseen():
            made = [self._fingerprints.of(tensor) for tensor in tensors]
        known = [fingerprint for fingerprint in made if fingerprint is not None]
        if others is not None and tensors and len(known) == len(made):
            call.fingerprints, call.others = known, (module.training, *others)
        self._cost_ns += thread_time_ns() - begin
        call.start_ns = perf_counter_ns()

    def _after(self, frozen: _Frozen) -> None:
        calls = self._inside.calls
        call = calls.pop() if calls else None
        if call is not None and call.module is frozen:
            call.duration_ns = perf_counter_ns() - call.start_ns

    @contextlib.contextmanager
    def _unseen(self) -> Iterator[None]:
        """What runs inside is none of the training's operations."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._torch.no_grad())
            if self._watch is not None and self._watch.is_on:
                stack.enter_context(self._torch.utils._python_dispatch._disable_current_modes())
            yield

    # -- steps -------------------------------------------------------------------------------------------------------

    def _keep_only_what_takes_time(self, step_ns: int) -> None:
        spent: dict[int, int] = {}
        for call in self._calls:
            spent[id(call.module)] = spent.get(id(call.module), 0) + (call.duration_ns or 0)
        for key, frozen in list(self._frozen.items()):
            if spent.get(id(frozen), 0) < MIN_SHARE * step_ns:
                frozen.unhook()
                del self._frozen[key]

    def _judge_cost(self, _ended: int) -> None:
        """Before the row of the step is written."""
        now = perf_counter_ns()
        if self._cost_ns > MAX_COST * (now - self._step_start_ns):
            self._recorder.profiled = True
        self._step_start_ns, self._cost_ns = now, 0

    def _step_ended(self, ended: int) -> None:
        if self._first_step is not None and ended >= self._first_step + LATER_STEPS:
            self._finish()

    def _finish(self) -> None:
        """Write what was found, if it was not written before."""
        first_step, calls = self._first_step, list(self._calls)
        if first_step is None or self._watch is not None:
            return
        timed = not self._torch.cuda.is_initialized()
        self.abandon()
        last_step = max((call.step for call in calls), default=first_step)
        emit = self._recorder.writer.rows("repeats")
        for row in _rows(calls, first_step, last_step, timed):
            emit(row)


def _rows(calls: list[_Call], first_step: int, last_step: int, timed: bool) -> Iterator[tuple[Any, ...]]:
    """One row per module, in the order of first calls."""
    by_module: dict[int, list[_Call]] = {}
    for call in calls:
        by_module.setdefault(id(call.module), []).append(call)
    copies = _Copies(calls, first_step)
    for of_module in by_module.values():
        module, unverified, repeated, at_once = of_module[0].module, 0, 0, 0
        seen: dict[tuple[Any, ...], tuple[int, int]] = {}
        for call in of_module:
            identity = _identity(call)
            if identity is None:
                unverified += 1
                continue
            if identity in seen:
                repeated += 1
                at_once += seen[identity] == (call.step, call.micro_step)
            seen[identity] = (call.step, call.micro_step)
        # The profile step itself is slowed by what looks at its operations.
        later = [call.duration_ns for call in of_module if call.step > first_step and call.duration_ns is not None]
        yield (
            first_step,
            last_step,
            module.root,
            module.path,
            len(of_module),
            repeated,
            at_once,
            copies.share(of_module),
            int(statistics.median(later)) if timed and later else None,
            unverified,
        )


def _identity(call: _Call) -> tuple[Any, ...] | None:
    if call.fingerprints is None:
        return None
    identity: list[Any] = [call.others]
    for fingerprint in call.fingerprints:
        sums = fingerprint.read()
        if sums is None:
            return None
        identity.append((fingerprint.key, sums[0]))
    return tuple(identity)


class _Copies:
    """Items of a call's batch that are copies of others in it.

    Along the second dimension items are told from positions by the first module that saw them: it had the same groups
    of equal items along its first dimension, in the same micro-step.
    """

    def __init__(self, calls: list[_Call], first_step: int) -> None:
        self._first_step = first_step
        self._patterns = {
            (call.step, call.micro_step, pattern) for call in calls if (pattern := _pattern(call, 1)) is not None
        }

    def share(self, calls: list[_Call]) -> float | None:
        """Of all items of the calls in the profile step; None when there are none."""
        items = copies = 0
        for call in calls:
            if call.step != self._first_step or not call.fingerprints:
                continue
            pattern = _pattern(call, 2)
            if (call.step, call.micro_step, pattern) not in self._patterns:
                pattern = _pattern(call, 1)
            if pattern is not None:
                items += len(pattern)
                copies += len(pattern) - len(set(pattern))
        return copies / items if items else None


def _pattern(call: _Call, part: int) -> tuple[int, ...] | None:
    """Per item along a dimension of the first input (1: the first, 2: the second) the first one that equals it; None
    when there are no items."""
    sums = call.fingerprints[0].read() if call.fingerprints else None
    items = [] if sums is None else sums[1] if part == 1 else sums[2]
    first: dict[int, int] = {}
    return tuple(first.setdefault(value, index) for index, value in enumerate(items)) or None


def _is_frozen(module: Any) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


def _has_dropout(module: Any) -> bool:
    """Whether what it says in training is random. Attention keeps its dropout as a number."""
    for inner in module.modules():
        rate = getattr(inner, "p", 0) if "Dropout" in type(inner).__name__ else getattr(inner, "dropout", 0)
        if isinstance(rate, (int, float)) and rate > 0:
            return True
    return False


def _taken_apart(torch: Any, value: Any) -> tuple[list[Any], list[Any] | None]:
    """Tensors in nested arguments, and the plain values beside them; None for these when there is something else."""
    tensors: list[Any] = []
    others: list[Any] = []
    plain = True
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, torch.Tensor):
            tensors.append(item)
        elif isinstance(item, dict):
            waiting.extend(reversed(item.values()))
            others.append(tuple(map(str, item)))
        elif isinstance(item, (list, tuple)):
            waiting.extend(reversed(item))
            others.append(len(item))
        elif item is None or type(item) in (bool, int, float, str, torch.dtype, torch.device):
            others.append(item)
        else:
            plain = False
        if len(tensors) + len(others) > MAX_ARGUMENTS:
            plain = False
            break
    return tensors, others if plain else None
