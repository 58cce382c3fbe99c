"""Writes a stream: rows are appended as tuples by any thread, framed and written by one flusher thread.

Light on purpose: this runs inside the training process. `append` costs a list append; encoding happens when flushing.
A failing disk never raises into the caller: rows are dropped, counted, and reported with the next successful flush.
"""

import os
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from agprof.store.layout import END, FRAME, PREAMBLE

MAX_ROWS_PER_FRAME = 4096
MAX_PENDING_ROWS = 200_000
"""Rows kept in memory while the disk does not take them; older rows are dropped first."""

Row = tuple[Any, ...]


class StreamWriter:
    """One append-only stream with one writing process.

    `append(table, row)` may be called from any thread. Rows are on their way to the kernel (page cache) at most
    `flush_period_s` later; what was written survives a SIGKILL of the process. After a fork the child's copy is inert.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], flush_period_s: float = 0.25) -> None:
        """Create the file (it must not exist) and write the header. Raises OSError."""
        self.path = path
        self._encoder = msgspec.msgpack.Encoder()
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._pid = os.getpid()
        self._pending: dict[str, list[Row]] = {}
        self._lock = threading.Lock()
        self._good_bytes = 0
        self._torn = False
        self._closed = False
        self._period_s = flush_period_s
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._before_flush: list[Callable[[], None]] = []
        self.rows_written = 0
        self.bytes_written = 0
        self.lost_rows = 0
        self._write(PREAMBLE + self._frame(dict(header)))

    def append(self, table: str, row: Row) -> None:
        """Add one row; columns in the order of `model.tables`."""
        try:
            self._pending[table].append(row)
        except KeyError:
            self._pending.setdefault(table, []).append(row)

    def rows(self, table: str) -> Callable[[Row], None]:
        """A bound `append` for one table, for hot paths. It stays valid for the writer's life."""
        return self._pending.setdefault(table, []).append

    def before_flush(self, hook: Callable[[], None]) -> None:
        """Call `hook` on the flusher thread before each flush (device events are resolved there)."""
        self._before_flush.append(hook)

    def start(self) -> None:
        """Start the flusher thread."""
        self._thread = threading.Thread(target=self._run, name="agprof-flusher", daemon=True)
        self._thread.start()

    def flush(self) -> None:
        """Write all pending rows. Never raises; a failed write keeps the newest rows for the next try."""
        if self._closed or os.getpid() != self._pid:
            return
        for hook in self._before_flush:
            hook()
        with self._lock:
            for table, rows in list(self._pending.items()):
                self._flush_table(table, rows)

    def close(self, reason: str = "clean") -> None:
        """Flush, write the end record and close. Further calls do nothing."""
        if self._closed or os.getpid() != self._pid:
            return
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=5)
        self.flush()
        with self._lock:
            if not self._torn:
                self._try_write(self._frame([END, [[reason]]]))
            self._closed = True
            os.close(self._fd)

    def _run(self) -> None:
        cost = self.rows("cost")
        cpu_ns, rows, size, lost = time.thread_time_ns(), 0, 0, 0
        while not self._stop.wait(self._period_s):
            if os.getpid() != self._pid:
                return
            self.flush()
            if self.rows_written - rows > 1 or self.lost_rows != lost:
                now = time.thread_time_ns()
                cost(
                    (
                        time.monotonic_ns(),
                        now - cpu_ns,
                        self.rows_written - rows,
                        self.bytes_written - size,
                        self.lost_rows - lost,
                    )
                )
                cpu_ns, rows, size, lost = now, self.rows_written, self.bytes_written, self.lost_rows

    def _flush_table(self, table: str, rows: list[Row]) -> None:
        # `rows` stays the same list for ever, because hot paths hold its bound append; rows that other threads add
        # meanwhile land behind `count` and stay.
        while count := min(len(rows), MAX_ROWS_PER_FRAME):
            frame = self._frame([table, rows[:count]])
            if not self._try_write(frame):
                surplus = len(rows) - MAX_PENDING_ROWS
                if surplus > 0:
                    del rows[:surplus]
                    self.lost_rows += surplus
                return
            del rows[:count]
            self.rows_written += count

    def _frame(self, payload: Any) -> bytes:
        data = self._encoder.encode(payload)
        return FRAME.pack(len(data), zlib.crc32(data)) + data

    def _try_write(self, frame: bytes) -> bool:
        try:
            self._write(frame)
        except OSError:
            return False
        return True

    def _write(self, data: bytes) -> None:
        # A short write (full disk) leaves a torn frame, which would hide every later frame from readers: cut it off
        # before anything else is written.
        if self._torn:
            os.ftruncate(self._fd, self._good_bytes)
            self._torn = False
        written = 0
        try:
            while written < len(data):
                written += os.write(self._fd, data[written:] if written else data)
        except OSError:
            self._torn = written > 0
            raise
        self._good_bytes += len(data)
        self.bytes_written += len(data)
