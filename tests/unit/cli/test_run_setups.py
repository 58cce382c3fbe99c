"""The loop over setups, with runs that are not real."""

import dataclasses
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from agprof.cli.main import main
from agprof.cli.run_setups import interleaved, run_in_turns
from agprof.config.load import parse_workload
from agprof.config.setup_choice import SetupJob, choose_setups
from agprof.errors import ConfigError, LaunchError
from agprof.exporters import report_json
from sample_answers import sample_answers

TEXT = "name: job\nmodule: a.train\nsetups: {a: {}, b: {}}\n"


@pytest.fixture
def jobs() -> tuple[SetupJob, ...]:
    return choose_setups(parse_workload(TEXT, Path("/nowhere")).workload, ["a", "b"])


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=80)


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


class Runs:
    """Takes the place of a run: leaves a folder with a report, and remembers."""

    def __init__(self, codes: Mapping[int, int | Exception] | None = None, interrupted: int = 0) -> None:
        self.codes = codes or {}
        self.interrupted = interrupted
        self.marks: list[Mapping[str, Any]] = []
        self.folders: list[Path] = []

    def __call__(self, job: SetupJob, folder: Path, mark: Mapping[str, Any]) -> int:
        self.marks.append(mark)
        self.folders.append(folder)
        number = len(self.marks)
        code = 130 if number == self.interrupted else self.codes.get(number, 0)
        if isinstance(code, Exception):
            raise code
        run = folder / f"{job.workload.name}-{number}"
        run.mkdir(parents=True)
        answers = sample_answers()
        status = {0: "finished", 130: "interrupted"}.get(code, "failed")
        identity = dataclasses.replace(answers.identity, run_id=run.name, status=status)
        (run / "report.json").write_bytes(report_json.encode(dataclasses.replace(answers, identity=identity)))
        return code


def test_repeats_run_in_turns_that_alternate(jobs: tuple[SetupJob, ...]) -> None:
    order = [(job.name, repeat) for job, repeat in interleaved(jobs, 3)]
    assert order == [("a", 1), ("b", 1), ("b", 2), ("a", 2), ("a", 3), ("b", 3)]


def test_each_run_is_marked_and_lies_in_one_folder(
    jobs: tuple[SetupJob, ...], console: Console, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = Runs()
    assert run_in_turns(jobs, runs, name="job", repeats=2, out=tmp_path, console=console) == 0
    (group,) = tmp_path.iterdir()
    assert group.name.startswith("job-setups-")
    assert set(runs.folders) == {group}
    assert [(mark["setup"], mark["repeat"]) for mark in runs.marks] == [("a", 1), ("b", 1), ("b", 2), ("a", 2)]
    assert {mark["series"] for mark in runs.marks} == {group.name}
    assert {mark["repeats"] for mark in runs.marks} == {2}
    told = capsys.readouterr().err
    assert "setup a, repeat 1 of 2\nsetup b, repeat 1 of 2\nsetup b, repeat 2 of 2\nsetup a, repeat 2 of 2\n" in told
    rows = [line.split("|")[1:3] for line in said(console).splitlines() if line.startswith("| ")][1:]
    assert [[cell.strip() for cell in row] for row in rows] == [["a", "1"], ["b", "1"], ["b", "2"], ["a", "2"]]


def test_one_setup_alone_is_an_ordinary_run(jobs: tuple[SetupJob, ...], console: Console, tmp_path: Path) -> None:
    runs = Runs({1: 5})
    assert run_in_turns(jobs[:1], runs, name="job", repeats=1, out=tmp_path, console=console) == 5
    assert runs.marks == [{"setup": "a"}]
    assert runs.folders == [tmp_path]
    assert said(console) == ""


def test_it_goes_on_after_a_failure_and_ends_with_the_first_ones_code(
    jobs: tuple[SetupJob, ...], console: Console, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = Runs({2: LaunchError("no such node"), 3: 7})
    code = run_in_turns(jobs, runs, name="job", repeats=2, out=tmp_path, console=console)
    assert code == LaunchError.exit_code
    assert len(runs.marks) == 4
    assert "error: no such node" in capsys.readouterr().err


def test_an_interruption_ends_it(jobs: tuple[SetupJob, ...], console: Console, tmp_path: Path) -> None:
    runs = Runs(interrupted=2)
    assert run_in_turns(jobs, runs, name="job", repeats=2, out=tmp_path, console=console) == 130
    assert len(runs.marks) == 2
    assert said(console).count("not run") == 2


WORKLOAD = """
name: job
script: train.py
setups:
  here: {ranks_per_node: 3, env: {SPEED: "9"}}
  far: {emulate: {nodes: 3, rate: 1gbit}, ranks_per_node: 2, env: {SPEED: "8"}}
  ssh: {hostfile: hosts, ssh: ssh -p 2222, interface: eth7}
  slurm: {nodes: 2, ranks_per_node: 4, slurm: {partition: gpu, gpus_per_node: 4, options: [--exclusive]}}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLURM_JOB_NODELIST", raising=False)
    (tmp_path / "train.py").write_text("")
    (tmp_path / "job.yaml").write_text(WORKLOAD)
    (tmp_path / "hosts").write_text("10.9.0.1 slots=2\n10.9.0.2 slots=1\n")
    return tmp_path


def run(*options: str) -> object:
    """The exit code."""
    with pytest.raises(SystemExit) as ended:
        main(["run", "job.yaml", *options])
    return ended.value.code


def dry(*options: str) -> object:
    return run("--dry-run", *options)


def test_a_dry_run_shows_every_node_and_starts_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dry("--setup", "here", "--setup", "far") == 0
    out = capsys.readouterr().out
    assert "--nnodes=1 --node-rank=0 --nproc-per-node=3" in out
    for node in range(3):
        assert f"--nnodes=3 --node-rank={node} --nproc-per-node=2" in out
        assert f"agprof.launch.node_agent {node}" in out
        assert f"--local-addr=10.77.0.{node + 1} " in out
    assert "far: 3 nodes, 6 ranks, torchrun" in out
    assert "emulated link, 1gbit" in out
    assert "ranks 4 to 5" in out
    assert "SPEED=9" in out
    assert "SPEED=8" in out
    assert sorted(path.name for path in here.iterdir()) == ["hosts", "job.yaml", "train.py"]


def test_nodes_of_a_hostfile_are_reached_by_its_ssh(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dry("--setup", "ssh") == 0
    out = capsys.readouterr().out
    assert "ssh: 2 nodes, 3 ranks, torchrun" in out
    agents = [line for line in out.splitlines() if line.startswith("  agent")]
    assert [line.split()[1:4] for line in agents] == [["ssh", "-p", "2222"]] * 2
    assert " 10.9.0.1 " in agents[0]
    assert " 10.9.0.2 " in agents[1]
    assert f"cd {here}" in agents[1]
    assert "--master-addr=10.9.0.1" in out
    assert out.count("GLOO_SOCKET_IFNAME=eth7") == out.count("NCCL_SOCKET_IFNAME=eth7") == 2


def test_for_slurm_the_file_for_sbatch_is_written(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dry("--setup", "slurm", "--set", "args.lr=0.1") == 0
    text = (here / "job-slurm.sbatch").read_text()
    lines = text.splitlines()
    assert lines[0] == "#!/bin/bash"
    assert lines[1:-2] == [
        "#SBATCH --job-name=job-slurm", "#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=1",
        "#SBATCH --time=01:00:00", "#SBATCH --partition=gpu", "#SBATCH --gpus-per-node=4", "#SBATCH --exclusive",
    ]  # fmt: skip
    assert lines[-2] == f"cd {here} || exit 1"
    assert "-m agprof run job.yaml --setup slurm" in lines[-1]
    assert lines[-1].endswith("--set args.lr=0.1")
    out = capsys.readouterr().out
    assert "srun --overlap" in out
    assert "--nodes 2 --ntasks 2 --ntasks-per-node 1" in out
    assert "--node-rank=1 --nproc-per-node=4" in out
    assert dry("--setup", "slurm", "--set", "args.lr=0.1") == 0, "the same again is the same file"
    assert dry("--setup", "slurm") == LaunchError.exit_code
    assert (here / "job-slurm.sbatch").read_text() == text, "another one is not written over"


def test_outside_of_an_allocation_nothing_starts(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--setup", "slurm") == LaunchError.exit_code
    assert "runs inside an allocation of Slurm's (SLURM_JOB_NODELIST is not set here)" in capsys.readouterr().err
    assert not (here / "agprof-runs").exists() or not any((here / "agprof-runs").iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--setup", "fra"], "did you mean 'far'?"),
        (["--setup", "here", "--sweep", "args.a=1,2"], "--setup and --sweep exclude one another"),
        (["--repeats", "2"], "--repeats needs --setup NAME"),
        (["--setup", "ssh", "--set", "setups.ssh.nodes=3"], "nodes is 3, and"),
        (["--setup", "ssh", "--set", "setups.ssh.ranks_per_node=2"], "gives 10.9.0.2 1 slots; raise slots="),
        (["--setup", "ssh", "--set", "setups.ssh.hostfile=none"], "can't be read: No such file"),
        (["--setup", "ssh", "--set", "setups.ssh.ssh=ssh 'x"], "can't be taken apart"),
    ],
)
def test_what_can_not_work_is_said(
    here: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dry(*options) == ConfigError.exit_code
    assert message in capsys.readouterr().err
    assert not [path for path in here.iterdir() if path.is_dir()]
