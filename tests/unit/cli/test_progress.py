"""The display of a running job."""

import io

import pytest
from rich.console import Console

from agprof.cli.progress import BAR_WIDTH, Progress, RunFollower, phase_bar
from agprof.model.tables import PHASES
from synthetic import build_run


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def make(run, *, plain, expected=2, total=12, width=80):
    output = io.StringIO()
    console = Console(file=output, force_terminal=not plain, width=width, highlight=False, color_system="truecolor")
    clock = Clock()
    progress = Progress(
        run, console=console, plain=plain, title="job", total_steps=total, expected_ranks=expected, clock=clock
    )
    return progress, output, clock


def test_follows_every_rank_of_a_folder(tmp_path):
    build_run(tmp_path / "run", ranks=3, steps=5)
    follower = RunFollower(tmp_path / "run")
    follower.poll()
    follower.poll()
    assert sorted(follower.ranks) == [0, 1, 2]
    assert {live.steps_done for live in follower.ranks.values()} == {5}


def test_lines_say_step_rate_loss_and_phases_once_per_change(tmp_path):
    build_run(tmp_path / "run", ranks=2, steps=5)
    progress, output, clock = make(tmp_path / "run", plain=True)
    with progress:
        for _ in range(4):
            progress.tick()
            clock.now += 3
    lines = output.getvalue().splitlines()
    assert lines[0] == "job: starting 2 ranks"
    assert len(lines) == 2, "a line is printed when a step has passed, and only then"
    assert lines[1].startswith("step 5/12 · ")
    for word in ("steps/s", "ETA", "loss", "%", "GiB"):
        assert word in lines[1]


def test_a_total_that_the_job_went_past_is_not_said(tmp_path):
    build_run(tmp_path / "run", ranks=2, steps=5)
    progress, output, _ = make(tmp_path / "run", plain=True, total=4)
    with progress:
        progress.tick()
    assert "step 5 · " in output.getvalue()
    assert "ETA" not in output.getvalue()


def test_missing_ranks_are_said(tmp_path):
    build_run(tmp_path / "run", ranks=2, steps=5)
    progress, output, _ = make(tmp_path / "run", plain=True, expected=4)
    with progress:
        progress.tick()
    assert "2 of 4 ranks" in output.getvalue()


def test_nothing_to_show_yet(tmp_path):
    progress, output, _ = make(tmp_path / "run", plain=True)
    with progress:
        progress.tick()
    assert output.getvalue().splitlines() == ["job: starting 2 ranks"]


@pytest.mark.parametrize("width", [80, 120])
def test_the_live_table_shows_a_row_per_rank_and_cleans_up(tmp_path, width):
    build_run(tmp_path / "run", ranks=2, steps=5)
    progress, output, _ = make(tmp_path / "run", plain=False, width=width)
    with progress:
        progress.tick()
        table = progress._render()
    console = Console(file=io.StringIO(), width=width, record=True)
    console.print(table)
    text = console.export_text()
    assert max(len(line) for line in text.splitlines()) <= width
    assert text.count("5/12") == 2
    assert "communication" in text
    assert output.getvalue().count("\x1b[?25l") == output.getvalue().count("\x1b[?25h"), "the cursor is back"


def test_many_ranks_are_summed_up(tmp_path):
    build_run(tmp_path / "run", ranks=20, steps=2)
    progress, _, _ = make(tmp_path / "run", plain=False, expected=20)
    with progress:
        progress.tick()
        console = Console(file=io.StringIO(), width=80, record=True)
        console.print(progress._render())
    assert "and 4 more ranks" in console.export_text()


@pytest.mark.parametrize(
    "shares", [{}, {"forward": 1.0}, dict.fromkeys(PHASES, 1 / 6), {"data": 0.001, "other": 0.999}]
)
def test_a_bar_is_always_as_wide_as_asked(shares):
    assert len(phase_bar(shares).plain) == BAR_WIDTH
