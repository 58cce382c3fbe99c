"""Two samplers' clocks over loopback: what the rows state holds, and nothing that fails costs more than rows."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agprof.model.tables import BY_NAME
from agprof.sampler.clock_pings import (
    ANSWER,
    ASK,
    HELLO,
    MAGIC,
    PINGS,
    WELCOME,
    ClockClient,
    ClockServer,
    NodeClocks,
    Timing,
    parse_address,
)
from agprof.sampler.states import States
from agprof.store.clocks import read_clocks
from clock_samplers import AHEAD_S, TIME_NAMESPACE, has_time_namespaces, sampled, sampler, wait_for

HOST = "127.0.0.1"
TWO_HOURS_NS = 7_200_000_000_000
COLUMNS = [column.name for column in BY_NAME["clocks"].columns]
QUICK = Timing(period_s=0.2, pause_s=0.0, answer_s=0.3, burst_s=1.0, last_burst_s=0.5, linger_s=0.5)


class Rows:
    """What a thread appended, by table."""

    def __init__(self) -> None:
        self.all: list[tuple[str, tuple[Any, ...]]] = []

    def append(self, table: str, row: tuple[Any, ...]) -> None:
        self.all.append((table, row))

    @property
    def clocks(self) -> list[dict[str, Any]]:
        return [dict(zip(COLUMNS, row, strict=True)) for table, row in self.all if table == "clocks"]

    @property
    def states(self) -> list[tuple[str, str, str]]:
        return [row[1:4] for table, row in self.all if table == "sampler_state"]


def free_port() -> int:
    with socket.create_server((HOST, 0)) as taken:
        return int(taken.getsockname()[1])


def shifted(offset_ns: int, drift: float = 0.0) -> NodeClocks:
    zero = time.monotonic_ns()

    def shown(true_ns: int) -> int:
        return true_ns + offset_ns + round((true_ns - zero) * drift)

    def read() -> dict[str, int]:
        told = read_clocks()
        return {**told, "monotonic_ns": shown(told["monotonic_ns"])}

    return NodeClocks(monotonic_ns=lambda: shown(time.monotonic_ns()), read=read)


def a_client(
    port: int, rows: Rows, clocks: NodeClocks | None = None, timing: Timing = QUICK, node: int = 1
) -> ClockClient:
    return ClockClient((HOST, port), node, rows.append, States(rows.append), clocks=clocks, timing=timing)


def a_server(port: int, rows: Rows, timing: Timing = QUICK) -> ClockServer:
    return ClockServer((HOST, port), 0, rows.append, States(rows.append), timing=timing)


@contextlib.contextmanager
def stand_in(talk: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server of ours that does with each connection what `talk` does. Gives its port."""
    listener = socket.create_server((HOST, 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                link, _ = listener.accept()
                with link, contextlib.suppress(OSError):
                    talk(link)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(2)


def test_a_clock_two_hours_ahead_is_told_within_its_uncertainty() -> None:
    mine, others, port = Rows(), Rows(), free_port()
    server, client = a_server(port, mine), a_client(port, others, shifted(TWO_HOURS_NS, 2e-4))
    server.start()
    client.start()
    wait_for(lambda: len(others.clocks) >= 3)
    begun = time.monotonic()
    client.begin_end()
    server.begin_end()
    assert client.end()
    assert server.end()
    assert time.monotonic() - begun < 2
    for row in others.clocks:
        true_ns = row["reference_ns"]
        assert row["reference_node"] == 0
        assert row["exchanges"] == PINGS
        assert 0 < row["uncertainty_ns"] < 20_000_000
        # The clients's clock at that true time, by its definition; its drift began at most 10 s ago.
        offset = row["time_ns"] - true_ns
        assert (
            TWO_HOURS_NS - row["uncertainty_ns"] <= offset <= TWO_HOURS_NS + 10 * 200_000 * 10 + row["uncertainty_ns"]
        )
        assert abs(row["realtime_ns"] - time.time_ns()) < 60_000_000_000
    own = mine.clocks
    assert {(row["reference_node"], row["uncertainty_ns"], row["exchanges"]) for row in own} == {(0, 0, 0)}
    assert all(row["time_ns"] == row["reference_ns"] for row in own)


def test_truth_lies_within_the_uncertainty_exactly() -> None:
    """One process, one clock: the true offset is 0, whatever the scheduler did to either thread."""
    mine, others, port = Rows(), Rows(), free_port()
    server, client = a_server(port, mine), a_client(port, others)
    server.start()
    client.start()
    wait_for(lambda: len(others.clocks) >= 5)
    assert client.end()
    assert server.end()
    for row in others.clocks:
        assert abs(row["time_ns"] - row["reference_ns"]) <= row["uncertainty_ns"]


def test_a_server_that_is_not_there_yet_is_asked_again() -> None:
    mine, others, port = Rows(), Rows(), free_port()
    client = a_client(port, others)
    client.start()
    wait_for(lambda: bool(others.states))
    field, state, reason = others.states[0]
    assert (field, state) == ("clock", "retry")
    assert f"{HOST}, port {port}" in reason
    server = a_server(port, mine)
    server.start()
    wait_for(lambda: bool(others.clocks))
    wait_for(lambda: others.states[-1][:2] == ("clock", "ok"))
    assert client.end()
    assert server.end()


def test_the_last_burst_is_at_the_end_and_the_server_waits_for_it() -> None:
    mine, others, port = Rows(), Rows(), free_port()
    slow = Timing(period_s=60.0, pause_s=0.0, linger_s=3.0)
    server, client = a_server(port, mine, slow), a_client(port, others, timing=slow)
    server.start()
    client.start()
    wait_for(lambda: len(others.clocks) == 1)
    server.begin_end()
    time.sleep(0.2)
    ends_ns = time.monotonic_ns()
    assert client.end()
    assert server.end()
    assert len(others.clocks) == 2
    assert others.clocks[1]["time_ns"] >= ends_ns
    assert time.monotonic_ns() - ends_ns < 1_500_000_000


def test_a_link_that_is_cut_in_a_burst_leaves_what_was_measured() -> None:
    def ten_answers(link: socket.socket) -> None:
        link.recv(HELLO.size, socket.MSG_WAITALL)
        link.sendall(WELCOME.pack(MAGIC, 0))
        for _ in range(10):
            (number,) = ASK.unpack(link.recv(ASK.size, socket.MSG_WAITALL))
            now = time.monotonic_ns()
            link.sendall(ANSWER.pack(number, now, now))

    rows = Rows()
    with stand_in(ten_answers) as port:
        client = a_client(port, rows)
        client.start()
        wait_for(lambda: bool(rows.clocks))
        assert client.end()
    assert rows.clocks[0]["exchanges"] == 10


def _nonsense(link: socket.socket) -> None:
    link.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    link.recv(4096)


def _from_the_past(link: socket.socket) -> None:
    link.recv(HELLO.size, socket.MSG_WAITALL)
    link.sendall(WELCOME.pack(MAGIC, 0))
    (number,) = ASK.unpack(link.recv(ASK.size, socket.MSG_WAITALL))
    link.sendall(ANSWER.pack(number, 2_000, 1_000))
    link.recv(4096)


def _silent(link: socket.socket) -> None:
    link.recv(4096)
    time.sleep(1.5)


@pytest.mark.parametrize("talk", [_nonsense, _from_the_past, _silent])
def test_a_server_that_is_none_costs_a_row_of_state_and_no_time(talk: Callable[[socket.socket], None]) -> None:
    rows = Rows()
    with stand_in(talk) as port:
        client = a_client(port, rows)
        client.start()
        wait_for(lambda: bool(rows.states))
        begun = time.monotonic()
        assert client.end()
        assert time.monotonic() - begun < QUICK.answer_s + QUICK.last_burst_s + 0.5
    assert not rows.clocks
    assert [state[:2] for state in rows.states] == [("clock", "retry")]


def test_a_server_outlives_clients_that_talk_nonsense_or_nothing() -> None:
    mine, others, port = Rows(), Rows(), free_port()
    server = a_server(port, mine)
    server.start()
    wait_for(lambda: len(mine.clocks) >= 1)
    links = []
    for data in (b"", b"GET / HTTP/1.1\r\n\r\n" * 50, b"agp", HELLO.pack(MAGIC, 7, 0) + b"\xff" * 3, b"\0" * 4096):
        wait_for(lambda: _connects(port))
        link = socket.create_connection((HOST, port), timeout=2)
        links.append(link)
        link.sendall(data)
    client = a_client(port, others)
    client.start()
    wait_for(lambda: len(others.clocks) >= 2)
    assert client.end()
    begun = time.monotonic()
    assert server.end()
    assert time.monotonic() - begun < QUICK.linger_s + 0.5
    for link in links:
        link.close()


def _connects(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except OSError:
        return False
    return True


def test_a_port_that_is_taken_is_said_and_had_later() -> None:
    mine, others = Rows(), Rows()
    taken = socket.create_server((HOST, 0))
    port = taken.getsockname()[1]
    server = a_server(port, mine)
    server.start()
    wait_for(lambda: bool(mine.states))
    assert mine.states[0][:2] == ("clock", "retry")
    assert "the port is taken" in mine.states[0][2]
    taken.close()
    client = a_client(port, others)
    client.start()
    wait_for(lambda: bool(others.clocks))
    assert client.end()
    assert server.end()


@pytest.mark.parametrize(
    ("text", "address"), [("10.0.0.1:29", ("10.0.0.1", 29)), ("[fe80::1]:65535", ("fe80::1", 65535)), ("a:1", ("a", 1))]
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", "host", ":29", "host:", "host:0", "host:65536", "host:x", "host:-1"])
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="must be HOST:PORT"):
        parse_address(text)


def test_two_samplers_of_which_one_has_another_clock(tmp_path: Path) -> None:
    if not has_time_namespaces():
        pytest.skip("no time namespaces here: kernel or permission")
    address = f"{HOST}:{free_port()}"
    run = tmp_path / "run"
    found = sampled(run, [
        sampler(run, 0, "--clock-serve", address), [*TIME_NAMESPACE, *sampler(run, 1, "--clock-server", address)],
    ])  # fmt: skip
    assert found.state == "reconciled", found.sentence
    node = found.nodes[1]
    assert node.method == "pings"
    assert node.uncertainty_ns is not None
    assert node.uncertainty_ns < 50_000_000
    assert node.offset.value is not None
    assert abs(node.offset.value + AHEAD_S * 1e9) <= node.uncertainty_ns
    assert len(node.points) >= 2, "no burst at the end"
    assert node.wall_clock_steps == 0
