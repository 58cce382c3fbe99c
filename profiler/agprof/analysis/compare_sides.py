"""The sides of a comparison: one run or several repeats each, and what is said of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agprof.analysis.view import View
from agprof.model.answers import RunAnswers
from agprof.model.compare_answers import Side

MOST_SIDES = 16
_LONGEST_LABEL = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedRun:
    """A run's answers with the view that they were made of."""

    answers: RunAnswers
    view: View


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedSide:
    """One run, or repeats of one setup; never empty."""

    label: str
    runs: tuple[ComparedRun, ...]

    @property
    def first(self) -> ComparedRun:
        return self.runs[0]

    @property
    def steady_steps(self) -> int:
        return sum(run.answers.time.steady_steps for run in self.runs)


def group_repeats(manifests: Sequence[Mapping[str, Any]]) -> tuple[tuple[int, ...], ...]:
    """Which of some runs are repeats of one setup, by their manifests: indices, in the order of first runs.

    `agprof run --setup ... --repeats N` marks each run with `setup`, `repeat` (from 1) and `series`, the same in all
    runs of one command.
    """
    groups: dict[tuple[Any, ...], list[int]] = {}
    for index, manifest in enumerate(manifests):
        mark = _repeat_mark(manifest)
        groups.setdefault(("run", index) if mark is None else mark, []).append(index)
    return tuple(tuple(group) for group in groups.values())


def _repeat_mark(manifest: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """What repeats of one setup have in common; None of a run that is no repeat."""
    setup, repeat, series = (manifest.get(key) for key in ("setup", "repeat", "series"))
    if not isinstance(repeat, int):
        return None
    return ("repeats", str(series), str(setup), str(manifest.get("name") if series is None else ""))


def setup_of(run: ComparedRun) -> str | None:
    """Name of the setup of the workload file that the run was of."""
    setup = run.view.run.manifest.get("setup")
    return str(setup)[:_LONGEST_LABEL] if isinstance(setup, str) and setup else None


def labels(groups: Sequence[Sequence[ComparedRun]]) -> tuple[str, ...]:
    """Short names that tell the sides apart: the setups where those do, else the runs' names, else their folders."""
    ways = (
        [setup_of(group[0]) or "" for group in groups],
        [group[0].answers.identity.name for group in groups],
        [group[0].answers.identity.run_id for group in groups],
    )
    for names in ways:
        if all(names) and len(set(names)) == len(names):
            return tuple(map(_short, names))
    return tuple(f"{_short(name)} ({index})" for index, name in enumerate(ways[2], 1))


def _short(name: str) -> str:
    clean = "".join(c if c.isprintable() else "?" for c in name)
    return clean if len(clean) <= _LONGEST_LABEL else f"{clean[: _LONGEST_LABEL - 1]}…"


def told(side: ComparedSide) -> Side:
    """A side as the page shows it."""
    answers = side.first.answers
    hosts = {str(row.host) for run in side.runs for row in run.answers.ranks if row.host is not None}
    return Side(
        label=side.label,
        runs=tuple(run.answers.identity.run_id for run in side.runs),
        ranks=ranks_of(side),
        nodes=answers.identity.nodes or 1,
        hosts=tuple(sorted(hosts)),
        framework=answers.identity.framework,
        steady_steps=side.steady_steps,
        status=_status(side),
        setup=setup_of(side.first),
        problems=tuple(dict.fromkeys(_problems(side))),
    )


def ranks_of(side: ComparedSide) -> int:
    """Ranks that its job was to have."""
    identity = side.first.answers.identity
    return identity.world_size or len(side.first.view.ranks)


def _status(side: ComparedSide) -> str:
    if len(side.runs) == 1:
        return side.first.answers.identity.status_sentence
    well = sum(ended_well(run) for run in side.runs)
    return f"{'all' if well == len(side.runs) else well} of {len(side.runs)} ended well"


def ended_well(run: ComparedRun) -> bool:
    return run.answers.identity.status in ("finished", "imported")


def _problems(side: ComparedSide) -> Iterator[str]:
    """What makes a side's figures doubtful, as sentences without a full stop."""
    for run in side.runs:
        name = f"{run.answers.identity.run_id}: " if len(side.runs) > 1 else ""
        quality, identity = run.answers.quality, run.answers.identity
        expected = quality.ranks_expected
        if expected is not None and quality.ranks_present < expected:
            yield f"{name}{quality.ranks_present} of {expected} ranks are there"
        if not ended_well(run):
            yield f"{name}it did not end well: {identity.status_sentence}"
        if run.answers.clocks is not None and run.answers.clocks.state == "refused":
            yield f"{name}the nodes' clocks can't be reconciled, so that times of different nodes are not compared"
        if 0 < run.answers.time.steady_steps < 6:
            yield f"{name}{run.answers.time.steady_steps} steady steps are few: no interval"
