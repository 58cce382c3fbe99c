"""Reads one node for `agprof doctor`: `python -m agprof.launch.doctor_probe`, on other nodes over ssh.

It speaks JSON lines on stdin and stdout. It says hello with a port that it listens on, then answers each line:

    {"ping": 3}                              {"pong": 3, "time_ns": its wall clock}
    {"bind": 29500}                          {"bound": true} | {"bound": false, "error": "..."}; it listens on that too
    {"connect": [[["10.0.0.2", "node2"], 41234, token], ...]}
                                             {"connected": [[address | null, ["10.0.0.2: why not", ...]], ...]}
    {"facts": {"runs": "agprof-runs"}}       {"facts": {...}} of model.doctor_facts.NodeFacts
    {"exists": ["/data", ...]}               {"exists": [true, ...]}

Each connection to its ports is told its token, so that an address that leads elsewhere (Docker's bridge has the same on
every node) is not taken for the node. At the end of stdin it ends.
"""

import getpass
import json
import os
import platform
import secrets
import socket
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from agprof.launch import doctor_host, doctor_software, host
from agprof.model.doctor_facts import NodeFacts
from agprof.model.version import __version__

CONNECT_TIMEOUT_S = 5.0
HELLO = 1
"""Version of the conversation."""
_ENVIRONMENT_PREFIXES = ("NCCL_", "GLOO_", "MASTER_", "UCX_", "OMP_", "CUDA_", "TORCH_NCCL_", "SLURM_JOB_ID")
_MAX_VALUE_CHARS = 200


def node_facts(runs: Path) -> NodeFacts:
    """Everything about this node, in a few seconds; `runs` is the folder that runs go into."""
    with ThreadPoolExecutor(3) as pool:
        # The three that take seconds, each mostly a process of its own.
        torch = pool.submit(doctor_software.torch_facts)
        sampler = pool.submit(doctor_software.sampler_facts)
        topology = pool.submit(doctor_software.topology)
        nsys = doctor_software.nsys()
        ops, ops_folder, tools = doctor_software.ops(os.environ)
        total, limit, swap = doctor_host.memory()
        folders = {
            "runs": runs.absolute(),
            "temporary files": Path(tempfile.gettempdir()),
            "agprof's cache": host.cache_dir(os.environ),
            "/dev/shm": Path("/dev/shm"),
        }
        return NodeFacts(
            host=socket.gethostname(),
            boot_id=doctor_host.boot_id(),
            user=_user(),
            system=_system(),
            kernel=platform.release(),
            machine=platform.machine(),
            container=doctor_host.container(),
            python=platform.python_version(),
            python_path=sys.executable,
            agprof=__version__,
            agprof_path=str(Path(__file__).resolve().parents[1]),
            folder=str(Path.cwd()),
            packages=doctor_software.packages(),
            torch=torch.result(),
            sampler=sampler.result(),
            driver=doctor_host.driver(),
            topology=topology.result(),
            cuda_visible_devices=os.environ.get("CUDA_VISIBLE_DEVICES"),
            ops=ops,
            ops_folder=ops_folder,
            build_tools_missing=tools,
            nsys=nsys,
            permissions=doctor_host.permissions(),
            limits=doctor_host.limits(),
            places=doctor_host.places(folders),
            cpu=host.cpu_model(),
            cores=os.cpu_count(),
            usable_cores=host.usable_cores(),
            governor=doctor_host.governor(),
            numa_nodes=doctor_host.numa_nodes(),
            numactl=doctor_software.numactl(),
            memory_bytes=total,
            memory_limit_bytes=limit,
            swap_bytes=swap,
            clock=doctor_host.clock(),
            interfaces=doctor_host.interfaces(),
            infiniband=doctor_host.infiniband(),
            environment=_environment(),
        )


def _user() -> str | None:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return None  # a container's user number without a name


def _system() -> str:
    with suppress(OSError):
        return platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    return platform.system()


def _environment() -> dict[str, str]:
    chosen = sorted(name for name in os.environ if name.startswith(_ENVIRONMENT_PREFIXES))
    return {name: os.environ[name][:_MAX_VALUE_CHARS] for name in chosen}


class Conversation:
    """Answers one line after the other."""

    def __init__(self) -> None:
        self._token = secrets.token_hex(8)
        self.port = self._listen(0)

    def hello(self) -> dict[str, Any]:
        """The first line."""
        found = [address for interface in doctor_host.interfaces() if interface.up for address in interface.addresses]
        return {
            "hello": HELLO,
            "host": socket.gethostname(),
            "port": self.port,
            "token": self._token,
            "addresses": found,
        }

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        """The answer to one question; an unknown one is told so."""
        if "ping" in question:
            return {"pong": question["ping"], "time_ns": time.time_ns()}
        if "bind" in question:
            try:
                self._listen(int(question["bind"]))
            except OSError as error:
                return {"bound": False, "error": error.strerror or str(error)}
            return {"bound": True}
        if "connect" in question:
            targets = [(list(map(str, names)), int(port), str(token)) for names, port, token in question["connect"]]
            with ThreadPoolExecutor(max(1, min(32, len(targets)))) as pool:
                return {"connected": list(pool.map(_connect_any, targets))}
        if "exists" in question:
            return {"exists": [Path(path).exists() for path in question["exists"]]}
        if "facts" in question:
            return {"facts": msgspec.to_builtins(node_facts(Path(question["facts"].get("runs", "."))))}
        return {"error": f"unknown question {sorted(question)}"}

    def _listen(self, port: int) -> int:
        # Both families where the kernel has them: a name of the hostfile may mean either.
        both = socket.has_dualstack_ipv6()
        listener = socket.create_server(
            ("", port), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both, backlog=128
        )
        threading.Thread(target=_accept, args=(listener, self._token.encode()), daemon=True).start()
        return int(listener.getsockname()[1])


def _accept(listener: socket.socket, token: bytes) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with suppress(OSError), connection:
            connection.sendall(token)


def _connect_any(target: tuple[list[str], int, str]) -> tuple[str | None, list[str]]:
    """(the first address that led to the node, what went wrong with those before it)."""
    addresses, port, token = target
    failures: list[str] = []
    for address in addresses:
        failure = _connect(address, port, token.encode())
        if failure is None:
            return address, failures
        failures.append(f"{address}: {failure}")
    return None, failures


def _connect(address: str, port: int, token: bytes) -> str | None:
    """None when a TCP connection to the right node came about, else why not."""
    try:
        with socket.create_connection((address, port), timeout=CONNECT_TIMEOUT_S) as connection:
            heard = b""
            while len(heard) < len(token) and (more := connection.recv(64)):
                heard += more
            return None if heard == token else "another program answers there"
    except TimeoutError:
        return f"no answer within {CONNECT_TIMEOUT_S:.0f} s"
    except OSError as error:
        return error.strerror or str(error)


def main() -> int:
    """Hold the conversation. Returns the exit code."""
    conversation = Conversation()
    _say(conversation.hello())
    for line in sys.stdin:
        try:
            question = json.loads(line)
            answer = conversation.answer(question)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        _say(answer)
    return 0


def _say(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    # Not sys.exit: threads that wait for connections must not keep the process.
    code = main()
    sys.stdout.flush()
    os._exit(code)
