"""plan.json of a run folder: read when it is whole, told when it is not."""

import json
from pathlib import Path

import pytest

from agprof.store import layout
from agprof.store.reader import read_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / layout.MANIFEST).write_text("{}")
    return tmp_path


def test_a_run_without_a_plan(folder: Path) -> None:
    run = read_run(folder)
    assert run.plan is None
    assert not any("plan" in problem for problem in run.problems)


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{", "null", '{"version": 1}', '{"version": 99}', json.dumps({"version": 1, "rows": "<script>" * 9}),
        "[" * 100_000,
    ],
)  # fmt: skip
def test_a_broken_plan_is_a_problem_and_no_fault(folder: Path, text: str) -> None:
    (folder / layout.PLAN).write_text(text)
    run = read_run(folder)
    assert run.plan is None
    (problem,) = [problem for problem in run.problems if problem.startswith(layout.PLAN)]
    assert len(problem) < 300
