"""`agprof forecast`: options, text and JSON."""

import json
from pathlib import Path

import pytest

from agprof.cli.main import main
from agprof.store import layout
from synthetic import build_run


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(["forecast", *words])
    return int(end.value.code or 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = build_run(tmp_path / "one", nodes=2, transfer_ms=40.0)
    manifest = json.loads((made / layout.MANIFEST).read_text())
    manifest |= {
        "setup_section": {"emulate": {"rate": "1gbit"}},
        "link": "emulated link, 1gbit",
        "setup": "one\x1b[31m",
    }
    (made / layout.MANIFEST).write_text(json.dumps(manifest))
    return made


def test_another_link_is_forecast(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(folder), "--rate", "200mbit", "--delay", "1ms") == 0
    said = capsys.readouterr().out
    assert "2 nodes, 2 ranks, 200 Mbit/s, 1 ms each way" in said
    assert "\x1b" not in said


def test_json_has_the_interval(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(folder), "--nodes", "4", "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["ranks"] == 4
    assert row["predicted"]["low"] < row["predicted"]["value"] < row["predicted"]["high"]


def test_a_second_run_is_held_against_the_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(folder), str(folder)) == 0
    assert "measured" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "rule"),
    [
        ((), 2, "say what to forecast"),
        (("--rate", "fast"), 2, "is no rate"),
        (("--delay", "soon"), 2, "is no delay"),
        (("--nodes", "0"), 2, "nodes"),
    ],
)
def test_what_cannot_be_is_refused(
    words: tuple[str, ...], code: int, rule: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(str(folder), *words) == code
    assert rule in capsys.readouterr().err


def test_a_run_without_steps_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(build_run(tmp_path / "none", steps=0)), "--nodes", "4") != 0
    assert "no steady step" in capsys.readouterr().err
