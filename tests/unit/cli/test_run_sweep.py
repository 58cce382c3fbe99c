"""The loop of a sweep, with runs that are not real."""

import dataclasses
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from rich.console import Console

from agprof.cli.run_sweep import dry_sweep, sweep, table_lines
from agprof.config.load import LoadedWorkload, parse_workload
from agprof.errors import ConfigError, LaunchError
from agprof.exporters import report_json, sweep_json
from sample_answers import sample_answers

TEXT = "name: job\nmodule: a.train\nargs: {framework: ddp, steps: 3}\n"


@pytest.fixture
def load(tmp_path: Path) -> Callable[[Sequence[str]], LoadedWorkload]:
    return lambda sets: parse_workload(TEXT, tmp_path, list(sets))


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=80)


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def finished(loaded: LoadedWorkload, folder: Path, status: str = "finished") -> None:
    run = folder / f"{loaded.workload.name}-TIME"
    run.mkdir()
    answers = sample_answers()
    identity = dataclasses.replace(answers.identity, run_id=run.name, status=status)
    (run / "report.json").write_bytes(report_json.encode(dataclasses.replace(answers, identity=identity)))


def test_variants_run_in_turn_in_one_folder(
    load: Callable[[Sequence[str]], LoadedWorkload],
    console: Console,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen = []

    def run_one(loaded: LoadedWorkload, folder: Path) -> int:
        seen.append((loaded.workload.name, loaded.workload.arguments()))
        finished(loaded, folder)
        return 0

    assert sweep(load, run_one, ["framework=ddp,fsdp2"], tmp_path / "out", console) == 0
    assert seen == [
        ("job-ddp", ["--framework", "ddp", "--steps", "3"]),
        ("job-fsdp2", ["--framework", "fsdp2", "--steps", "3"]),
    ]
    (group,) = (tmp_path / "out").iterdir()
    assert group.name.startswith("job-sweep-")
    assert sorted(path.name for path in group.iterdir()) == ["job-ddp-TIME", "job-fsdp2-TIME", "sweep.json"]
    table = sweep_json.decode((group / "sweep.json").read_bytes())
    assert [row.run_id for row in table.rows] == ["job-ddp-TIME", "job-fsdp2-TIME"]
    lines = said(console).splitlines()
    assert [line.split()[1] for line in lines if line.startswith("| ")] == ["framework", "ddp", "fsdp2"]
    assert lines[-1] == str(group / "sweep.json")
    assert "sweep 2/2: args.framework=fsdp2" in capsys.readouterr().err


def test_it_goes_on_after_a_failure_and_ends_with_the_first_ones_code(
    load: Callable[[Sequence[str]], LoadedWorkload], console: Console, tmp_path: Path
) -> None:
    codes = {"2": 0, "3": 7, "4": 9, "5": 0}

    def run_one(loaded: LoadedWorkload, folder: Path) -> int:
        steps = loaded.workload.arguments()[-1]
        if steps == "4":
            raise LaunchError("no such program")
        finished(loaded, folder, "failed" if codes[steps] else "finished")
        return codes[steps]

    assert sweep(load, run_one, ["args.steps=2,3,4,5"], tmp_path, console) == 7
    (group,) = tmp_path.glob("job-sweep-*")
    rows = sweep_json.decode((group / "sweep.json").read_bytes()).rows
    assert [row.exit_code for row in rows] == [0, 7, LaunchError.exit_code, 0]
    assert rows[2].status_sentence == "no such program"
    assert rows[3].step_time.value is not None


def test_an_interruption_ends_the_sweep(
    load: Callable[[Sequence[str]], LoadedWorkload], console: Console, tmp_path: Path
) -> None:
    def run_one(loaded: LoadedWorkload, folder: Path) -> int:
        finished(loaded, folder, "interrupted")
        return 130

    assert sweep(load, run_one, ["args.steps=2,3,4"], tmp_path, console) == 130
    (group,) = tmp_path.glob("job-sweep-*")
    rows = sweep_json.decode((group / "sweep.json").read_bytes()).rows
    assert [row.exit_code for row in rows] == [130, None, None]
    assert said(console).count("not run") == 2


def test_a_bad_value_is_found_before_anything_starts(
    load: Callable[[Sequence[str]], LoadedWorkload], console: Console, tmp_path: Path
) -> None:
    def run_one(loaded: LoadedWorkload, folder: Path) -> int:
        raise AssertionError("started")

    with pytest.raises(ConfigError, match=r"launch\.ranks_per_node"):
        sweep(load, run_one, ["launch.ranks_per_node=2,none"], tmp_path / "out", console)
    assert not (tmp_path / "out").exists()


def test_a_dry_run_prints_every_plan(
    load: Callable[[Sequence[str]], LoadedWorkload], capsys: pytest.CaptureFixture[str]
) -> None:
    def print_plan(loaded: LoadedWorkload) -> None:
        print(loaded.workload.arguments())

    assert dry_sweep(load, print_plan, ["framework=ddp,fsdp2"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "sweep 1/2: args.framework=ddp"
    assert out[3] == "['--framework', 'fsdp2', '--steps', '3']"


def test_long_values_are_not_cut_and_brackets_are_no_markup(
    load: Callable[[Sequence[str]], LoadedWorkload], console: Console, tmp_path: Path
) -> None:
    long = "x" * 100

    def run_one(loaded: LoadedWorkload, folder: Path) -> int:
        finished(loaded, folder)
        return 0

    sweep(load, run_one, [f"args.note=[bold],{long}"], tmp_path, console)
    (group,) = tmp_path.glob("job-sweep-*")
    table = sweep_json.decode((group / "sweep.json").read_bytes())
    for plain in (True, False):
        text = "\n".join(table_lines(table, plain=plain))
        assert "[bold]" in text
        assert long in text
