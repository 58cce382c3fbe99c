"""One micro-step of a job on the meta device, counted: FLOPs, and the bytes that it needs over what stands."""

import gc
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from agprof.instruments.flops_count import FlopsCount
from agprof.instruments.memory_tracker import MemoryTracker
from agprof.instruments.op_places import Operation
from agprof.instruments.op_watch import watching
from agprof.instruments.plan_function import FunctionError, Kind, Planned, error_text
from agprof.model.plan_answers import ModelSize, Varied
from agprof.model.plan_json import shown
from agprof.model.plan_measure import MeasuredKind, Scenario

PERSISTENT_UP_TO = 100_000
"""DeepSpeed's stage3_param_persistence_threshold: parameters up to so many elements stay whole in stage 3."""


def count_scenario(planned: Planned, varied: Varied, label: str, torch: Any, began: float) -> Scenario:
    """Runs each kind of micro-step. Raises FunctionError when one fails."""
    parameters = list(planned.module.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return Scenario(
        varied=varied,
        label=label,
        job=planned.job,
        size=model_size(planned.module),
        update_copies=update_copies([parameter.numel() for parameter in trained]),
        small_params=sum(p.numel() for p in parameters if p.numel() <= PERSISTENT_UP_TO),
        group_params=group_params(planned.module),
        kinds=tuple(count_kind(planned.module, kind, torch) for kind in planned.kinds),
        seconds=time.monotonic() - began,
    )


def update_copies(sizes: Sequence[int]) -> int:
    """torch.optim.adam, _single_tensor_adam: a parameter's root and the root divided; the divided one of the parameter
    before stays until then, for it is the loop's variable."""
    return max((before + 2 * size for before, size in zip((0, *sizes), sizes, strict=False)), default=0)


def group_params(module: Any) -> int:
    """Blocks are the outermost modules of lists (`layers.0`)."""
    blocks: list[set[Any]] = []
    within = ""
    for path, inner in module.named_modules():
        if path.rpartition(".")[2].isdigit() and not (within and path.startswith(within)):
            within = f"{path}."
            blocks.append(set(inner.parameters()))
    sizes = [_elements(block) for block in blocks]
    outside = set(module.parameters()).difference(*blocks)
    return _elements(outside) + max(sizes, default=0)


def _elements(parameters: Iterable[Any]) -> int:
    return sum(int(parameter.numel()) for parameter in parameters)


def model_size(module: Any) -> ModelSize:
    by_dtype: dict[str, list[int]] = {}
    for parameter in module.parameters():
        counts = by_dtype.setdefault(str(parameter.dtype).removeprefix("torch."), [0, 0])
        counts[0] += parameter.numel()
        counts[1] += parameter.numel() if parameter.requires_grad else 0
    params = sum(counts[0] for counts in by_dtype.values())
    trainable = sum(counts[1] for counts in by_dtype.values())
    return ModelSize(
        params=params,
        trainable_params=trainable,
        frozen_params=params - trainable,
        by_dtype=tuple(sorted(((n, c[0], c[1]) for n, c in by_dtype.items()), key=lambda row: (-row[1], row[0]))),
        buffer_bytes=sum(buffer.numel() * buffer.element_size() for buffer in module.buffers()),
        largest_layer_params=max(
            (sum(p.numel() for p in inner.parameters(recurse=False)) for inner in module.modules()), default=0
        ),
    )


def count_kind(module: Any, kind: Kind, torch: Any) -> MeasuredKind:
    """One micro-step from a state without gradients."""
    _forget_gradients(module)
    flops = FlopsCount(torch)
    tracker = MemoryTracker(torch, space="device", stacks=False)
    activations = _Activations(tracker, module)
    try:
        with activations.hooks(), watching(torch, module, listeners=[flops.listen, tracker.listen]) as watch:
            watch.listeners.append(activations.listen)
            _run(kind, torch)
    finally:
        tracker.stop()
        _forget_gradients(module)
    return MeasuredKind(
        name=kind.name,
        per_step=kind.per_step,
        by_chance=kind.by_chance,
        forward_flops=float(flops.forward),
        backward_flops=float(flops.backward),
        recomputed_flops=float(flops.recomputed),
        activation_bytes=activations.peak_bytes,
        activation_and_gradient_bytes=tracker.peak_bytes,
        input_bytes=activations.input_bytes,
        peak_at=activations.peak_at,
    )


def _forget_gradients(module: Any) -> None:
    for parameter in module.parameters():
        parameter.grad = None
    gc.collect()


class _Activations:
    """Highest live bytes without the gradients that parameters have been given."""

    def __init__(self, tracker: MemoryTracker, module: Any) -> None:
        self._tracker = tracker
        self._module = module
        self._paths = {id(inner): path for path, inner in module.named_modules()}
        self._gradients: dict[int, int] = {}
        self._gradient_bytes = 0
        self._known = {storage._cdata for storage in _storages([*module.parameters(), *module.buffers()])}
        self.input_bytes = 0
        self.peak_bytes = 0
        self.peak_at = ""

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Knows of gradients while it is open."""
        handles = [
            parameter.register_post_accumulate_grad_hook(self._given)
            for parameter in self._module.parameters()
            if parameter.requires_grad and parameter.is_leaf
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _given(self, parameter: Any) -> None:
        self._gradients[id(parameter)] = parameter.grad.untyped_storage().nbytes()
        self._gradient_bytes = sum(self._gradients.values())

    def listen(self, operation: Operation) -> None:
        if operation.in_pass in ("forward", "outside"):
            self._look_for_inputs(operation)
        live = self._tracker.live_bytes - self._gradient_bytes
        if live > self.peak_bytes:
            self.peak_bytes = live
            path = self._paths.get(id(operation.module), "")
            self.peak_at = f"{operation.in_pass} in {path}" if path else operation.in_pass

    def _look_for_inputs(self, operation: Operation) -> None:
        for storage in _storages([operation.args, operation.kwargs]):
            if storage._cdata not in self._known:
                self._known.add(storage._cdata)
                self.input_bytes += storage.nbytes()
        self._known.update(storage._cdata for storage in _storages(operation.result))


def _storages(values: Any) -> Iterator[Any]:
    """Storages of all tensors in nested lists, tuples and mappings."""
    if hasattr(values, "untyped_storage"):
        yield values.untyped_storage()
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _storages(value)
    elif isinstance(values, dict):
        yield from _storages(list(values.values()))


def _run(kind: Kind, torch: Any) -> None:
    try:
        with torch.device("meta"):  # also what the job makes anew in its forward
            loss = kind.run()
    except Exception as error:
        raise FunctionError(f"micro-step {shown(kind.name)} failed on the meta device: {error_text(error)}") from error
    if loss is None or (isinstance(loss, torch.Tensor) and not loss.requires_grad):
        return  # a forward without backward
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        raise FunctionError(
            f"micro-step {shown(kind.name)} returned {shown(loss)}, not the loss, a tensor of one value"
        )
    try:
        loss.backward()
    except Exception as error:
        raise FunctionError(f"backward of micro-step {shown(kind.name)} failed: {error_text(error)}") from error
