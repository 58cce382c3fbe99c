"""`agprof monitor -- COMMAND` with real processes: what they use is found, and they run as without it."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from agprof.launch import processes
from agprof.store.reader import read_run

AGPROF = (str(Path(sys.executable).parent / "agprof"),)
MIB = 2**20
BLOCK_MIB = 64
CHILDREN = 2
# Children that each hold a block of memory and count; how long is CPU time, so that a busy machine changes nothing.
WORK = f"""
import os, sys, time
children = []
for number in range({CHILDREN}):
    pid = os.fork()
    if not pid:
        block = bytearray({BLOCK_MIB} * 2**20)
        for at in range(0, len(block), 4096):
            block[at] = 1
        while time.process_time() < 1.0:
            sum(range(1000))
        os._exit(0)
    children.append(pid)
for pid in children:
    os.waitpid(pid, 0)
print("to stdout")
print("to stderr", file=sys.stderr)
sys.exit(5)
"""


def monitor(
    out: Path, command: Sequence[str], *options: str, env: dict[str, str] | None = None, stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    argv = [*AGPROF, "monitor", "--out", str(out), *options, "--", *command]
    return subprocess.run(argv, capture_output=True, timeout=120, check=False, input=stdin, env=env)


def only_run(out: Path) -> Path:
    (folder,) = out.iterdir()
    return folder


@pytest.fixture(scope="module")
def worked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("work")
    begin = time.monotonic()
    done = monitor(out, [sys.executable, "-c", WORK], "--period", "0.1", "--name", "work")
    folder = only_run(out)
    report = json.loads((folder / "report.json").read_text())
    return {"done": done, "folder": folder, "report": report, "took_s": time.monotonic() - begin}


def figure(report: dict[str, Any], key: str) -> float:
    return next(kpi["figure"]["value"] for kpi in report["kpis"] if kpi["key"] == key)


def test_output_and_exit_code_are_the_commands_own(worked: dict[str, Any]) -> None:
    done = worked["done"]
    assert done.returncode == 5, done.stderr[-2000:]
    assert done.stdout == b"to stdout\n"
    assert done.stderr.startswith(b"to stderr\n")


def test_memory_of_the_children_is_found(worked: dict[str, Any]) -> None:
    """Each child touches its block; an interpreter itself takes less than 40 MiB."""
    blocks = CHILDREN * BLOCK_MIB * MIB
    assert blocks <= figure(worked["report"], "command_memory") <= blocks + (CHILDREN + 1) * 40 * MIB


def test_cpu_of_the_children_is_found(worked: dict[str, Any]) -> None:
    """Each child counts for one second of CPU; starting interpreters takes less than another second together."""
    report = worked["report"]
    cpu_s = figure(report, "command_cpu") * figure(report, "duration") / 1e9
    assert CHILDREN * 1.0 <= cpu_s <= CHILDREN * 1.0 + 1.0
    assert figure(report, "duration") / 1e9 <= worked["took_s"]
    tree = read_run(worked["folder"]).tables["process_samples"]
    assert tree["rank"].null_count() == tree.height > 4
    sampled_s = float((tree["cpu_cores"] * tree["period_ns"]).sum()) / 1e9
    assert 0 < sampled_s <= cpu_s * 1.2


def test_the_run_says_what_it_is(worked: dict[str, Any]) -> None:
    folder, report = worked["folder"], worked["report"]
    manifest = json.loads((folder / "run.json").read_text())
    assert (manifest["kind"], manifest["name"], manifest["ranks"]) == ("monitor", "work", None)
    outcome = json.loads((folder / "outcome.json").read_text())
    assert (outcome["reason"], outcome["exit_code"], outcome["sampler_exit_code"]) == ("failed", 5, 0)
    assert report["identity"]["kind"] == "command"
    assert report["identity"]["status_sentence"].startswith("failed (exit code 5) after ")
    assert report["verdict"]["headline"].startswith("`work` used ")
    labels = {curve["label"] for curve in report["system"]["curves"]}
    assert {"command CPU", "command RSS", "command workers CPU", "command workers RSS"} <= labels
    html = (folder / "report.html").read_text()
    assert "No optimizer step" not in html
    assert "work" in html


def test_the_summary_goes_to_stderr_and_ends_with_the_report(worked: dict[str, Any]) -> None:
    lines = worked["done"].stderr.decode().splitlines()
    assert lines[-1] == str(worked["folder"] / "report.html")
    assert lines[1].startswith("work: failed (exit code 5) after ")


def test_environment_input_and_folder_are_as_without_it(tmp_path: Path) -> None:
    code = "import json, os, sys; print(json.dumps([dict(os.environ), sys.stdin.read(), os.getcwd()]))"
    env = {**os.environ, "RANK": "3", "MINE": "x"}
    done = monitor(tmp_path, [sys.executable, "-c", code], "--no-report", env=env, stdin=b"typed")
    assert done.returncode == 0, done.stderr
    environment, typed, folder = json.loads(done.stdout)
    assert environment == env
    assert (typed, folder) == ("typed", str(Path.cwd()))
    assert done.stderr.decode().splitlines() == [str(only_run(tmp_path))]
    assert not (only_run(tmp_path) / "report.html").exists()


def test_blocked_signals_are_not_left_to_the_command(tmp_path: Path) -> None:
    code = (
        "import signal; print(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])), signal.getsignal(signal.SIGTERM))"
    )
    done = monitor(tmp_path, [sys.executable, "-c", code], "--no-report")
    assert done.stdout.decode().strip() == "[] 0"


def test_a_killed_command_is_128_plus_its_signal(tmp_path: Path) -> None:
    done = monitor(tmp_path, ["sh", "-c", "kill -9 $$"])
    assert done.returncode == 137
    outcome = json.loads((only_run(tmp_path) / "outcome.json").read_text())
    assert (outcome["reason"], outcome["signal"]) == ("killed", "SIGKILL")
    assert b"killed (SIGKILL) after" in done.stderr


def test_what_the_command_leaves_behind_goes_on(tmp_path: Path) -> None:
    done = monitor(tmp_path, ["sh", "-c", "sleep 60 >/dev/null 2>&1 & echo $!"], "--no-report")
    pid = int(done.stdout)
    try:
        assert processes.is_running(pid)
    finally:
        os.kill(pid, signal.SIGKILL)


# ------------------------------------------------------------------------------------------------------- signals

WAITING = """
import signal, sys, time
seen = []
def note(number, frame):
    seen.append(number)
    print(signal.Signals(number).name, flush=True)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(number, note)
print("ready", flush=True)
deadline = time.monotonic() + 60
while not set(seen) - {signal.SIGUSR1} and time.monotonic() < deadline:
    time.sleep(0.05)
time.sleep(0.3)
sys.exit(len(seen))
"""


def samplers() -> list[int]:
    found = []
    for pid in processes.pids():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"agprof.sampler" in words:
            found.append(pid)
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_for_agprof_alone_reaches_the_command_once(tmp_path: Path, number: signal.Signals) -> None:
    argv = [*AGPROF, "monitor", "--out", str(tmp_path), "--", sys.executable, "-c", WAITING]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGUSR1)
    assert process.stdout.readline() == b"SIGUSR1\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert out.decode().split() == [number.name]
    assert process.returncode == 2, err
    outcome = json.loads((only_run(tmp_path) / "outcome.json").read_text())
    assert (outcome["reason"], outcome["signal"], outcome["sampler_exit_code"]) == ("interrupted", number.name, 0)
    assert f"interrupted by {number.name} after".encode() in err


def test_ctrl_c_in_a_terminal_reaches_the_command_once_and_ends_both(tmp_path: Path) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        argv = [*AGPROF, "monitor", "--out", str(tmp_path), "--", sys.executable, "-c", WAITING]
        os.execv(argv[0], argv)
    said = read_until(terminal, b"ready")
    os.write(terminal, b"\x03")
    said = read_until(terminal, b"nothing says this: until the terminal is closed")
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert b"report.html" in said
    assert said.count(b"SIGINT\r\n") == 1
    assert os.waitstatus_to_exitcode(status) == 1
    assert json.loads((only_run(tmp_path) / "outcome.json").read_text())["reason"] == "interrupted"


def read_until(terminal: int, end: bytes, seconds: float = 60.0) -> bytes:
    said, deadline = b"", time.monotonic() + seconds
    while end not in said:
        assert time.monotonic() < deadline, said
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                said += os.read(terminal, 65536)
            except OSError:  # the other end is closed
                break
    return said


def test_the_sampler_ends_when_agprof_is_killed(tmp_path: Path) -> None:
    argv = [*AGPROF, "monitor", "--out", str(tmp_path), "--", "sleep", "60"]
    process = subprocess.Popen(argv, start_new_session=True)
    try:
        deadline = time.monotonic() + 30
        while not (below := [pid for pid in processes.descendants(process.pid) if pid in samplers()]):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        command = [pid for pid in processes.descendants(process.pid) if pid not in samplers()]
        process.kill()
        process.wait()
    deadline = time.monotonic() + 10
    while any(processes.is_running(pid) for pid in below):
        assert time.monotonic() < deadline, "the sampler lives on"
        time.sleep(0.05)
    processes.send(command, signal.SIGKILL)


# --------------------------------------------------------------------------------------------- hostile and wrong


def test_words_of_any_kind_pass_unchanged_and_are_shown_safely(tmp_path: Path) -> None:
    program = tmp_path / "<script><img src=x onerror=alert(1)>"
    program.mkdir()
    program = program / "\x1b[31mred\u202e"
    program.write_text('#!/bin/sh\nprintf "%s|" "$@"\n')
    program.chmod(0o755)
    words = [
        "--",
        "-x",
        "",
        "a\nb",
        "\x01\x02",
        "</script>",
        b"\xff\xfe".decode("utf-8", "surrogateescape"),
        "x" * 100_000,
    ]
    done = monitor(tmp_path / "out", [str(program), *words])
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == b"".join(os.fsencode(word) + b"|" for word in words)
    folder = only_run(tmp_path / "out")
    assert folder.name.startswith("31mred"), "the name of a folder is plain"
    assert b"\x1b" not in done.stderr
    html = (folder / "report.html").read_text()
    assert "<img src=x" not in html
    json.loads((folder / "run.json").read_text())
    assert read_run(folder).problems == ()


def test_secrets_reach_the_command_and_no_file(tmp_path: Path) -> None:
    secret = "hf_" + "a" * 30
    env = {**os.environ, "HF_TOKEN": secret, "NCCL_DEBUG": "INFO"}
    done = monitor(tmp_path, ["sh", "-c", 'echo "$@"', "sh", "--api-key", "zzzqqq", secret], env=env)
    assert done.stdout.decode() == f"--api-key zzzqqq {secret}\n"
    written = b"".join(file.read_bytes() for file in only_run(tmp_path).rglob("*") if file.is_file())
    assert b"zzzqqq" not in written
    assert secret.encode() not in written
    assert b"NCCL_DEBUG" in written


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "write the command behind `--`: agprof monitor -- python train.py"),
        (["--"], 2, "there is nothing to run"),
        (["python", "x.py"], 2, "a command stands behind `--`: agprof monitor -- python x.py"),
        (["--", "no-such-program-here"], 3, "command 'no-such-program-here' was not found: it is not on PATH"),
        (["--", "./nothing-here"], 3, "there is no such file"),
        (["--", "./notes.py"], 3, "a Python file is run as: agprof monitor -- python ./notes.py"),
        (["--", "./nothing-inside"], 3, "begin a script with #!"),
        (["--period", "0.01", "--", "true"], 2, "--period"),
        (["--name", "a/b", "--", "true"], 2, "--name a/b: "),
        (["--out", "/proc/none", "--", "true"], 3, "can't write the run folder"),
    ],
)
def test_what_can_not_be_run_ends_with_one_message_and_no_folder(
    tmp_path: Path, words: list[str], code: int, message: str
) -> None:
    (tmp_path / "notes.py").write_text("print(1)")
    (tmp_path / "nothing-inside").write_text("words\n")
    (tmp_path / "nothing-inside").chmod(0o755)
    argv = [*AGPROF, "monitor", *words]
    done = subprocess.run(argv, capture_output=True, timeout=60, check=False, cwd=tmp_path, text=True)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert done.stderr.count("error: ") == 1
    assert list(tmp_path.glob("agprof-runs/*")) == [], "nothing was started and no run is left"
