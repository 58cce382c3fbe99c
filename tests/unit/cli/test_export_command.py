"""`agprof export`, and `traces:` at the end of a run."""

import pytest

from agprof.cli import export as export_module
from agprof.cli import run as run_module
from agprof.cli.main import main
from agprof.config.traces import TRACE_FORMATS
from agprof.errors import TraceError
from agprof.exporters import formats
from agprof.exporters.formats import EXPORTERS, Exporter
from nvtxt_grammar import parse
from synthetic import build_run


@pytest.fixture
def folder(tmp_path):
    return build_run(tmp_path / "run")


def command(capsys, *words):
    with pytest.raises(SystemExit) as ended:
        main([*map(str, words)])
    out, err = capsys.readouterr()
    return ended.value.code or 0, out, err


def broken(run, folder, say):
    raise TraceError("a span lies 200 days after the first")


@pytest.fixture
def one_broken(monkeypatch):
    """`chrome` fails; nothing is imported for it."""
    table = {**EXPORTERS, "chrome": broken}
    monkeypatch.setattr(formats, "EXPORTERS", table)
    return table


def test_the_files_go_to_exports_and_their_paths_to_stdout(folder, capsys):
    code, out, err = command(capsys, "export", folder, "--format", "nvtxt")
    file = folder / "exports" / "run.nvtxt"
    assert (code, out, err) == (0, f"{file}\n", "")
    assert parse(file).ranges


def test_several_formats_and_another_folder(folder, tmp_path, capsys, one_broken):
    out_folder = tmp_path / "a" / "b"
    code, out, err = command(
        capsys, "export", folder, "--format", "chrome,nvtxt", "--format", "nvtxt", "--out", out_folder
    )
    assert code == 5
    assert out == f"{out_folder / 'run.nvtxt'}\n", "what can be written is written, once"
    assert err == "error: chrome could not be written: a span lies 200 days after the first\n"


@pytest.mark.parametrize(
    ("name", "hint"), [("nsys", "did you mean 'nsys-rep'?"), ("xml", "known: nsys-rep, nvtxt"), ("", "known: ")]
)
def test_a_format_that_nobody_knows(folder, capsys, name, hint):
    code, out, err = command(capsys, "export", folder, "--format", name)
    assert (code, out) == (2, "")
    assert hint in err


def test_no_run_folder(tmp_path, capsys):
    code, _, err = command(capsys, "export", tmp_path / "nothing", "--format", "nvtxt")
    assert code == 4
    assert "is not a run folder" in err


def test_a_folder_that_can_t_be_made(folder, tmp_path, capsys):
    (tmp_path / "file").touch()
    code, _, err = command(capsys, "export", folder, "--format", "nvtxt", "--out", tmp_path / "file")
    assert code == 4
    assert "name another folder with --out" in err


def test_the_workload_file_knows_the_formats_of_the_table():
    assert tuple(EXPORTERS) == TRACE_FORMATS
    assert all(isinstance(exporter, Exporter) for exporter in EXPORTERS.values())


def test_a_failing_format_at_the_end_of_a_run_is_said_and_no_more(folder, capsys, one_broken):
    run_module._export(folder, ["chrome", "nvtxt"])
    out, err = capsys.readouterr()
    assert out == f"{folder / 'exports' / 'run.nvtxt'}\n"
    assert "chrome could not be written" in err
    assert f"agprof export {folder} --format chrome,nvtxt" in err


def test_a_fault_in_an_exporter_does_not_end_the_run(folder, capsys, monkeypatch):
    monkeypatch.setattr(export_module, "write_exports", lambda *_: 1 / 0)
    run_module._export(folder, ["nvtxt"])
    assert "ZeroDivisionError" in capsys.readouterr().err
