"""Where an operation belongs: in which pass it runs, and for which call of which module.

An operation of a backward pass belongs to the call whose forward made the autograd node that is running: at the time of
a forward operation its node has just been numbered (`_get_sequence_nr() - 1`), and the running node tells its number
again in backward. Inside a backward pass only recomputation calls modules, and only it runs with gradients enabled
(but for a backward with `create_graph`, whose operations are taken for recomputation).
"""

import threading
from typing import Any, Literal

Pass = Literal["forward", "backward", "recomputed", "outside"]
"""outside: neither in a call of a module nor in a backward pass (loss, optimizer, communication)."""

NodeKey = tuple[int, int]
"""Thread that made an autograd node, and its number: each thread numbers its own."""


class ModuleCall:
    """A call of a watched module. Holds modules, never tensors."""

    __slots__ = ("gradients", "module", "outer", "outermost", "recomputed", "site")

    def __init__(self, module: Any, outer: "ModuleCall | None", recomputed: bool, gradients: bool) -> None:
        self.module = module
        self.outer = outer
        """The call it runs inside; of a recomputed one the call in whose backward pass it is computed again."""
        self.outermost: ModuleCall = outer.outermost if outer is not None else self
        self.recomputed = recomputed
        self.gradients = gradients
        """Whether gradients were enabled when it began."""
        self.site: Any = None
        """For the instrument that sums up by module: what it found out about this call."""


class Operation:
    """One dispatched operation. Valid only while a listener is called: holding it would keep its tensors."""

    __slots__ = (
        "args", "call", "duration_ns", "function", "gradients", "in_function", "in_pass", "kwargs", "node", "pair",
        "recomputes", "result",
    )  # fmt: skip

    def __init__(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.function = function
        """torch.ops overload, as `aten.mm.default`; a higher-order operator has no `overloadpacket`."""
        self.args = args
        self.kwargs = kwargs
        self.result: Any = None
        self.in_pass: Pass = "outside"
        self.call: ModuleCall | None = None
        """Innermost call that it works for, also in backward; None when there is none."""
        self.node: NodeKey | None = None
        """forward and recomputed: the newest node; backward: the running one."""
        self.gradients = False
        """Whether autograd was following."""
        self.in_function = False
        """Autograd was not following, because the forward of a `torch.autograd.Function` runs, which brings its own
        backward."""
        self.recomputes: NodeKey | None = None
        """The node of the checkpoint that computes this again, where its first forward ran without gradients."""
        self.duration_ns: int | None = None
        """Time of the call; None where calls return before the device has done them."""
        self.pair: Any = None
        """There: the events around it (`op_timer`); None when it is not timed."""

    @property
    def module(self) -> Any:
        """Innermost module that it works for, also in backward; None when there is none."""
        return self.call.module if self.call is not None else None


class OpPlaces:
    """Knows the calls in progress and who made which autograd node."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self.calls: list[ModuleCall] = []
        """In progress, outermost first."""
        self._owners: dict[NodeKey, ModuleCall | None] = {}
        self._last: dict[int, int] = {}
        """Thread -> newest number that has an owner."""
        self._functions: set[NodeKey] = set()
        """Nodes of functions that bring their own backward."""
        self._holders: set[NodeKey] = set()
        """Nodes after which a module was called without gradients: if a function's, a reentrant checkpoint's."""
        self._forward_thread = threading.get_ident()
        self._outer_task: int | None = None
        """Backward pass in progress, without those inside it (a reentrant checkpoint's)."""

    def begin(self) -> None:
        """What is numbered so far was made before."""
        self._forward_thread = threading.get_ident()
        self._own_new_nodes(self._newest(self._forward_thread), None)

    def clear(self) -> None:
        for held in (self.calls, self._owners, self._last, self._functions, self._holders):
            held.clear()

    # -- calls -----------------------------------------------------------------------------------------------------

    def enter(self, module: Any) -> ModuleCall | None:
        """A call begins. None on a thread that isn't the training's."""
        task, thread, gradients = self._task(), threading.get_ident(), bool(self._torch.is_grad_enabled())
        outer = self.calls[-1] if self.calls else None
        recomputed = task != -1 and (outer is None or outer.recomputed or gradients)
        if task == -1 and thread != self._forward_thread:
            return None
        if task == -1:
            self._outer_task = None
        elif self._outer_task is None:
            self._outer_task = task
        running = self._running(task, thread) if recomputed and outer is None else None
        if running is not None:
            outer = self._owners.get(running)
        newest = self._newest(thread)
        self._own_new_nodes(newest, outer)
        if not gradients:
            self._holders.add(newest)
        call = ModuleCall(module, outer, recomputed, gradients)
        self.calls.append(call)
        return call

    def leave(self, module: Any) -> list[ModuleCall]:
        """A call ends, and with it those inside whose end was missed; innermost first."""
        if not any(call.module is module for call in self.calls):
            return []  # its begin was missed
        if self._task() == -1 and threading.get_ident() != self._forward_thread:
            return []
        ended = []
        while self.calls:
            ended.append(self.calls.pop())
            if ended[-1].module is module:
                break
        return ended

    # -- operations ------------------------------------------------------------------------------------------------

    def place(self, operation: Operation) -> None:
        task, thread = self._task(), threading.get_ident()
        operation.gradients = bool(self._torch.is_grad_enabled())
        call = self.calls[-1] if self.calls else None
        if task == -1:
            self._forward_thread, self._outer_task = thread, None
            operation.in_pass = "outside" if call is None else "forward"
            self._place_forward(operation, call, thread)
            return
        if self._outer_task is None:
            self._outer_task = task
        running = self._running(task, thread)
        owner = self._owners.get(running) if running is not None else None
        if call is not None and call.recomputed:
            operation.in_pass = "recomputed"
            self._place_forward(operation, call, thread)
        elif operation.gradients:
            # A checkpoint around bare functions recomputes without any call of a module.
            operation.in_pass = "recomputed"
            self._place_forward(operation, owner, thread)
        else:
            operation.in_pass, operation.call, operation.node = "backward", owner, running
            return
        if self._is_reentrant(running):
            operation.recomputes = running

    def _place_forward(self, operation: Operation, call: ModuleCall | None, thread: int) -> None:
        node = self._newest(thread)
        # The first operation after a node was numbered is the one that it was made for; later ones with the same
        # number run inside it (a function of its own, as a checkpoint) or have no node at all.
        if self._own_new_nodes(node, call) and not operation.gradients:
            self._functions.add(node)
        operation.call, operation.node = call, node
        operation.in_function = not operation.gradients and node in self._functions and (call is None or call.gradients)

    def _own_new_nodes(self, newest: NodeKey, call: ModuleCall | None) -> bool:
        """Nodes that were numbered since the last look: of functions that call functions there may be several."""
        thread, number = newest
        last = self._last.get(thread, number - 1)
        for new in range(last + 1, number + 1):
            self._owners[thread, new] = call
        self._last[thread] = number
        return number > last

    def _task(self) -> int:
        return int(self._torch._C._current_graph_task_id())

    def _newest(self, thread: int) -> NodeKey:
        return thread, self._torch._C._autograd._get_sequence_nr() - 1

    def _running(self, task: int, thread: int) -> NodeKey | None:
        node = self._torch._C._current_autograd_node()
        if node is None:
            return None
        # On a GPU autograd has threads of its own. What a pass inside the pass differentiates was recomputed there.
        made_on = self._forward_thread if task == self._outer_task else thread
        return made_on, node._sequence_nr()

    def _is_reentrant(self, running: NodeKey | None) -> bool:
        node = self._torch._C._current_autograd_node()
        if running is None or not isinstance(node, self._torch._C._FunctionBase):
            return False
        return running in self._holders or "Checkpoint" in node.name()
