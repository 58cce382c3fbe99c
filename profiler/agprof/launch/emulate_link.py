"""A link in userspace, for kernels without netem: carries packets between TUN devices with a rate and a delay.

`python -m agprof.launch.emulate_link SETTING` makes a TUN device in each namespace, prints `ready`, and carries packets
until stdin ends. Each node has a cable of its own: what it sends waits its turn at the rate, then takes the delay; what
would wait longer than the queue holds is dropped, as a switch does. `{"cut": 1}` on stdin cuts a node off, and
`{"mend": 1}` brings it back; each is answered by `done`.
"""

import ctypes
import fcntl
import json
import os
import select
import struct
import subprocess
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_CLONE_NEWNET = 0x40000000
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
QUEUE_NS = 50_000_000
"""Longest wait for the turn, as tbf's latency."""
_SECOND_NS = 1_000_000_000
_AT_ONCE = 64
"""Packets read from a device before the others have their turn."""


@dataclass(slots=True)
class Cable:
    """One node's way to the others."""

    descriptor: int
    rate_bits_per_s: float | None
    delay_ns: int
    free_ns: int = 0
    """When the last packet taken in will have been sent."""
    cut: bool = False
    waiting: deque[tuple[int, bytes]] = field(default_factory=deque)
    """(when it arrives, packet): in order, since the delay is the same for all."""

    def take(self, packet: bytes, now_ns: int) -> bool:
        """Take a packet in; False when it is dropped."""
        begin = max(now_ns, self.free_ns)
        if self.cut or begin - now_ns > QUEUE_NS:
            return False
        if self.rate_bits_per_s is not None:
            begin += int(len(packet) * 8 * _SECOND_NS / self.rate_bits_per_s)
        self.free_ns = begin
        self.waiting.append((begin + self.delay_ns, packet))
        return True


def destination(packet: bytes) -> bytes | None:
    """The IPv4 address that a packet goes to; None for anything else."""
    return packet[16:20] if len(packet) >= 20 and packet[0] >> 4 == 4 else None


class Switch:
    """Carries packets between cables by their destination."""

    def __init__(self, cables: dict[bytes, Cable]) -> None:
        self._cables = cables
        self._by_descriptor = {cable.descriptor: cable for cable in cables.values()}
        self.dropped = 0

    def cable(self, number: int) -> Cable:
        """By the node's number."""
        return list(self._cables.values())[number]

    def read(self, descriptor: int, now_ns: int) -> None:
        """Take in what a node has to send."""
        cable = self._by_descriptor[descriptor]
        for _ in range(_AT_ONCE):
            try:
                packet = os.read(descriptor, 65536)
            except BlockingIOError:
                return
            self.dropped += not cable.take(packet, now_ns)

    def deliver(self, now_ns: int) -> int | None:
        """Hand over what has arrived. When the next packet does; None when none is on its way."""
        following = None
        for cable in self._cables.values():
            while cable.waiting and cable.waiting[0][0] <= now_ns:
                self._hand_over(cable.waiting.popleft()[1])
            if cable.waiting and (following is None or cable.waiting[0][0] < following):
                following = cable.waiting[0][0]
        return following

    def _hand_over(self, packet: bytes) -> None:
        target = self._cables.get(destination(packet) or b"")
        if target is None or target.cut:
            self.dropped += 1
            return
        try:
            os.write(target.descriptor, packet)
        except OSError:
            self.dropped += 1


def main() -> int:
    """Carry packets until stdin ends. Returns the exit code."""
    setting = json.loads(sys.argv[1])
    with suppress(OSError):
        # A wire does not wait for a core: before the ranks that load all of them.
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    cables = {}
    for namespace, address in zip(setting["namespaces"], setting["addresses"], strict=True):
        descriptor = tun_in(namespace, setting["device"], setting["mtu"])
        key = bytes(int(part) for part in address.split("."))
        cables[key] = Cable(descriptor, setting["rate_bits_per_s"], setting["delay_ns"])
    switch = Switch(cables)
    _say("ready")
    carry(switch, [cable.descriptor for cable in cables.values()])
    return 0


def carry(switch: Switch, descriptors: list[int]) -> None:
    """Until stdin ends."""
    heard = b""
    following: int | None = None
    while True:
        left = None if following is None else max(0.0, (following - time.monotonic_ns()) / _SECOND_NS)
        # select, because epoll waits whole milliseconds.
        for descriptor in select.select([*descriptors, 0], [], [], left)[0]:
            if descriptor != 0:
                switch.read(descriptor, time.monotonic_ns())
                continue
            more = os.read(0, 4096)
            if not more:
                return
            heard += more
            while b"\n" in heard:
                line, _, heard = heard.partition(b"\n")
                _obey(switch, json.loads(line))
        following = switch.deliver(time.monotonic_ns())


def _obey(switch: Switch, message: dict[str, Any]) -> None:
    for word, cut in (("cut", True), ("mend", False)):
        if word in message:
            switch.cable(int(message[word])).cut = cut
    _say("done")


def tun_in(namespace: str, device: str, mtu: int) -> int:
    """The descriptor of a new TUN device in a namespace. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path("/proc/self/ns/net").open("rb") as home, Path(f"/run/netns/{namespace}").open("rb") as other:
        _enter(libc, other.fileno())
        try:
            descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", device.encode(), _IFF_TUN | _IFF_NO_PI))
        finally:
            _enter(libc, home.fileno())
    subprocess.run(["ip", "-n", namespace, "link", "set", device, "mtu", str(mtu), "txqueuelen", "1000"], check=True)
    return descriptor


def _enter(libc: Any, descriptor: int) -> None:
    if libc.setns(descriptor, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns failed")


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
