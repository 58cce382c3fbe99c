"""FLOPs of what an OpWatch sees: per pass, per kind and element type, and per module.

Counted is what was executed. Modelled is what the shapes say: multiplying two tensors once, and once more for each of
them that requires a gradient.
"""

from collections.abc import Callable, Iterator
from typing import Any

from agprof.instruments.causality import causality
from agprof.instruments.flops_formulas import Formula, Formulas, recomputed_share
from agprof.instruments.flops_totals import KindTotals, OpTimes, Totals
from agprof.instruments.module_paths import ModulePaths
from agprof.instruments.op_places import ModuleCall, NodeKey, Operation, Pass

_COMMUNICATION = ("c10d", "_c10d_functional", "c10d_functional")
"""Namespaces whose operations are measured elsewhere, and are no time of a module."""


class FlopsCount:
    """A listener for an OpWatch: `listen`, and `called` for the numbers of calls."""

    def __init__(self, torch: Any, in_update: Callable[[], bool] = lambda: False) -> None:
        """`in_update()`: the optimizer is at work, whose products are no FLOPs of the model."""
        self._torch = torch
        self._in_update = in_update
        self._formulas = Formulas(torch)
        self._paths = ModulePaths()
        self._sites: dict[tuple[int, str], Totals] = {}
        """(id of the outermost module, path from it) -> what ran in calls there, without inner modules."""
        self._copies_of_weights: Any = None
        """Weights in another element type, as autocast makes them; made with the first."""
        self._copying = {getattr(torch.ops.aten, name).default for name in ("_to_copy", "clone")}
        self._causal: dict[NodeKey, bool | None] = {}
        """Nodes of attention products."""
        self._expected: dict[NodeKey, list[tuple[Totals, int]]] = {}
        """Modelled backward of what a custom function multiplied, by its node."""
        self._followed: list[tuple[ModuleCall, Totals]] = []
        self.total = Totals()
        """Everything but the optimizer's update."""
        self.kinds: dict[tuple[Pass, str, str | None], KindTotals] = {}
        self.update_flops = 0
        self.causal_flops = 0
        """Of `total.attention_flops`: of attention that looks at earlier positions only."""
        self.unclear_flops = 0
        """Of them: of attention that does not tell whether it does."""
        self.times = OpTimes()

    @property
    def forward(self) -> int:
        return self.total.forward_flops

    @property
    def backward(self) -> int:
        return self.total.backward_flops

    @property
    def recomputed(self) -> int:
        return self.total.recomputed_flops

    @property
    def unknown(self) -> dict[str, int]:
        """Calls of operations that may well multiply matrices and that no formula is known for."""
        return {name: calls for name, calls in self._formulas.unknown.items() if calls}

    def path(self, call: ModuleCall) -> str:
        """From the outermost module, '' for that itself."""
        return self._paths.path(call)

    def follow(self, call: ModuleCall) -> Totals:
        """Sums of one outermost call alone and of its backward, from here on."""
        totals = Totals()
        self._followed.append((call, totals))
        return totals

    def modules(self, root: Any) -> Iterator[tuple[str, Any, Totals]]:
        """(path, module, sums with descendants) of the calls that began in `root`, parents first.

        Nothing when there were none. A module that stands at several paths has a row for the first, and for each other
        that it was called by.
        """
        below = self._with_descendants(root)
        if not below:
            return
        for path, module in self._paths.walk(root):
            own = self._sites.get((id(root), path))
            if path not in below and self._paths.first(root, module) != path:
                continue
            sums = below.get(path) or Totals()
            sums.calls = own.calls if own is not None else 0
            sums.recomputed_calls = own.recomputed_calls if own is not None else 0
            yield path, module, sums

    def _with_descendants(self, root: Any) -> dict[str, Totals]:
        below: dict[str, Totals] = {}
        for (owner, path), own in self._sites.items():
            if owner != id(root):
                continue
            parts = path.split(".") if path else []
            for length in range(len(parts) + 1):
                below.setdefault(".".join(parts[:length]), Totals()).add(own)
        return below

    # -- listening -------------------------------------------------------------------------------------------------

    def called(self, call: ModuleCall) -> None:
        own = self._site(call)
        if call.recomputed:
            own.recomputed_calls += 1
        else:
            own.calls += 1

    def listen(self, operation: Operation) -> None:
        function = operation.function
        if getattr(function, "namespace", None) in _COMMUNICATION:
            return
        formula = self._formulas.of(function)
        sums = self._sums_for(operation)
        if formula is None:
            if function in self._copying:
                self._copied(operation)
            self.times.spend(operation, sums, self._kind(operation.in_pass, "other", self._dtype(operation), 0, 0))
            return
        flops = int(formula.flops(*operation.args, **operation.kwargs, out_val=operation.result))
        kind, is_causal = self._role(operation, formula)
        moved = self._bytes(operation)
        share = self._computed_again(operation, formula)
        again = flops * share[0] // share[1]
        dtype = self._dtype(operation)
        in_kind = self._kind(operation.in_pass, kind, dtype, flops - again, moved)
        again_kind = self._kind("recomputed", kind, dtype, again, 0, calls=0) if again else None
        if operation.in_pass == "outside" and self._in_update():
            self.update_flops += flops
            self.times.spend(operation, [], in_kind)
            return
        self.times.spend(operation, sums, in_kind, again_kind, share)
        if kind == "attention" and operation.in_pass != "recomputed":
            self._attend(sums, flops - again, is_causal)
        for total in sums:
            _add_flops(total, operation.in_pass, flops - again, again, moved)
        self._model(sums, operation, formula, flops)

    def _sums_for(self, operation: Operation) -> list[Totals]:
        sums = [self.total]
        call = operation.call
        if call is not None:
            sums.append(self._site(call))
            if self._followed:
                sums.extend(totals for followed, totals in self._followed if followed is call.outermost)
        return sums

    def _site(self, call: ModuleCall) -> Totals:
        if call.site is None:
            key = (id(call.outermost.module), self._paths.path(call))
            call.site = self._sites.setdefault(key, Totals())
        site: Totals = call.site
        return site

    def _kind(self, in_pass: Pass, kind: str, dtype: str | None, flops: int, moved: int, calls: int = 1) -> KindTotals:
        key = (in_pass, kind, dtype)
        totals = self.kinds.get(key)
        if totals is None:
            totals = self.kinds[key] = KindTotals()
        totals.calls += calls
        totals.flops += flops
        totals.bytes += moved
        return totals

    def _attend(self, sums: list[Totals], flops: int, is_causal: bool | None) -> None:
        for total in sums:
            total.attention_flops += flops
        if is_causal is None:
            self.unclear_flops += flops
        elif is_causal:
            self.causal_flops += flops

    # -- what an operation is --------------------------------------------------------------------------------------

    def _role(self, operation: Operation, formula: Formula) -> tuple[str, bool | None]:
        """Kind, and for attention whether it looks at earlier positions only. Two batched products of activations
        stand for attention too, as written without a kernel; their backward by the node of the forward."""
        node = operation.node
        if operation.in_pass == "backward":
            if node in self._causal and (formula.kind == "attention" or _is_batched(operation)):
                return "attention", self._causal[node]
            return formula.kind, None
        if formula.kind != "attention" and not self._multiplies_activations(operation, formula):
            return formula.kind, None
        is_causal = causality(operation)
        if node is not None and (operation.gradients or operation.in_function):
            self._causal[node] = is_causal
        return "attention", is_causal

    def _multiplies_activations(self, operation: Operation, formula: Formula) -> bool:
        if not _is_batched(operation):
            return False
        return not any(self._is_weight(operation.args[position]) for position in formula.operands)

    def _is_weight(self, tensor: Any) -> bool:
        """A parameter, a copy of one, or a view of these."""
        copies = self._copies_of_weights or ()
        held = (tensor,) if tensor._base is None else (tensor, tensor._base)
        return any(isinstance(one, self._torch.nn.Parameter) or one in copies for one in held)

    def _copied(self, operation: Operation) -> None:
        if not self._is_weight(operation.args[0]):
            return
        if self._copies_of_weights is None:
            from torch.utils.weak import WeakTensorKeyDictionary

            self._copies_of_weights = WeakTensorKeyDictionary()
        self._copies_of_weights[operation.result] = None

    def _computed_again(self, operation: Operation, formula: Formula) -> tuple[int, int]:
        """Share of the FLOPs for the scores that an attention kernel computes again in its backward, and of its time,
        for it is one kernel. Numerator and denominator."""
        if formula.kind != "attention" or not formula.backward or operation.in_pass == "recomputed":
            return 0, 1
        query, _key, value = formula.operands
        return recomputed_share(operation.args[query], operation.args[value])

    def _dtype(self, operation: Operation) -> str | None:
        for value in (*operation.args, operation.result):
            held = value[0] if isinstance(value, (list, tuple)) and value else value
            if isinstance(held, self._torch.Tensor):
                return str(held.dtype).removeprefix("torch.")
        return None

    def _bytes(self, operation: Operation) -> int:
        result = operation.result
        held = (
            *operation.args,
            *operation.kwargs.values(),
            *(result if isinstance(result, (list, tuple)) else (result,)),
        )
        return sum(value.numel() * value.element_size() for value in held if isinstance(value, self._torch.Tensor))

    # -- the model of backward -------------------------------------------------------------------------------------

    def _model(self, sums: list[Totals], operation: Operation, formula: Formula, flops: int) -> None:
        """A forward is taken as it ran. What will be differentiated: what autograd follows, what a function of its own
        does, and of a reentrant checkpoint, which runs first without gradients, the second run."""
        if operation.in_pass in ("backward",) or formula.backward:
            return
        if operation.in_pass != "recomputed":
            for total in sums:
                total.modelled_forward_flops += flops
        elif operation.recomputes is None:
            return  # its first run was followed
        else:
            self._forget_expected(operation.recomputes)
        if not operation.gradients and not operation.in_function:
            return
        needed = flops * self._gradients_needed(operation, formula)
        if not needed:
            return
        for total in sums:
            total.modelled_backward_flops += needed
        if operation.in_function and operation.node is not None:
            self._expected.setdefault(operation.node, []).extend((total, needed) for total in sums)

    def _gradients_needed(self, operation: Operation, formula: Formula) -> int:
        needs = [self._needs_gradient(operation, operation.args[position]) for position in formula.operands]
        if formula.kind == "attention":
            return 2 * any(needs)  # a kernel makes the gradients of all three
        return sum(needs)

    def _needs_gradient(self, operation: Operation, tensor: Any) -> bool:
        if operation.gradients:
            return bool(tensor.requires_grad)
        # A function of its own may look at its arguments through views, which autograd does not follow there.
        base = tensor._base
        return bool(tensor.requires_grad or (base is not None and base.requires_grad))

    def _forget_expected(self, node: NodeKey) -> None:
        for total, flops in self._expected.pop(node, ()):
            total.modelled_backward_flops -= flops


def _is_batched(operation: Operation) -> bool:
    name = getattr(getattr(operation.function, "overloadpacket", None), "__name__", "")
    if name not in ("bmm", "baddbmm"):
        return False
    left = operation.args[1 if name == "baddbmm" else 0]
    return bool(left.shape[0] > 1)


def _add_flops(total: Totals, in_pass: Pass, flops: int, again: int, moved: int) -> None:
    if in_pass == "backward":
        total.backward_flops += flops
        total.backward_bytes += moved
    elif in_pass == "recomputed":
        total.recomputed_flops += flops
    else:
        total.forward_flops += flops
        total.forward_bytes += moved
    total.recomputed_flops += again
