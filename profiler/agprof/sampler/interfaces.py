"""What the host's network interfaces and RDMA ports are: kind, whether they are up, speed. From /sys/class."""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agprof.sampler.kernel_files import read_text
from agprof.sampler.states import SECOND_NS

Kind = Literal["ethernet", "infiniband", "loopback", "virtual"]
LOOK_PERIOD_NS = 10 * SECOND_NS
LOOK_PERIOD_EACH_NS = SECOND_NS // 2
"""A host of containers has hundreds of interfaces: they are looked at again less often."""

_IFF_UP = 0x1
_ARPHRD_LOOPBACK, _ARPHRD_INFINIBAND = "772", "32"
_VIRTUAL_NAMES = re.compile(
    r"(veth|docker|br-|virbr|vnet|tun|tap|ifb|dummy|bond|team|cali|cni|flannel|vxlan|wg|nerdctl)"
)
_RATE = re.compile(r"([0-9.]+) Gb/sec")


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface of this network namespace."""

    kind: Kind
    up: bool
    speed_bits_per_s: int | None

    @property
    def is_hardware(self) -> bool:
        return self.kind in ("ethernet", "infiniband")


@dataclass(frozen=True, slots=True)
class RdmaPort:
    """A port of an InfiniBand or RoCE device, by its folder in /sys."""

    name: str
    """device/port, as mlx5_0/1"""
    folder: Path
    kind: Kind
    """infiniband; ethernet for RoCE"""
    speed_bits_per_s: int | None


class Interfaces:
    """Looks interfaces up, anew every 10 s or more: asking a driver for the speed of its link may take its time."""

    def __init__(self, root: Path) -> None:
        self._folder = root / "sys/class/net"
        self._known: dict[str, Interface] = {}
        self._due_ns = 0

    def look_up(self, now_ns: int, names: Iterable[str]) -> Mapping[str, Interface]:
        """What each of these is."""
        if now_ns >= self._due_ns:
            self._due_ns = now_ns + max(LOOK_PERIOD_NS, LOOK_PERIOD_EACH_NS * len(self._known))
            self._known.clear()
        for name in names:
            if name not in self._known:
                self._known[name] = self._describe(name)
        return self._known

    def _describe(self, name: str) -> Interface:
        folder = self._folder / name
        flags = _text(folder / "flags")
        if flags is None:
            # No /sys here: what has counters is taken to be up.
            return Interface(_kind_by_name(name), True, None)
        up = bool(int(flags, 16) & _IFF_UP) and _text(folder / "operstate") in ("up", "unknown", None)
        kind = self._kind(folder)
        return Interface(kind, up, self._speed(folder) if up and kind == "ethernet" else None)

    def _kind(self, folder: Path) -> Kind:
        kind = _text(folder / "type")
        if kind == _ARPHRD_LOOPBACK:
            return "loopback"
        # What belongs to no device is the kernel's own: bridges, veth of containers, tunnels, bonds.
        if not (folder / "device").exists():
            return "virtual"
        return "infiniband" if kind == _ARPHRD_INFINIBAND else "ethernet"

    def _speed(self, folder: Path) -> int | None:
        speed = _text(folder / "speed")
        return int(speed) * 10**6 if speed is not None and speed.isdigit() and int(speed) > 0 else None


def rdma_ports(root: Path) -> list[RdmaPort]:
    """The ports that are active, by name."""
    found = []
    for folder in sorted((root / "sys/class/infiniband").glob("*/ports/*")):
        # As `4: ACTIVE`.
        if (_text(folder / "state") or "").startswith("4"):
            rate = _RATE.match(_text(folder / "rate") or "")
            found.append(
                RdmaPort(
                    name=f"{folder.parents[1].name}/{folder.name}",
                    folder=folder,
                    kind="ethernet" if _text(folder / "link_layer") == "Ethernet" else "infiniband",
                    speed_bits_per_s=None if rate is None else int(float(rate[1]) * 1e9),
                )
            )
    return found


def _kind_by_name(name: str) -> Kind:
    if name == "lo":
        return "loopback"
    if _VIRTUAL_NAMES.match(name):
        return "virtual"
    return "infiniband" if name.startswith("ib") else "ethernet"


def _text(path: Path) -> str | None:
    try:
        return read_text(os.fspath(path))
    except OSError:
        return None
