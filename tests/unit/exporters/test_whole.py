"""A file of an export is there when it is whole; one that fails leaves the one before."""

from pathlib import Path

import polars as pl
import pytest

from agprof.exporters import chrome, nsys_sqlite, nvtxt, parquet, perfetto
from agprof.exporters.whole import whole
from agprof.store.reader import Run, read_run
from synthetic import build_run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return read_run(build_run(tmp_path / "run"))


def test_a_file_takes_its_name_at_the_end(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    with whole(file) as place:
        place.write_text("new")
        assert not file.exists()
        assert place.name.startswith(".")
    assert (file.read_text(), [path.name for path in tmp_path.iterdir()]) == ("new", ["a.txt"])


def test_what_was_there_stays_when_the_block_fails(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")
    with pytest.raises(KeyboardInterrupt), whole(file) as place:
        place.write_text("half")
        raise KeyboardInterrupt
    assert (file.read_text(), [path.name for path in tmp_path.iterdir()]) == ("old", ["a.txt"])


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("module", "step"),
    [
        (chrome, (chrome, "_names")),
        (perfetto, (perfetto, "node_scenes")),
        (nvtxt, (nvtxt, "_write_process")),
        (nsys_sqlite, (nsys_sqlite, "_add")),
        (parquet, (pl.LazyFrame, "sink_parquet")),
    ],
)
def test_an_interrupted_export_leaves_the_files_of_the_one_before(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: object, step: tuple[object, str]
) -> None:
    def export() -> None:
        if module is nsys_sqlite:
            nsys_sqlite.write(run, folder / "run.sqlite", lambda line: None)
        else:
            module.export(run, folder, lambda line: None)  # type: ignore[attr-defined]

    folder = tmp_path / "out"
    folder.mkdir()
    export()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert before
    monkeypatch.setattr(*step, interrupt)
    with pytest.raises(KeyboardInterrupt):
        export()
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
