"""Network interfaces and RDMA ports: traffic and errors of each."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from agprof.sampler.interfaces import LOOK_PERIOD_NS, Interfaces, RdmaPort, rdma_ports
from agprof.sampler.kernel_files import KernelFile
from agprof.sampler.states import SECOND_NS, Append, Probe, States, judge_system_error

MAX_INTERFACES = 64
RDMA_UNIT_BYTES = 4
"""port_xmit_data and port_rcv_data count words of four bytes (InfiniBand Architecture Specification, PortCounters)."""
_STUCK = 2**32 - 1
"""A counter of 32 bits, of old devices, stops at its end."""


class Traffic(NamedTuple):
    """Counters of one interface."""

    sent_bytes: int
    received_bytes: int
    errors: int | None
    """Packets in error and dropped, both ways."""


def parse_net_dev(data: bytes) -> dict[str, Traffic]:
    """Each interface of /proc/net/dev. Raises ValueError or IndexError on anything else."""
    found = {}
    for line in data.split(b"\n")[2:]:
        name, colon, rest = line.rpartition(b":")
        if colon:
            # Received: bytes packets errs drop fifo frame compressed multicast; then sent: bytes packets errs drop ...
            counts = rest.split()
            errors = int(counts[2]) + int(counts[3]) + int(counts[10]) + int(counts[11])
            sent, received = int(counts[8]), int(counts[0])
            found[name.strip().decode("utf-8", "replace")] = Traffic(sent, received, errors)
    return found


class Found(NamedTuple):
    """One interface that is up."""

    name: str
    kind: str
    traffic: Traffic
    speed_bits_per_s: int | None


@dataclass(slots=True)
class _Last:
    time_ns: int
    traffic: Traffic


class Network:
    """Appends one row of `network_samples` per interface that is up, and call. `root` is where /proc and /sys lie."""

    def __init__(self, append: Append, states: States, root: Path = Path("/")) -> None:
        self._append = append
        self._states = states
        self._root = root
        self._net_dev = KernelFile(root / "proc/net/dev")
        self._probe = Probe(states, "network", judge_system_error)
        self._interfaces = Interfaces(root)
        self._ports: dict[str, PortCounters] = {}
        self._ports_due_ns = 0
        self._last: dict[str, _Last] = {}

    def sample(self, now_ns: int) -> int:
        """Append the rows. Returns 0: no part of the time spent is on a budget of its own."""
        rows = [*self._port_rows(now_ns), *self._interface_rows(now_ns)]
        left_out = len(rows) - MAX_INTERFACES
        reason = f"{left_out} more are not sampled: {MAX_INTERFACES} at most" if left_out > 0 else ""
        self._states.set(now_ns, "network.interfaces", "unsupported" if reason else "ok", reason)
        now_last = {}
        for found in rows[:MAX_INTERFACES]:
            self._append("network_samples", self._row(now_ns, found))
            now_last[found.name] = _Last(now_ns, found.traffic)
        self._last = now_last
        return 0

    def _interface_rows(self, now_ns: int) -> list[Found]:
        """Hardware first, then by name."""
        traffic = self._probe.read(now_ns, lambda: parse_net_dev(self._net_dev.read()))
        if traffic is None:
            return []
        known = self._interfaces.look_up(now_ns, traffic)
        up = [(name, known[name]) for name in traffic if known[name].up]
        up.sort(key=lambda each: (not each[1].is_hardware, each[0]))
        return [Found(name, each.kind, traffic[name], each.speed_bits_per_s) for name, each in up]

    def _port_rows(self, now_ns: int) -> list[Found]:
        if now_ns >= self._ports_due_ns:
            self._ports_due_ns = now_ns + LOOK_PERIOD_NS
            known, self._ports = self._ports, {}
            for port in rdma_ports(self._root):
                counters = known.pop(port.name, None)
                if counters is None or counters.port != port:
                    counters = PortCounters(self._states, port)
                self._ports[port.name] = counters
            for counters in known.values():
                counters.close()
        rows = []
        for name, counters in self._ports.items():
            traffic = counters.read(now_ns)
            if traffic is not None:
                rows.append(Found(name, counters.port.kind, traffic, counters.port.speed_bits_per_s))
        return rows

    def _row(self, now_ns: int, found: Found) -> tuple[object, ...]:
        name, kind, traffic, speed = found
        last = self._last.get(name)
        period_ns = 0 if last is None else now_ns - last.time_ns
        if last is None or period_ns <= 0:
            return now_ns, 0, name, kind, None, None, None, speed
        sent = _increase(traffic.sent_bytes, last.traffic.sent_bytes)
        received = _increase(traffic.received_bytes, last.traffic.received_bytes)
        return (
            now_ns,
            period_ns,
            name,
            kind,
            None if sent is None else sent * SECOND_NS / period_ns,
            None if received is None else received * SECOND_NS / period_ns,
            _increase(traffic.errors, last.traffic.errors),
            speed,
        )


def _increase(now: int | None, before: int | None) -> int | None:
    """None when it went backwards: counting has begun anew."""
    return now - before if now is not None and before is not None and now >= before else None


class PortCounters:
    """The counters of one RDMA port: what it sends past the kernel is in no other counter."""

    def __init__(self, states: States, port: RdmaPort) -> None:
        self.port = port
        self._probe = Probe(states, f"network.{port.name}", judge_system_error)
        self._sent = KernelFile(_widest(port.folder, "port_xmit_data"))
        self._received = KernelFile(_widest(port.folder, "port_rcv_data"))
        names = ("port_rcv_errors", "port_xmit_discards")
        self._errors = [KernelFile(port.folder / "counters" / name) for name in names]

    def read(self, now_ns: int) -> Traffic | None:
        return self._probe.read(now_ns, self._read)

    def close(self) -> None:
        for file in (self._sent, self._received, *self._errors):
            file.close()

    def _read(self) -> Traffic:
        sent, received = int(self._sent.read_short()), int(self._received.read_short())
        if _STUCK in (sent, received):
            raise NotImplementedError("its counters have 32 bits and stand at their end: `perfquery -R` resets them")
        try:
            errors: int | None = sum(int(file.read_short()) for file in self._errors)
        except OSError:
            errors = None
        return Traffic(sent * RDMA_UNIT_BYTES, received * RDMA_UNIT_BYTES, errors)


def _widest(folder: Path, name: str) -> Path:
    """The counter of 64 bits: older drivers keep it beside the one of 32."""
    wide = folder / "counters_ext" / f"{name}_64"
    return wide if wide.is_file() else folder / "counters" / name
