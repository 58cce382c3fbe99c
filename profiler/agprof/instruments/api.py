"""The calls that training code may make. Until a recorder is armed each of them does nothing, in well under 1 us."""

import functools
from collections.abc import Callable
from types import TracebackType
from typing import ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Sink(Protocol):
    """What an armed recorder offers to this module."""

    def open_range(self, name: str) -> None: ...

    def close_range(self) -> None: ...

    def add_counts(self, tokens: int | None, samples: int | None, unpadded_tokens: int | None = None) -> None: ...

    def user_mark(self, name: str) -> None: ...


_sink: Sink | None = None
"""The armed recorder; set by `attach`, cleared by `detach`."""


def attach(sink: Sink) -> None:
    """Send the calls of this module to `sink` from now on."""
    global _sink  # noqa: PLW0603
    _sink = sink


def detach() -> None:
    """Make the calls of this module do nothing again."""
    global _sink  # noqa: PLW0603
    _sink = None


class range:  # noqa: N801
    """Context manager: a named range of this thread's time, also an NVTX range in the domain `agprof`."""

    __slots__ = ("_name", "_used")

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        sink = _sink
        self._used = sink
        if sink is not None:
            sink.open_range(self._name)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The sink that opened the range closes it, even when it was detached in between.
        if self._used is not None:
            self._used.close_range()


def annotate(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function so that each call is a range of that name."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            with range(name):
                return function(*args, **kwargs)

        return wrapper

    return decorate


def step(*, tokens: int | None = None, samples: int | None = None, unpadded_tokens: int | None = None) -> None:
    """Add to the counts of the optimizer step in progress, on this rank.

    `tokens` counts every position, `unpadded_tokens` those of them that are no padding. Counts given here replace what
    agprof reads off the batches. Give them once per micro-step.
    """
    sink = _sink
    if sink is not None:
        sink.add_counts(tokens, samples, unpadded_tokens)


def mark(name: str) -> None:
    """Mark a point in time."""
    sink = _sink
    if sink is not None:
        sink.user_mark(name)
