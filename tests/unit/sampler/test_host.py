"""Rows of host_samples from counters that move, go backwards and go away."""

from pathlib import Path
from typing import Any

import pytest

from agprof.model.tables import BY_NAME
from agprof.sampler.host import PAGE_BYTES, Host, fields_of
from agprof.sampler.states import SECOND_NS, States
from proc_tree import ProcTree

COLUMNS = [column.name for column in BY_NAME["host_samples"].columns]
KIB = 1024


class Rig:
    def __init__(self, root: Path) -> None:
        self.tree = ProcTree(root)
        self.rows: list[tuple[str, tuple[Any, ...]]] = []
        append = lambda table, row: self.rows.append((table, row))  # noqa: E731
        self.host = Host(append, States(append), root)
        self.now = 100 * SECOND_NS

    def sample(self, seconds: int = 1) -> dict[str, Any]:
        self.now += seconds * SECOND_NS
        self.host.sample(self.now)
        row = next(row for table, row in reversed(self.rows) if table == "host_samples")
        return dict(zip(COLUMNS, row, strict=True))

    def states(self, *without: str) -> list[tuple[str, str]]:
        """(field, state) of every change, those left out that begin with one of `without`."""
        rows = [(row[1], row[2]) for table, row in self.rows if table == "sampler_state"]
        return [row for row in rows if not row[0].startswith(without or ("-",))]


OTHER_PARTS = ("host.pressure", "host.cgroup", "host.rapl")


def test_the_first_sample_has_levels_and_no_rates(tmp_path: Path) -> None:
    row = Rig(tmp_path).sample()
    assert row["period_ns"] == 0
    assert (row["memory_used_bytes"], row["memory_total_bytes"], row["swap_used_bytes"]) == (
        600 * KIB, 1000 * KIB, 7 * KIB,
    )  # fmt: skip
    assert row["load_1m"] == 0.5
    assert {name for name in COLUMNS if row[name] is not None} == {
        "time_ns", "period_ns", "memory_used_bytes", "memory_total_bytes", "swap_used_bytes", "load_1m",
    }  # fmt: skip


def test_rates_are_deltas_over_the_time_since_the_sample_before(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.tree.interfaces({"lo": (0, 0), "eth0": (0, 0)})
    rig.tree.disks({"sda": (0, 0)}, devices=("sda",))
    rig.sample()
    rig.tree.cpu((100, 10, 30, 200, 40, 5, 5, 10, 90, 9))
    rig.tree.interfaces({"lo": (50, 50), "eth0": (400, 600)})
    rig.tree.disks({"sda": (8, 2)}, devices=("sda",))
    rig.tree.write("proc/vmstat", "nr_free_pages 5\npswpin 6\npswpout 4\n")
    row = rig.sample(2)
    assert row["period_ns"] == 2 * SECOND_NS
    assert (row["cpu_ratio"], row["iowait_ratio"], row["steal_ratio"]) == (160 / 400, 40 / 400, 10 / 400)
    assert (row["network_sent_bytes_per_s"], row["network_received_bytes_per_s"]) == (200, 300)
    assert row["loopback_bytes_per_s"] == 25
    assert (row["disk_read_bytes_per_s"], row["disk_write_bytes_per_s"]) == (8 * 512 / 2, 2 * 512 / 2)
    assert (row["swap_in_bytes_per_s"], row["swap_out_bytes_per_s"]) == (3 * PAGE_BYTES, 2 * PAGE_BYTES)


def test_an_interface_that_comes_or_goes_is_not_traffic(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.tree.interfaces({"lo": (0, 0), "eth0": (0, 0)})
    rig.sample()
    rig.tree.interfaces({"eth0": (10, 10), "eth1": (10**9, 10**9)})
    row = rig.sample()
    assert (row["network_sent_bytes_per_s"], row["loopback_bytes_per_s"]) == (10, None)
    rig.tree.interfaces({"eth1": (10**9 + 5, 10**9)})
    assert rig.sample()["network_sent_bytes_per_s"] == 5


def test_a_byte_of_a_container_is_counted_at_the_hardware_only(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    names = ("eth0", "docker0", "veth1")
    for name in names:
        rig.tree.interface(name, hardware=name == "eth0")
    for sent in (0, 700):
        rig.tree.interfaces({"lo": (0, 0)} | dict.fromkeys(names, (sent, sent)))
        row = rig.sample()
    assert (row["network_sent_bytes_per_s"], row["network_received_bytes_per_s"]) == (700, 700)


def test_in_a_container_its_own_virtual_interface_is_the_network(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.tree.interface("lo", hardware=False, type=772, state="unknown")
    rig.tree.interface("eth0", hardware=False)
    for sent in (0, 700):
        rig.tree.interfaces({"lo": (sent, sent), "eth0": (sent, sent)})
        row = rig.sample()
    assert (row["network_sent_bytes_per_s"], row["loopback_bytes_per_s"]) == (700, 700)


def test_a_byte_on_an_encrypted_volume_is_counted_at_the_disk_only(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    names = ("nvme0n1", "nvme0n1p1", "dm-0", "md0", "loop0", "zram0")
    for sectors in (0, 10):
        rig.tree.disks(dict.fromkeys(names, (sectors, sectors)), devices=("nvme0n1",))
        row = rig.sample()
    assert (row["disk_read_bytes_per_s"], row["disk_write_bytes_per_s"]) == (5120, 5120)


def test_without_sys_partitions_and_what_is_stacked_are_known_by_their_names(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    names = ("nvme0n1", "nvme0n1p1", "vda", "vda1", "dm-0", "md127", "loop0", "mmcblk0", "mmcblk0p2")
    for sectors in (0, 10):
        lines = [f"8 0 {name} 1 0 {sectors} 5 1 0 {sectors} 5 0 5 5\n" for name in names]
        rig.tree.write("proc/diskstats", "".join(lines))
        row = rig.sample()
    assert row["disk_read_bytes_per_s"] == 3 * 10 * 512


def test_counters_that_went_backwards_give_none_once(tmp_path: Path) -> None:
    rig = Rig(tmp_path)

    def put(cpu: tuple[int, ...], network: tuple[int, int], sectors: tuple[int, int]) -> dict[str, Any]:
        rig.tree.cpu(cpu)
        rig.tree.interfaces({"eth0": network})
        rig.tree.disks({"sda": sectors}, devices=("sda",))
        return rig.sample()

    put((9, 0, 9, 100, 1, 0, 0, 0), (100, 100), (100, 100))
    row = put((1, 0, 1, 200, 1, 0, 0, 0), (5, 500), (5, 200))
    assert row["cpu_ratio"] is None
    assert (row["network_sent_bytes_per_s"], row["network_received_bytes_per_s"]) == (None, 400)
    assert (row["disk_read_bytes_per_s"], row["disk_write_bytes_per_s"]) == (None, 100 * 512)
    row = put((2, 0, 1, 201, 1, 0, 0, 0), (7, 500), (6, 200))
    assert (row["cpu_ratio"], row["network_sent_bytes_per_s"], row["disk_read_bytes_per_s"]) == (0.5, 2, 512)


def test_idle_time_that_steps_back_does_not_spoil_the_cpu_ratio(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.tree.cpu((10, 0, 5, 100, 5, 0, 0, 0))
    rig.sample()
    rig.tree.cpu((11, 0, 5, 101, 4, 0, 0, 0))
    row = rig.sample()
    assert (row["cpu_ratio"], row["iowait_ratio"]) == (0.5, 0.0)


def test_what_is_not_there_is_none_with_a_reason_written_once(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.tree.write("proc/meminfo", "MemTotal: 1000 kB\nMemAvailable: 400 kB\n")
    (tmp_path / "proc/vmstat").unlink()
    for _ in range(3):
        row = rig.sample()
    assert row["memory_used_bytes"] == 600 * KIB
    for name in ("swap_used_bytes", "swap_in_bytes_per_s", "disk_read_bytes_per_s", "network_sent_bytes_per_s"):
        assert row[name] is None
    assert sorted(rig.states(*OTHER_PARTS)) == [
        ("host.disk.devices", "unsupported"),
        ("host.network.interfaces", "unsupported"),
        ("host.swap", "unsupported"),
        ("host.swapping", "unsupported"),
    ]


def test_a_read_that_fails_for_a_while_comes_back(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.tree.disks({"sda": (0, 0)}, devices=("sda",))
    rig.tree.interfaces({"eth0": (0, 0)})
    rig.sample()
    rig.tree.write("proc/loadavg", "not a number\n")
    assert rig.sample()["load_1m"] is None
    rig.tree.write("proc/loadavg", "2.50 1 1 1/1 1\n")
    assert rig.sample(5)["load_1m"] == 2.5
    assert rig.states(*OTHER_PARTS) == [("host.load", "retry"), ("host.load", "ok")]


def test_fields_are_found_by_their_whole_name() -> None:
    data = b"SwapFree: 1 kB\nXSwapTotal: 2 kB\nSwapTotal: 3 kB\nSwap: 4 kB"
    assert fields_of(data, (b"SwapTotal:", b"SwapFree:", b"Swap:", b"Free:")) == (3, 1, 4, None)


def test_this_host_is_read_without_any_unforeseen_state() -> None:
    rows: list[tuple[str, tuple[Any, ...]]] = []
    append = lambda table, row: rows.append((table, row))  # noqa: E731
    host = Host(append, States(append))
    for now_ns in (SECOND_NS, 2 * SECOND_NS):
        host.sample(now_ns)
    row = dict(zip(COLUMNS, next(row for table, row in reversed(rows) if table == "host_samples"), strict=True))
    assert 0 < row["memory_used_bytes"] < row["memory_total_bytes"]
    assert all(0 <= row[name] <= 1 for name in COLUMNS if name.endswith("_ratio") and row[name] is not None)
    retried = [row for table, row in rows if table == "sampler_state" and row[2] == "retry"]
    assert retried == []


@pytest.mark.parametrize("content", ["", "cpu 1 2\n", "intr 5\n", "cpu  a b c d e f g h\n"])
def test_an_odd_proc_stat_is_no_ratio(tmp_path: Path, content: str) -> None:
    rig = Rig(tmp_path)
    rig.tree.write("proc/stat", content)
    assert rig.sample()["cpu_ratio"] is None
    assert ("host.cpu", "retry") in rig.states()
