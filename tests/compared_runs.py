"""Sides of comparisons out of made-up runs, for tests of whatever compares."""

from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from agprof.analysis.compare_sides import ComparedRun, ComparedSide
from agprof.analysis.run import analyse
from agprof.analysis.view import prepare
from agprof.store.reader import read_run
from synthetic import build_run

VARIETY: dict[str, dict[str, Any]] = {
    "two ranks": {},
    "slow link": {"nodes": 2, "transfer_ms": 30.0, "seed": 1},
    "asynchronous": {"async_ops": True, "seed": 2},
    "one rank": {"ranks": 1},
    "four ranks": {"ranks": 4, "nodes": 2, "seed": 3},
    "straggler": {"ranks": 3, "straggler": 1, "seed": 4},
    "a rank is missing": {"ranks": 3, "missing": (1,), "seed": 5},
    "GPUs": {"gpus": 2, "seed": 6},
    "killed": {"killed": 1, "seed": 7},
    "reinforcement": {"rlhf": True, "seed": 8},
}
"""Options of `build_run` by what is peculiar."""


def load(folder: Path) -> ComparedRun:
    run = read_run(folder)
    return ComparedRun(answers=analyse(run), view=prepare(run))


@lru_cache(maxsize=256)
def _made(options: tuple[tuple[str, Any], ...]) -> ComparedRun:
    with TemporaryDirectory() as place:
        return load(build_run(Path(place) / "run", **dict(options)))


def made(**options: Any) -> ComparedRun:
    """A made-up run; the same options give the same one."""
    return _made(tuple(sorted({"steps": 12, **options}.items())))


def varied(name: str) -> ComparedRun:
    return made(**VARIETY[name])


def side(*runs: ComparedRun, label: str = "side") -> ComparedSide:
    return ComparedSide(label=label, runs=runs)
