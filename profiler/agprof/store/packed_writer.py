"""Writes a node's stream: the rows of all tables since the last flush become one packed frame."""

from agprof.store.layout import PACKED, PACKED_PREAMBLE
from agprof.store.packing import Packed, pack
from agprof.store.writer import Row, StreamWriter

MAX_ROWS_PER_PACK = 1024
"""Of one table; what a disk did not take for long is packed in several frames."""


class PackedStreamWriter(StreamWriter):
    """A `StreamWriter` whose rows are packed: less than a third of the bytes, floats rounded to 20 bits.

    Rows that can't be packed (values of foreign types, much text) are written as they are.
    """

    preamble = PACKED_PREAMBLE
    _dictionary = b""

    def _write_backlog(self) -> None:
        while batch := [(table, rows[:MAX_ROWS_PER_PACK]) for table, rows in self._backlog.items() if rows]:
            packed = self._pack(batch)
            if packed is None:
                super()._write_backlog()
                return
            if not self._try_write(self._frame([PACKED, packed.shape, packed.bits])):
                break
            self._dictionary = packed.dictionary
            for table, rows in batch:
                self.rows_written += len(rows)
                del self._backlog[table][: len(rows)]
        self._bound_backlog()

    def _pack(self, batch: list[tuple[str, list[Row]]]) -> Packed | None:
        try:
            return pack(self._encoder, batch, self._dictionary)
        except Exception:  # of any kind: what is in the rows is not known here, and plain frames find the bad row
            return None
