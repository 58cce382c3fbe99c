"""Rows of network_samples: interfaces that are up, RDMA ports, errors, counters that go backwards."""

from pathlib import Path
from typing import Any

import pytest

from agprof.model.tables import BY_NAME
from agprof.sampler.network import MAX_INTERFACES, Network, parse_net_dev
from agprof.sampler.states import SECOND_NS, States
from proc_tree import ProcTree

COLUMNS = [column.name for column in BY_NAME["network_samples"].columns]


class Rig:
    def __init__(self, root: Path) -> None:
        self.tree = ProcTree(root)
        self.rows: list[tuple[str, tuple[Any, ...]]] = []
        append = lambda table, row: self.rows.append((table, row))  # noqa: E731
        self.network = Network(append, States(append), root)
        self.now = 100 * SECOND_NS

    def sample(self, seconds: int = 1) -> dict[str, dict[str, Any]]:
        """Interface -> its row."""
        self.now += seconds * SECOND_NS
        begin = len(self.rows)
        self.network.sample(self.now)
        rows = [dict(zip(COLUMNS, row, strict=True)) for table, row in self.rows[begin:] if table == "network_samples"]
        return {row["interface"]: row for row in rows}

    def states(self) -> list[tuple[str, str]]:
        return [(row[1], row[2]) for table, row in self.rows if table == "sampler_state"]


def test_traffic_errors_and_speed_of_each_interface(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.tree.interface("eth0", speed="25000")
    rig.tree.interface("lo", hardware=False, type=772, flags="0x9", state="unknown")
    rig.tree.interfaces({"eth0": (100, 1000, 1, 2, 3, 4), "lo": (0, 0)})
    first = rig.sample()["eth0"]
    assert (first["period_ns"], first["sent_bytes_per_s"], first["errors"]) == (0, None, None)
    assert (first["kind"], first["speed_bits_per_s"]) == ("ethernet", 25_000_000_000)
    rig.tree.interfaces({"eth0": (300, 5000, 2, 4, 6, 9), "lo": (50, 50)})
    rows = rig.sample(2)
    eth0, lo = rows["eth0"], rows["lo"]
    assert (eth0["period_ns"], eth0["sent_bytes_per_s"], eth0["received_bytes_per_s"]) == (2 * SECOND_NS, 100, 2000)
    assert eth0["errors"] == 21 - 10
    assert (lo["kind"], lo["sent_bytes_per_s"], lo["speed_bits_per_s"]) == ("loopback", 25, None)


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({}, "ethernet"),
        ({"state": "unknown"}, "ethernet"),
        ({"type": 32}, "infiniband"),
        ({"type": 772, "hardware": False}, "loopback"),
        ({"hardware": False}, "virtual"),
        ({"state": "down"}, None),
        ({"state": "lowerlayerdown"}, None),
        ({"flags": "0x1002"}, None),
    ],
)
def test_kinds_and_only_what_is_up(tmp_path: Path, settings: dict[str, Any], kind: str | None) -> None:
    rig = Rig(tmp_path)
    rig.tree.interface("x0", **settings)
    rig.tree.interfaces({"x0": (0, 0)})
    rows = rig.sample()
    assert (rows["x0"]["kind"] if rows else None) == kind


@pytest.mark.parametrize("speed", ["-1", "", "unknown", "0"])
def test_a_speed_that_the_driver_does_not_know_is_none(tmp_path: Path, speed: str) -> None:
    rig = Rig(tmp_path)
    rig.tree.interface("eth0", speed=speed)
    rig.tree.interfaces({"eth0": (0, 0)})
    assert rig.sample()["eth0"]["speed_bits_per_s"] is None


def test_without_sys_kinds_are_told_by_names(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    names = {"lo": "loopback", "eth0": "ethernet", "ens3f0": "ethernet", "ib0": "infiniband", "ibp5s0": "infiniband",
             "veth12ab": "virtual", "docker0": "virtual", "br-0011": "virtual", "bond0": "virtual"}  # fmt: skip
    rig.tree.interfaces(dict.fromkeys(names, (0, 0)))
    assert {name: row["kind"] for name, row in rig.sample().items()} == names


def test_an_interface_whose_link_goes_down_is_seen_within_ten_seconds(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.tree.interface("eth0")
    rig.tree.interfaces({"eth0": (0, 0)})
    assert rig.sample()
    rig.tree.interface("eth0", state="down")
    assert rig.sample(10) == {}
    rig.tree.interface("eth0")
    rig.tree.interfaces({"eth0": (10**12, 10**12)})
    assert rig.sample(10)["eth0"]["sent_bytes_per_s"] is None


def test_hundreds_of_interfaces_are_looked_at_again_less_often(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    names = [f"veth{n:04}" for n in range(100)]
    for name in names:
        rig.tree.interface(name, hardware=False)
    rig.tree.interfaces(dict.fromkeys(names, (0, 0)))
    for _ in range(2):
        rig.sample(10)
    rig.tree.interface("veth0000", hardware=False, state="down")
    assert "veth0000" in rig.sample(40)
    assert "veth0000" not in rig.sample(10)


def test_counters_that_begin_anew_give_none_once(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.tree.interface("eth0")
    rig.tree.interfaces({"eth0": (100, 100, 5)})
    rig.sample()
    rig.tree.interfaces({"eth0": (50, 200, 0)})
    row = rig.sample()["eth0"]
    assert (row["sent_bytes_per_s"], row["received_bytes_per_s"], row["errors"]) == (None, 100, None)
    rig.tree.interfaces({"eth0": (80, 200, 1)})
    row = rig.sample()["eth0"]
    assert (row["sent_bytes_per_s"], row["received_bytes_per_s"], row["errors"]) == (30, 0, 1)


def test_infiniband_counts_words_of_four_bytes(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.tree.port("mlx5_0", 1, 2**40, 2**41)
    rig.sample()
    rig.tree.port("mlx5_0", 1, 2**40 + 10**9, 2**41 + 3 * 10**9, rcv_errors=2, xmit_discards=5)
    row = rig.sample(2)["mlx5_0/1"]
    assert (row["kind"], row["speed_bits_per_s"]) == ("infiniband", 400 * 10**9)
    assert (row["sent_bytes_per_s"], row["received_bytes_per_s"], row["errors"]) == (2 * 10**9, 6 * 10**9, 7)


def test_a_port_over_ethernet_is_ethernet_and_one_that_is_down_is_left_out(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.tree.port("mlx5_0", 1, 0, 0, link_layer="Ethernet", rate="100 Gb/sec (4X EDR)")
    rig.tree.port("mlx5_1", 1, 0, 0, state="1: DOWN")
    rig.tree.port("mlx5_2", 1, 0, 0, rate="2.5 Gb/sec (1X SDR)")
    rows = rig.sample()
    assert {name: (row["kind"], row["speed_bits_per_s"]) for name, row in rows.items() if "/" in name} == {
        "mlx5_0/1": ("ethernet", 100 * 10**9),
        "mlx5_2/1": ("infiniband", 2_500_000_000),
    }


def test_the_counter_of_64_bits_is_preferred_and_one_of_32_that_stands_still_is_not_zero(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    stuck = 2**32 - 1
    for device in ("mlx4_0", "mlx4_1"):
        rig.tree.port(device, 1, stuck, stuck)
    folder = "sys/class/infiniband/mlx4_0/ports/1/counters_ext"
    for words in (2**33, 2**33 + 250):
        for name in ("port_xmit_data_64", "port_rcv_data_64"):
            rig.tree.write(f"{folder}/{name}", f"{words}\n")
        rows = rig.sample()
    assert rows["mlx4_0/1"]["sent_bytes_per_s"] == 1000
    assert "mlx4_1/1" not in rows
    assert rig.states() == [("network.mlx4_1/1", "unsupported")]


def test_a_port_that_comes_later_is_found_within_ten_seconds(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.sample()
    rig.tree.port("mlx5_0", 1, 5, 5)
    assert "mlx5_0/1" in rig.sample(10)


def test_of_a_thousand_interfaces_the_hardware_is_kept_and_the_rest_said(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    names = [f"veth{n:04}" for n in range(200)]
    for name in names:
        rig.tree.interface(name, hardware=False)
    rig.tree.interface("zeth0")
    rig.tree.interfaces(dict.fromkeys([*names, "zeth0"], (0, 0)))
    rows = rig.sample()
    assert len(rows) == MAX_INTERFACES
    assert "zeth0" in rows
    (state,) = (row for table, row in rig.rows if table == "sampler_state")
    assert (state[1], state[2]) == ("network.interfaces", "unsupported")
    assert "137 more" in state[3]


def test_this_hosts_file_is_understood() -> None:
    assert "lo" in parse_net_dev(Path("/proc/net/dev").read_bytes())


def test_a_name_with_a_colon_is_read_whole() -> None:
    head = b"Inter-|\n face |\n"
    assert parse_net_dev(head + b"eth0:1: 5 0 0 0 0 0 0 0 9 0 0 0 0 0 0 0\n") == {"eth0:1": (9, 5, 0)}
