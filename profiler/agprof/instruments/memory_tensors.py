"""Tensors inside the containers that frameworks keep them in."""

from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any

MAX_DEPTH = 4
MAX_ITEMS = 100_000


def is_tensor(value: Any) -> bool:
    """Without importing torch, and without asking a lazy object what it is."""
    return any(kind.__name__ == "Tensor" and kind.__module__ == "torch" for kind in type(value).__mro__)


def local(tensor: Any) -> Any:
    """This rank's part of a DTensor; any other tensor itself."""
    return getattr(tensor, "_local_tensor", tensor)


def tensors_in(value: Any, depth: int = MAX_DEPTH) -> Iterator[Any]:
    """Tensors in lists, dictionaries, dataclasses, some levels deep."""
    if value is None or isinstance(value, (str, bytes, int, float)) or depth < 0:
        return
    if is_tensor(value):
        yield local(value)
    elif isinstance(value, Mapping):
        for item in list(value.values())[:MAX_ITEMS]:
            yield from tensors_in(item, depth - 1)
    elif isinstance(value, (list, tuple, set, frozenset)) or type(value).__name__ == "deque":
        for item in list(value)[:MAX_ITEMS]:
            yield from tensors_in(item, depth - 1)
    elif is_dataclass(value) and not isinstance(value, type):
        for item in list(vars(value).values()) if hasattr(value, "__dict__") else ():
            yield from tensors_in(item, depth - 1)
