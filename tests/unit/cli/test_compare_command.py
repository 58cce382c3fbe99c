"""`agprof compare` and `agprof baseline`: sides, exit codes, files, named baselines."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from agprof.cli.main import main
from agprof.exporters import compare_json
from agprof.model.compare_answers import CompareAnswer
from agprof.store import layout
from synthetic import HOSTILE, build_run

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs a command line in a project's folder: its exit code, stdout and stderr."""
    (tmp_path / ".git").mkdir()
    monkeypatch.chdir(tmp_path)

    def call(*argv: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(argv)
        assert isinstance(caught.value.code, int)
        return caught.value.code, *capsys.readouterr()

    return call


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Runs `a`, `b` (as fast) and `slow`, with marks of nothing."""
    for number, (name, transfer_ms) in enumerate({"a": 3.0, "b": 3.0, "slow": 30.0}.items()):
        build_run(tmp_path / name, name=name, transfer_ms=transfer_ms, seed=number, sampler=False)
    return tmp_path


def answer_in(folder: Path) -> CompareAnswer:
    return compare_json.decode((folder / "compare.json").read_bytes())


def mark(run: Path, **marks: object) -> None:
    manifest = json.loads((run / layout.MANIFEST).read_text())
    (run / layout.MANIFEST).write_text(json.dumps({**manifest, **marks}))


def test_two_runs_are_compared_and_written(run: Run, runs: Path) -> None:
    code, out, _ = run("compare", "a", "slow", "--out", "there")
    assert code == 0
    answer = answer_in(runs / "there")
    assert [side.label for side in answer.sides] == ["a", "slow"]
    assert out.startswith("slow takes")
    assert len(out.splitlines()) <= 25
    assert out.splitlines()[-1] == str(runs / "there" / "compare.html")
    page = (runs / "there" / "compare.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert "slow takes" in page


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (("a", "b", "--gate", "step_time<=+5%"), 0),
        (("a", "a", "--gate", "step_time<=+0%", "--gate", "memory.peak<=+0%"), 0),
        (("a", "slow", "--gate", "step_time<=+5%"), 1),
        (("slow", "a", "--gate", "step_time<=+5%"), 0),
        (("a", "slow", "--gate", "memory.peak<=+2%", "--gate", "step_time<=100ms"), 1),
        (("a", "b", "--gate", "energy.per_step<=+5%"), 2),
        (("a", "slow", "--gate", "energy.per_step<=+5%", "--gate", "step_time<=+5%"), 1),
        (("a", "nowhere"), 3),
        (("a",), 3),
        ((), 3),
        (("a", "b", "--gate", "step_time<=5"), 3),
        (("a", "b", "--no-such-option"), 3),
        (("a", "b", "--baseline", "3"), 3),
        (("a", "b", "--baseline", "nobody"), 3),
        (("a", "--group", "b"), 3),
        (("a", "b", "--out", "a/run.json"), 3),
    ],
)
def test_exit_codes(argv: tuple[str, ...], code: int, run: Run, runs: Path) -> None:
    found, out, err = run("compare", *argv)
    assert found == code, out + err
    assert ("error: " in err) == (code == 3)
    if code == 3:
        assert out == ""


def test_runs_that_are_not_comparable_exit_2_with_the_reason(run: Run, runs: Path) -> None:
    build_run(runs / "empty", steps=0, sampler=False)
    code, out, _ = run("compare", "a", "empty", "--gate", "step_time<=+5%")
    assert code == 2
    assert "not comparable" in out
    assert "no steady step" in out


def test_a_folder_that_is_no_run_is_told_from_a_run_that_is_gone(run: Run, runs: Path) -> None:
    (runs / "folder").mkdir()
    assert "is not a run folder: it has neither" in run("compare", "a", "folder")[2]
    assert "is not a run folder: no such directory" in run("compare", "a", "gone")[2]


def test_the_baseline_is_a_number_a_folder_or_one_more_run(run: Run, runs: Path) -> None:
    run("compare", "a", "b", "slow", "--baseline", "2")
    assert answer_in(runs / "agprof-compare").baseline == 1
    run("compare", "a", "b", "slow", "--baseline", str(runs / "slow"))
    assert answer_in(runs / "agprof-compare").baseline == 2
    run("compare", "a", "--baseline", "slow")
    answer = answer_in(runs / "agprof-compare")
    assert (answer.baseline, [side.label for side in answer.sides]) == (0, ["slow", "a"])


def test_repeats_are_one_side_by_their_marks_and_by_groups(run: Run, runs: Path) -> None:
    for number, name in enumerate(("one-1", "one-2", "two-1", "two-2")):
        setup, repeat = name.split("-")
        build_run(runs / name, name="job", seed=number, sampler=False)
        mark(runs / name, setup=setup, repeat=int(repeat), series="job-setups")
    run("compare", "one-1", "two-1", "two-2", "one-2")
    sides = answer_in(runs / "agprof-compare").sides
    assert [(side.label, side.runs) for side in sides] == [("one", ("one-1", "one-2")), ("two", ("two-1", "two-2"))]
    run("compare", "a", "--group", "both=slow, b")
    sides = answer_in(runs / "agprof-compare").sides
    assert [(side.label, side.runs) for side in sides] == [("a", ("a",)), ("both", ("slow", "b"))]


def test_json_goes_to_stdout(run: Run, runs: Path) -> None:
    code, out, _ = run("compare", "a", "slow", "--json", "--gate", "step_time<=+5%")
    assert code == 1
    assert compare_json.decode(out.encode()).gates[0].passed is False


def test_markdown_for_a_pull_request(run: Run, runs: Path) -> None:
    code, out, _ = run("compare", "a", "slow", "--markdown", "-", "--gate", "step_time<=+5%")
    assert code == 1
    assert out.startswith("### agprof compare: comparable\n")
    assert "| step\\_time\\<=+5% | ✗ **failed** |" in out.replace("\\+", "+")
    assert "| Bandwidth | " in out
    run("compare", "a", "slow", "--markdown", "summary.md")
    assert (runs / "summary.md").read_text().startswith("### agprof compare")


def test_hostile_names_are_only_text(run: Run, runs: Path) -> None:
    build_run(runs / "hostile", hostile=True, sampler=False)
    _, out, _ = run("compare", "hostile", "a")
    assert all(line.isprintable() for line in out.splitlines())
    _, out, _ = run("compare", "hostile", "a", "--markdown", "-")
    assert "<img" not in out.replace("\\<img", "")
    assert HOSTILE not in (runs / "agprof-compare" / "compare.html").read_text()


# --- agprof baseline ------------------------------------------------------------------------------------------------


def test_a_baseline_is_set_listed_used_and_removed(run: Run, runs: Path) -> None:
    assert "no baselines" in run("baseline", "list")[1]
    code, out, _ = run("baseline", "set", "main", "a")
    assert (code, out) == (0, f"main: a, kept in {runs / '.agprof' / 'baselines.json'}\n")
    assert "main" in run("baseline", "list")[1]
    assert str(runs / "a") in run("baseline", "show", "main")[1]
    assert run("compare", "slow", "--baseline", "main", "--gate", "step_time<=+5%")[0] == 1
    answer = answer_in(runs / "agprof-compare")
    assert [side.label for side in answer.sides] == ["main", "slow"]
    assert "(was a)" in run("baseline", "set", "main", "b")[1]
    assert run("baseline", "rm", "main")[0] == 0
    assert (runs / "b").is_dir()
    assert "no baselines" in run("baseline", "list")[1]


def test_baselines_count_in_the_folders_below(run: Run, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("baseline", "set", "main", "a")
    (runs / "below" / "deeper").mkdir(parents=True)
    monkeypatch.chdir(runs / "below" / "deeper")
    assert str(runs / "a") in run("baseline", "show", "main")[1]


def test_a_run_that_was_moved_is_found_and_that_is_said(run: Run, runs: Path) -> None:
    run("baseline", "set", "main", "a")
    mark(runs / "b", created_realtime_ns=7)
    shutil.move(runs / "a", runs / "renamed")
    assert f"{runs / 'renamed'} (moved there from a)" in run("baseline", "show", "main")[1]
    code, _, err = run("compare", "slow", "--baseline", "main")
    assert code == 0
    assert "was moved from a to" in err


def test_a_run_that_is_gone_or_replaced_says_what_to_do(run: Run, runs: Path) -> None:
    run("baseline", "set", "main", "a")
    shutil.rmtree(runs / "a")
    code, _, err = run("baseline", "show", "main")
    assert code == 4
    assert "it is not there any more" in err
    assert "agprof baseline set main RUN" in err
    shutil.copytree(runs / "b", runs / "a")
    code, _, err = run("compare", "slow", "--baseline", "main")
    assert code == 3
    assert "another run is there now" in err
    assert "not there any more" in run("baseline", "list")[1]


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (("set", "main"), 2, "needs a run folder"),
        (("set",), 2, "needs the name"),
        (("set", "3", "a"), 2, "no mere number"),
        (("set", "-x", "a"), 2, ""),
        (("set", "a/b", "a"), 2, "is no name for a baseline"),
        (("set", "main", "gone"), 4, "is not a run folder"),
        (("show", "main"), 2, "there is no baseline 'main'; there is none"),
        (("rm", "main"), 2, "there is no baseline"),
        (("burn", "main"), 2, ""),
    ],
)
def test_what_baseline_refuses(argv: tuple[str, ...], code: int, words: str, run: Run, runs: Path) -> None:
    found, _, err = run("baseline", *argv)
    assert found == code, err
    assert words in err


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 9, "baselines": []}', '{"version": 1, "baselines": [{}]}'])
def test_a_broken_file_of_baselines_is_named(text: str, run: Run, runs: Path) -> None:
    (runs / ".agprof").mkdir()
    (runs / ".agprof" / "baselines.json").write_text(text)
    code, _, err = run("baseline", "list")
    assert code == 4
    assert "baselines.json can't be used" in err
