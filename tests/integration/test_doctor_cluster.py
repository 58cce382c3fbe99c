"""`agprof doctor` on this machine, and over a real sshd on nodes that are all this machine."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agprof.launch import doctor_cluster
from agprof.launch.doctor_cluster import remote_command
from agprof.launch.hostfile import Host

AGPROF = Path(sys.executable).with_name("agprof")
SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


def doctor(*arguments: str, cwd: Path | None = None) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(
        [AGPROF, "doctor", "--json", *arguments], capture_output=True, text=True, cwd=cwd, check=False
    )
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads(done.stdout)


def lines(answer: dict[str, Any], host: int = 0) -> dict[str, dict[str, str]]:
    return {check["key"]: check for check in answer["nodes"][host]["checks"]}


def test_this_machine_is_told_rightly_line_by_line(tmp_path: Path) -> None:
    code, answer = doctor("--out", str(tmp_path))
    found = lines(answer)
    assert code == (1 if any(check["status"] == "problem" for check in found.values()) else 0)
    assert found["python"]["found"].startswith(sys.version.split()[0])
    assert sys.executable in found["python"]["found"]
    torch_version = subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.__version__)"], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert found["torch"]["found"].startswith(torch_version)
    assert "gloo" in found["backends"]["found"]
    assert found["cores"]["found"].startswith(f"{len(os.sched_getaffinity(0))} usable of {os.cpu_count()}")
    stat = os.statvfs(tmp_path)
    assert str(tmp_path) in found["place-runs"]["found"]
    assert (found["place-runs"]["status"] == "problem") == (stat.f_bavail * stat.f_frsize < 2**30)
    source = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    if source.exists():
        assert found["clock-source"]["found"] == source.read_text().strip()
    soft = int(subprocess.run(["sh", "-c", "ulimit -n"], capture_output=True, text=True, check=True).stdout)
    assert found["open-files"]["found"].startswith(f"{soft:,}")
    if not Path("/proc/driver/nvidia/version").exists():
        assert found["driver"]["found"] == "not loaded"
        assert found["nvml-fields"]["status"] == "note"


def test_a_page_for_people_says_what_to_do_and_how_it_ends() -> None:
    done = subprocess.run([AGPROF, "doctor"], capture_output=True, text=True, check=False)
    assert "Software\n" in done.stdout
    assert "→ " in done.stdout
    last = " ".join(done.stdout.splitlines()[-2:])
    assert "problem" in last or "All is well" in last
    assert "a few seconds" in done.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("node1\n", ":1: 'node1' is not of the form"),
        ("# only this\n", "names no host"),
        ("a slots=1\na slots=2\n", ":2: host a stands there twice"),
        ("-oProxyCommand=x slots=1\n", ":1: '-oProxyCommand=x' can't be a host name"),
        ("a slots=0\n", ":1: host a has slots=0"),
    ],
)
def test_a_bad_hostfile_is_one_message(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "hosts"
    file.write_text(text)
    done = subprocess.run([AGPROF, "doctor", "--hostfile", file], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("error:") == 1


@dataclass(frozen=True)
class Cluster:
    """A real sshd on a free port, and an ssh that reaches it under several names."""

    folder: Path

    def ssh(self) -> str:
        return f"ssh -F {self.folder}/config"

    def hostfile(self, text: str) -> str:
        file = self.folder / "hosts"
        file.write_text(text)
        return str(file)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if SSHD is None or shutil.which("ssh") is None:
        pytest.skip("no sshd on this machine: install openssh-server")
    if os.geteuid() != 0:
        pytest.skip("sshd is started as root")
    folder = tmp_path_factory.mktemp("sshd")
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    shutil.copy(folder / "user.pub", folder / "authorized")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nPidFile none\nStrictModes no\n"
        f"AuthorizedKeysFile {folder}/authorized\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        "UsePAM no\n"
    )
    common = f"HostName 127.0.0.1\n Port {port}\n UserKnownHostsFile {folder}/known\n IdentitiesOnly yes\n"
    (folder / "config").write_text(
        f"Host node-a node-b\n {common} StrictHostKeyChecking accept-new\n IdentityFile {folder}/user\n"
        f"Host node-nokey\n {common} StrictHostKeyChecking accept-new\n IdentityFile /dev/null\n"
        f"Host node-unknown\n UserKnownHostsFile {folder}/none\n {common} StrictHostKeyChecking yes\n"
        f" IdentityFile {folder}/user\n"
        "Host node-down\n HostName 127.0.0.1\n Port 1\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)
    daemon = subprocess.Popen([SSHD, "-D", "-e", "-f", folder / "sshd_config"], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < deadline, "sshd did not come up"
                time.sleep(0.05)
        yield Cluster(folder)
    finally:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait(10)


def test_nodes_are_asked_over_ssh_and_what_is_wrong_is_told(cluster: Cluster) -> None:
    hosts = cluster.hostfile(
        "node-a slots=1\nnode-b slots=64\nnode-nokey slots=1\nnode-unknown slots=1\nnode-down slots=1\n"
        "no-such.invalid slots=1\n"
    )
    code, answer = doctor("--hostfile", hosts, "--ssh", cluster.ssh())
    found = {check["key"]: check for check in answer["cluster"]}
    assert code == 1
    assert [node["host"] for node in answer["nodes"]] == ["node-a", "node-b"]
    assert found["ssh"]["found"].startswith("2 of 6 nodes answer")
    for name, word in (
        ("node-nokey", "ssh-copy-id"),
        ("node-unknown", "ssh-keyscan"),
        ("node-down", "sshd"),
        ("no-such.invalid", "/etc/hosts"),
    ):
        assert found[f"ssh-{name}"]["status"] == "problem"
        assert word in found[f"ssh-{name}"]["advice"]
    assert found["same-machine"]["status"] == "warning"
    assert found["slots-node-b"]["status"] in ("warning", "problem")
    assert found["ports"]["status"] == "ok", found["ports"]
    assert found["clocks"]["status"] == "ok"
    assert answer["differences"] == []


def test_a_master_port_in_use_is_told(cluster: Cluster) -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        hosts = cluster.hostfile("node-a slots=1\nnode-b slots=1\n")
        _, answer = doctor("--hostfile", hosts, "--ssh", cluster.ssh(), "--master-port", str(port))
    found = {check["key"]: check for check in answer["cluster"]}
    assert found["master-port"]["status"] == "warning"
    assert str(port) in found["master-port"]["found"]
    assert found["ports"]["status"] == "ok"


def test_a_lone_localhost_needs_no_ssh(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("localhost slots=1  # a comment\n")
    _, answer = doctor("--hostfile", str(file), "--ssh", "/bin/false")
    assert [node["host"] for node in answer["nodes"]] == ["localhost"]


@pytest.mark.parametrize(
    ("folder", "python", "kind"),
    [("/no/such/folder", sys.executable, "folder"), ("/", "/no/such/python", "python"), ("/", "/bin/true", "other")],
)
def test_what_a_node_lacks_is_told_apart(folder: str, python: str, kind: str) -> None:
    argv = ["sh", "-c", remote_command(Path(folder), python)]
    session = doctor_cluster.Session(Host("x", 1), argv)
    with pytest.raises(doctor_cluster.NodeError) as caught:
        session.greet()
    session.close()
    assert caught.value.kind == kind


def test_a_folder_with_quotes_and_blanks_is_no_command(tmp_path: Path) -> None:
    folder = tmp_path / "a b'; touch owned; '"
    folder.mkdir()
    session = doctor_cluster.Session(Host("x", 1), ["sh", "-c", remote_command(folder, sys.executable)])
    session.greet()
    assert session.ask({"exists": ["owned", str(folder)]}) == {"exists": [False, True]}
    with pytest.raises(doctor_cluster.NodeError, match="unknown question"):
        session.ask({"x": 1})
    session.close()
    assert not list(tmp_path.glob("**/owned"))
