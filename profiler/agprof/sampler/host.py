"""The whole host: CPU, memory, network, disk."""

from typing import Any

import psutil

from agprof.sampler.states import SECOND_NS, Append, Probe, Rate, States, judge_system_error

LOOPBACK = "lo"
_IDLE = ("idle", "iowait")
_PART_OF_USER = ("guest", "guest_nice")


class Host:
    """Appends one row of `host_samples` per call. `source` is the psutil module or its stand-in."""

    def __init__(self, append: Append, states: States, source: Any = psutil) -> None:
        self._append = append
        self._states = states
        self._source = source
        self._probes = {
            name: Probe(states, f"host.{name}", judge_system_error)
            for name in ("cpu", "memory", "swap", "network", "disk", "load")
        }
        self._last_ns: int | None = None
        self._last_cpu: dict[str, float] | None = None
        self._last_network: tuple[int, dict[str, tuple[int, int]]] | None = None
        self._loopback = Rate()
        self._disk_read = Rate()
        self._disk_write = Rate()

    def sample(self, now_ns: int) -> int:
        """Append a row. Returns 0: no part of the time spent is on a budget of its own."""
        period_ns = 0 if self._last_ns is None else now_ns - self._last_ns
        self._last_ns = now_ns
        source, probes = self._source, self._probes
        cpu = probes["cpu"].read(now_ns, self._cpu)
        memory = probes["memory"].read(now_ns, source.virtual_memory)
        swap = probes["swap"].read(now_ns, source.swap_memory)
        # nowrap=False: psutil would else take a counter that was reset for one that wrapped, and add the two.
        network = probes["network"].read(now_ns, lambda: source.net_io_counters(pernic=True, nowrap=False))
        disk = probes["disk"].read(now_ns, lambda: source.disk_io_counters(nowrap=False))
        load = probes["load"].read(now_ns, source.getloadavg)
        sent, received, loopback = self._network(now_ns, network)
        self._say_whether_there(now_ns, "host.disk.devices", disk is not None, "no disk is visible")
        self._append(
            "host_samples",
            (
                now_ns,
                period_ns,
                cpu,
                None if memory is None else memory.total - memory.available,
                None if memory is None else memory.total,
                None if swap is None else swap.used,
                sent,
                received,
                loopback,
                self._disk_read.update(now_ns, None if disk is None else disk.read_bytes),
                self._disk_write.update(now_ns, None if disk is None else disk.write_bytes),
                None if load is None else load[0],
                *(None,) * 16,
            ),
        )
        return 0

    def _cpu(self) -> float | None:
        times = self._source.cpu_times()
        now = {name: value for name, value in times._asdict().items() if name not in _PART_OF_USER}
        last, self._last_cpu = self._last_cpu, now
        if last is None:
            return None
        # The kernel's idle and iowait may step back a little where CPUs sleep; the others only when counting restarts.
        delta = {name: now[name] - last.get(name, 0.0) for name in now}
        if any(value < 0 for name, value in delta.items() if name not in _IDLE):
            return None
        idle = sum(max(0.0, delta.get(name, 0.0)) for name in _IDLE)
        busy = sum(value for name, value in delta.items() if name not in _IDLE)
        return busy / (busy + idle) if busy + idle > 0 else None

    def _network(self, now_ns: int, counters: Any) -> tuple[float | None, float | None, float | None]:
        """(sent, received, loopback) in bytes per second."""
        if counters is None:
            return None, None, None
        loopback = self._loopback.update(now_ns, counters[LOOPBACK].bytes_sent if LOOPBACK in counters else None)
        now = {name: (c.bytes_sent, c.bytes_recv) for name, c in counters.items() if name != LOOPBACK}
        self._say_whether_there(now_ns, "host.network.interfaces", bool(now), "no interface but loopback is visible")
        last, self._last_network = self._last_network, (now_ns, now)
        # Only interfaces that were there before too: one that comes or goes must not look like traffic.
        common = [] if last is None else [name for name in now if name in last[1]]
        if last is None or not common or now_ns <= last[0]:
            return None, None, loopback
        deltas = [(now[name][0] - last[1][name][0], now[name][1] - last[1][name][1]) for name in common]
        if any(sent < 0 or received < 0 for sent, received in deltas):
            return None, None, loopback
        per_s = SECOND_NS / (now_ns - last[0])
        return sum(sent for sent, _ in deltas) * per_s, sum(received for _, received in deltas) * per_s, loopback

    def _say_whether_there(self, now_ns: int, name: str, there: bool, reason: str) -> None:
        # A field of its own: reading it works, there is only nothing to read.
        self._states.set(now_ns, name, "ok" if there else "unsupported", "" if there else reason)
