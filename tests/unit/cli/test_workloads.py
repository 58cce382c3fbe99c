"""`agprof workloads`."""

import re
from pathlib import Path

import pytest

from agprof.cli.workloads import workloads
from agprof.config import bundled


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with two bundled workloads, in place of the real one."""
    package = tmp_path / "shelf_to_list"
    (package / "toy").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "toy" / "tiny.yaml").write_text("name: toy\nmodule: a\ndescription: 'a [bold] toy'\n")
    (package / "toy" / "full.yaml").write_text("name: toy-full\nmodule: a\ndescription: all of it\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(bundled, "PACKAGE", package.name)
    return package / "toy"


def test_plain_lines_where_nobody_looks(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workloads()
    assert capsys.readouterr() == (
        f"toy\ta [bold] toy\t{shelf}/tiny.yaml\ntoy/full\tall of it\t{shelf}/full.yaml\n",
        "",
    )


def test_a_table_on_a_terminal(
    shelf: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    workloads()
    header, first, second = re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert header.split() == ["name", "description", "file"]
    assert "a [bold] toy" in first
    assert "toy/full" in second


def test_nothing_bundled(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundled, "PACKAGE", "a_package_that_is_not_there")
    workloads()
    assert capsys.readouterr() == ("", "no workload is bundled with this installation\n")
