"""Heartbeats between nodes: who is heard, who is not, and strangers."""

import socket
import time
from collections.abc import Callable

import pytest

from agprof.launch import node_heartbeat
from agprof.launch.node_heartbeat import Caller, Listener


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(node_heartbeat, "PERIOD_S", 0.05)


def test_both_hear_one_another_and_silence_grows_when_one_is_gone():
    listener = Listener("127.0.0.1", "secret", 2)
    caller = Caller("127.0.0.1", listener.port, "secret", 1)
    listener.start()
    caller.start()
    begin = time.monotonic()
    until(lambda: time.monotonic() - begin > 0.5)
    assert listener.silences()[1] < 0.4
    assert caller.silences()[0] < 0.4
    caller.close()
    until(lambda: listener.silences()[1] > 0.3)
    listener.close()


def test_a_node_that_never_called_is_silent_since_the_start():
    clock = Clock()
    listener = Listener("127.0.0.1", "secret", 3, clock)
    clock.now = 150.0
    listener.start()
    clock.now = 157.0
    assert listener.silences() == {1: 7.0, 2: 7.0}
    listener.close()


def test_a_caller_without_an_answer_is_deaf():
    clock = Clock()
    with socket.create_server(("127.0.0.1", 0)) as mute:
        caller = Caller("127.0.0.1", mute.getsockname()[1], "secret", 1, clock)
        caller.start()
        clock.now = 109.0
        assert caller.silences() == {0: 9.0}
        caller.close()


@pytest.mark.parametrize("hello", [b"wrong 1\n", b"secret 7\n", b"secret x\n", b"\xff\n", b"x" * 5000])
def test_strangers_are_turned_away(hello):
    clock = Clock()
    listener = Listener("127.0.0.1", "secret", 2, clock)
    listener.start()
    clock.now = 103.0
    with socket.create_connection(("127.0.0.1", listener.port), timeout=5) as stranger:
        stranger.sendall(hello)
        try:
            assert stranger.recv(10) == b""
        except ConnectionResetError:
            pass
    assert listener.silences() == {1: 3.0}
    listener.close()


def test_a_broken_connection_is_made_anew():
    listener = Listener("127.0.0.1", "secret", 2)
    caller = Caller("127.0.0.1", listener.port, "secret", 1)
    listener.start()
    caller.start()
    until(lambda: listener._peers)
    next(iter(listener._peers.values())).connection.shutdown(socket.SHUT_RDWR)
    until(lambda: not listener._peers)
    until(lambda: listener._peers)
    until(lambda: caller.silences()[0] < 0.04)
    caller.close()
    listener.close()
