"""The nodes of a job tell one another that they live, over the network that the job itself uses.

Node 0's agent listens, and the others connect to it. Both sides say so once a second; how long one was not heard is
asked with `silences`. A connection that breaks is made anew until then.
"""

import selectors
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

PERIOD_S = 1.0
_CONNECT_TIMEOUT_S = 2.0
_MAX_LINE_BYTES = 256


@dataclass(slots=True)
class _Peer:
    """A connection to node 0."""

    connection: socket.socket
    number: int | None = None
    """None until it said which node it is."""
    said: bytes = b""


class Listener:
    """Node 0's end."""

    def __init__(self, address: str, token: str, nodes: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises OSError when the address can't be listened on. Strangers, who don't know the token, are ignored."""
        self._clock = clock
        self._token = token
        self._others = range(1, nodes)
        self._server = socket.create_server((address, 0), backlog=128)
        self._server.setblocking(False)
        self.port: int = self._server.getsockname()[1]
        self._heard = dict.fromkeys(self._others, clock())
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._server, selectors.EVENT_READ)
        self._peers: dict[int, _Peer] = {}
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="agprof-heartbeat", daemon=True)

    def start(self) -> None:
        """From now on every other node is expected to be heard."""
        self._heard = dict.fromkeys(self._others, self._clock())
        self._thread.start()

    def silences(self) -> dict[int, float]:
        """Seconds since each other node was heard."""
        now = self._clock()
        return {number: now - heard for number, heard in self._heard.items()}

    def close(self) -> None:
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(2 * PERIOD_S)
        for peer in self._peers.values():
            peer.connection.close()
        self._server.close()
        self._selector.close()

    def _run(self) -> None:
        beat_at = self._clock()
        while not self._closed.is_set():
            for key, _ in self._selector.select(PERIOD_S / 4):
                if key.fileobj is self._server:
                    self._accept()
                else:
                    self._hear(self._peers[key.fd])
            if self._clock() >= beat_at:
                beat_at = self._clock() + PERIOD_S
                for peer in list(self._peers.values()):
                    if peer.number is not None:
                        self._tell(peer)

    def _accept(self) -> None:
        with suppress(OSError):
            connection, _ = self._server.accept()
            connection.setblocking(False)
            self._peers[connection.fileno()] = _Peer(connection)
            self._selector.register(connection, selectors.EVENT_READ)

    def _hear(self, peer: _Peer) -> None:
        try:
            data = peer.connection.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(peer)
            return
        if peer.number is None:
            peer.said += data
            if b"\n" not in peer.said:
                if len(peer.said) > _MAX_LINE_BYTES:
                    self._drop(peer)
                return
            token, _, number = peer.said.partition(b"\n")[0].decode("ascii", "replace").partition(" ")
            if token != self._token or not number.isdigit() or int(number) not in self._heard:
                self._drop(peer)
                return
            peer.number, peer.said = int(number), b""
        self._heard[peer.number] = self._clock()

    def _tell(self, peer: _Peer) -> None:
        try:
            peer.connection.send(b".")
        except BlockingIOError:
            pass  # its buffer is full: it has not been reached for long
        except OSError:
            self._drop(peer)

    def _drop(self, peer: _Peer) -> None:
        self._selector.unregister(peer.connection)
        del self._peers[peer.connection.fileno()]
        peer.connection.close()


class Caller:
    """The end of every other node."""

    def __init__(
        self, address: str, port: int, token: str, number: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._at = (address, port)
        self._hello = f"{token} {number}\n".encode("ascii")
        self._clock = clock
        self._heard = clock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="agprof-heartbeat", daemon=True)

    def start(self) -> None:
        """From now on node 0 is expected to be heard."""
        self._heard = self._clock()
        self._thread.start()

    def silences(self) -> dict[int, float]:
        """Seconds since node 0 was heard."""
        return {0: self._clock() - self._heard}

    def close(self) -> None:
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(_CONNECT_TIMEOUT_S + PERIOD_S)

    def _run(self) -> None:
        while not self._closed.is_set():
            with suppress(OSError), socket.create_connection(self._at, timeout=_CONNECT_TIMEOUT_S) as connection:
                connection.sendall(self._hello)
                connection.settimeout(PERIOD_S)
                self._talk(connection)
            self._closed.wait(PERIOD_S / 2)

    def _talk(self, connection: socket.socket) -> None:
        beat_at = self._clock() + PERIOD_S
        while not self._closed.is_set():
            with suppress(TimeoutError):
                if not connection.recv(4096):
                    return
                self._heard = self._clock()
            if self._clock() >= beat_at:
                beat_at = self._clock() + PERIOD_S
                with suppress(TimeoutError):  # its buffer is full: nothing gets through
                    connection.send(b".")
