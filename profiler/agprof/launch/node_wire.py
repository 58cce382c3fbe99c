"""Lines of JSON between agprof and the agents of its nodes, over the pipes of whatever started them."""

import json
import queue
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import IO, Any

MAX_LINE_BYTES = 4 * 2**20
_WAITING = 256
"""Lines read and not yet looked at; then the other side waits."""


class Sender:
    """Writes messages, from any thread."""

    def __init__(self, pipe: IO[bytes], **common: Any) -> None:
        """`common` is in every message."""
        self._pipe = pipe
        self._common = common
        self._lock = threading.Lock()
        self.broken = False
        """Nobody reads any more."""

    def send(self, **message: Any) -> None:
        """Never raises for a pipe that is gone: `broken` tells."""
        line = json.dumps({**self._common, **message}, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            try:
                self._pipe.write(line)
                self._pipe.flush()
            except (OSError, ValueError):
                self.broken = True

    def close(self) -> None:
        with self._lock, suppress(OSError, ValueError):
            self._pipe.close()


class Receiver:
    """Reads messages on a thread of its own and keeps them until they are asked for.

    Lines that are no JSON object are passed over: a login shell's banner, a library's warning.
    """

    def __init__(self, pipe: IO[bytes], into: "queue.Queue[Mapping[str, Any] | None] | None" = None) -> None:
        self._pipe = pipe
        self._messages: queue.Queue[Mapping[str, Any] | None] = into if into is not None else queue.Queue(_WAITING)
        self.ended = False
        """The pipe has ended, and what came before has been taken."""
        self.heard_at = time.monotonic()
        """When the last line came."""
        threading.Thread(target=self._read, name="agprof-wire", daemon=True).start()

    def next(self, timeout_s: float) -> Mapping[str, Any] | None:
        """The next message; None when there is none in time, or no more."""
        if self.ended:
            return None
        try:
            message = self._messages.get(timeout=timeout_s) if timeout_s > 0 else self._messages.get_nowait()
        except queue.Empty:
            return None
        if message is None:
            self.ended = True
        return message

    def _read(self) -> None:
        try:
            while line := self._pipe.readline(MAX_LINE_BYTES):
                self.heard_at = time.monotonic()
                message = _parsed(line)
                if message is not None:
                    self._messages.put(message)
        except (OSError, ValueError):
            pass
        self._messages.put(None)


def _parsed(line: bytes) -> Mapping[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
