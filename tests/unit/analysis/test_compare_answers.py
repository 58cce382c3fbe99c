"""Comparisons as a whole: themselves, mirrored, in another order; comparability; verdicts; scaling; overlays."""

import random
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest

from agprof.analysis.compare import compare
from agprof.analysis.compare_configuration import weigh
from agprof.analysis.compare_gates import read_gate
from agprof.analysis.compare_sides import ComparedRun, group_repeats, labels
from agprof.analysis.compare_summary import MOST_LINES, summary_lines
from agprof.errors import ConfigError
from agprof.exporters import compare_json
from agprof.model.compare_answers import Change, CompareAnswer
from compared_runs import VARIETY, made, side, varied
from synthetic import HOSTILE
from trace_rows import TraceRows

GATES = [
    read_gate(text) for text in ("step_time<=+5%", "throughput.samples>=-1%", "memory.peak<=+2%", "data.wait<=+0%")
]


def between(a: ComparedRun, b: ComparedRun, **options: Any) -> CompareAnswer:
    return compare([side(a, label="a"), side(b, label="b")], **options)


def changes_of(answer: CompareAnswer, at: int) -> dict[str, Change]:
    return {row.key: change for row in answer.kpis if (change := row.changes[at]) is not None}


@pytest.mark.parametrize("name", VARIETY)
def test_a_run_compared_with_itself_is_zero_everywhere_and_gates_green(name: str) -> None:
    answer = between(varied(name), varied(name), gates=GATES[:1])
    assert not answer.configuration
    assert not answer.moved
    for change in changes_of(answer, 1).values():
        figures = [change.absolute, change.relative]
        assert all(figure.value in (0.0, None) for figure in figures)
        assert all(figure.low in (0.0, None) and figure.high in (0.0, None) for figure in figures)
        assert change.verdict in ("no change shown", "not tested")
    assert all(part.change == 0 for fall in answer.waterfalls for part in fall.parts)
    assert [gate.passed for gate in answer.gates] == [True]
    assert answer.scaling is None


def test_all_gates_are_green_of_a_run_and_itself() -> None:
    assert [gate.passed for gate in between(made(), made(), gates=GATES).gates] == [True] * len(GATES)


@pytest.mark.parametrize(
    ("one", "other"), [("two ranks", "slow link"), ("straggler", "GPUs"), ("four ranks", "one rank")]
)
def test_swapping_the_sides_mirrors_every_change(one: str, other: str) -> None:
    there, back = between(varied(one), varied(other)), between(varied(other), varied(one))
    forth, home = changes_of(there, 1), changes_of(back, 1)
    assert set(forth) == set(home)
    opposite = {"better": "worse", "worse": "better"}
    for key, change in forth.items():
        mirror = home[key]
        assert change.absolute.value == -(mirror.absolute.value or 0.0)
        if change.absolute.low is not None:
            assert mirror.absolute.high == -change.absolute.low
        assert mirror.p_value == (pytest.approx(change.p_value) if change.p_value is not None else None)
        if change.relative.value and abs(change.relative.value) > 0.02:
            assert mirror.verdict == opposite.get(change.verdict, change.verdict)
    assert there.comparable == back.comparable
    assert {row.key: row.values for row in there.configuration} == {
        row.key: row.values[::-1] for row in back.configuration
    }
    moved = {(row.kind, row.name): row.change for row in there.moved}
    assert {key: -change for key, change in moved.items()} == {(row.kind, row.name): row.change for row in back.moved}


def test_the_order_of_the_sides_changes_nothing_but_their_places() -> None:
    runs = {name: varied(name) for name in ("two ranks", "slow link", "straggler")}
    expected = None
    for order in permutations(runs):
        sides = [side(runs[name], label=name) for name in order]
        answer = compare(sides, baseline=order.index("two ranks"))
        changes = {
            (order[at], row.key): change for row in answer.kpis for at, change in enumerate(row.changes) if change
        }
        falls = {(order[fall.side], fall.quantity): fall.parts for fall in answer.waterfalls}
        expected = expected or (changes, falls)
        assert (changes, falls) == expected


def test_the_same_sides_give_the_same_bytes_and_come_back_from_them() -> None:
    answers = [between(varied("two ranks"), varied("slow link"), gates=GATES) for _ in range(2)]
    data = [compare_json.encode(answer) for answer in answers]
    assert data[0] == data[1]
    assert compare_json.decode(data[0]) == answers[0]


def test_the_verdict_says_how_much_and_of_what() -> None:
    answer = between(made(name="one", seed=9), made(name="two", transfer_ms=30.0, seed=10))
    assert answer.comparable == "comparable"
    assert answer.sentence.startswith("b takes 5")
    assert "of a (+2" in answer.sentence
    assert "ms exposed communication (bandwidth +" in answer.sentence
    assert changes_of(answer, 1)["step_time"].verdict == "worse"
    assert changes_of(answer, 1)["throughput.samples"].verdict == "worse"
    assert changes_of(answer, 1)["communication.bytes"].verdict in ("not tested", "no change shown")


def test_runs_that_differ_by_chance_are_not_told_apart() -> None:
    answer = between(made(steps=40, seed=21), made(steps=40, seed=22))
    assert {change.verdict for change in changes_of(answer, 1).values()} <= {"no change shown", "not tested"}
    assert "no change shown" in answer.sentence


def test_a_slower_run_within_a_hundredth_is_no_change() -> None:
    change = changes_of(between(made(jitter=0.001, steps=30), made(jitter=0.001, steps=30, forward_ms=40.6)), 1)[
        "step_time"
    ]
    assert change.absolute.low is not None
    assert change.absolute.low > 0
    assert change.verdict == "no change shown"


def test_repeats_are_tested_by_permutation_and_say_what_p_they_can_have() -> None:
    slow = [made(seed=seed, forward_ms=60.0) for seed in (1, 2, 3)]
    answer = compare([side(*(made(seed=seed) for seed in (4, 5, 6)), label="a"), side(*slow, label="b")])
    change = changes_of(answer, 1)["step_time"]
    assert change.test == "permutation over repeats"
    assert change.p_value is not None
    assert change.p_value >= 0.5  # 0.1 corrected over all figures
    assert "least possible p 0.1" in change.relative.method
    assert "verdict goes by the interval" in change.relative.method
    assert change.verdict == "worse"
    row = next(row for row in answer.kpis if row.key == "step_time")
    assert row.values[1].n == 3
    values = [run.answers.time.step_time.value for run in slow]
    assert row.values[1].value == pytest.approx(sum(value or 0 for value in values) / 3)


def test_one_run_against_repeats_is_not_tested() -> None:
    change = changes_of(compare([side(made(), label="a"), side(made(seed=1), made(seed=2), label="b")]), 1)["step_time"]
    assert (change.test, change.verdict, change.p_value) == ("none", "not tested", None)


def test_too_few_steady_steps_are_not_tested() -> None:
    change = changes_of(between(made(steps=6), made(steps=6, seed=1)), 1)["step_time"]
    assert change.verdict == "not tested"
    assert "too few steady steps" in change.absolute.method


# --- comparability --------------------------------------------------------------------------------------------------


def with_facts(run: ComparedRun, **facts: Any) -> ComparedRun:
    answers = run.answers
    rows = tuple((key, value) for key, value in answers.configuration if key not in facts)
    return replace(run, answers=replace(answers, configuration=(*rows, *facts.items())))


def test_another_model_is_not_comparable() -> None:
    run = made()
    compute = run.answers.compute
    larger = replace(run.answers, compute=replace(compute, params=replace(compute.params, value=9e9)))
    answer = between(run, replace(run, answers=larger))
    assert answer.comparable == "not comparable"
    assert answer.configuration[0].key == "work: model parameters"
    assert answer.configuration[0].weight == "breaks"
    assert "1,234,567 / 9,000,000,000" in answer.reasons[0]
    assert "can't be compared" in answer.sentence


def test_another_version_is_a_reservation_and_another_host_none() -> None:
    run = made()
    answer = between(run, with_facts(run, **{"torch.version": "2.14.0"}))
    assert answer.comparable == "with reservations"
    assert answer.reasons == ("torch.version differs (2.13.0 / 2.14.0): a different version of software.",)
    harmless = between(run, with_facts(run, **{"host.hostname": "elsewhere"}))
    assert (harmless.comparable, harmless.reasons) == ("comparable", ())
    assert harmless.configuration[0].weight == "harmless"


def test_a_model_that_is_not_known_is_a_reservation() -> None:
    run = made()
    compute = run.answers.compute
    unknown = replace(run.answers, compute=replace(compute, params=replace(compute.params, value=None)))
    answer = between(run, replace(run, answers=unknown))
    assert answer.comparable == "with reservations"
    assert answer.reasons[0] == "The model of b is not known: whether the runs do the same work can't be told."


def test_setups_may_differ_in_nodes() -> None:
    answer = between(varied("two ranks"), varied("slow link"))
    assert answer.comparable == "comparable"
    assert {row.weight for row in answer.configuration} == {"expected", "harmless"}


def test_missing_ranks_and_killed_jobs_are_reservations() -> None:
    for name, words in (("a rank is missing", "2 of 3 ranks are there"), ("killed", "it did not end well")):
        answer = between(varied(name), varied(name))
        assert answer.comparable == "with reservations"
        assert any(words in reason for reason in answer.reasons), answer.reasons


def test_a_side_without_a_steady_step_is_not_comparable() -> None:
    answer = between(made(), made(steps=0))
    assert answer.comparable == "not comparable"
    assert any("no steady step" in reason for reason in answer.reasons)
    assert "no step time on both sides" in answer.sentence


def test_another_batch_is_comparable_by_samples_only() -> None:
    answer = between(made(), made(micro_steps=4))
    assert answer.comparable == "with reservations"
    assert any(row.key == "work: samples per step" and row.weight == "matters" for row in answer.configuration)
    blind = [replace(run, view=replace(run.view, steps=run.view.steps.with_columns(samples=None, tokens=None)))
             for run in (made(), made(micro_steps=4))]  # fmt: skip
    answer = between(*blind)
    assert answer.comparable == "not comparable"
    assert any("agprof.step(samples=...)" in reason for reason in answer.reasons)


@pytest.mark.parametrize(
    ("key", "weight"),
    [
        ("work: model parameters", "breaks"),
        ("nodes", "expected"),
        ("setup", "expected"),
        ("workload.launch.ranks_per_node", "expected"),
        ("environment.GLOO_SOCKET_IFNAME", "expected"),
        ("deepspeed.config.zero_optimization.stage", "expected"),
        ("framework", "expected"),
        ("torch.version", "matters"),
        ("package deepspeed", "matters"),
        ("device.name", "matters"),
        ("model.dtype", "matters"),
        ("deepspeed.config.train_micro_batch_size_per_gpu", "matters"),
        ("omp_num_threads", "matters"),
        ("environment.NCCL_ALGO", "matters"),
        ("commit", "matters"),
        ("workload.args.preset", "matters"),
        ("something.never.seen", "matters"),
        ("command", "harmless"),
        ("host.hostname", "harmless"),
        ("workload.name", "harmless"),
    ],
)
def test_weights_of_keys(key: str, weight: str) -> None:
    assert weigh(key)[0] == weight


# --- sides, scaling, overlays, words --------------------------------------------------------------------------------


def test_repeats_of_one_setup_are_found_by_their_marks() -> None:
    def mark(setup: str, repeat: int, series: str = "s") -> dict[str, Any]:
        return {"setup": setup, "repeat": repeat, "series": series}

    marks = [mark("one", 1), mark("two", 1), mark("two", 2), mark("one", 2), {"name": "x"}, {"name": "x"}]
    assert group_repeats(marks) == ((0, 3), (1, 2), (4,), (5,))
    assert group_repeats([mark("one", 1, "s"), mark("one", 1, "t")]) == ((0,), (1,))


def test_labels_tell_the_sides_apart() -> None:
    assert labels([[made(name="one")], [made(name="two")]]) == ("one", "two")
    same = labels([[made(name="x", seed=1)], [made(name="x", seed=2)]])
    assert len(set(same)) == 2


@pytest.mark.parametrize("count", [0, 1, 17])
def test_there_are_two_to_sixteen_sides(count: int) -> None:
    with pytest.raises(ConfigError, match="there must be 2 to 16"):
        compare([side(made(), label=str(at)) for at in range(count)])


def test_weak_scaling_is_throughput_per_rank() -> None:
    """Four ranks with the same batch each and the same step: efficiency 1; on a slower link less."""
    runs = [made(ranks=2, jitter=0.0), made(ranks=4, jitter=0.0), made(ranks=8, jitter=0.0, transfer_ms=30.0)]
    answer = compare([side(run, label=str(at)) for at, run in enumerate(runs)])
    assert answer.scaling is not None
    assert answer.scaling.kind == "weak"
    steps = [run.answers.time.step_time.value or 0 for run in runs]
    assert [point.ranks for point in answer.scaling.points] == [2, 4, 8]
    efficiencies = [point.efficiency.value for point in answer.scaling.points]
    assert efficiencies == pytest.approx([1.0, steps[0] / steps[1], steps[0] / steps[2]])


def test_strong_scaling_is_told_by_the_batch() -> None:
    half = made(ranks=4, micro_steps=1)
    answer = between(made(ranks=2, micro_steps=2), half)
    assert answer.scaling is not None
    assert answer.scaling.kind == "strong"


@pytest.mark.parametrize("name", ["two ranks", "asynchronous", "straggler", "reinforcement"])
def test_overlaid_shares_are_those_of_the_mean_step(name: str) -> None:
    run = varied(name)
    curves = between(run, run).overlays[0]
    for values in zip(*(curve.y for curve in curves), strict=True):
        assert sum(value or 0 for value in values) == pytest.approx(1.0)
        assert all(0 <= (value or 0) <= 1 for value in values)
    steady = run.view.steady
    for curve in curves:
        share = float((steady[curve.label] / steady["duration_ns"]).mean())  # type: ignore[arg-type]
        assert sum(value or 0 for value in curve.y) / len(curve.y) == pytest.approx(share, abs=1e-6)
        assert list(curve.x_ns) == sorted(curve.x_ns)
        assert 0 <= curve.x_ns[0] <= curve.x_ns[-1] <= 1_000_000


def test_what_moved_most_comes_first() -> None:
    rows = between(made(), made(transfer_ms=30.0)).moved
    assert (rows[0].kind, rows[0].name) == ("phase", "communication")
    assert [abs(row.change) for row in rows] == sorted((abs(row.change) for row in rows), reverse=True)
    assert {row.kind for row in rows} >= {"phase", "collective"}


def with_kernels(run: ComparedRun, steps: int, **durations: int) -> ComparedRun:
    """The run with a device trace of one rank: these kernels in each of its steps, or in none."""
    rows = TraceRows()
    at = 0
    for step in range(max(steps, 1)):
        begin = at
        for name, duration in durations.items():
            rows.gpu(name, at + 1, at + 1 + duration)
            at += duration + 1
        if steps:
            rows.step(step, begin, at)
    return replace(run, view=replace(run.view, run=replace(run.view.run, traces={0: rows.trace(0)})))


@pytest.mark.parametrize(("steps", "words"), [(2, ""), (0, " (whole trace, per rank)")])
def test_kernels_moved_as_agprof_diff_says(steps: int, words: str) -> None:
    run = made()
    answer = between(with_kernels(run, steps, gemm=500, softmax=100), with_kernels(run, steps, gemm=800, cast=50))
    kernels = {row.name: (row.baseline, row.candidate, row.change) for row in answer.moved if row.kind == "kernel"}
    assert kernels == {
        f"gemm{words}": (500, 800, 300), f"softmax{words}": (100, None, -100), f"cast{words}": (None, 50, 50),
    }  # fmt: skip


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_terminal_gets_at_most_25_lines_with_the_path(width: int) -> None:
    drawn = random.Random(0)
    sides = [side(varied(name), label=HOSTILE * 9 + name) for name in ("GPUs", "killed", "four ranks")]
    gates = [read_gate(f"step_time<=+{drawn.randrange(9)}%") for _ in range(9)]
    lines = summary_lines(compare(sides, gates=gates), width)
    assert len(lines) <= MOST_LINES < 25
    assert all(len(line) <= width and line.isprintable() for line in lines)


def test_the_terminal_draws_the_waterfall_and_the_gates() -> None:
    lines = summary_lines(between(made(), made(transfer_ms=30.0), gates=GATES[:1]))
    bars = [line for line in lines if "communication.bandwidth" in line]
    assert len(bars) == 1
    assert bars[0].endswith("+" * 18)
    assert lines[-1].startswith("gate FAIL step_time<=+5%: +2")
