"""Pings between the nodes' samplers: what tells each node's monotonic clock from that of the reference node.

The reference node's sampler answers (`ClockServer`), every other node's asks (`ClockClient`): bursts of 64 pings over
TCP at the start, every minute and at the end. Of a burst the exchange is kept that bounds the offset best. The client
sends at t0 and has the answer at t3, by its clock; the server received at s1 and answered at s2, by its own. Whatever
the two ways took, reference minus local lay between s2 - t3 and s1 - t0; half of that is the uncertainty.

Both are threads that cost rows at most: a server that is not there is asked again later, and nothing waits for either.
"""

import errno
import random
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from agprof.sampler.states import SECOND_NS, Append, Backoff, States, describe
from agprof.store.clocks import read_clocks

FIELD = "clock"
PINGS = 64
MAGIC = b"agpclk1\n"
HELLO = struct.Struct("!8sIB")
"""Magic, the client's node, whether it is its last burst."""
WELCOME = struct.Struct("!8sI")
"""Magic, the server's node."""
ASK = struct.Struct("!I")
ANSWER = struct.Struct("!Iqq")
"""The ping's number, when it was received, when it is answered."""
MAX_CLIENTS = 4096
DRIFT_PARTS = 1000
"""The clocks may drift by one part in so many while an exchange lasts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How long what may take, in seconds."""

    period_s: float = 60.0
    """Between bursts."""
    pause_s: float = 0.01
    """Between the pings of a burst, about: a link that is full in one phase of a step is free in the next."""
    answer_s: float = 1.0
    """For one answer, and to connect."""
    burst_s: float = 5.0
    last_burst_s: float = 0.7
    """For the last burst, which the end of the job waits for."""
    linger_s: float = 1.0
    """That the server goes on after its own end, for the last bursts of others."""
    idle_s: float = 10.0
    """After which the server lets a silent client go."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeClocks:
    """A node's clocks; tests put others here."""

    monotonic_ns: Callable[[], int] = time.monotonic_ns
    read: Callable[[], Mapping[str, int]] = read_clocks


class PingError(Exception):
    """The other side is no server of ours, or says what can't be."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """One ping and its answer."""

    sent_ns: int
    received_ns: int
    """By the server's clock."""
    answered_ns: int
    """By the server's clock."""
    back_ns: int

    @property
    def way_ns(self) -> int:
        """Both ways together."""
        return (self.back_ns - self.sent_ns) - (self.answered_ns - self.received_ns)

    @property
    def middle_ns(self) -> int:
        return (self.sent_ns + self.back_ns) // 2

    @property
    def offset_ns(self) -> int:
        """Reference minus local, in the middle of what is possible."""
        return ((self.received_ns - self.sent_ns) + (self.answered_ns - self.back_ns)) // 2

    @property
    def uncertainty_ns(self) -> int:
        """That the offset can't be farther off; what clocks drift in the exchange and rounding are in it."""
        return -(-self.way_ns // 2) + (self.back_ns - self.sent_ns) // DRIFT_PARTS + 1


def parse_address(text: str) -> tuple[str, int]:
    """`HOST:PORT`, an IPv6 address in brackets. Raises ValueError."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise ValueError(f"{text!r}: must be HOST:PORT with a port of 1 to 65535")
    return host, int(port)


class ClockClient:
    """Asks the reference node for its clock and appends a row of `clocks` per burst, on a thread of its own."""

    def __init__(
        self,
        server: tuple[str, int],
        node: int,
        append: Append,
        states: States,
        *,
        clocks: NodeClocks | None = None,
        timing: Timing | None = None,
    ) -> None:
        self._server = server
        self._node = node
        self._append = append
        self._states = states
        self._clocks = clocks or NodeClocks()
        self._timing = timing or Timing()
        self._random = random.Random(node ^ time.time_ns())
        self._stop = threading.Event()
        self._patient_until = 0.0
        self._thread = threading.Thread(target=self._run, name="agprof-clock", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def begin_end(self) -> None:
        """The job ends: one burst more."""
        if not self._stop.is_set():
            self._patient_until = time.monotonic() + self._timing.answer_s + self._timing.last_burst_s + 0.3
            self._stop.set()

    def end(self) -> bool:
        """Wait for the last burst. False when the thread hangs, in the look-up of a name for instance."""
        self.begin_end()
        self._thread.join(_left(self._patient_until))
        return not self._thread.is_alive()

    def _run(self) -> None:
        backoff = Backoff()
        due_ns = time.monotonic_ns()
        ended = False
        while not ended:
            ended = self._stop.wait(max(0.0, (due_ns - time.monotonic_ns()) / SECOND_NS))
            now_ns = time.monotonic_ns()
            try:
                self._append("clocks", self._burst(last=ended))
            except Exception as error:
                backoff.failed(now_ns)
                due_ns = backoff.due_ns
                host, port = self._server
                reason = f"the reference node's clock was not told ({host}, port {port}): {describe(error)}"
                self._states.set(self._clocks.monotonic_ns(), FIELD, "retry", reason)
            else:
                backoff.succeeded()
                due_ns = now_ns + round(self._timing.period_s * SECOND_NS)
                self._states.set(self._clocks.monotonic_ns(), FIELD, "ok")

    def _burst(self, *, last: bool) -> tuple[Any, ...]:
        """The row of one burst. Raises OSError or PingError when there was not a single good exchange."""
        timing = self._timing
        deadline = time.monotonic() + (timing.last_burst_s if last else timing.burst_s)
        with socket.create_connection(self._server, timeout=min(timing.answer_s, _left(deadline))) as link:
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link.settimeout(timing.answer_s)
            link.sendall(HELLO.pack(MAGIC, self._node, last))
            magic, reference = WELCOME.unpack(_receive(link, WELCOME.size, deadline))
            if magic != MAGIC:
                raise PingError("what answers there is no sampler of agprof")
            best, count = self._best(link, deadline)
        if best is None:
            raise PingError("no ping was answered in time")
        read = self._clocks.read()
        real_ns = read["realtime_ns"] + best.middle_ns - read["monotonic_ns"]
        told = (best.middle_ns, best.middle_ns + best.offset_ns, best.uncertainty_ns)
        return (*told, reference, real_ns, count)

    def _best(self, link: socket.socket, deadline: float) -> tuple[Exchange | None, int]:
        """The exchange of the least uncertainty, and how many there were; a link that is cut ends the burst."""
        best: Exchange | None = None
        for number in range(PINGS):
            try:
                exchange = self._exchange(link, number, deadline)
            except OSError:
                return best, number
            if best is None or exchange.uncertainty_ns < best.uncertainty_ns:
                best = exchange
            if time.monotonic() >= deadline:
                return best, number + 1
            if self._timing.pause_s and not self._stop.is_set():
                self._stop.wait(self._random.uniform(0, 2 * self._timing.pause_s))
        return best, PINGS

    def _exchange(self, link: socket.socket, number: int, deadline: float) -> Exchange:
        monotonic_ns = self._clocks.monotonic_ns
        question = ASK.pack(number)
        sent_ns = monotonic_ns()
        link.sendall(question)
        answer = _receive(link, ANSWER.size, deadline)
        back_ns = monotonic_ns()
        told, received_ns, answered_ns = ANSWER.unpack(answer)
        exchange = Exchange(sent_ns, received_ns, answered_ns, back_ns)
        if told != number or answered_ns < received_ns or exchange.way_ns < 0 or received_ns < 0:
            raise PingError("its answer makes no sense")
        return exchange


def _left(deadline: float) -> float:
    """Seconds until then, but never none: 0 would mean without a limit."""
    return max(0.001, deadline - time.monotonic())


def _receive(link: socket.socket, size: int, deadline: float) -> bytes:
    """Exactly so many bytes. Raises OSError, also when it takes too long or the other side has closed."""
    data = b""
    while len(data) < size:
        link.settimeout(min(link.gettimeout() or 1.0, _left(deadline)))
        more = link.recv(size - len(data))
        if not more:
            raise ConnectionError("the other side has closed")
        data += more
    return data


class _Client:
    """One connection of the server."""

    __slots__ = ("data", "heard_at", "last", "node")

    def __init__(self) -> None:
        self.data = b""
        self.node: int | None = None
        self.last = False
        self.heard_at = time.monotonic()


class ClockServer:
    """Tells the other nodes' samplers this node's clock, on a thread of its own.

    Once a minute it appends a row of `clocks` of its own, in which both clocks are the same: with its wall clock.
    """

    def __init__(
        self,
        address: tuple[str, int],
        node: int,
        append: Append,
        states: States,
        *,
        clocks: NodeClocks | None = None,
        timing: Timing | None = None,
    ) -> None:
        self._address = address
        self._node = node
        self._append = append
        self._states = states
        self._clocks = clocks or NodeClocks()
        self._timing = timing or Timing()
        self._known: set[int] = set()
        self._done: set[int] = set()
        """Nodes that have asked, and those of them that have had their last burst."""
        self._end_at: float | None = None
        self._wake, self._waker = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="agprof-clock", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def begin_end(self) -> None:
        """The job ends: answer the others' last bursts, for a second."""
        if self._end_at is None:
            self._end_at = time.monotonic() + self._timing.linger_s
            self._waker.send(b"!")

    def end(self) -> bool:
        """Wait until the others are done. False when the thread hangs."""
        self.begin_end()
        self._thread.join(_left((self._end_at or 0.0) + 0.5))
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._write_own_row()
            listener = self._listen()
            if listener is not None:
                with listener, selectors.DefaultSelector() as selector:
                    self._serve(listener, selector)
            self._write_own_row()
        except Exception as error:
            reason = f"the thread that tells this node's clock ended: {describe(error)}"
            self._states.set(self._clocks.monotonic_ns(), FIELD, "unsupported", reason)

    def _write_own_row(self) -> None:
        read = self._clocks.read()
        now_ns = read["monotonic_ns"]
        self._append("clocks", (now_ns, now_ns, 0, self._node, read["realtime_ns"], 0))

    def _listen(self) -> socket.socket | None:
        """The listening socket, as soon as its address can be had; None when the job ends before."""
        wait_s = 0.25
        host, port = self._address
        while self._end_at is None:
            try:
                family = socket.AF_INET6 if ":" in host else socket.AF_INET
                listener = socket.create_server(self._address, family=family, backlog=256)
                listener.setblocking(False)
                self._states.set(self._clocks.monotonic_ns(), FIELD, "ok")
                return listener
            except OSError as error:
                words = {errno.EADDRINUSE: "the port is taken"}.get(error.errno or 0, describe(error))
                reason = f"can't listen on {host}, port {port}, for the other nodes' clocks: {words}"
                self._states.set(self._clocks.monotonic_ns(), FIELD, "retry", reason)
                self._wake.settimeout(wait_s)
                wait_s = min(2 * wait_s, 30.0)
                try:
                    self._wake.recv(1)
                except TimeoutError:
                    continue
        return None

    def _serve(self, listener: socket.socket, selector: selectors.BaseSelector) -> None:
        selector.register(listener, selectors.EVENT_READ)
        selector.register(self._wake, selectors.EVENT_READ)
        clients: dict[socket.socket, _Client] = {}
        row_at = time.monotonic() + self._timing.period_s
        while not self._is_over(clients):
            for key, _ in selector.select(self._wait_s(row_at)):
                received_ns = self._clocks.monotonic_ns()
                link = key.fileobj
                if link is listener:
                    self._accept(listener, selector, clients)
                elif link is self._wake:
                    self._wake.recv(16)
                elif isinstance(link, socket.socket) and not self._answer(link, clients[link], received_ns):
                    self._drop(link, selector, clients)
            now = time.monotonic()
            for link in [one for one, client in clients.items() if now - client.heard_at > self._timing.idle_s]:
                self._drop(link, selector, clients)
            if now >= row_at:
                row_at = now + self._timing.period_s
                self._write_own_row()
        for link in list(clients):
            self._drop(link, selector, clients)

    def _is_over(self, clients: Mapping[socket.socket, _Client]) -> bool:
        end_at = self._end_at
        if end_at is None:
            return False
        return (self._known <= self._done and not clients) or time.monotonic() >= end_at

    def _wait_s(self, row_at: float) -> float:
        now = time.monotonic()
        until = min(row_at, now + self._timing.idle_s, self._end_at or row_at)
        return max(0.0, until - now)

    def _accept(
        self, listener: socket.socket, selector: selectors.BaseSelector, clients: dict[socket.socket, _Client]
    ) -> None:
        try:
            link, _ = listener.accept()
        except OSError:
            return
        if len(clients) >= MAX_CLIENTS:
            link.close()
            return
        link.setblocking(False)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        clients[link] = _Client()
        selector.register(link, selectors.EVENT_READ)

    def _drop(
        self, link: socket.socket, selector: selectors.BaseSelector, clients: dict[socket.socket, _Client]
    ) -> None:
        client = clients.pop(link)
        if client.last and client.node is not None:
            self._done.add(client.node)
        selector.unregister(link)
        link.close()

    def _answer(self, link: socket.socket, client: _Client, received_ns: int) -> bool:
        """Answer what is there. False when the client has gone, or is none of ours."""
        try:
            data = link.recv(4096)
            if not data:
                return False
            client.heard_at = time.monotonic()
            client.data += data
            if client.node is None:
                if len(client.data) < HELLO.size:
                    return MAGIC.startswith(client.data[: len(MAGIC)])
                magic, node, last = HELLO.unpack_from(client.data)
                if magic != MAGIC:
                    return False
                client.node, client.last, client.data = node, bool(last), client.data[HELLO.size :]
                if len(self._known) < MAX_CLIENTS:
                    self._known.add(node)
                link.send(WELCOME.pack(MAGIC, self._node))
            while len(client.data) >= ASK.size:
                (number,) = ASK.unpack_from(client.data)
                client.data = client.data[ASK.size :]
                link.send(ANSWER.pack(number, received_ns, self._clocks.monotonic_ns()))
        except OSError:
            return False
        return True
