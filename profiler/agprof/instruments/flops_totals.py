"""Sums over operations, and an operation's time in them: at once where its call takes it, after the step where a device
does."""

from typing import Any

from agprof.instruments.op_places import Operation, Pass
from agprof.instruments.op_timer import duration_ns, is_done


class Totals:
    """Sums over operations. FLOPs are integers as long as shapes are."""

    __slots__ = (
        "attention_flops", "backward_bytes", "backward_flops", "backward_ns", "calls", "forward_bytes", "forward_flops",
        "forward_ns", "modelled_backward_flops", "modelled_forward_flops", "recomputed_calls", "recomputed_flops",
        "recomputed_ns",
    )  # fmt: skip

    def __init__(self) -> None:
        for name in self.__slots__:
            setattr(self, name, 0)

    calls: int
    recomputed_calls: int
    forward_flops: int
    backward_flops: int
    recomputed_flops: int
    attention_flops: int
    modelled_forward_flops: int
    modelled_backward_flops: int
    forward_bytes: int
    backward_bytes: int
    forward_ns: int
    backward_ns: int
    recomputed_ns: int

    def add(self, other: "Totals") -> None:
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class KindTotals:
    """Operations of one pass, kind and element type."""

    __slots__ = ("bytes", "calls", "duration_ns", "flops")

    def __init__(self) -> None:
        self.calls = 0
        self.flops = 0
        self.bytes = 0
        self.duration_ns = 0


_Share = tuple[list[Totals], Pass, KindTotals, KindTotals | None, tuple[int, int]]


class OpTimes:
    """Adds the time of operations to sums."""

    def __init__(self) -> None:
        self.known = True
        """False when an operation had no time."""
        self._waiting: list[tuple[Any, _Share]] = []
        """Pairs of events, and where their time goes; on one stream the device passes them in this order."""

    def spend(
        self,
        operation: Operation,
        sums: list[Totals],
        kind: KindTotals,
        again: KindTotals | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        """`share` of the time, as (numerator, denominator), goes to what is computed `again` in backward."""
        to = (sums, operation.in_pass, kind, again, share)
        if operation.duration_ns is not None:
            _distribute(operation.duration_ns, *to)
        elif operation.pair is not None:
            self._waiting.append((operation.pair, to))
        else:
            self.known = False

    def is_settled(self) -> bool:
        """Whether the device has done all operations. Asks, and does not wait."""
        return all(is_done(pair) for pair, _to in reversed(self._waiting))

    def settle(self) -> None:
        """Add what the device took. Once `is_settled`."""
        waiting, self._waiting = self._waiting, []
        for pair, to in waiting:
            _distribute(duration_ns(pair), *to)

    def give_up(self) -> None:
        """The device was not asked in time: nothing is known."""
        self.known = self.known and not self._waiting
        self._waiting.clear()


def _distribute(
    duration: int, sums: list[Totals], in_pass: Pass, kind: KindTotals, again: KindTotals | None, share: tuple[int, int]
) -> None:
    repeated = duration * share[0] // share[1]
    kind.duration_ns += duration - repeated
    if again is not None:
        again.duration_ns += repeated
    _add_time(sums, in_pass, duration - repeated)
    _add_time(sums, "recomputed", repeated)


def _add_time(sums: list[Totals], in_pass: Pass, duration: int) -> None:
    for total in sums:
        if in_pass == "backward":
            total.backward_ns += duration
        elif in_pass == "recomputed":
            total.recomputed_ns += duration
        else:
            total.forward_ns += duration
