"""Rows of host_samples from counters that move, go backwards and go away."""

from collections import namedtuple
from types import SimpleNamespace
from typing import Any

from agprof.model.tables import BY_NAME
from agprof.sampler.host import Host
from agprof.sampler.states import SECOND_NS, States

Cpu = namedtuple("Cpu", "user system idle iowait guest")
COLUMNS = [column.name for column in BY_NAME["host_samples"].columns]


class Source:
    """A stand-in for psutil with counters to set."""

    def __init__(self) -> None:
        self.cpu = Cpu(10.0, 5.0, 100.0, 1.0, 2.0)
        self.nics = {"lo": (0, 0), "eth0": (0, 0)}
        self.disk: tuple[int, int] | None = (0, 0)

    def cpu_times(self) -> Any:
        return self.cpu

    def virtual_memory(self) -> Any:
        return SimpleNamespace(total=1000, available=400)

    def swap_memory(self) -> Any:
        return SimpleNamespace(used=7)

    def net_io_counters(self, pernic: bool, nowrap: bool) -> Any:
        assert pernic
        assert not nowrap
        return {name: SimpleNamespace(bytes_sent=sent, bytes_recv=got) for name, (sent, got) in self.nics.items()}

    def disk_io_counters(self, nowrap: bool) -> Any:
        assert not nowrap
        return None if self.disk is None else SimpleNamespace(read_bytes=self.disk[0], write_bytes=self.disk[1])

    def getloadavg(self) -> Any:
        return (0.5, 0.4, 0.3)


class Rig:
    def __init__(self) -> None:
        self.source = Source()
        self.rows: list[tuple[str, tuple[Any, ...]]] = []
        append = lambda table, row: self.rows.append((table, row))  # noqa: E731
        self.host = Host(append, States(append), self.source)
        self.now = 100 * SECOND_NS

    def sample(self, seconds: int = 1) -> dict[str, Any]:
        self.now += seconds * SECOND_NS
        self.host.sample(self.now)
        row = next(row for table, row in reversed(self.rows) if table == "host_samples")
        return dict(zip(COLUMNS, row, strict=True))

    def states(self) -> list[tuple[str, str]]:
        return [(row[1], row[2]) for table, row in self.rows if table == "sampler_state"]


def test_the_first_sample_has_levels_and_no_rates() -> None:
    row = Rig().sample()
    assert row["period_ns"] == 0
    assert (row["memory_used_bytes"], row["memory_total_bytes"], row["swap_used_bytes"]) == (600, 1000, 7)
    assert row["load_1m"] == 0.5
    assert {name for name in COLUMNS if row[name] is None} == {"cpu_ratio", *(n for n in COLUMNS if "per_s" in n)}


def test_rates_are_deltas_over_the_time_since_the_sample_before() -> None:
    rig = Rig()
    rig.sample()
    rig.source.cpu = Cpu(11.0, 5.5, 102.0, 1.5, 2.9)
    rig.source.nics = {"lo": (50, 50), "eth0": (400, 600)}
    rig.source.disk = (80, 20)
    row = rig.sample(2)
    assert row["period_ns"] == 2 * SECOND_NS
    assert row["cpu_ratio"] == 1.5 / 4.0
    assert (row["network_sent_bytes_per_s"], row["network_received_bytes_per_s"]) == (200, 300)
    assert row["loopback_bytes_per_s"] == 25
    assert (row["disk_read_bytes_per_s"], row["disk_write_bytes_per_s"]) == (40, 10)


def test_an_interface_that_comes_or_goes_is_not_traffic() -> None:
    rig = Rig()
    rig.sample()
    rig.source.nics = {"eth0": (10, 10), "veth1": (10**9, 10**9)}
    row = rig.sample()
    assert (row["network_sent_bytes_per_s"], row["loopback_bytes_per_s"]) == (10, None)
    rig.source.nics = {"veth1": (10**9 + 5, 10**9)}
    assert rig.sample()["network_sent_bytes_per_s"] == 5


def test_counters_that_went_backwards_give_none_once() -> None:
    rig = Rig()
    rig.source.nics, rig.source.disk = {"eth0": (100, 100)}, (100, 100)
    rig.sample()
    rig.source.nics, rig.source.disk, rig.source.cpu = {"eth0": (5, 500)}, (5, 200), Cpu(1.0, 1.0, 200.0, 1.0, 0.0)
    row = rig.sample()
    assert row["cpu_ratio"] is None
    assert row["network_sent_bytes_per_s"] is None
    assert row["network_received_bytes_per_s"] is None
    assert (row["disk_read_bytes_per_s"], row["disk_write_bytes_per_s"]) == (None, 100)
    rig.source.nics, rig.source.disk, rig.source.cpu = {"eth0": (7, 500)}, (6, 200), Cpu(2.0, 1.0, 201.0, 1.0, 0.0)
    row = rig.sample()
    assert (row["cpu_ratio"], row["network_sent_bytes_per_s"], row["disk_read_bytes_per_s"]) == (0.5, 2, 1)


def test_idle_time_that_steps_back_does_not_spoil_the_cpu_ratio() -> None:
    rig = Rig()
    rig.sample()
    rig.source.cpu = Cpu(11.0, 5.0, 101.0, 0.9, 2.0)
    assert rig.sample()["cpu_ratio"] == 0.5


def test_what_is_not_there_is_none_with_a_reason_written_once() -> None:
    rig = Rig()
    rig.source.disk, rig.source.nics = None, {"lo": (0, 0)}

    def swap_memory() -> Any:
        raise PermissionError("/proc/vmstat")

    rig.source.swap_memory = swap_memory  # type: ignore[method-assign]
    for _ in range(3):
        row = rig.sample()
    assert row["swap_used_bytes"] is None
    assert row["disk_read_bytes_per_s"] is None
    assert row["network_sent_bytes_per_s"] is None
    assert sorted(rig.states()) == [
        ("host.disk.devices", "unsupported"),
        ("host.network.interfaces", "unsupported"),
        ("host.swap", "unsupported"),
    ]


def test_a_read_that_fails_for_a_while_comes_back() -> None:
    rig = Rig()
    rig.sample()
    good = rig.source.virtual_memory

    def broken() -> Any:
        raise OSError("EIO")

    rig.source.virtual_memory = broken  # type: ignore[method-assign]
    assert rig.sample()["memory_used_bytes"] is None
    rig.source.virtual_memory = good  # type: ignore[method-assign]
    assert rig.sample(5)["memory_used_bytes"] == 600
    assert rig.states() == [("host.memory", "retry"), ("host.memory", "ok")]
