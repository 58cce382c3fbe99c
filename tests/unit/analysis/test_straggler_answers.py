"""Who is slow, how surely, and why: on runs in lockstep whose ranks' work is given."""

import random
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agprof.analysis.run import analyse
from agprof.analysis.stragglers import holm, median_of_others, p_value
from agprof.model.answers import RunAnswers
from agprof.model.straggler_answers import StragglerAnswer
from agprof.store import layout
from agprof.store.reader import read_run
from synthetic import BOOT_NS, MS, build_run, rank_header, row, write_stream

TRANSFER_MS = 2
Work = Callable[[int, int], int]
"""(rank, step) -> ms."""


def write(
    path: Path,
    ranks: int,
    steps: int,
    data: Work = lambda rank, step: 1,
    forward: Work = lambda rank, step: 40,
    *,
    ranges: Callable[[int, int], list[tuple[str, int]]] = lambda rank, step: [],
    tokens: Work | None = None,
    samples: dict[str, list[tuple[Any, ...]]] | None = None,
    order: list[int] | None = None,
    facts: Callable[[int], list[tuple[Any, ...]]] = lambda rank: [],
) -> Path:
    """Each step data, forward, then one all-reduce that ends on all ranks 2 ms after the last has entered it.

    Ranges (name, ms) lie within forward. `order`: the ranks' numbers.
    """
    (path / layout.RANKS).mkdir(parents=True)
    (path / layout.NODES).mkdir()
    rows: list[dict[str, list[tuple[Any, ...]]]] = [
        {"steps": [], "spans": [], "collectives": [], "facts": [(BOOT_NS, "dist.world_size", str(ranks))]}
        for _ in range(ranks)
    ]
    now = [BOOT_NS] * ranks
    for step in range(steps):
        enters = []
        for rank, own in enumerate(rows):
            middle = now[rank] + data(rank, step) * MS
            enter = middle + forward(rank, step) * MS
            own["spans"].append((0, step, 0, "phase", "data", now[rank], middle, 7, 0))
            own["spans"].append((0, step, 0, "phase", "forward", middle, enter, 7, 0))
            for name, length in ranges(rank, step):
                own["spans"].append((0, step, 0, "range", name, middle, middle + length * MS, 7, 1))
            enters.append(enter)
        done = max(enters) + TRANSFER_MS * MS
        for rank, own in enumerate(rows):
            many = None if tokens is None else tokens(rank, step)
            tail = ("wrapper", 7, "backward", None)
            own["collectives"].append(
                (step, 0, "all_reduce", "default", ranks, 64, "float32", False, enters[rank], done, done, 0, *tail)
            )
            own["steps"].append((step, now[rank], done, 1, None, None, many, False, None))
        now = [done] * ranks
    for rank, own in enumerate(rows):
        own["facts"] += facts(rank)
        number = order[rank] if order else rank
        write_stream(layout.rank_stream(path, number), rank_header(number, ranks), own)  # type: ignore[arg-type]
    if samples:
        header = rank_header(0, ranks) | {"kind": "node", "node": 0}
        write_stream(layout.node_stream(path, 0), header, samples)  # type: ignore[arg-type]
    return path


def run(path: Path, ranks: int, steps: int, *work: Work, **more: Any) -> RunAnswers:
    return analyse(read_run(write(path / "run", ranks, steps, *work, **more)))


def stragglers(path: Path, ranks: int, steps: int, *work: Work, **more: Any) -> StragglerAnswer:
    answer = run(path, ranks, steps, *work, **more).stragglers
    assert answer is not None
    return answer


def once(rank: int, more: int, usual: int) -> Work:
    return lambda own, step: more if own == rank else usual


# -- own time ----------------------------------------------------------------------------------------------------------


def test_own_time_is_the_step_without_waiting_for_others(tmp_path: Path) -> None:
    got = stragglers(tmp_path, 4, 20, once(2, 31, 1))
    assert got.ranks == (0, 1, 2, 3)
    assert got.steps == tuple(range(20))
    # 1 + 40 + 2 ms, and 30 ms more on rank 2; the others wait for it
    assert [set(cells) for cells in got.own_time_ns] == [{43 * MS}, {43 * MS}, {73 * MS}, {43 * MS}]
    assert got.lost_per_step.value == 30 * MS * 3 / 4
    first = got.rows[0]
    assert (first.rank, first.slowest_share) == (2, 1.0)
    assert (first.own_time.value, first.excess.value) == (73 * MS, 30 * MS)
    assert first.host == "node-a"


def test_of_ranks_alike_none_is_named(tmp_path: Path) -> None:
    got = stragglers(tmp_path, 4, 20)
    assert not got.persistent
    assert got.lost_per_step.value == 0
    assert [row.slowest_share for row in got.rows] == [0.0] * 4
    assert got.sentence == "The ranks keep in step: the mean rank waits 0 ns a step for others (0 % of it)."


def test_one_rank_has_no_stragglers(tmp_path: Path) -> None:
    assert analyse(read_run(build_run(tmp_path / "run", ranks=1))).stragglers is None


# -- chance ------------------------------------------------------------------------------------------------------------


def test_chance_by_hand() -> None:
    """Four heads of four coins; Holm's steps on three values."""
    assert p_value(4, 4, 2) == pytest.approx(1 / 16)
    assert p_value(0, 4, 2) == 1.0
    assert p_value(1, 2, 4) == pytest.approx(1 - (3 / 4) ** 2)
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.9]) == [1.0, 1.0]


def test_the_same_rank_in_all_steps_is_no_chance(tmp_path: Path) -> None:
    got = stragglers(tmp_path, 4, 20, once(2, 31, 1))
    assert got.persistent
    # warm-up takes the first step; 4 ranks at a quarter each
    assert got.p_value == pytest.approx(4 * 0.25**19)
    assert got.sentence.startswith("Rank 2 is the slowest in 100 % of 19 steps (chance: p = ")


def test_ranks_that_take_turns_are_not_one_that_is_slow(tmp_path: Path) -> None:
    got = stragglers(tmp_path, 2, 40, lambda rank, step: 31 if rank == step % 2 else 1)
    assert not got.persistent
    assert got.p_value is not None
    assert got.p_value > 0.5
    assert got.lost_per_step.value == 15 * MS
    assert "No rank is slow more often than by chance" in got.sentence


def test_a_rank_that_is_surely_slower_by_little_is_named_by_nobody(tmp_path: Path) -> None:
    got = stragglers(tmp_path, 2, 60, lambda rank, step: 1, once(1, 1010, 1000))
    assert got.p_value is not None
    assert got.p_value < 1e-9
    assert not got.persistent


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 7).flatmap(lambda n: st.lists(st.lists(st.integers(0, 9), min_size=n, max_size=n), min_size=1)))
def test_the_median_of_the_others_is_that(steps: list[list[int]]) -> None:
    found = median_of_others(np.array(steps).T)
    for step, values in enumerate(steps):
        for rank in range(len(values)):
            assert found[rank, step] == median(values[:rank] + values[rank + 1 :])


# -- causes ------------------------------------------------------------------------------------------------------------


def test_a_slow_loader_is_data(tmp_path: Path) -> None:
    first = stragglers(tmp_path, 4, 20, once(1, 31, 1)).rows[0]
    assert (first.cause, first.confidence) == ("data", "measured")
    assert first.evidence == (
        "it stands 31.0 ms a step in its data loader, the others 1.00 ms; its own time is 30.0 ms longer"
    )


def test_more_tokens_are_more_work(tmp_path: Path) -> None:
    first = stragglers(
        tmp_path, 4, 20, lambda rank, step: 1, once(1, 80, 40), tokens=lambda rank, step: 200 if rank == 1 else 100
    ).rows[0]
    assert first.cause == "more work"
    assert first.evidence.startswith("it has 100 % more tokens than the others")


def test_a_few_tokens_more_do_not_explain_twice_the_time(tmp_path: Path) -> None:
    first = stragglers(
        tmp_path, 4, 20, lambda rank, step: 1, once(1, 80, 40), tokens=lambda rank, step: 103 if rank == 1 else 100
    ).rows[0]
    assert first.cause == "not known"
    assert first.evidence == "most of it in forward; input, work of the rank are like the others'"


def test_a_range_that_the_others_did_not_run_is_more_work(tmp_path: Path) -> None:
    """Heads in a step, thrown by each rank for itself."""
    coins = random.Random(5)
    heads = {(rank, step): coins.random() < 0.5 for rank in range(2) for step in range(40)}
    answers = run(
        tmp_path,
        2,
        40,
        lambda rank, step: 1,
        lambda rank, step: 80 if heads[rank, step] else 40,
        ranges=lambda rank, step: [("memory_bank", 40)] if heads[rank, step] else [],
    )
    got = answers.stragglers
    assert got is not None
    assert not got.persistent
    assert {row.cause for row in got.rows} == {"more work"}
    assert all("it runs `memory_bank` more often than the others: 40.0 ms a step" in row.evidence for row in got.rows)
    assert "Likely cause, whichever rank is slow: more work" in got.sentence
    findings = {finding.key: finding for finding in answers.findings}
    assert "straggler" not in findings
    saving = findings["uneven-work"].saving_ns_per_step
    assert saving is not None
    assert saving.value == got.lost_per_step.value


def test_a_longer_range_that_all_run_is_no_more_work(tmp_path: Path) -> None:
    first = stragglers(
        tmp_path, 2, 20, lambda rank, step: 1, once(1, 80, 40),
        ranges=lambda rank, step: [("text", 60 if rank == 1 else 20)],
    ).rows[0]  # fmt: skip
    assert first.cause == "not known"


def processes(values: dict[int, dict[str, float]], steps: int) -> dict[str, list[tuple[Any, ...]]]:
    rows = [
        row(
            "process_samples", time_ns=BOOT_NS + at * 40 * MS, period_ns=40 * MS, rank=rank, role="rank", processes=1,
            **seen,
        )
        for at in range(steps)
        for rank, seen in values.items()
    ]  # fmt: skip
    return {"process_samples": rows}


@pytest.mark.parametrize(
    ("busy", "calm", "cause", "confidence"),
    [
        ({"cpu_wait_ratio": 0.5}, {"cpu_wait_ratio": 0.01}, "CPU taken away", "modelled"),
        ({"cpu_wait_ratio": 0.02}, {"cpu_wait_ratio": 0.01}, "not known", "measured"),
        (
            {"involuntary_switches_per_s": 300.0, "cpu_cores": 0.5},
            {"involuntary_switches_per_s": 2.0, "cpu_cores": 1.0},
            "CPU taken away",
            "rule of thumb",
        ),
        (
            {"involuntary_switches_per_s": 300.0, "cpu_cores": 1.0},
            {"involuntary_switches_per_s": 2.0, "cpu_cores": 1.0},
            "not known",
            "measured",
        ),
    ],
)  # fmt: skip
def test_a_cpu_that_is_taken_away(
    busy: dict[str, float], calm: dict[str, float], cause: str, confidence: str, tmp_path: Path
) -> None:
    seen = {rank: busy if rank == 1 else calm for rank in range(3)}
    first = stragglers(
        tmp_path, 3, 20, lambda rank, step: 1, once(1, 80, 40), samples=processes(seen, 40)
    ).rows[0]  # fmt: skip
    assert (first.rank, first.cause, first.confidence) == (1, cause, confidence)


def uuid(gpu: int) -> str:
    return f"GPU-00000000-0000-0000-0000-00000000000{gpu}"


def gpus(hot: dict[str, Any], cool: dict[str, Any]) -> dict[str, list[tuple[Any, ...]]]:
    listed = [row("gpus", gpu=gpu, uuid=uuid(gpu), name="H100") for gpu in range(3)]
    samples = [
        row("gpu_samples", time_ns=BOOT_NS + at * 40 * MS, gpu=gpu, **(hot if gpu == 1 else cool))
        for at in range(40)
        for gpu in range(3)
    ]
    return {"gpus": listed, "gpu_samples": samples}


@pytest.mark.parametrize(
    ("hot", "cause", "words"),
    [
        ({"sm_clock_mhz": 1200, "throttled_thermal_ns": 20 * MS}, "heat", "heat holds its GPU's clocks down"),
        ({"sm_clock_mhz": 1200}, "lower clock", "its GPU's SM clock is 1,200 MHz, 1,980 MHz on the others"),
    ],
)
def test_a_gpu_that_is_slower(hot: dict[str, Any], cause: str, words: str, tmp_path: Path) -> None:
    path = write(
        tmp_path / "run", 3, 20, lambda rank, step: 1, once(1, 80, 40),
        samples=gpus(hot, {"sm_clock_mhz": 1980, "throttled_thermal_ns": 0}),
        facts=lambda rank: [(BOOT_NS, "device.type", '"cuda"'), (BOOT_NS, "device.uuid", f'"{uuid(rank)}"')],
    )  # fmt: skip
    answer = analyse(read_run(path)).stragglers
    assert answer is not None
    assert (answer.rows[0].rank, answer.rows[0].cause) == (1, cause)
    assert answer.rows[0].evidence.startswith(words)


def test_the_finding_tells_the_cause(tmp_path: Path) -> None:
    found = {finding.key: finding for finding in run(tmp_path, 4, 20, once(1, 31, 1)).findings}
    assert found["straggler"].title == "Rank 1 holds the others up"
    assert "Likely cause: data: it stands 31.0 ms a step" in found["straggler"].evidence
    assert found["straggler"].change.startswith("Look at this rank's input")


# -- invariants --------------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    times=st.lists(st.lists(st.integers(1, 60), min_size=3, max_size=3), min_size=4, max_size=10),
    order=st.permutations([0, 1, 2]),
)
def test_own_times_are_exact_and_do_not_depend_on_the_ranks_numbers(
    times: list[list[int]], order: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    def work(rank: int, step: int) -> int:
        return times[step][rank]

    got = stragglers(tmp_path_factory.mktemp("a"), 3, len(times), work)
    for rank, cells in enumerate(got.own_time_ns):
        assert cells == tuple((work(rank, step) + 40 + TRANSFER_MS) * MS for step in range(len(times)))
    assert sum(row.slowest_share for row in got.rows) <= 1 + 1e-9
    other = stragglers(tmp_path_factory.mktemp("b"), 3, len(times), work, order=order)
    assert {order[row.rank]: (row.slowest_share, row.own_time, row.excess, row.cause) for row in got.rows} == {
        row.rank: (row.slowest_share, row.own_time, row.excess, row.cause) for row in other.rows
    }
    assert (other.persistent, other.lost_per_step) == (got.persistent, got.lost_per_step)
