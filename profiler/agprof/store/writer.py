"""Writes a stream: rows are appended as tuples by any thread, framed and written by one flusher thread.

Light on purpose: this runs inside the training process. `append` costs a deque append and takes no lock, so signal
handlers and finalizers may call it; encoding happens when flushing. A failing disk never raises into the caller: rows
are kept while memory allows, then dropped, counted, and reported with the next successful flush.
"""

import os
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from agprof.store.layout import END, FRAME, MAX_FRAME_BYTES, PREAMBLE

MAX_ROWS_PER_FRAME = 4096
SPLIT_FRAME_BYTES = 2**20
"""A frame above this size is split, down to one row, so that readers need little memory."""
MAX_PENDING_ROWS = 200_000
"""Rows kept in memory per table while the disk does not take them; older rows are dropped first."""
CLOSE_TIMEOUT_S = 1.5
"""How long `close` waits for a flusher that hangs in a write or in a hook."""
MAX_HOOK_FAILURES = 3

Row = tuple[Any, ...]


class StreamWriter:
    """One append-only stream with one writing process.

    `append(table, row)` may be called from any thread, signal handler or finalizer. Rows are on their way to the
    kernel (page cache) at most `flush_period_s` later; what was written survives a SIGKILL of the process. After a
    fork the child's copy is inert: it writes nothing, and what is appended there is bounded and thrown away.
    """

    preamble = PREAMBLE

    def __init__(self, path: Path, header: Mapping[str, Any], flush_period_s: float = 0.25) -> None:
        """Create the file (it must not exist) and write the header. Raises OSError, and then leaves no file."""
        self.path = path
        self._encoder = msgspec.msgpack.Encoder(enc_hook=_plain)
        self._pid = os.getpid()
        self._has_cost_table = header.get("kind") != "node"
        # A deque with a bound, not a list: where the flusher itself hangs (a dead network file system) nobody could
        # trim a list. Its `append` is atomic, and `rows` hands it out for the writer's life.
        self._pending: dict[str, deque[Row]] = {}
        # Rows taken from `_pending` and not on disk yet. Only the holder of the lock touches it.
        self._backlog: dict[str, list[Row]] = {}
        self._lock = threading.RLock()
        self._owner: int | None = None
        self._good_bytes = 0
        self._torn = False
        self._closed = False
        self._closing: str | None = None
        self._period_s = flush_period_s
        self._stop = threading.Event()
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        self._hooks: list[Callable[[], None]] = []
        self._hook_failures: dict[Callable[[], None], int] = {}
        self.rows_written = 0
        self.bytes_written = 0
        self.lost_rows = 0
        """Rows that will never be written: no disk, not encodable. A lower bound when the flusher itself hung."""
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            self._write(self.preamble + self._frame(_tame_all(dict(header))))
        except BaseException:
            os.close(self._fd)
            path.unlink(missing_ok=True)
            raise

    def append(self, table: str, row: Row) -> None:
        """Add one row; columns in the order of `model.tables`."""
        try:
            self._pending[table].append(row)
        except KeyError:
            self.rows(table)(row)

    def rows(self, table: str) -> Callable[[Row], None]:
        """A bound `append` for one table, for hot paths. It stays valid for the writer's life."""
        return self._pending.setdefault(table, deque(maxlen=MAX_PENDING_ROWS)).append

    def before_flush(self, hook: Callable[[], None]) -> None:
        """Call `hook` before each flush, on the thread that flushes (device events are resolved there).

        A hook that raises is recorded as a fault, and no longer called after the third time.
        """
        self._hooks.append(hook)

    def start(self) -> None:
        """Start the flusher thread."""
        self._thread = threading.Thread(target=self._run, name="agprof-flusher", daemon=True)
        self._thread.start()

    def flush(self) -> None:
        """Write all pending rows. Never raises; a failed write keeps the newest rows for the next try.

        Called while the same thread flushes already (from a signal handler) it does nothing.
        """
        if self._closed or os.getpid() != self._pid or not self._lock.acquire(timeout=CLOSE_TIMEOUT_S):
            return
        try:
            if self._owner is None and not self._closed:
                self._owner = threading.get_ident()
                try:
                    self._drain(self._hooks)
                finally:
                    self._owner = None
        finally:
            self._lock.release()
        if self._closing is not None and self._thread is None:
            self._finish()

    def sync(self) -> None:
        """Ask the kernel to put what was written on the disk; may take long. Never raises."""
        if self._closed or os.getpid() != self._pid:
            return
        try:
            os.fdatasync(self._fd)
        except OSError:
            pass

    def close(self, reason: str = "clean") -> None:
        """Flush, write the end record and close, in less than 2 s. Further calls do nothing.

        The flusher thread does it where one runs, so that a disk that hangs holds up that thread and not the caller.
        """
        if self._closing is not None or os.getpid() != self._pid:
            return
        self._closing = reason
        if self._owner == threading.get_ident():
            # A signal handler that interrupted this thread's own flush: whoever flushes ends the stream.
            self._stop.set()
        elif self._thread is not None and self._thread.is_alive() and self._thread.ident != threading.get_ident():
            self._stop.set()
            self._done.wait(CLOSE_TIMEOUT_S)
        else:
            self._finish()

    def _run(self) -> None:
        account = self._accountant() if self._has_cost_table else None
        while not self._stop.wait(self._period_s):
            if os.getpid() != self._pid:
                return
            self.flush()
            if account is not None:
                account()
        self._finish(account)
        self._done.set()

    def _finish(self, account: Callable[[], None] | None = None) -> None:
        if self._closed or not self._lock.acquire(timeout=CLOSE_TIMEOUT_S):
            return
        if self._owner is not None or self._closed:
            self._lock.release()
            return
        self._owner = threading.get_ident()
        try:
            self._drain(self._hooks)
            if account is not None:
                account()
                self._drain([])
            self._try_write(self._frame([END, [[_text(str(self._closing))]]]))
            if self._torn:
                self._cut_torn_tail()
            self.lost_rows += sum(len(rows) for rows in self._backlog.values())
            self._backlog.clear()
            # Nobody may use the number of a closed descriptor: it can belong to another file the next moment.
            self._closed = True
            os.close(self._fd)
        except OSError:
            pass
        finally:
            self._owner = None
            self._lock.release()

    def _accountant(self) -> Callable[[], None]:
        """A function for the flusher thread that appends a row of `cost` when there is something to account for."""
        cost = self.rows("cost")
        cpu_ns, rows, size, lost = time.thread_time_ns(), 0, 0, 0

        def account() -> None:
            nonlocal cpu_ns, rows, size, lost
            # The row of cost itself is the one row that alone gives no new row of cost.
            if self.rows_written - rows <= 1 and self.lost_rows == lost:
                return
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

        return account

    def _drain(self, hooks: list[Callable[[], None]]) -> None:
        for hook in list(hooks):
            try:
                hook()
            except Exception as error:
                self._record_hook_failure(hook, error)
        # The list of keys is made without running any Python code; iterating over the dictionary itself could meet a
        # finalizer that adds a table.
        for table in list(self._pending):
            self._take(table)
        self._write_backlog()

    def _record_hook_failure(self, hook: Callable[[], None], error: Exception) -> None:
        count = self._hook_failures[hook] = self._hook_failures.get(hook, 0) + 1
        if count >= MAX_HOOK_FAILURES:
            self._hooks.remove(hook)
        if self._has_cost_table:
            message = f"{type(error).__name__}: {error}"[:1000]
            self.append("faults", (time.monotonic_ns(), "store", "before_flush", message, count))

    def _take(self, table: str) -> None:
        """Move a table's pending rows to its backlog."""
        pending = self._pending[table]
        taken = len(pending)
        if taken == pending.maxlen:
            self.lost_rows += 1  # at least one: a full deque throws its oldest away uncounted
        self._backlog.setdefault(table, []).extend([pending.popleft() for _ in range(taken)])

    def _write_backlog(self) -> None:
        for table, rows in self._backlog.items():
            self._write_table(table, rows)
        self._bound_backlog()

    def _write_table(self, table: str, backlog: list[Row]) -> None:
        while backlog:
            batch = backlog[:MAX_ROWS_PER_FRAME]
            done = self._write_rows(table, batch)
            del backlog[:done]
            if done < len(batch):
                break

    def _bound_backlog(self) -> None:
        for backlog in self._backlog.values():
            surplus = len(backlog) - MAX_PENDING_ROWS
            if surplus > 0:
                del backlog[:surplus]
                self.lost_rows += surplus

    def _write_rows(self, table: str, rows: list[Row]) -> int:
        """Write rows in as many frames as they need. Returns how many, from the front, need no further try."""
        try:
            frame = self._frame([table, rows])
        except Exception:
            # One row in the batch can't be encoded; find it, keep the others. Any exception: values may be objects of
            # the training process, and their own code runs while they are encoded.
            good = [encoded for row in rows if (encoded := self._encode_alone(row)) is not None]
            if not good:
                self.lost_rows += len(rows)
                return len(rows)
            frame = self._frame([_text(str(table)), good])
            if len(frame) <= SPLIT_FRAME_BYTES or len(rows) == 1:
                return self._write_frame(frame, len(rows), len(good))
        if len(frame) <= SPLIT_FRAME_BYTES or len(rows) == 1:
            return self._write_frame(frame, len(rows), len(rows))
        half = len(rows) // 2
        done = self._write_rows(table, rows[:half])
        return done if done < half else half + self._write_rows(table, rows[half:])

    def _write_frame(self, frame: bytes, rows: int, encoded: int) -> int:
        """`rows` came in, `encoded` of them are in the frame. Returns rows, or 0 to have them tried again."""
        if len(frame) > MAX_FRAME_BYTES:
            self.lost_rows += rows
            return rows
        if not self._try_write(frame):
            return 0
        self.rows_written += encoded
        self.lost_rows += rows - encoded
        return rows

    def _encode_alone(self, row: Row) -> msgspec.Raw | None:
        try:
            return msgspec.Raw(self._encoder.encode([_tame(value) for value in row]))
        except Exception:
            return None

    def _frame(self, payload: Any) -> bytes:
        data = self._encoder.encode(payload)
        return FRAME.pack(len(data), zlib.crc32(data)) + data

    def _try_write(self, frame: bytes) -> bool:
        try:
            self._write(frame)
        except OSError:
            return False
        return True

    def _cut_torn_tail(self) -> None:
        try:
            os.ftruncate(self._fd, self._good_bytes)
            self._torn = False
        except OSError:
            pass

    def _write(self, data: bytes) -> None:
        # A short write (full disk, or a signal handler that raised) leaves a torn frame, which would hide every later
        # frame from readers: cut it off before anything else is written.
        if self._torn:
            os.ftruncate(self._fd, self._good_bytes)
        self._torn = True
        written = 0
        while written < len(data):
            step = os.write(self._fd, data[written:] if written else data)
            if step <= 0:
                raise OSError("write returned 0")
            written += step
        self._good_bytes += len(data)
        self._torn = False
        self.bytes_written += len(data)


def _plain(value: Any) -> Any:
    """A builtin value for what the encoder does not know: NumPy scalars, subclasses of builtins. Raises TypeError."""
    if isinstance(value, str):
        return _text(str.__str__(value))
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        # Only NumPy: `item()` of a tensor would wait for the device.
        item = value.item()
        if item is None or type(item) in (bool, int, float, str):
            return item
    raise TypeError(f"a row can't hold a {type(value).__name__}")


def _tame(value: Any) -> Any:
    return _text(value) if type(value) is str else value


def _tame_all(value: Any) -> Any:
    """The header: small, and it must not fail for the sake of one undecodable argument."""
    if isinstance(value, dict):
        return {_text(str(key)): _tame_all(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_tame_all(each) for each in value]
    if value is None or isinstance(value, bool | float) or (isinstance(value, int) and -(2**63) <= value < 2**63):
        return value
    return _text(str(value))


def _text(value: str) -> str:
    """The text with lone surrogates (undecodable file names) written out as `\\udcff`."""
    return value.encode("utf-8", "backslashreplace").decode("utf-8")
