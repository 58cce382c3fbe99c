"""Nodes on one machine: network namespaces with addresses, host names and a shaped link between them (root needed).

    node 0 ── agpeth ─┐                  each node's own end is called the same, 10.77.0.(k + 1)/24
    node 1 ── agpeth ─┤ bridge, or the   rate: tbf at both ends of each node's cable
    node 2 ── agpeth ─┘ userspace link   delay: netem where the kernel has it, else `emulate_link`

Processes of a node run behind `command`: in its network namespace, with a host name of its own and an /etc/hosts that
knows all nodes. File systems and processes are those of the machine.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

from agprof.config.setups import EmulateSection, delay_ns, rate_bits_per_s
from agprof.errors import LaunchError

INTERFACE = "agpeth"
_SUBNET = "10.77.0"
_NAME = re.compile(r"agp-(\d+)-(?:\d+|sw)")
_ETC = Path("/etc/netns")
_TIMEOUT_S = 20.0
_MTU = 9000
"""Of the userspace link: fewer packets for Python to carry."""
_BURST_BYTES = 64 * 1024
_PROGRAMS = {"ip": "iproute2", "tc": "iproute2", "unshare": "util-linux"}


@dataclass(frozen=True, slots=True, kw_only=True)
class EmulatedNode:
    """One namespace."""

    number: int
    namespace: str
    address: str
    host: str


def why_not() -> str | None:
    """Why nodes can't be emulated here, with what to do; None when they can."""
    if os.geteuid() != 0:
        return "emulating nodes needs root (network namespaces): run agprof as root, or give a hostfile"
    lacking = sorted({package for program, package in _PROGRAMS.items() if shutil.which(program) is None})
    if lacking:
        return f"emulating nodes needs {' and '.join(lacking)}: install {' and '.join(lacking)}"
    return None


class EmulatedNodes:
    """The nodes, from `__enter__` to `__exit__`. Raises LaunchError where the machine does not allow them."""

    def __init__(self, section: EmulateSection, *, name: str = "node") -> None:
        self._section = section
        self._prefix = f"agp-{os.getpid()}"
        self._switch = f"{self._prefix}-sw"
        self._link: subprocess.Popen[bytes] | None = None
        self._stack = ExitStack()
        self.nodes = tuple(
            EmulatedNode(
                number=number,
                namespace=f"{self._prefix}-{number}",
                address=f"{_SUBNET}.{number + 1}",
                host=f"{name}{number}",
            )
            for number in range(section.nodes)
        )
        self.shaped_by = "nothing"
        """tbf | netem | userspace link | nothing"""

    def __enter__(self) -> "EmulatedNodes":
        problem = why_not()
        if problem is not None:
            raise LaunchError(problem)
        remove_left_behind()
        try:
            for node in self.nodes:
                self._add_namespace(node.namespace)
                self._write_hosts(node)
            self._connect()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def command(self, number: int, argv: Sequence[str]) -> list[str]:
        """The same command on a node."""
        node = self.nodes[number]
        # A host name of its own: whoever asks for it (torchrun's rendezvous does) must not take one node for another.
        named = 'echo "$1" > /proc/sys/kernel/hostname && shift && exec "$@"'
        return ["ip", "netns", "exec", node.namespace, "unshare", "--uts", "sh", "-c", named, "sh", node.host, *argv]

    def cut(self, number: int) -> None:
        """Pull a node's cable: nothing comes or goes any more, and nobody is told."""
        if self._link is not None:
            self._tell_link({"cut": number})
        else:
            _run("ip", "-n", self._switch, "link", "set", f"port{number}", "down")

    def mend(self, number: int) -> None:
        """Plug it in again."""
        if self._link is not None:
            self._tell_link({"mend": number})
        else:
            _run("ip", "-n", self._switch, "link", "set", f"port{number}", "up")

    def _add_namespace(self, name: str) -> None:
        _run("ip", "netns", "add", name)
        self._stack.callback(_remove, name)
        _run("ip", "-n", name, "link", "set", "lo", "up")

    def _write_hosts(self, node: EmulatedNode) -> None:
        lines = ["127.0.0.1 localhost", *(f"{other.address} {other.host}" for other in self.nodes)]
        folder = _ETC / node.namespace
        # `ip netns exec` puts these files over those of /etc, for the namespace alone.
        folder.mkdir(parents=True)
        (folder / "hosts").write_text("\n".join(lines) + "\n", encoding="ascii")
        (folder / "hostname").write_text(f"{node.host}\n", encoding="ascii")

    def _connect(self) -> None:
        section = self._section
        delay = delay_ns(section.delay) if section.delay is not None else 0
        rate = rate_bits_per_s(section.rate) if section.rate is not None else None
        if delay and not has_netem():
            self._connect_by_link(rate, delay)
            return
        self._connect_by_bridge()
        for node in self.nodes:
            for namespace, device in ((node.namespace, INTERFACE), (self._switch, f"port{node.number}")):
                self._shape(namespace, device, rate, delay if device == INTERFACE else 0)
        if rate is not None or delay:
            self.shaped_by = "netem" if delay else "tbf"

    def _connect_by_bridge(self) -> None:
        self._add_namespace(self._switch)
        _run("ip", "-n", self._switch, "link", "add", "bridge", "type", "bridge")
        _run("ip", "-n", self._switch, "link", "set", "bridge", "up")
        for node in self.nodes:
            port = f"port{node.number}"
            _run(
                "ip", "link", "add", INTERFACE, "netns", node.namespace, "type", "veth",
                "peer", "name", port, "netns", self._switch,
            )  # fmt: skip
            _run("ip", "-n", self._switch, "link", "set", port, "master", "bridge")
            _run("ip", "-n", self._switch, "link", "set", port, "up")
            self._address(node)

    def _address(self, node: EmulatedNode) -> None:
        _run("ip", "-n", node.namespace, "addr", "add", f"{node.address}/24", "dev", INTERFACE)
        _run("ip", "-n", node.namespace, "link", "set", INTERFACE, "up")

    def _shape(self, namespace: str, device: str, rate: int | None, delay: int) -> None:
        add = ["ip", "netns", "exec", namespace, "tc", "qdisc", "add", "dev", device]
        if delay:
            words = ["netem", "delay", f"{delay // 1000}us", "limit", "100000"]
            _run(*add, "root", *words, *(["rate", f"{rate}bit"] if rate is not None else []))
        elif rate is not None:
            _run(*add, "root", "tbf", "rate", f"{rate}bit", "burst", str(_BURST_BYTES * 4), "latency", "50ms")

    def _connect_by_link(self, rate: int | None, delay: int) -> None:
        setting = {
            "namespaces": [node.namespace for node in self.nodes],
            "addresses": [node.address for node in self.nodes],
            "device": INTERFACE,
            "mtu": _MTU,
            "rate_bits_per_s": rate,
            "delay_ns": delay,
        }
        argv = [sys.executable, "-P", "-m", "agprof.launch.emulate_link", json.dumps(setting)]
        self._link = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        self._stack.callback(self._end_link, self._link)
        answer = self._pipe(self._link.stdout).readline()
        if answer.strip() != b"ready":
            raise LaunchError("the emulated link could not be made: is /dev/net/tun there (modprobe tun)?")
        for node in self.nodes:
            self._address(node)
        self.shaped_by = "userspace link"

    def _tell_link(self, message: dict[str, int]) -> None:
        assert self._link is not None
        pipe = self._pipe(self._link.stdin)
        pipe.write(json.dumps(message).encode() + b"\n")
        pipe.flush()
        self._pipe(self._link.stdout).readline()  # it says when it is done

    @staticmethod
    def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
        assert pipe is not None
        return pipe

    @staticmethod
    def _end_link(link: subprocess.Popen[bytes]) -> None:
        with suppress(OSError):
            EmulatedNodes._pipe(link.stdin).close()
        try:
            link.wait(3)
        except subprocess.TimeoutExpired:
            link.kill()
            link.wait()


def has_netem() -> bool:
    """Whether this kernel has the netem queue: tried on a device of a namespace that is made for it."""
    name = f"agp-{os.getpid()}-99"
    try:
        _run("ip", "netns", "add", name)
        _run("ip", "-n", name, "link", "add", "probe", "type", "veth", "peer", "name", "eborp")
        _run("ip", "netns", "exec", name, "tc", "qdisc", "add", "dev", "probe", "root", "netem", "delay", "1ms")
    except LaunchError:
        return False
    finally:
        _remove(name)
    return True


def remove_left_behind() -> tuple[str, ...]:
    """Remove the namespaces of agprofs that no longer live (killed before they could); their names."""
    try:
        done = subprocess.run(["ip", "-o", "netns"], capture_output=True, text=True, timeout=_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    removed = []
    for line in done.stdout.splitlines():
        name = line.split()[0] if line.split() else ""
        match = _NAME.fullmatch(name)
        if match is not None and not Path(f"/proc/{match[1]}").exists():
            _remove(name)
            removed.append(name)
    return tuple(removed)


def _remove(name: str) -> None:
    with suppress(LaunchError):
        _run("ip", "netns", "del", name)
    shutil.rmtree(_ETC / name, ignore_errors=True)


def _run(*argv: str) -> None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        raise LaunchError(f"`{' '.join(argv)}` failed: {error}") from error
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise LaunchError(f"`{' '.join(argv)}` failed: {said[-1] if said else f'exit code {done.returncode}'}")
