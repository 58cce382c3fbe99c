"""A node's monotonic clock put on the run's axis, in exact integer arithmetic: times, and columns of times.

The axis is the monotonic clock of the reference node. An axis of several pieces follows a clock whose rate changed;
it has no jumps but those of rounding.
"""

import itertools
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

PPT = 1_000_000_000_000
"""Drifts are kept in whole parts of 10^12, which is 86 ns in a day."""
_SECOND_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class ClockPiece:
    """From a local time on: axis = local + offset + drift (local - from), rounded down."""

    from_ns: int = 0
    offset_ns: int = 0
    drift_ppt: int = 0

    def offset_at(self, local_ns: int) -> int:
        return self.offset_ns + (local_ns - self.from_ns) * self.drift_ppt // PPT


@dataclass(frozen=True, slots=True)
class ClockAxis:
    """How a node's times become times on the axis. The first piece holds for all times before the second."""

    pieces: tuple[ClockPiece, ...] = (ClockPiece(),)

    @staticmethod
    def shifted(offset_ns: int) -> "ClockAxis":
        """A clock that differs by a constant."""
        return ClockAxis((ClockPiece(offset_ns=offset_ns),))

    @property
    def is_shift(self) -> bool:
        return len(self.pieces) == 1 and not self.pieces[0].drift_ppt

    def common(self, local_ns: int) -> int:
        """The time on the axis."""
        at = bisect_right(self.pieces, local_ns, key=lambda piece: piece.from_ns) - 1
        return local_ns + self.pieces[max(0, at)].offset_at(local_ns)

    def local(self, common_ns: int) -> int:
        """The last time of the node's own clock that is not after this time of the axis."""
        starts = [piece.from_ns + piece.offset_ns for piece in self.pieces]
        piece = self.pieces[max(0, bisect_right(starts, common_ns) - 1)]
        ahead = common_ns - piece.from_ns - piece.offset_ns
        guess = piece.from_ns + ahead * PPT // (PPT + piece.drift_ppt)
        while self.common(guess) > common_ns:
            guess -= 1
        while self.common(guess + 1) <= common_ns:
            guess += 1
        return guess

    def column(self, local: pl.Expr) -> pl.Expr:
        """`common` of a column of times; missing times stay missing."""
        if len(self.pieces) == 1:
            piece = self.pieces[0]
            return _moved(local, pl.lit(piece.from_ns), pl.lit(piece.offset_ns), piece.drift_ppt)
        return local.map_batches(self._mapped, return_dtype=pl.Int64)

    def _mapped(self, local: pl.Series) -> pl.Series:
        borders = pl.Series([piece.from_ns for piece in self.pieces[1:]], dtype=pl.Int64)
        at = pl.Series(borders.search_sorted(local.fill_null(0), side="right"))
        frame = pl.DataFrame({"local": local, "at": at}).with_columns(
            pl.lit(pl.Series([getattr(piece, name) for piece in self.pieces], dtype=pl.Int64)).gather("at").alias(name)
            for name in ("from_ns", "offset_ns", "drift_ppt")
        )
        moved = _moved(pl.col("local"), pl.col("from_ns"), pl.col("offset_ns"), pl.col("drift_ppt"))
        return frame.select(moved.alias("local")).to_series()


def common_column(axes: Mapping[int, ClockAxis], number: pl.Expr, local: pl.Expr) -> pl.Expr:
    """A column of times on the axis; `number` is the column of nodes (or ranks) that `axes` speaks of.

    A number that `axes` lacks keeps its times.
    """
    moving = {key: axis for key, axis in axes.items() if axis != ClockAxis()}
    if not moving:
        return local
    if all(axis.is_shift for axis in moving.values()):
        return local + _of(number, {key: axis.pieces[0].offset_ns for key, axis in moving.items()})
    if all(len(axis.pieces) == 1 for axis in moving.values()):
        first = {key: axis.pieces[0] for key, axis in moving.items()}
        return _moved(
            local,
            _of(number, {key: piece.from_ns for key, piece in first.items()}),
            _of(number, {key: piece.offset_ns for key, piece in first.items()}),
            _of(number, {key: piece.drift_ppt for key, piece in first.items()}),
        )
    found = local
    for key, axis in moving.items():
        found = pl.when(number == key).then(axis.column(local)).otherwise(found)
    return found


def _of(number: pl.Expr, values: Mapping[int, int]) -> pl.Expr:
    return number.replace_strict(values, default=0, return_dtype=pl.Int64)


def _moved(local: pl.Expr, from_ns: pl.Expr, offset_ns: pl.Expr, drift_ppt: pl.Expr | int) -> pl.Expr:
    """As `ClockPiece.offset_at`, without the product that has more than 64 bits: seconds and their rest apart."""
    if isinstance(drift_ppt, int):
        if not drift_ppt:
            return local + offset_ns
        drift_ppt = pl.lit(drift_ppt)
    since = local - from_ns
    # In thousandths of a ns. Neither product leaves 64 bits: drifts are below 1 %.
    by_seconds = (since // _SECOND_NS) * drift_ppt
    rest = (by_seconds % 1000) * _SECOND_NS + (since % _SECOND_NS) * drift_ppt
    return local + offset_ns + by_seconds // 1000 + rest // PPT


def axis_through(knots: Sequence[tuple[int, int]], drift_before_ppt: int, drift_after_ppt: int) -> ClockAxis:
    """An axis on a line through (local time, offset) after (local time, offset), and on beyond both ends."""
    (first, offset), last = knots[0], knots[-1]
    if len(knots) == 1:
        return ClockAxis((ClockPiece(first, offset, drift_before_ppt),))
    pieces = []
    for (begin, at_begin), (end, at_end) in itertools.pairwise(knots):
        drift = ((at_end - at_begin) * PPT * 2 + (end - begin)) // (2 * (end - begin))
        pieces.append(ClockPiece(begin, at_begin, drift))
    if pieces[0].drift_ppt != drift_before_ppt:
        pieces.insert(0, ClockPiece(first - 1, offset - drift_before_ppt // PPT, drift_before_ppt))
    if pieces[-1].drift_ppt != drift_after_ppt:
        pieces.append(ClockPiece(last[0], last[1], drift_after_ppt))
    return ClockAxis(tuple(pieces))
