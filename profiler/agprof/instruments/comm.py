"""Every collective and point-to-point call of a rank, seen at torch.distributed's functions.

The outermost function of a thread makes the row: all_gather_into_tensor calls all_gather_single, object collectives
call several tensor ones. The innermost one is what the backend executes; it goes to the ledger.
"""

import functools
import sys
import threading
from collections.abc import Callable
from typing import Any

from agprof.instruments import facts
from agprof.instruments.comm_coalescing import Coalescing
from agprof.instruments.comm_dispatcher import DispatcherTap
from agprof.instruments.comm_functional import FunctionalTap
from agprof.instruments.comm_groups import Group, Groups
from agprof.instruments.comm_ops import OPERATIONS, Operation, size_and_dtype
from agprof.instruments.comm_peers import peers
from agprof.instruments.comm_works import Pending, Works, pop, push
from agprof.instruments.ledger import Ledger
from agprof.instruments.recorder import Recorder

INSTRUMENT = "comm"


class CommThread(threading.local):
    """What the calling thread is in the middle of."""

    def __init__(self) -> None:
        self.depth = 0
        """Wrapped calls in progress."""
        self.leaves = 0
        """Innermost calls so far: a call during which this did not change was an innermost one itself."""
        self.inside_bytes = 0
        """Of the innermost calls within the outermost one in progress: what an object collective moves."""
        self.coalesced: list[tuple[str, int | None, Any, str | None, Group]] | None = None
        """Calls collected by a coalescing manager in progress."""
        self.ident = threading.get_ident()


class CommunicationInstrument:
    """Writes `collectives` and `waits`; feeds the ledger."""

    def __init__(self, recorder: Recorder, torch: Any) -> None:
        self._recorder = recorder
        self._torch = torch
        self._thread = CommThread()
        self._rows = recorder.writer.rows("collectives")
        self._works = Works(recorder, self._failed)
        self._wrappers: dict[Any, Any] = {}
        self._dtypes: dict[Any, str] = {}
        self._groups: Any = None
        self._ledger: Ledger | None = None
        self._dispatcher: DispatcherTap | None = None
        self._functional = False
        self.off = False
        """Set after repeated failures: wrappers then only call the original."""

    # -- arming ----------------------------------------------------------------------------------------------------

    def arm(self, distributed: Any) -> None:
        """`distributed` is torch.distributed, completely imported."""
        if not distributed.is_available():
            return
        c10d = distributed.distributed_c10d
        recorder = self._recorder
        self._groups = Groups(c10d, self._group_seen)
        self._ledger = Ledger.of_environment(recorder, self._torch)
        self._dispatcher = DispatcherTap(self._torch, c10d, recorder, self._thread, self.note_dispatched, self._failed)
        owners = [distributed, *_holders(distributed, c10d)]
        for name, operation in OPERATIONS.items():
            original = vars(c10d).get(name)
            if original is None:
                continue
            for owner in owners:
                if vars(owner).get(name) is original:
                    recorder.patches.replace(owner, name, self._sharing(functools.partial(self._wrap, operation)))
        for owner in (distributed, c10d):
            for name, make in (
                ("_coalescing_manager", self._around_coalescing),
                ("init_process_group", self._around_init),
                ("destroy_process_group", self._around_destroy),
            ):
                recorder.patches.replace(owner, name, self._sharing(make))
        recorder.patches.replace(c10d.Work, "wait", self._works.around_wait(lambda: self._thread.depth))
        recorder.on_finish.append((INSTRUMENT, self._works.finish))
        if self._ledger is not None:
            recorder.on_finish.append(("ledger", self._ledger.finish))
        if distributed.is_initialized():
            facts.record_process_group(recorder, distributed)
        loaded = sys.modules.get(f"{distributed.__name__}._functional_collectives")
        if loaded is not None:
            self.arm_functional(loaded)

    def arm_functional(self, module: Any) -> None:
        """`module` is torch.distributed._functional_collectives, which may be imported before `arm` and after."""
        if self._groups is not None and not self._functional:
            self._functional = True
            FunctionalTap(self._torch, self._recorder, self._groups, self._ledger, self._failed).arm(module)

    def arm_ddp(self, module: Any) -> None:
        """`module` is torch.nn.parallel.distributed."""
        arm_dispatcher = self._recorder.guard(INSTRUMENT, self._arm_dispatcher)

        def make(original: Any) -> Any:
            @functools.wraps(original)
            def __init__(replica: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
                arm_dispatcher()  # before: the constructor's own broadcasts leave from C++ too
                original(replica, *args, **kwargs)

            return __init__

        self._recorder.patches.replace(module.DistributedDataParallel, "__init__", make)

    def _arm_dispatcher(self) -> None:
        if self._dispatcher is not None and not self._dispatcher.armed:
            self._dispatcher.arm()
            self._recorder.patches.on_undo(self._dispatcher.disarm)
            self._recorder.fact("framework", "ddp")

    def _sharing(self, make: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """`make`, with one replacement per original: torch compares its functions by identity across modules."""

        def shared(original: Any) -> Any:
            if original not in self._wrappers:
                self._wrappers[original] = make(original)
            return self._wrappers[original]

        return shared

    def _failed(self, where: str, error: Exception) -> None:
        self._recorder.fault(INSTRUMENT, where, error)
        self.off = not self._recorder.is_on(INSTRUMENT)

    # -- calls -----------------------------------------------------------------------------------------------------

    def _wrap(self, operation: Operation, original: Any) -> Any:
        recorder, thread, note = self._recorder, self._thread, self._note
        clock = recorder.clock
        kind = operation.kind
        # Under dynamo the wrapper must vanish: it replaces torch's own functions, by identity, with functional ones.
        compiling = self._torch.compiler.is_compiling

        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            if compiling() or self.off or not recorder.enabled:
                return original(*args, **kwargs)
            outermost = thread.depth == 0
            leaves = thread.leaves
            thread.depth += 1
            if outermost:
                thread.inside_bytes = 0
            nvtx = push(recorder, kind) if outermost and recorder.nvtx is not None else None
            start = clock()
            try:
                result = original(*args, **kwargs)
            finally:
                end = clock()
                thread.depth -= 1
                if nvtx is not None:
                    pop(recorder, nvtx)
            leaf = thread.leaves == leaves
            if leaf:
                thread.leaves = leaves + 1
            if leaf or outermost:
                try:
                    note(operation, args, kwargs, result, start, end, leaf, outermost)
                except Exception as error:
                    self._failed(kind, error)
            return result

        return call

    def _note(
        self,
        operation: Operation,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        result: Any,
        start: int,
        end: int,
        leaf: bool,
        outermost: bool,
    ) -> None:
        tensors, scaled, handle, asynchronous = operation.read(*args, **kwargs)
        group = self._groups.get(handle)
        if group is None:
            return
        size, dtype, device = size_and_dtype(tensors)
        if scaled and size is not None:
            size *= group.size
        thread = self._thread
        kind = operation.kind
        if thread.coalesced is not None:
            if leaf:
                thread.coalesced.append((kind, size, dtype, device, group))
            return
        if leaf and self._ledger is not None:
            self._ledger.note(end, group, operation.call, device, size)
        if not outermost:
            thread.inside_bytes += size or 0
            return
        if kind.endswith("_object"):
            size = thread.inside_bytes
        recorder = self._recorder
        name = self._dtypes.get(dtype) or self._dtype_name(dtype)
        others = peers(kind, args, kwargs, group)
        on_host = device is None or device == "cpu"
        if not asynchronous or not result:
            # A call without a device's tensor (a barrier) returns when it is done, on any backend.
            done = end if on_host else None
            self._rows(
                (
                    recorder.step,
                    recorder.micro_step,
                    kind,
                    group.name,
                    group.size,
                    size,
                    name,
                    False,
                    start,
                    end,
                    done,
                    0,
                    "wrapper",
                    thread.ident,
                    recorder.phase(),
                    others,
                )
            )
            return
        works = list(result) if isinstance(result, list) else [result]
        before = (recorder.step, recorder.micro_step, kind, group.name, group.size, size, name, True, start, end)
        self._follow(works, kind, before, ("wrapper", thread.ident, recorder.phase(), others), on_host)

    def _follow(
        self, works: list[Any], kind: str, before: tuple[Any, ...], after: tuple[Any, ...], on_host: bool
    ) -> None:
        # A future (coalesced operations return one) is waited for by its own method, which is not watched.
        watched = isinstance(works[0], self._groups.work_class)
        pending = Pending(kind, before, after, len(works), len(works) if watched else 0)
        self._works.follow(works, pending, on_host)

    def note_dispatched(
        self, kind: str, call: str, handle: Any, tensors: Any, scaled: bool, work: Any, start: int
    ) -> None:
        """A call that reached c10d's dispatcher around the wrappers."""
        end = self._recorder.clock()
        group = self._groups.get(handle)
        if group is None:
            return
        size, dtype, device = size_and_dtype(tensors)
        if scaled and size is not None:
            size *= group.size
        if self._ledger is not None:
            self._ledger.note(end, group, call, device, size)
        recorder = self._recorder
        name = self._dtypes.get(dtype) or self._dtype_name(dtype)
        before = (recorder.step, recorder.micro_step, kind, group.name, group.size, size, name, True, start, end)
        after = ("dispatcher", self._thread.ident, recorder.phase(), None)
        self._works.follow([work], Pending(kind, before, after, 1, 0), device == "cpu")

    def _dtype_name(self, dtype: Any) -> str | None:
        if dtype is None:
            return None
        name = str(dtype).removeprefix("torch.")
        self._dtypes[dtype] = name
        return name

    # -- coalescing, and the life of groups --------------------------------------------------------------------------

    def _around_coalescing(self, original: Any) -> Any:
        @functools.wraps(original)
        def manager(group: Any = None, *args: Any, **kwargs: Any) -> Any:
            inner = original(group, *args, **kwargs)
            if self.off or not self._recorder.enabled or self._thread.coalesced is not None:
                return inner
            return Coalescing(inner, self._recorder.clock, self._enter_coalescing, self._leave_coalescing, self._failed)

        return manager

    def _enter_coalescing(self) -> None:
        self._thread.coalesced = []

    def _leave_coalescing(self, works: Any, start: int, completed: bool) -> None:
        """The manager issued what it had collected as one operation."""
        thread = self._thread
        calls, thread.coalesced = thread.coalesced, None
        thread.leaves += 1
        if not calls or not completed:
            return
        end = self._recorder.clock()
        kind, _, dtype, device, group = calls[0]
        size = sum(call[1] or 0 for call in calls)
        if self._ledger is not None:
            self._ledger.note(end, group, kind, device, size)
        if thread.depth:
            thread.inside_bytes += size
            return  # inside batch_isend_irecv, which makes the row
        recorder = self._recorder
        name = self._dtypes.get(dtype) or self._dtype_name(dtype)
        before = (recorder.step, recorder.micro_step, kind, group.name, group.size, size, name)
        after = ("wrapper", thread.ident, recorder.phase(), None)
        if works:
            self._follow(list(works), kind, (*before, True, start, end), after, device == "cpu")
        else:
            self._rows((*before, False, start, end, end if device == "cpu" else None, 0, *after))

    def _around_init(self, original: Any) -> Any:
        record = self._recorder.guard(INSTRUMENT, self._group_created)

        @functools.wraps(original)
        def init_process_group(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            record()
            return result

        return init_process_group

    def _group_created(self) -> None:
        self._groups.forget()
        facts.record_process_group(self._recorder, self._torch.distributed)

    def _group_seen(self, group: Group) -> None:
        """The members of the default group are all ranks."""
        if group.name != "default":
            self._recorder.fact(f"comm.group.{group.name}", group.ranks)

    def _around_destroy(self, original: Any) -> Any:
        @functools.wraps(original)
        def destroy_process_group(*args: Any, **kwargs: Any) -> Any:
            self._groups.forget()
            return original(*args, **kwargs)

        return destroy_process_group


def _holders(distributed: Any, c10d: Any) -> list[Any]:
    """Modules that may hold torch.distributed's functions under the same name, imported before us."""
    prefix = f"{distributed.__name__}."
    loaded = [module for name, module in list(sys.modules.items()) if name.startswith(prefix) and module is not None]
    return [c10d, *(module for module in loaded if module is not c10d)]
