"""Records hours of a busy node in seconds: the sampler's own lanes, budgets and writer, with a time that is a number.

    record(path, seconds=86_400)      a stream of 8 GPUs, 8 ranks with workers, 64 cores, 10 interfaces

Only the readings are made up, with the noise that real ones have: power in mW, counters in ns and KiB over periods that
jitter, CPU time in ticks of 10 ms, memory in pages. Numbers are noisier than on most machines, so that a size measured
here is rather too large.
"""

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from agprof.sampler.account import Account
from agprof.sampler.loop import Clock, Lane, Part, tier
from agprof.sampler.states import SECOND_NS, Append, States
from agprof.store.packed_writer import PackedStreamWriter

BOOT_NS = 5_000 * SECOND_NS
GPUS, RANKS, CORES = 8, 8, 64
INTERFACES = (*(f"mlx5_{port}/1" for port in range(8)), "eth0", "lo")
FLUSH_PERIOD_NS = 800_000_000
MIB, GIB = 2**20, 2**30


class Noise:
    """Normal numbers from a pool that was drawn once: a day needs fifty million of them."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self._pool = [self.random.gauss(0, 1) for _ in range(99_991)]
        self._at = 0

    def __call__(self, mean: float, deviation: float) -> float:
        """Not below zero."""
        self._at = self._at + 1 if self._at < 99_990 else 0
        return max(0.0, mean + deviation * self._pool[self._at])

    def ratio(self, mean: float, deviation: float) -> float:
        return min(1.0, self(mean, deviation))

    def percent(self, mean: float, deviation: float) -> float:
        return round(100 * self.ratio(mean, deviation)) / 100

    def rate(self, per_s: float, unit: int, period_ns: int) -> float | None:
        """A counter's change over a period, the counter being whole units."""
        if period_ns == 0:
            return None
        return int(self(per_s, per_s / 4) * period_ns / SECOND_NS / unit) * unit * SECOND_NS / period_ns


class NoisyPart(Part):
    """A part that writes what `rows` makes of the time, the period and the noise."""

    def __init__(self, append: Append, noise: Noise, rows: Callable[..., Any]) -> None:
        self._append, self._noise, self._rows = append, noise, rows
        self._last_ns: int | None = None
        self.number = 0

    def sample(self, now_ns: int) -> int:
        period_ns = 0 if self._last_ns is None else now_ns - self._last_ns
        self._last_ns = now_ns
        self._rows(self._append, self._noise, now_ns, period_ns, self.number)
        self.number += 1
        return 0


class GpuSamples:
    """Eight H100 in training, held back by their power limit now and then."""

    def __init__(self) -> None:
        self.energy_mj = [10**9 * (gpu + 3) for gpu in range(GPUS)]

    def __call__(self, append: Append, noise: Noise, now_ns: int, period_ns: int, number: int) -> None:
        for gpu in range(GPUS):
            power_mw = int(noise(620_000, 40_000))
            self.energy_mj[gpu] += power_mw * period_ns // SECOND_NS
            throttled_ns = int(noise(0, period_ns / 4))
            append("gpu_samples", (
                now_ns, gpu, noise.percent(0.95, 0.05), noise.percent(0.6, 0.1), None, power_mw, "instant",
                self.energy_mj[gpu], 1980 - 15 * int(noise(2, 2)), 2619, None, 4 if throttled_ns else 0,
                int(noise(620_000, 5_000)) if number % 5 == 0 else None, noise.rate(2e9, 1, period_ns),
                noise.rate(3e9, 1, period_ns), noise.rate(9e10, 1024, period_ns), noise.rate(9e10, 1024, period_ns),
                throttled_ns, 0, 0,
            ))  # fmt: skip


def gpu_states(append: Append, noise: Noise, now_ns: int, period_ns: int, number: int) -> None:
    for gpu in range(GPUS):
        used = 66 * GIB + 2 * MIB * int(noise(500, 100))
        append("gpu_states", (now_ns, gpu, used, 600 * MIB, 80 * GIB, int(noise(62, 2)), int(noise(74, 2)), 700_000))
        busy = [noise.ratio(mean, mean / 5) for mean in (0.8, 0.3, 0.5, 0.6)]
        append("gpu_activity", (now_ns, period_ns, gpu, *busy, 0.0, noise.ratio(0.1, 0.02), 0.0, None, None))


def gpu_health(append: Append, noise: Noise, now_ns: int, period_ns: int, number: int) -> None:
    for gpu in range(GPUS):
        append("gpu_health", (now_ns, gpu, 3, 0, 0, 0, False, False))
        append("gpu_processes", (now_ns, gpu, 4000 + gpu, "compute", 66 * GIB, "rank", gpu, "python3"))


def host(append: Append, noise: Noise, now_ns: int, period_ns: int, number: int) -> None:
    def bytes_per_s(mean: float) -> float | None:
        return noise.rate(mean, 1, period_ns)

    append("host_samples", (
        now_ns, period_ns, noise.ratio(0.4, 0.05), int(noise(6e11, 1e9)) // 4096 * 4096, 1024 * GIB, 0,
        bytes_per_s(1e7), bytes_per_s(1e7), bytes_per_s(1e5), bytes_per_s(3e8), bytes_per_s(1e8),
        round(noise(30, 3), 2), noise.ratio(0.01, 0.005), 0.0, noise.ratio(0.02, 0.01), 0.0, 0.0,
        noise.ratio(0.05, 0.02), noise.ratio(0.03, 0.02), 0.0, 0.0, int(noise(5e11, 1e9)) // 4096 * 4096, 900 * GIB,
        None, None, 0, int(noise(3e8, 2e7)), int(noise(4e7, 2e6)),
    ))  # fmt: skip


def network(append: Append, noise: Noise, now_ns: int, period_ns: int, number: int) -> None:
    for name in INTERFACES:
        kind, mean = ("infiniband", 5e9) if "/" in name else ("ethernet", 1e7) if name == "eth0" else ("loopback", 1e5)
        rates = (noise.rate(mean, 4 if "/" in name else 1, period_ns) for _ in range(2))
        append("network_samples", (now_ns, period_ns, name, kind, *rates, 0, 400_000_000_000))


def processes(append: Append, noise: Noise, now_ns: int, period_ns: int, number: int) -> None:
    for rank in range(RANKS):
        for role, count, threads in (("rank", 1, 120), ("worker", 4, 20)):
            ticks = int(noise(105, 5)) if role == "rank" else int(noise(160, 20))
            reads = noise.rate(4e7, 1, period_ns) if role == "worker" else 0.0
            append("process_samples", (
                now_ns, period_ns, rank, role, count, ticks * 1e7 / period_ns if period_ns else None,
                int(noise(9e9, 2e6)) // 4096 * 4096, 8 * GIB + int(noise(9e6, 2e6)) * 1024 if number % 5 == 0 else None,
                threads, reads, 0.0, noise.rate(900, 1, period_ns), noise.rate(20, 1, period_ns),
                4 if role == "worker" else 0, ticks * 1e7 / period_ns if role == "worker" and period_ns else None,
                int(noise(2e7, 1e7)) / period_ns if period_ns else None,
            ))  # fmt: skip


def cores(append: Append, noise: Noise, now_ns: int, period_ns: int, number: int) -> None:
    for core in range(CORES):
        busy, idle = int(noise(200, 80)), int(noise(300, 80))
        append("core_samples", (now_ns, period_ns, core, busy / max(1, busy + idle)))


def record(path: Path, header: dict[str, Any], seconds: float, seed: int = 1) -> PackedStreamWriter:
    """Write the stream. Returns its closed writer, for its figures."""
    writer = PackedStreamWriter(path, header)
    noise = Noise(seed)
    time = [BOOT_NS]
    states = States(writer.append)
    clock = Clock(
        monotonic_ns=lambda: time[0],
        thread_cpu_ns=lambda: 0,
        process_cpu_ns=lambda: (time[0] - BOOT_NS) // 200,
        run_delay_ns=lambda: 0,
        resident_bytes=lambda: 24 * MIB,
    )

    def lane(name: str, **parts: Callable[..., Any]) -> Lane:
        periods = {"fast": 0.2, "medium": 1.0, "slow": 5.0}
        tiers = [
            tier(key, periods[key], {f"{name}.{key}": NoisyPart(writer.append, noise, rows)}, noise.random)  # type: ignore[arg-type,index]
            for key, rows in parts.items()
        ]
        return Lane(name, tiers, writer.append, states, lambda: None, clock)

    def medium(*arguments: Any) -> None:
        for rows in (host, network, processes):
            rows(*arguments)

    for gpu in range(GPUS):
        uuid = f"GPU-{gpu:08x}-1111-2222-3333-444444444444"
        row = (gpu, uuid, f"00000000:{gpu:02X}:00.0", "NVIDIA H100 80GB HBM3", 80 * GIB, 700_000, "570.86.15", "hopper",
               "9.0", None, False, 700_000, 1980, 2619, 18, "gen 5 x16", gpu // 4)  # fmt: skip
        writer.append("gpus", row)
    lanes = [
        lane("host", medium=medium, slow=cores),
        lane("gpu", fast=GpuSamples(), medium=gpu_states, slow=gpu_health),
    ]
    account = Account(
        writer.append, lambda: writer.lost_rows, lambda: {**lanes[0].costs_ns(), **lanes[1].costs_ns()}, clock
    )
    flush_ns = BOOT_NS
    while time[0] < BOOT_NS + seconds * SECOND_NS:
        for each in lanes:
            each.run_due()
        account.look()
        if time[0] >= flush_ns:
            writer.flush()
            flush_ns = time[0] + FLUSH_PERIOD_NS
        time[0] = max(time[0] + 1, min(flush_ns, *(each.due_ns for each in lanes)))
    writer.close()
    return writer
