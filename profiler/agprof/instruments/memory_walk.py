"""What stands in memory and whose it is: parameters, gradients, optimizer states, master weights, buffers, buckets.

`find_owners` looks through Python's objects once; `owned` then says what they hold, as often as wanted. The first who
names a storage is right: the order is that of priority. Nothing here raises for what is missing, and nothing keeps a
tensor.
"""

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Any

from agprof.instruments import memory_deepspeed
from agprof.instruments.memory_deepspeed import Owned
from agprof.instruments.memory_tensors import is_tensor, local, tensors_in

_KINDS: dict[str, tuple[str, str]] = {
    "Tensor": ("torch", "tensor"),
    "Module": ("torch.nn.", "module"),
    "DistributedDataParallel": ("torch.nn.", "ddp"),
    "Optimizer": ("torch.optim.", "optimizer"),
    "Dataset": ("torch.utils.data.", "dataset"),
    "DeepSpeedOptimizer": ("deepspeed.", "wrapper"),
    "Cache": ("transformers.cache_utils", "cache"),
}
"""Class name -> begin of its module's name, and what its objects are to us."""
_PARTS_OF_CACHE = ("layers", "key_cache", "value_cache")


class Owners:
    """Objects that hold tensors. Keeps them alive: give it up with the step."""

    def __init__(self) -> None:
        self.modules: list[Any] = []
        self.optimizers: list[Any] = []
        self.wrappers: list[Any] = []
        """DeepSpeed's optimizers around the job's own."""
        self.ddps: list[Any] = []
        self.datasets: list[Any] = []
        self.caches: list[Any] = []
        self.names: dict[int, str] = {}
        """Path of a module by its id."""

    def name_modules(self, root: Any) -> None:
        for path, module in root.named_modules():
            self.names.setdefault(id(module), path)


def find_owners(objects: list[Any] | None = None) -> tuple[Owners, list[Any]]:
    """Owners among all objects that Python's collector knows, and every tensor. Takes some 0.1 us per object.

    The list of tensors keeps them alive: use it at once and let it go.
    """
    owners = Owners()
    tensors: list[Any] = []
    kinds: dict[type, str | None] = {}
    places = {
        "module": [owners.modules],
        "optimizer": [owners.optimizers],
        "wrapper": [owners.wrappers],
        "ddp": [owners.ddps, owners.modules],
        "dataset": [owners.datasets],
        "cache": [owners.caches],
        "tensor": [tensors],
    }
    for value in gc.get_objects() if objects is None else objects:
        kind_of = type(value)
        if kind_of not in kinds:
            kinds[kind_of] = _kind(kind_of)
        kind = kinds[kind_of]
        if kind is not None:
            for place in places[kind]:
                place.append(value)
    return owners, tensors


def _kind(kind_of: type) -> str | None:
    for base in kind_of.__mro__:
        home, kind = _KINDS.get(base.__name__, ("", None))
        if kind is not None and str(getattr(base, "__module__", "")).startswith(home):
            return kind
    return None


def owned(owners: Owners) -> Iterator[Owned]:
    """(tensor, part, detail, name) of everything the owners hold, most telling owner first; storages may repeat.

    DeepSpeed before `.grad`, which it makes a view of its bucket.
    """
    for source in (_parameters, _buckets, _gradients, _optimizer_states, _wrapped, _buffers, _caches, _inputs, _rest):
        yield from _surviving(source, owners)


def gradients(owners: Owners) -> Iterator[Owned]:
    """What is a gradient now: asked at the highest points of a step, so it looks at nothing else."""
    for source in (_gathered, _buckets, _gradients, _wrapped):
        yield from _surviving(source, owners)


def _surviving(source: Callable[[Owners], Iterator[Owned]], owners: Owners) -> Iterator[Owned]:
    """What a source says until it meets something that is not as we know it."""
    with contextlib.suppress(Exception):
        yield from source(owners)


def _named_parameters(owners: Owners) -> Iterator[tuple[Any, str]]:
    for module in owners.modules:
        parameters = vars(module).get("_parameters")
        path = owners.names.get(id(module), type(module).__name__)
        for name, parameter in list(parameters.items()) if isinstance(parameters, dict) else ():
            if is_tensor(parameter):
                yield parameter, f"{path}.{name}" if path else name


def _parameters(owners: Owners) -> Iterator[Owned]:
    for parameter, name in _named_parameters(owners):
        if getattr(parameter, "ds_tensor", None) is not None:
            yield from memory_deepspeed.of_parameter(parameter, name)
        else:
            yield local(parameter), "parameters", "trainable" if parameter.requires_grad else "frozen", name


def _gathered(owners: Owners) -> Iterator[Owned]:
    for parameter, name in _named_parameters(owners):
        if hasattr(parameter, "ds_tensor"):
            yield from memory_deepspeed.of_parameter(parameter, name)


def _buckets(owners: Owners) -> Iterator[Owned]:
    for wrapper in owners.wrappers:
        yield from _surviving(memory_deepspeed.of_buckets, wrapper)


def _gradients(owners: Owners) -> Iterator[Owned]:
    for parameter, name in _named_parameters(owners):
        gradient = parameter.grad if parameter.is_leaf else None
        if gradient is not None:
            yield local(gradient), "gradients", "", name
        yield from memory_deepspeed.gradient_of_parameter(parameter, name)
    for optimizer in owners.optimizers:
        for parameter in _of_groups(optimizer):
            if parameter.is_leaf and parameter.grad is not None:
                yield local(parameter.grad), "gradients", "of the optimizer's copies", ""


def _of_groups(optimizer: Any) -> Iterator[Any]:
    for group in list(getattr(optimizer, "param_groups", ())):
        for parameter in group.get("params", ()):
            if is_tensor(parameter):
                yield parameter


def _optimizer_states(owners: Owners) -> Iterator[Owned]:
    for optimizer in owners.optimizers:
        for state in list(getattr(optimizer, "state", {}).values()):
            for key, value in list(state.items()) if isinstance(state, dict) else ():
                for tensor in tensors_in(value):
                    yield tensor, "optimizer_states", str(key)[:60], ""


def _wrapped(owners: Owners) -> Iterator[Owned]:
    for wrapper in owners.wrappers:
        yield from _surviving(memory_deepspeed.of_optimizer, wrapper)
    # Modules have been asked already: what an optimizer updates beside their parameters are copies of them.
    part, detail = ("master_weights", "") if owners.wrappers else ("parameters", "trainable")
    for optimizer in owners.optimizers:
        for parameter in _of_groups(optimizer):
            yield local(parameter), part, detail, ""


def _buffers(owners: Owners) -> Iterator[Owned]:
    for module in owners.modules:
        path = owners.names.get(id(module), type(module).__name__)
        buffers = vars(module).get("_buffers")
        for name, buffer in list(buffers.items()) if isinstance(buffers, dict) else ():
            if is_tensor(buffer):
                yield local(buffer), "buffers", "", f"{path}.{name}"


def _caches(owners: Owners) -> Iterator[Owned]:
    for cache in owners.caches:
        for name in _PARTS_OF_CACHE:
            for value in list(vars(cache).get(name) or ()):
                for tensor in tensors_in(vars(value) if hasattr(value, "__dict__") else value):
                    yield tensor, "kv_cache", "", type(cache).__name__


def _inputs(owners: Owners) -> Iterator[Owned]:
    for dataset in owners.datasets:
        for name, value in list(vars(dataset).items()):
            for tensor in tensors_in(value):
                yield tensor, "inputs", "dataset", f"{type(dataset).__name__}.{name}"


def _rest(owners: Owners) -> Iterator[Owned]:
    for wrapper in owners.wrappers:
        yield from _surviving(memory_deepspeed.of_rest, wrapper)


def reducer_bytes(owners: Owners) -> int:
    """Bytes of DDP's buckets, which no Python object shows: as many as gradients, unless these are views of them."""
    total = 0
    for ddp in owners.ddps:
        if not vars(ddp).get("gradient_as_bucket_view"):
            trained = (p for p in ddp.module.parameters() if p.requires_grad)
            total += sum(p.numel() * p.element_size() for p in trained)
    return total
