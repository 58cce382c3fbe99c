"""`agprof init`."""

from pathlib import Path

import pytest

from agprof.cli.init import init, write_workload
from agprof.config import bundled
from agprof.config.load import load_workload
from agprof.errors import ConfigError

TEXT = "# how to train a toy\nname: toy\nmodule: a\n"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, and a package with two bundled workloads in place of the real one."""
    package = tmp_path / "lib" / "shelf_to_copy"
    (package / "toy").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "toy" / "tiny.yaml").write_text(TEXT)
    (package / "toy" / "full.yaml").write_text("name: toy-full\nmodule: a\n")
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setattr(bundled, "PACKAGE", package.name)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return here


def test_the_file_is_copied_as_it_is_and_can_be_run(capsys: pytest.CaptureFixture[str]) -> None:
    init("toy")
    assert Path("toy.yaml").read_text() == TEXT
    assert capsys.readouterr().out == "wrote toy.yaml\nnext:\n  agprof run toy.yaml\n"
    assert load_workload("toy.yaml").workload.name == "toy"


def test_names_of_files(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert write_workload("toy/full", None, force=False) == Path("toy-full.yaml")
    assert write_workload("toy/tiny", None, force=False) == Path("toy.yaml")
    init("toy", here / "my job.yml")
    assert f"  agprof run '{here}/my job.yml'\n" in capsys.readouterr().out


def test_an_existing_file_is_written_over_only_when_told(here: Path) -> None:
    Path("toy.yaml").write_text("mine")
    with pytest.raises(ConfigError, match=r"^toy\.yaml exists; write over it with --force, or name another --out$"):
        write_workload("toy", None, force=False)
    assert Path("toy.yaml").read_text() == "mine"
    write_workload("toy", None, force=True)
    assert Path("toy.yaml").read_text() == TEXT


def test_a_dangling_link_is_not_written_through(here: Path) -> None:
    Path("toy.yaml").symlink_to("elsewhere.yaml")
    with pytest.raises(ConfigError, match="exists"):
        write_workload("toy", None, force=False)
    assert not Path("elsewhere.yaml").exists()


@pytest.mark.parametrize(
    ("name", "out", "message"),
    [
        ("toyy", None, "'toyy' is no bundled workload; did you mean 'toy'?"),
        ("qwertz", None, "'qwertz' is no bundled workload; bundled workloads: toy, toy/full"),
        ("toy", Path("toy"), "--out toy: a workload file's name ends in .yaml"),
        ("toy", Path("none/toy.yaml"), "none/toy.yaml can't be written: No such file or directory; name another --out"),
    ],
)
def test_what_can_not_be_written(name: str, out: Path | None, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        write_workload(name, out, force=False)
    assert str(caught.value) == message
