"""`nsys-rep` without Nsight Systems, with a stub of it, and with a stub of nsys_writer."""

import os
import stat
import sys
import types

import pytest
from scene_runs import run_of

from agprof.errors import TraceError
from agprof.exporters import nsys_report
from agprof.exporters.lanes import colour, processes
from agprof.launch.nsight import find_import_nvtxt, find_nsys, find_writer_backend
from agprof.store.reader import read_run
from nvtxt_grammar import parse
from synthetic import build_run


@pytest.fixture
def run(tmp_path):
    return read_run(build_run(tmp_path / "run"))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.fixture
def no_nsys(monkeypatch, tmp_path):
    monkeypatch.setenv("AGPROF_NSYS", str(tmp_path / "not-there"))
    monkeypatch.delenv("NSYS_WRITER_BACKEND", raising=False)


def names_in(folder):
    return sorted(file.name for file in folder.iterdir())


def program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.fixture
def fake_nsys(monkeypatch, tmp_path):
    """A tree like Nsight's: nsys writes a base report, ImportNvtxt joins base and text."""
    monkeypatch.delenv("NSYS_WRITER_BACKEND", raising=False)
    root = tmp_path / "nsight"
    nsys = program(
        root / "target-linux-x64" / "nsys",
        'case $1 in --version) echo "NVIDIA Nsight Systems version 2022.4.2.1-x";; '
        'profile) while [ "$1" != -o ]; do shift; done; env > "$2.nsys-rep";; esac',
    )
    monkeypatch.setenv("AGPROF_NSYS", str(nsys))
    monkeypatch.setenv("AGPROF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("A_SECRET", "hunter2")
    program(
        root / "host-linux-x64" / "ImportNvtxt",
        'cat "$4" "$6" > "$8"; echo "$(grep -cE "^(Range|Marker)" "$6") events imported"',
    )
    return root


def test_without_nsight_text_and_sqlite_are_written_and_the_command_is_said(run, folder, no_nsys):
    said = []
    files = nsys_report.export(run, folder, said.append)
    assert sorted(file.name for file in files) == ["run.nvtxt", "run.sqlite"] == names_in(folder)
    parse(folder / "run.nvtxt")
    assert "scripts/nsight" in said[0]
    assert f"ImportNvtxt --cmd create -n '{folder / 'run.nvtxt'}'" in said[1]
    assert said[1].endswith(f"touch '{folder / 'run.sqlite'}'")


def test_with_nsight_the_report_comes_first_and_the_sqlite_is_newer(run, folder, fake_nsys):
    said = []
    files = nsys_report.export(run, folder, said.append)
    assert [file.name for file in files] == ["run.nsys-rep", "run.nvtxt", "run.sqlite"]
    assert names_in(folder) == sorted(file.name for file in files), "something was left behind"
    assert int((folder / "run.sqlite").stat().st_mtime) > int((folder / "run.nsys-rep").stat().st_mtime)
    report = (folder / "run.nsys-rep").read_text(encoding="utf-8")
    assert "hunter2" not in report, "nsys was given our environment"
    assert report.endswith((folder / "run.nvtxt").read_text(encoding="utf-8"))
    assert not [line for line in said if "secrets" not in line]


def test_an_importer_that_drops_events_is_not_silent(run, folder, fake_nsys):
    program(fake_nsys / "host-linux-x64" / "ImportNvtxt", 'cp "$4" "$8"; echo "3 events imported"')
    said = []
    nsys_report.export(run, folder, said.append)
    assert any("took 3 of" in line for line in said)


def test_an_importer_that_fails_is_an_error_in_its_own_words(run, folder, fake_nsys):
    program(fake_nsys / "host-linux-x64" / "ImportNvtxt", "echo Unknown variable: DomainId; exit 1")
    with pytest.raises(TraceError, match="Unknown variable: DomainId"):
        nsys_report.export(run, folder, lambda _: None)
    assert names_in(folder) == ["run.nvtxt"]


def test_a_run_that_holds_nothing_is_said_to(tmp_path, folder, fake_nsys):
    with run_of({0: []}) as empty, pytest.raises(TraceError, match="holds no span and no mark"):
        nsys_report.export(empty, folder, lambda _: None)
    assert not list(folder.glob("*.nsys-rep"))


def test_a_captured_report_is_merged_and_warned_of_first(run, folder, fake_nsys, monkeypatch):
    captured = run.path / "nsys" / "rank-00001.nsys-rep"
    captured.parent.mkdir()
    captured.write_text("captured\n", encoding="utf-8")
    (run.path / "nsys" / "rank-00001.json").write_text("{}", encoding="utf-8")
    done = []
    monkeypatch.setattr(nsys_report, "export_sqlite", lambda nsys, report, out: (done.append(report), out.touch()))
    monkeypatch.setattr(nsys_report.nsys_sqlite, "session_start_ns", lambda file: 1_790_000_000_000_000_000)
    monkeypatch.setattr(nsys_report.nsys_sqlite, "extend", lambda *args, **options: done.append(options))
    said = []
    files = nsys_report.export(run, folder, said.append)
    assert [file.name for file in files[-2:]] == ["rank-00001.nsys-rep", "rank-00001.sqlite"]
    assert done == [captured, {"rank": 1, "epoch": 1_790_000_000_000_000_000, "domain": "run folder: "}]
    assert "secrets" in said[-1] and "rank-00001" in said[-1]
    text = (folder / "rank-00001.nsys-rep").read_text(encoding="utf-8")
    assert text.startswith("captured\n") and "rank 01" in text and "rank 00" not in text


class _Stub:
    """nsys_writer as its documentation has it, noting what it is told."""

    def __init__(self, told, name):
        self.told, self.name = told, name

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.told.append(("closed", self.name))

    def get_domain(self, name):
        return f"domain {name}"

    def create_stream(self, name, *, domain):
        return _Stub(self.told, f"{domain}/{name}")

    def write_pushpop(self, start, end, *, message, color, category):
        self.told.append((self.name, category, message, start, end, color))

    def write_mark(self, timestamp, *, message, color, category):
        self.told.append((self.name, category, message, timestamp))


def test_nsys_writer_is_the_first_choice_where_its_backend_is(run, folder, fake_nsys, monkeypatch):
    told = []
    module = types.ModuleType("nsys_writer")
    module.__spec__ = types.SimpleNamespace()
    module.Session = lambda name: _Stub(told, name)
    monkeypatch.setitem(sys.modules, "nsys_writer", module)
    (fake_nsys / "host-linux-x64" / "libNvtxwBackend.so").touch()
    monkeypatch.setattr("agprof.launch.nsight.os.environ", dict(os.environ))
    files = nsys_report.export(run, folder, lambda _: None)
    assert [file.name for file in files] == ["run.nsys-rep", "run.sqlite"]
    wanted = [
        (f"domain agprof/{process.name}: {lane.name}", category, name, start, end, 0xFF000000 | colour(category))
        for process in processes(run)
        for lane in process.lanes
        for category, name, start, end, _ in lane.spans.iter_rows()
    ]
    assert [row for row in told if len(row) == 6] == wanted
    assert [row for row in told if len(row) == 4 and row[1] == "mark"]
    assert told[-1] == ("closed", str(folder / "run"))


def test_where_nsys_is_looked_for(tmp_path, fake_nsys):
    named = fake_nsys / "target-linux-x64" / "nsys"
    on_path = program(tmp_path / "bin" / "nsys", "true")
    cached = program(tmp_path / "cache" / "nsight" / "current" / "usr" / "bin" / "nsys", "true")
    cache = {"AGPROF_CACHE": str(tmp_path / "cache")}
    assert find_nsys({"AGPROF_NSYS": str(named), "PATH": str(on_path.parent)}) == named
    assert find_nsys({"PATH": str(on_path.parent), **cache}) == on_path
    assert find_nsys({"PATH": str(tmp_path), **cache}) == cached
    assert find_nsys({"AGPROF_NSYS": str(tmp_path / "wrong"), "PATH": str(on_path.parent)}) is None
    found = find_import_nvtxt({"AGPROF_NSYS": str(named)})
    assert found is not None and found.libraries == fake_nsys / "host-linux-x64"
    assert found.environment()["LD_LIBRARY_PATH"] == str(fake_nsys / "host-linux-x64")
    assert find_import_nvtxt({"PATH": str(on_path.parent)}) is None
    assert find_writer_backend({"AGPROF_NSYS": str(named)}) is None
