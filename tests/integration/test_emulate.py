"""Nodes out of network namespaces: names, addresses, rate, delay, a cable that is cut, and nothing left behind."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agprof.config.setups import EmulateSection
from agprof.errors import LaunchError
from agprof.launch import emulate
from agprof.launch.emulate import INTERFACE, EmulatedNodes, remove_left_behind, why_not

ECHO = """
import socket
server = socket.create_server(("0.0.0.0", 5000))
print("up", flush=True)
connection, _ = server.accept()
connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
while data := connection.recv(64):
    connection.sendall(data)
"""
PING = """
import socket, sys, time
connection = socket.create_connection((sys.argv[1], 5000), timeout=5)
connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
trips = []
for _ in range(40):
    begin = time.perf_counter()
    connection.sendall(b"x")
    connection.recv(64)
    trips.append(time.perf_counter() - begin)
print(min(trips))
"""
SINK = """
import socket, time
server = socket.create_server(("0.0.0.0", 5000))
print("up", flush=True)
connection, _ = server.accept()
total, begin = 0, None
while data := connection.recv(1 << 20):
    begin = begin or time.perf_counter()
    total += len(data)
print(total * 8 / (time.perf_counter() - begin))
"""
SOURCE = """
import socket, sys
connection = socket.create_connection((sys.argv[1], 5000), timeout=20)
block = bytes(1 << 20)
for _ in range(int(sys.argv[2])):
    connection.sendall(block)
"""


def python(nodes: EmulatedNodes, number: int, code: str, *arguments: str) -> str:
    command = nodes.command(number, [sys.executable, "-c", code, *arguments])
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def against(nodes: EmulatedNodes, server: str, client: str, *arguments: str) -> tuple[str, str]:
    """What a server on node 0 and a client on node 1 print."""
    command = nodes.command(0, [sys.executable, "-c", server])
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        said = python(nodes, 1, client, nodes.nodes[0].host, *arguments)
        return process.communicate(timeout=60)[0].strip(), said


def namespaces() -> set[str]:
    listed = subprocess.run(["ip", "-o", "netns"], capture_output=True, text=True, check=True).stdout
    return {line.split()[0] for line in listed.splitlines()}


@pytest.fixture(autouse=True)
def possible() -> Iterator[None]:
    if (problem := why_not()) is not None:
        pytest.skip(problem)
    before = namespaces()
    yield
    assert namespaces() == before
    assert {folder.name for folder in Path("/etc/netns").glob("*")} <= before


def test_each_node_has_its_own_name_and_address_and_knows_the_others() -> None:
    code = "import socket, os; print(socket.gethostname(), *[socket.gethostbyname(f'n{k}') for k in range(3)])"
    with EmulatedNodes(EmulateSection(nodes=3), name="n") as nodes:
        said = [python(nodes, number, code).split() for number in range(3)]
        links = [
            subprocess.run(
                nodes.command(k, ["ip", "-o", "-4", "addr"]), capture_output=True, text=True, check=True
            ).stdout
            for k in range(3)
        ]
    addresses = [node.address for node in nodes.nodes]
    assert said == [[f"n{number}", *addresses] for number in range(3)]
    assert len(set(addresses)) == 3
    for address, link in zip(addresses, links, strict=True):
        assert f"{address}/24" in link
        assert INTERFACE in link


def test_the_machines_own_name_stays() -> None:
    before = os.uname().nodename
    with EmulatedNodes(EmulateSection(nodes=2)) as nodes:
        python(nodes, 1, "pass")
    assert os.uname().nodename == before


@pytest.mark.parametrize(("delay", "least_ms", "most_ms"), [("5ms", 10.0, 13.0), ("20ms", 40.0, 44.0)])
def test_a_round_trip_takes_the_delay_twice(delay: str, least_ms: float, most_ms: float) -> None:
    with EmulatedNodes(EmulateSection(nodes=2, delay=delay)) as nodes:
        _, said = against(nodes, ECHO, PING)
    assert least_ms <= float(said) * 1e3 <= most_ms


@pytest.mark.parametrize("delay", [None, "1ms"])
def test_a_transfer_keeps_to_the_rate(delay: str | None) -> None:
    with EmulatedNodes(EmulateSection(nodes=2, rate="100mbit", delay=delay)) as nodes:
        said, _ = against(nodes, SINK, SOURCE, "20")
    # A burst of 256 KiB goes ahead of the rate, headers are not counted.
    assert 80e6 <= float(said) <= 104e6


@pytest.mark.parametrize("delay", [None, "1ms"])
def test_a_cut_cable_carries_nothing_and_a_mended_one_does_again(delay: str | None) -> None:
    with EmulatedNodes(EmulateSection(nodes=2, delay=delay)) as nodes:
        against(nodes, ECHO, PING)
        nodes.cut(1)
        with pytest.raises(subprocess.CalledProcessError):
            python(nodes, 1, "import socket; socket.create_connection(('node0', 5000), timeout=0.5)")
        nodes.mend(1)
        against(nodes, ECHO, PING)


def test_what_a_killed_agprof_left_is_removed() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    )
    name = f"agp-{ended.stdout.strip()}-0"
    subprocess.run(["ip", "netns", "add", name], check=True)
    Path(f"/etc/netns/{name}").mkdir(parents=True)
    mine = f"agp-{os.getpid()}-7"
    subprocess.run(["ip", "netns", "add", mine], check=True)
    try:
        assert remove_left_behind() == (name,)
        assert mine in namespaces()
        assert not Path(f"/etc/netns/{name}").exists()
    finally:
        subprocess.run(["ip", "netns", "del", mine], check=True)


def test_a_failure_half_way_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = EmulatedNodes(EmulateSection(nodes=2))
    monkeypatch.setattr(nodes, "_connect", lambda: (_ for _ in ()).throw(LaunchError("no cable")))
    with pytest.raises(LaunchError, match="no cable"), nodes:
        pass


def test_without_root_it_says_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(LaunchError, match="needs root"), EmulatedNodes(EmulateSection()):
        pass
    monkeypatch.undo()
    monkeypatch.setattr(emulate.shutil, "which", lambda _program: None)
    with pytest.raises(LaunchError, match="install iproute2"), EmulatedNodes(EmulateSection()):
        pass
