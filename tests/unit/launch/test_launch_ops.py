"""Prebuilding DeepSpeed's ops: what is built stays, dead builds are cleared away, a missing compiler is no error."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from agprof.config.workload import Workload
from agprof.launch import ops
from agprof.launch.ops import BUILT, LOCK, Op, is_built, missing_tools, prepare_ops, remove_stale_locks, wants_ops

FAKE = (Op("one", "OneBuilder"), Op("two", "TwoBuilder"))
# Stands in for torch's builder: takes the lock as FileBaton does, makes the library, counts how often it ran.
BUILDER = """
import os, pathlib, sys
folder = pathlib.Path(os.environ["TORCH_EXTENSIONS_DIR"]) / sys.argv[1]
fd = os.open(folder / "lock", os.O_CREAT | os.O_EXCL)
with open(folder / "runs", "a") as runs: runs.write("x")
(folder / (sys.argv[1] + ".so")).touch()
os.close(fd)
(folder / "lock").unlink()
"""


@pytest.fixture
def tools(tmp_path, monkeypatch) -> dict[str, str]:
    """An environment with a compiler and ninja, on a machine without a GPU."""
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    for name in ("g++", "ninja"):
        (bin_ / name).write_text("#!/bin/sh\n")
        (bin_ / name).chmod(0o755)
    monkeypatch.setattr(ops.host, "has_gpu", lambda: False)
    return {"PATH": str(bin_)}


def command(_python: str, op: Op) -> list[str]:
    return [sys.executable, "-c", BUILDER, op.name]


def lines() -> tuple[list[str], ops.Say]:
    said: list[str] = []
    return said, said.append


def test_missing_ops_are_built_and_said_and_the_second_time_nothing_happens(tmp_path, tools):
    said, say = lines()
    ready = prepare_ops(tmp_path / "c", environ=tools, say=say, ops=FAKE, build_command=command)
    assert (ready.built, ready.missing, ready.no_ds_ops, ready.notes) == (("one", "two"), (), False, ())
    assert any("compiling one (1/2)" in line for line in said)
    said.clear()
    assert prepare_ops(tmp_path / "c", environ=tools, say=say, ops=FAKE, build_command=command).built == ()
    assert said == []


def test_time_is_told_while_it_lasts(tmp_path, tools, monkeypatch):
    monkeypatch.setattr(ops, "ANNOUNCE_S", 0.0)
    said, say = lines()
    prepare_ops(tmp_path, environ=tools, say=say, ops=FAKE[:1], build_command=command)
    assert any(line.endswith(" s") and "compiling" in line for line in said)


def test_concurrent_builders_build_once(tmp_path, tools):
    folder = tmp_path / "c"
    _said, say = lines()
    run = lambda: prepare_ops(folder, environ=tools, say=say, ops=FAKE, build_command=command)  # noqa: E731
    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(is_built(folder, op) for op in FAKE)
    assert [(folder / op.name / "runs").read_text() for op in FAKE] == ["x", "x"]


def test_a_failed_build_is_a_note_with_the_end_of_its_log(tmp_path, tools):
    fail = [sys.executable, "-c", "print('error: no such thing'); raise SystemExit(1)"]
    _said, say = lines()
    ready = prepare_ops(tmp_path, environ=tools, say=say, ops=FAKE[:1], build_command=lambda _p, _o: fail)
    assert ready.missing == ("one",)
    assert "error: no such thing" in ready.notes[0]


def test_without_a_compiler_the_job_does_without(tmp_path, tools):
    _said, say = lines()
    nothing = {"PATH": str(tmp_path / "empty")}
    assert missing_tools(nothing) == ("g++", "ninja")
    ready = prepare_ops(tmp_path / "c", environ=nothing, say=say, build_command=command)
    assert ready.no_ds_ops
    assert "g++ and ninja not found" in ready.notes[0]
    assert not (tmp_path / "c").exists()


def test_an_unwritable_cache_is_a_note(tmp_path, tools):
    (tmp_path / "file").write_text("")
    ready = prepare_ops(tmp_path / "file" / "c", environ=tools, say=print, ops=FAKE, build_command=command)
    assert "AGPROF_CACHE" in ready.notes[0]


def test_the_lock_of_a_dead_build_is_removed_and_said(tmp_path, tools):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / LOCK).touch()
    said, say = lines()
    ready = prepare_ops(tmp_path, environ=tools, say=say, ops=FAKE[:1], build_command=command)
    assert ready.built == ("one",)
    assert "removed the lock that a killed build of one left behind" in said[0]


def test_the_lock_of_a_killed_process_is_removed_and_that_of_a_living_one_is_not(tmp_path):
    (tmp_path / "one").mkdir()
    lock = str(tmp_path / "one" / LOCK)
    hold = f"import os, time; os.open({lock!r}, os.O_CREAT | os.O_EXCL); print('held', flush=True); time.sleep(600)"
    builder = subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE)
    assert builder.stdout is not None
    try:
        assert builder.stdout.readline() == b"held\n"
        assert remove_stale_locks(tmp_path, say=print) == ()
    finally:
        builder.kill()
        builder.wait()
        builder.stdout.close()
    assert remove_stale_locks(tmp_path, say=print) == ("one",)
    assert not (tmp_path / "one" / LOCK).exists()


def test_a_compiler_at_work_in_the_folder_keeps_the_lock(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / LOCK).touch()
    worker = subprocess.Popen([sys.executable, "-c", "input()"], cwd=tmp_path / "one", stdin=subprocess.PIPE)
    try:
        assert remove_stale_locks(tmp_path, say=print) == ()
    finally:
        worker.kill()
        worker.communicate()


def test_a_build_waits_for_the_compilers_that_a_killed_build_left(tmp_path, tools, monkeypatch):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / LOCK).touch()
    worker = subprocess.Popen([sys.executable, "-c", "input()"], cwd=tmp_path / "one", stdin=subprocess.PIPE)
    monkeypatch.setattr(ops, "ANNOUNCE_S", 0.0)
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if "waiting for another build of one" in line:
            worker.communicate(b"done\n")

    ready = prepare_ops(tmp_path, environ=tools, say=say, ops=FAKE[:1], build_command=command)
    assert ready.built == ("one",)
    assert worker.returncode == 0
    assert any("removed the lock" in line for line in said)


def test_a_library_without_our_mark_is_not_trusted(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "one.so").touch()
    assert not is_built(tmp_path, FAKE[0])
    (tmp_path / "one" / BUILT).touch()
    assert is_built(tmp_path, FAKE[0])


@pytest.mark.parametrize(
    ("document", "wanted"),
    [
        ({"module": "agprof_workloads.anomalygpt"}, True),
        ({"module": "mine.train"}, False),
        ({"module": "mine.train", "launch": {"launcher": "deepspeed"}}, True),
        ({"script": "ds.py"}, True),
        ({"script": "plain.py"}, False),
        ({"script": "missing.py"}, False),
    ],
)
def test_ops_are_built_for_jobs_that_are_likely_to_use_them(tmp_path: Path, document, wanted):
    (tmp_path / "ds.py").write_text("import deepspeed\n")
    (tmp_path / "plain.py").write_text("import torch\n")
    assert wants_ops(Workload.model_validate({"name": "x", **document}), tmp_path) is wanted


def test_the_key_names_what_ops_are_compiled_for(monkeypatch):
    from agprof.launch import host

    key = host.extensions_key()
    monkeypatch.setattr(host, "_cpuinfo", lambda key: "other flags")
    assert host.extensions_key() != key
    assert "torch2" in key
    assert host.extensions_dir({"AGPROF_CACHE": "/c"}).is_relative_to("/c/torch_extensions")
    assert host.cache_dir({"HOME": "/h"}) == Path("/h/.cache/agprof")


def test_cores_and_port_of_this_machine():
    from agprof.launch import host

    assert 1 <= host.usable_cores() <= (os.cpu_count() or 1)
    assert 1024 < host.free_port() < 65536
