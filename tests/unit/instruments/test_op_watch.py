"""Where an operation belongs, in what ways soever it comes about."""

import copy
import pickle
import threading
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from agprof.instruments.op_places import Operation
from agprof.instruments.op_watch import watching


class Recorded:
    """(pass, type of the innermost module, of the outermost) of every matrix product."""

    def __init__(self) -> None:
        self.products: list[tuple[str, str | None, str | None]] = []
        self.in_functions = 0

    def listen(self, operation: Operation) -> None:
        if str(operation.function) in ("aten.mm.default", "aten.addmm.default"):
            call = operation.call
            self.in_functions += operation.in_function
            outermost = type(call.outermost.module).__name__ if call is not None else None
            self.products.append((operation.in_pass, name_of(operation.module), outermost))


def name_of(module: Any) -> str | None:
    return getattr(module, "name", None) if module is not None else None


class Layer(torch.nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.weight = torch.nn.Parameter(torch.ones(3, 3))

    def forward(self, inputs: Any) -> Any:
        return inputs @ self.weight


class Pair(torch.nn.Module):
    def __init__(self, reentrant: bool | None = None) -> None:
        super().__init__()
        self.name = "pair"
        self.first, self.second = Layer("first"), Layer("second")
        self.reentrant = reentrant

    def both(self, inputs: Any) -> Any:
        return self.second(self.first(inputs)).relu()

    def forward(self, inputs: Any) -> Any:
        if self.reentrant is None:
            return self.both(inputs)
        return checkpoint(self.both, inputs, use_reentrant=self.reentrant)


def products(model: Any, run: Any) -> list[tuple[str, str | None, str | None]]:
    recorded = Recorded()
    with watching(torch, model, listeners=[recorded.listen]):
        run()
    return recorded.products


def inputs() -> Any:
    return torch.ones(2, 3, requires_grad=True)


FORWARD = [("forward", "first", "Pair"), ("forward", "second", "Pair")]
AGAIN = [("recomputed", "first", "Pair"), ("recomputed", "second", "Pair")]
BACKWARD = [("backward", "second", "Pair")] * 2 + [("backward", "first", "Pair")] * 2


@pytest.mark.parametrize(("reentrant", "between"), [(None, []), (True, AGAIN), (False, AGAIN)])
def test_backward_and_recomputation_belong_to_the_module_that_ran_forward(
    reentrant: bool | None, between: list[Any]
) -> None:
    model = Pair(reentrant)
    assert products(model, lambda: model(inputs()).sum().backward()) == FORWARD + between + BACKWARD


def test_outside_of_modules() -> None:
    weight = torch.ones(3, 3, requires_grad=True)
    found = products(Pair(), lambda: (torch.ones(2, 3) @ weight).sum().backward())
    assert found == [("outside", None, None), ("backward", None, None)]


def test_a_function_of_its_own_runs_without_gradients_and_is_recomputed_as_such() -> None:
    """As DeepSpeed's linear layer under ZeRO-3."""

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, left: Any, right: Any) -> Any:
            ctx.save_for_backward(left, right)
            return left @ right

        @staticmethod
        def backward(ctx: Any, gradient: Any) -> Any:
            left, right = ctx.saved_tensors
            return gradient @ right.t(), left.t() @ gradient

    class Own(Layer):
        def forward(self, inputs: Any) -> Any:
            return Product.apply(inputs, self.weight)

    for reentrant, between in ((None, []), (True, AGAIN), (False, AGAIN)):
        model = Pair(reentrant)
        model.first, model.second = Own("first"), Own("second")
        recorded = Recorded()
        with watching(torch, model, listeners=[recorded.listen]):
            model(inputs()).sum().backward()
        assert recorded.products == FORWARD + between + BACKWARD
        # Inside a reentrant checkpoint the second run is the one that is differentiated.
        assert recorded.in_functions == (len(FORWARD) if reentrant else len(FORWARD + between))


def test_a_module_that_differentiates_inside_its_forward() -> None:
    class Inner(Layer):
        def forward(self, inputs: Any) -> Any:
            (gradient,) = torch.autograd.grad(super().forward(inputs).sum(), inputs)
            return super().forward(inputs) + gradient

    model = Inner("inner")
    found = products(model, lambda: model(inputs()).sum().backward())
    assert [in_pass for in_pass, _, _ in found] == ["forward", "backward", "forward", "backward", "backward"]
    assert {name for _, name, _ in found} == {"inner"}


def test_reentrant_checkpoints_on_a_thread_of_autograds_own() -> None:
    """On a GPU backward runs on another thread than forward, and that thread numbers the nodes that it makes from 0, as
    the other did."""
    model, recorded = Pair(True), Recorded()
    with watching(torch, model, listeners=[recorded.listen]) as watch:
        loss = model(inputs()).sum()
        gradient = torch.ones(())

        def backward() -> None:
            with watch._mode:
                loss.backward(gradient)

        thread = threading.Thread(target=backward)
        thread.start()
        thread.join()
    assert recorded.products == FORWARD + AGAIN + BACKWARD


def test_calls_on_other_threads_are_left_out() -> None:
    model, recorded = Pair(), Recorded()
    with watching(torch, model, listeners=[recorded.listen]) as watch:
        thread = threading.Thread(target=lambda: model(inputs()))
        thread.start()
        thread.join()
        assert list(watch.calls) == []
        model(inputs())
    assert recorded.products == FORWARD


def test_copies_and_pickles_of_a_module_carry_no_watch() -> None:
    model = Pair()
    recorded = Recorded()
    with watching(torch, model, listeners=[recorded.listen]) as watch:
        copied = copy.deepcopy(model)
        pickled = pickle.loads(pickle.dumps(model))
    for other in (copied, pickled):
        other(inputs())
    assert list(watch.calls) == []
    assert recorded.products == []


def test_results_are_bit_identical() -> None:
    torch.manual_seed(0)
    model = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
    tokens = torch.randn(2, 5, 8)

    def train() -> list[Any]:
        torch.manual_seed(1)
        model.zero_grad()
        loss = model(tokens).square().sum()
        loss.backward()
        with torch.inference_mode():
            model.eval()
            inferred = model(tokens)
            model.train()
        return [loss.detach(), inferred.clone(), *(weight.grad.clone() for weight in model.parameters())]

    plain = train()
    with watching(torch, model, listeners=[lambda operation: None]):
        watched = train()
    assert all(torch.equal(one, other) for one, other in zip(plain, watched, strict=True))


def test_an_error_of_an_operation_is_the_trainings_own() -> None:
    model = Pair()
    with watching(torch, model, listeners=[]) as watch, pytest.raises(RuntimeError, match="mat1 and mat2"):
        model(torch.ones(2, 4))
    assert list(watch.calls) == []


def test_no_tensor_is_kept() -> None:
    import gc
    import weakref

    model = Pair()
    with watching(torch, model, listeners=[lambda operation: None]):
        held = inputs()
        result = model(held)
        references = [weakref.ref(held), weakref.ref(result)]
        del held, result
        gc.collect()
        assert [reference() for reference in references] == [None, None]
