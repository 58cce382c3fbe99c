"""A piece of the list of events, cut between two of them, is decoded: the fast way, or the next slower one.

A piece that was cut inside an event (or inside a string that looks like the border of two) is no JSON and always fails
as a whole; it can't give wrong events.
"""

import re
from decimal import Decimal
from typing import Any

import msgspec

from agprof.importers.kineto_events import Event, ExactEvent
from agprof.importers.kineto_lax import DECODER, event
from agprof.importers.kineto_rows import Rows
from agprof.importers.kineto_take import Exact, take

_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_LINES = bytes.maketrans(b"\t\n\r", b"   ")
_BAD = (msgspec.MsgspecError, ValueError, RecursionError)


class Chunks:
    """Takes pieces of the list and hands their events to the rows."""

    def __init__(self, rows: Rows, *, in_order: bool) -> None:
        """`in_order`: every piece of the file comes by, in its order; else begins can't be joined with their ends."""
        self._rows = rows
        self.exact = Exact(rows, in_order=in_order)
        self._fast = msgspec.json.Decoder(list[Event])
        self._decimal = msgspec.json.Decoder(list[ExactEvent], float_hook=Decimal)

    def take(self, chunk: memoryview) -> bool:
        """Take a whole list of events, `[...]`. False: it is no JSON; nothing was taken.

        Raises OSError, NeedsOrderError.
        """
        text: Any = chunk
        events = _decoded(self._fast, text)
        if events is None:
            text = mended(bytes(chunk))
            events = _decoded(self._fast, text)
        if events is not None and take(self._rows, events):
            return True
        del events
        exact = _decoded(self._decimal, text)
        if exact is None:
            exact = self._lax(bytes(chunk))
        if exact is None:
            return False
        self.exact.take(exact)
        return True

    def _lax(self, chunk: bytes) -> list[ExactEvent] | None:
        try:
            values = DECODER.decode(chunk.decode("utf-8", "replace"))
        except (ValueError, RecursionError):
            return None
        return [found for value in values if (found := event(value, self._rows.left_out)) is not None]


def mended(chunk: bytes) -> bytes:
    """JSON with U+FFFD for control characters and for what is no UTF-8: PyTorch has written both into names. Outside
    of a text neither they nor U+FFFD are JSON, so that damage stays damage."""
    return _CONTROL.sub("\ufffd".encode(), chunk.translate(_LINES)).decode("utf-8", "replace").encode("utf-8")


def _decoded(decoder: "msgspec.json.Decoder[list[Any]]", text: Any) -> list[Any] | None:
    try:
        return decoder.decode(text)
    except _BAD:
        return None
