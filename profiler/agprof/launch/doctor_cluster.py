"""Asks all nodes of a hostfile over ssh, each by one session that holds a conversation with `doctor_probe` there."""

import json
import queue
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from agprof.launch.doctor_probe import HELLO
from agprof.launch.hostfile import Host
from agprof.model.doctor_cluster import ClusterFacts, NodeReport, Reached, Skew
from agprof.model.doctor_facts import NodeFacts

Say = Callable[[str], None]

HELLO_TIMEOUT_S = 30.0
ANSWER_TIMEOUT_S = 150.0
SSH_CONNECT_TIMEOUT_S = 8
PINGS = 8
MAX_NODES_FOR_ALL_PAIRS = 16
_AT_ONCE = 32
MAX_ADDRESSES = 4
NO_FOLDER = 91
NO_PYTHON = 92
_LAST_CHARS = 400
LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})

# What ssh says, in the order in which it is looked for.
_SSH_SAYS = (
    ("Host key verification failed", "host key"),
    ("REMOTE HOST IDENTIFICATION HAS CHANGED", "host key"),
    ("Permission denied", "key"),
    ("Too many authentication failures", "key"),
    ("Could not resolve hostname", "name"),
    ("Connection refused", "refused"),
    ("timed out", "timeout"),
    ("No route to host", "timeout"),
    ("No module named 'agprof'", "agprof"),
    ("No module named agprof", "agprof"),
)


class NodeError(Exception):
    """A node can't be asked (any more); `kind` is that of model.doctor_cluster.NodeReport."""

    def __init__(self, kind: str, said: str) -> None:
        super().__init__(said)
        self.kind = kind


class Session:
    """A conversation with one node. Raises NodeError from every method when there is none (any more)."""

    def __init__(self, host: Host, argv: Sequence[str]) -> None:
        self.host = host
        self.hello: dict[str, Any] = {}
        try:
            self._process = subprocess.Popen(
                argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
            )
        except OSError as error:
            raise NodeError("other", f"{argv[0]}: {error.strerror or error}") from None
        self._lines: queue.Queue[bytes | None] = queue.Queue()
        self._said = bytearray()
        self._threads = [threading.Thread(target=read, daemon=True) for read in (self._read_lines, self._read_errors)]
        for thread in self._threads:
            thread.start()

    def greet(self) -> None:
        """Wait for the node's first line; lines of a login banner before it are passed over."""
        deadline = time.monotonic() + HELLO_TIMEOUT_S
        while self.hello.get("hello") != HELLO:
            self.hello = self._next_line(deadline)

    def ask(self, question: dict[str, Any], timeout_s: float = ANSWER_TIMEOUT_S) -> dict[str, Any]:
        """The answer to a question of `doctor_probe`."""
        try:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise self._ended() from None
        answer = self._next_line(time.monotonic() + timeout_s)
        if "error" in answer and len(answer) == 1:
            raise NodeError("other", str(answer["error"]))
        return answer

    def close(self) -> None:
        """End the session; never raises."""
        try:
            if self._process.stdin is not None:
                self._process.stdin.close()
        except OSError:
            pass
        try:
            self._process.wait(3)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _next_line(self, deadline: float) -> dict[str, Any]:
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise NodeError("timeout", "the node gave no answer in time") from None
            if line is None:
                raise self._ended()
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict):
                return value

    def _ended(self) -> NodeError:
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            code = -1
        for thread in self._threads:
            thread.join(1)
        said = bytes(self._said).decode("utf-8", "replace").strip()[-_LAST_CHARS:]
        if code == NO_FOLDER:
            return NodeError("folder", f"there is no folder {Path.cwd()}")
        if code == NO_PYTHON:
            return NodeError("python", f"there is no Python at {sys.executable}")
        kind = next((kind for words, kind in _SSH_SAYS if words in said), "other")
        return NodeError(kind, said.splitlines()[-1] if said else f"ended with {code} and said nothing")

    def _read_lines(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._said += line
            del self._said[: -4 * _LAST_CHARS]


def remote_command(folder: Path, python: str) -> str:
    """The shell's command on a node: same folder and same Python as here, as DeepSpeed's launcher wants them."""
    program = shlex.quote(python)
    return (
        f"cd {shlex.quote(str(folder))} || exit {NO_FOLDER}; test -x {program} || exit {NO_PYTHON}; "
        f"exec {program} -P -m agprof.launch.doctor_probe"
    )


def session_argv(host: Host, hosts: Sequence[Host], ssh: Sequence[str]) -> list[str]:
    """How to begin a session: through ssh, but for a lone `localhost`, for which DeepSpeed needs none either."""
    if len(hosts) == 1 and host.name in LOCAL_NAMES:
        return [sys.executable, "-P", "-m", "agprof.launch.doctor_probe"]
    options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={SSH_CONNECT_TIMEOUT_S}", "-T"]
    return [*ssh, *options, host.name, remote_command(Path.cwd(), sys.executable)]


def examine(hosts: Sequence[Host], *, ssh: Sequence[str], runs: Path, master_port: int, say: Say) -> ClusterFacts:
    """Everything about all nodes. Nodes that can't be asked are there with the reason; raises nothing for them."""
    failed: dict[str, NodeReport] = {}
    sessions: dict[str, Session] = {}
    with ExitStack() as stack, ThreadPoolExecutor(_AT_ONCE) as pool:

        def fail(host: Host, error: NodeError) -> None:
            failed[host.name] = NodeReport(
                name=host.name, slots=host.slots, facts=None, error=str(error), kind=error.kind
            )
            sessions.pop(host.name, None)

        def begin(host: Host) -> None:
            try:
                session = Session(host, session_argv(host, hosts, ssh))
                stack.callback(session.close)
                session.greet()
                sessions[host.name] = session
            except NodeError as error:
                fail(host, error)

        say(f"{len(hosts)} node{'s' * (len(hosts) > 1)}: connecting")
        list(pool.map(begin, hosts))
        say(f"{len(sessions)} of {len(hosts)} answer: clocks, ports, software")
        skews = dict(pool.map(lambda item: (item[0], _skew(item[1])), list(sessions.items())))
        bind_error = _bind(sessions.get(hosts[0].name), master_port)
        live = [host for host in hosts if host.name in sessions]
        all_pairs = len(live) <= MAX_NODES_FOR_ALL_PAIRS
        port_open = bind_error is None and hosts[0].name in sessions
        tries = _tries(live, sessions, hosts[0].name if port_open else None, master_port, all_pairs)
        reached = [
            found
            for part in pool.map(lambda host: _connect(sessions[host.name], tries[host.name]), live)
            for found in part
        ]

        def facts(host: Host) -> NodeReport | None:
            session = sessions[host.name]
            try:
                value = session.ask({"facts": {"runs": str(runs)}})["facts"]
                return NodeReport(
                    name=host.name,
                    slots=host.slots,
                    facts=msgspec.convert(value, NodeFacts),
                    skew=skews.get(host.name),
                    addresses=tuple(map(str, session.hello.get("addresses", ()))),
                )
            except (KeyError, msgspec.ValidationError) as error:
                fail(host, NodeError("other", f"its answer can't be read: {error}"))
            except NodeError as error:
                fail(host, error)
            return None

        reports = {report.name: report for report in pool.map(facts, live) if report is not None}
    return ClusterFacts(
        nodes=tuple(reports.get(host.name) or failed[host.name] for host in hosts),
        reached=tuple(reached),
        master_port=master_port,
        master_port_error=bind_error,
        all_pairs=all_pairs,
    )


def _skew(session: Session) -> Skew | None:
    """Offset of the node's wall clock by the shortest of some exchanges."""
    best: Skew | None = None
    for number in range(PINGS):
        before = time.time_ns()
        begin = time.monotonic_ns()
        try:
            there = int(session.ask({"ping": number}, timeout_s=10)["time_ns"])
        except (NodeError, KeyError, ValueError):
            return best
        took = time.monotonic_ns() - begin
        if best is None or took // 2 < best.uncertainty_ns:
            best = Skew(offset_ns=there - (before + took // 2), uncertainty_ns=max(1, took // 2))
    return best


def _bind(session: Session | None, port: int) -> str | None:
    if session is None:
        return None
    try:
        answer = session.ask({"bind": port}, timeout_s=10)
    except NodeError as error:
        return str(error)
    return None if answer.get("bound") else str(answer.get("error", "unknown"))


@dataclass(frozen=True, slots=True)
class _Try:
    target: str
    addresses: tuple[str, ...]
    port: int
    token: str


def _tries(
    live: Sequence[Host], sessions: dict[str, Session], master: str | None, master_port: int, all_pairs: bool
) -> dict[str, list[_Try]]:
    found: dict[str, list[_Try]] = {}
    for index, host in enumerate(live):
        following = live[(index + 1) % len(live)]
        targets = [other for other in live if other is not host and (all_pairs or other in (live[0], following))]
        tries = [_try(sessions[other.name]) for other in targets]
        if master is not None and host.name != master:
            tries.append(replace(_try(sessions[master]), port=master_port))
        found[host.name] = tries
    return found


def _try(session: Session) -> _Try:
    """By address, as NCCL, gloo and DeepSpeed's launcher do (`hostname -I`); by its name in the hostfile at last."""
    told = [str(address) for address in session.hello.get("addresses", ())]
    addresses = sorted((a for a in told if not a.startswith("127.") and a != "::1"), key=lambda a: ":" in a)
    name = session.host.name.rpartition("@")[2]
    last = () if name in LOCAL_NAMES else (name,)
    return _Try(
        target=session.host.name,
        addresses=(*addresses[:MAX_ADDRESSES], *last),
        port=int(session.hello["port"]),
        token=str(session.hello.get("token", "")),
    )


def _connect(session: Session, tries: Sequence[_Try]) -> list[Reached]:
    if not tries:
        return []
    asked = [[one.addresses, one.port, one.token] for one in tries]
    try:
        answers = session.ask({"connect": asked}, timeout_s=ANSWER_TIMEOUT_S)["connected"]
    except (NodeError, KeyError) as error:
        answers = [(None, [f"could not be asked: {error}"])] * len(tries)
    return [
        Reached(
            source=session.host.name,
            target=one.target,
            port=one.port,
            address=None if address is None else str(address),
            failures=tuple(map(str, failures)),
        )
        for one, (address, failures) in zip(tries, answers, strict=True)
    ]
