"""Which exceptions mean that memory ran out, and what they say: how much was wanted, of which memory.

Formats: torch 2.13's CUDACachingAllocator ("Tried to allocate 2.00 GiB. GPU 0 has a total capacity of ...") and older
ones, alloc_cpu.cpp ("you tried to allocate N bytes"), numpy's ArrayMemoryError, which knows shape and element type.
"""

import re
from dataclasses import dataclass
from typing import Any, Literal

MAX_TEXT = 2000
_DEVICE_WORDS = (
    "CUDA out of memory",
    "HIP out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
_HOST_WORDS = ("DefaultCPUAllocator", "Cannot allocate memory", "can't allocate memory")
_WANTED = re.compile(r"[Tt]ried to allocate (\d{1,20}(?:\.\d{1,3})?) ?(bytes|[KMGT]iB)")
_NUMPY = re.compile(r"Unable to allocate (\d{1,20}(?:\.\d{1,3})?) ?(bytes|[KMGT]iB)")
_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """What an exception says."""

    space: Literal["device", "host"]
    type: str
    text: str
    """The error's own, cut."""
    wanted_bytes: int | None


def read_error(error: BaseException, torch: Any) -> OutOfMemory | None:
    """None when the exception is about something else. The exception is looked at and not changed."""
    space = _space(error, torch)
    if space is None:
        return None
    text = _text(error)
    return OutOfMemory(space, type(error).__name__, text, _exact_bytes(error) or wanted_bytes(text))


def wanted_bytes(text: str) -> int | None:
    """What could not be allocated, to the digits that the text has.

    >>> wanted_bytes("CUDA out of memory. Tried to allocate 20.50 MiB. GPU 0 has a total capacity of 8.00 GiB")
    21495808
    >>> wanted_bytes("DefaultCPUAllocator: can't allocate memory: you tried to allocate 40000000000 bytes.")
    40000000000
    >>> wanted_bytes("out of memory") is None
    True
    """
    found = _WANTED.search(text) or _NUMPY.search(text)
    return (
        round(float(found[1]) * _UNITS[found[2]]) if found and found[2] != "bytes" else int(found[1]) if found else None
    )


def _space(error: BaseException, torch: Any) -> Literal["device", "host"] | None:
    kind = getattr(torch, "OutOfMemoryError", None) or getattr(torch.cuda, "OutOfMemoryError", None)
    if isinstance(kind, type) and isinstance(error, kind):
        return "device"
    if isinstance(error, MemoryError):
        return "host"
    if isinstance(error, RuntimeError):
        text = _text(error)
        if any(words in text for words in _DEVICE_WORDS):
            return "device"
        if any(words in text for words in _HOST_WORDS):
            return "host"
    return None


def _text(error: BaseException) -> str:
    # Not str(error) of anything: an exception's own code could do what it likes.
    first = error.args[0] if error.args else ""
    if isinstance(first, str):
        return first[:MAX_TEXT]
    return str(error)[:MAX_TEXT] if isinstance(error, MemoryError) else ""


def _exact_bytes(error: BaseException) -> int | None:
    """numpy's error holds shape and element type; its text is rounded."""
    size = getattr(error, "_total_size", None) if isinstance(error, MemoryError) else None
    return size if type(size) is int and size >= 0 else None
