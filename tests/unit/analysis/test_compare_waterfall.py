"""Waterfalls: they add up exactly for any two runs, mirror when swapped, and put each cause into its own part."""

from dataclasses import replace
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agprof.analysis.compare_communication import OpAmounts, communication_parts, side_amounts
from agprof.analysis.compare_memory import energy_waterfall, memory_waterfall
from agprof.analysis.compare_sides import ComparedRun
from agprof.analysis.compare_time import step_time_waterfall
from agprof.analysis.compare_waterfall import Part, apportion, build, explained
from agprof.analysis.view import prepare
from agprof.model.comm_ceiling import AlphaBeta, CommCeiling, CommCurve
from agprof.model.compare_answers import Waterfall
from compared_runs import VARIETY, made, side, varied
from runs_of_rows import run_of

MS = 1_000_000
FRACTIONS = st.fractions(min_value=-(10**9), max_value=10**9, max_denominator=997)
SPECS = st.fixed_dictionaries(
    {
        "ranks": st.integers(1, 4),
        "steps": st.integers(3, 8),
        "collectives": st.integers(0, 4),
        "collective_bytes": st.sampled_from([4096, 2**20, 12_345_677]),
        "transfer_ms": st.floats(0.01, 90).map(lambda value: round(value, 3)),
        "forward_ms": st.floats(1, 90).map(lambda value: round(value, 3)),
        "async_ops": st.booleans(),
        "straggler": st.sampled_from([None, 0]),
        "gpus": st.sampled_from([0, 1]),
        "seed": st.integers(0, 3),
        "profile_step": st.sampled_from([None, 2]),
    }
)


def all_of(a: ComparedRun, b: ComparedRun) -> list[Waterfall]:
    sides = side(a, label="a"), side(b, label="b")
    found = [build_(*sides, 1) for build_ in (step_time_waterfall, memory_waterfall, energy_waterfall)]
    return [waterfall for waterfall in found if waterfall is not None]


def assert_adds_up(waterfall: Waterfall) -> None:
    """In plain floats, in the order given: no tolerance."""
    assert sum(part.baseline for part in waterfall.parts) == waterfall.baseline
    assert sum(part.candidate for part in waterfall.parts) == waterfall.candidate
    assert sum(part.change for part in waterfall.parts) == waterfall.candidate - waterfall.baseline
    assert all(part.change == part.candidate - part.baseline for part in waterfall.parts)


def assert_mirrors(there: Waterfall, back: Waterfall) -> None:
    assert (there.baseline, there.candidate) == (back.candidate, back.baseline)
    assert {part.key: (part.baseline, part.candidate, part.change) for part in there.parts} == {
        part.key: (part.candidate, part.baseline, -part.change) for part in back.parts
    }


@given(st.lists(FRACTIONS, max_size=12))
def test_rounded_parts_add_up_to_their_rounded_sum(parts: list[Fraction]) -> None:
    rounded = apportion(parts)
    assert sum(rounded) == round(sum(parts, Fraction(0)))
    assert all(abs(whole - part) < 1 for whole, part in zip(rounded, parts, strict=True))


@given(st.lists(st.tuples(FRACTIONS, FRACTIONS), min_size=1, max_size=8), st.sampled_from(["ns", "bytes", "J"]))
def test_any_parts_make_a_waterfall_that_adds_up(pairs: list[tuple[Fraction, Fraction]], unit: Any) -> None:
    parts = [
        Part(key=str(at), label=str(at), group="other", baseline=a, candidate=b) for at, (a, b) in enumerate(pairs)
    ]
    waterfall = build("step time", unit, 1, parts, "", ("a", "b"))
    assert_adds_up(waterfall)
    smallest = 2.0**-20 if unit == "J" else 1.0
    assert abs(waterfall.candidate - float(sum(b for _, b in pairs))) <= smallest


@given(SPECS, SPECS)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_waterfalls_of_any_two_runs_add_up_and_mirror(one: dict[str, Any], other: dict[str, Any]) -> None:
    a, b = made(**one), made(**other)
    for there, back in zip(all_of(a, b), all_of(b, a), strict=True):
        assert_adds_up(there)
        assert_mirrors(there, back)


@pytest.mark.parametrize(("one", "other"), list(product(VARIETY, VARIETY)))
def test_every_kind_of_run_against_every_other(one: str, other: str) -> None:
    found = all_of(varied(one), varied(other))
    assert found[0].quantity == "step time"
    assert found[0].baseline == pytest.approx(varied(one).view.mean_step_ns, abs=1)
    assert found[0].candidate == pytest.approx(varied(other).view.mean_step_ns, abs=1)
    for waterfall in found:
        assert_adds_up(waterfall)


@pytest.mark.parametrize("name", VARIETY)
def test_a_run_against_itself_moves_nothing(name: str) -> None:
    for waterfall in all_of(varied(name), varied(name)):
        assert [part.change for part in waterfall.parts] == [0.0] * len(waterfall.parts)
        assert explained(waterfall) == ""
        assert waterfall.sentence.endswith("in both, part by part.")


def test_repeats_have_the_mean_of_their_runs() -> None:
    a, b, c = (made(seed=seed, transfer_ms=3.0 + seed) for seed in range(3))
    waterfall = step_time_waterfall(side(a), side(b, c), 1)
    assert waterfall is not None
    assert_adds_up(waterfall)
    exact = (Fraction(int(b.view.steady["duration_ns"].sum()), b.view.steady.height)
             + Fraction(int(c.view.steady["duration_ns"].sum()), c.view.steady.height)) / 2  # fmt: skip
    assert waterfall.candidate == round(exact)


def test_a_slower_link_is_bandwidth_and_nothing_else() -> None:
    """Thirteen transfers of 30 ms in place of 3 ms."""
    waterfall = step_time_waterfall(side(made(jitter=0.0)), side(made(jitter=0.0, transfer_ms=30.0)), 1)
    assert waterfall is not None
    changes = {part.key: part.change for part in waterfall.parts}
    assert changes["communication.bandwidth"] == pytest.approx(13 * 27 * MS, rel=0.03)
    rest = {key: value for key, value in changes.items() if key != "communication.bandwidth"}
    assert all(abs(value) < 0.001 * changes["communication.bandwidth"] for value in rest.values()), rest


def with_energy(run: ComparedRun, joules: float, seconds: float) -> ComparedRun:
    """The run with that energy of a step, and steps of that length."""
    energy = varied("GPUs").answers.energy
    assert energy is not None
    energy = replace(energy, per_step=replace(energy.per_step, value=joules))
    steps = run.view.steps.with_columns(duration_ns=pl.lit(round(seconds * 1e9)))
    return replace(run, answers=replace(run.answers, energy=energy), view=replace(run.view, steps=steps))


def test_energy_is_time_and_power() -> None:
    """1 s at 100 W, then 2 s at 150 W: time 1 s x 125 W, power 50 W x 1.5 s."""
    waterfall = energy_waterfall(
        side(with_energy(varied("GPUs"), 100, 1)), side(with_energy(varied("GPUs"), 300, 2)), 1
    )
    assert waterfall is not None
    assert_adds_up(waterfall)
    assert {part.key: part.change for part in waterfall.parts} == {"energy.time": 125.0, "energy.power": 75.0}


def test_energy_that_one_side_lacks_has_no_waterfall() -> None:
    blind = replace(varied("GPUs"), answers=replace(varied("GPUs").answers, energy=None))
    assert energy_waterfall(side(blind), side(with_energy(varied("GPUs"), 100, 1)), 1) is None


def with_activations(run: ComparedRun, more: float) -> ComparedRun:
    """The run with more activations, in the account, in its total and in the peak."""
    memory = run.answers.memory
    highest = max(memory.ranks, key=lambda row: row.peak.value or 0)
    accounts = tuple(
        replace(
            account,
            total=replace(account.total, value=(account.total.value or 0) + more),
            parts=tuple(
                replace(part, bytes=part.bytes + more) if part.part == "activations" else part for part in account.parts
            ),
        )
        if (account.rank, account.at) == (highest.rank, "peak")
        else account
        for account in memory.accounts
    )
    peak = replace(memory.peak, value=(memory.peak.value or 0) + more)
    return replace(run, answers=replace(run.answers, memory=replace(memory, accounts=accounts, peak=peak)))


@pytest.mark.parametrize("name", ["two ranks", "GPUs"])
def test_more_activations_are_activations(name: str) -> None:
    run = varied(name)
    waterfall = memory_waterfall(side(run), side(with_activations(run, 12_345.0)), 1)
    assert waterfall is not None
    assert waterfall.candidate - waterfall.baseline == 12_345.0
    assert {part.key: part.change for part in waterfall.parts if part.change} == {"memory.activations": 12_345.0}


def test_memory_of_devices_and_of_hosts_is_not_compared() -> None:
    assert memory_waterfall(side(varied("GPUs")), side(varied("two ranks")), 1) is None


# --- made of rows: what a part must be, to the nanosecond -----------------------------------------------------------


def call(
    rank: int, start: int, end: int, size: int | None = 1000, op: str = "all_reduce", n: int = 2
) -> dict[str, Any]:
    """A synchronous collective of step 0."""
    return {
        "rank": rank, "step": 0, "micro_step": 0, "op": op, "group": "world", "group_size": n, "bytes": size,
        "async_op": False, "start_ns": start, "issue_end_ns": end, "end_ns": end, "wait_ns": 0, "tap": "wrapper",
        "thread": 1, "caller": "backward",
    }  # fmt: skip


def run_of_calls(
    step_ns: int, *calls: dict[str, Any], ranks: int = 2, alpha_ns: float | None = None, waits: Any = ()
) -> ComparedRun:
    """Ranks with one step of that length each, and these collectives."""
    steps = [
        {"rank": rank, "step": 0, "start_ns": 0, "end_ns": step_ns, "micro_steps": 1, "profiled": False}
        for rank in range(ranks)
    ]
    facts = [{"rank": 0, "time_ns": 0, "key": "dist.backend", "value": '"gloo"'}]
    rows = {"steps": steps, "collectives": list(calls), "waits": list(waits), "facts": facts}
    run = run_of(Path("made"), ranks, rows)
    if alpha_ns is not None:
        run = replace(run, comm_ceilings=(ceiling(alpha_ns),))
    return ComparedRun(answers=varied("two ranks").answers, view=prepare(run))


def parts_of(a: ComparedRun, b: ComparedRun) -> dict[str, tuple[Fraction, Fraction]]:
    found = communication_parts(side(a), side(b))
    for one, run in enumerate((a, b)):
        exposed = Fraction(int(run.view.steady["communication"].sum()), run.view.steady.height)
        assert sum(((part.baseline, part.candidate)[one] for part in found), Fraction(0)) == exposed
    return {part.key.removeprefix("communication."): (part.baseline, part.candidate) for part in found}


def test_waiting_for_the_last_rank_is_skew_and_the_shortest_duration_transfer() -> None:
    """Rank 1 comes 300 ns late: rank 0 stands 500, of it 200 transfer; mean skew 150 per rank."""
    run = run_of_calls(1000, call(0, 100, 600), call(1, 400, 600))
    amounts = side_amounts(side(run), {})
    assert (amounts.exposed, amounts.skew, amounts.hidden) == (350, 150, 0)
    assert amounts.ops["all_reduce"] == OpAmounts(
        calls=Fraction(1), total_bytes=Fraction(1000), wire_bytes=Fraction(1000), transfer=Fraction(200)
    )


def test_twice_the_bytes_at_the_same_rate_are_bytes() -> None:
    a = run_of_calls(1000, call(0, 100, 300), call(1, 100, 300))
    b = run_of_calls(1000, call(0, 100, 500, 2000), call(1, 100, 500, 2000))
    assert parts_of(a, b)["bytes"] == (200, 400)
    assert parts_of(a, b)["bandwidth"] == (0, 0)


def test_the_same_bytes_at_half_the_rate_are_bandwidth() -> None:
    a = run_of_calls(1000, call(0, 100, 300), call(1, 100, 300))
    b = run_of_calls(1000, call(0, 100, 500), call(1, 100, 500))
    found = parts_of(a, b)
    assert found["bytes"] == (300, 300)
    assert found["bandwidth"] == (-100, 100)


def test_both_at_once_are_told_apart_at_the_mean_of_the_other() -> None:
    """1000 B at 0.2 ns/B, then 3000 B at 0.3 ns/B: bytes 2000 x 0.25, bandwidth 0.1 x 2000."""
    a = run_of_calls(2000, call(0, 0, 200), call(1, 0, 200))
    b = run_of_calls(2000, call(0, 0, 900, 3000), call(1, 0, 900, 3000))
    changes = {key: after - before for key, (before, after) in parts_of(a, b).items()}
    assert changes["bytes"] == 500
    assert changes["bandwidth"] == 200


def test_more_ranks_put_more_bytes_on_the_wire() -> None:
    """An all-reduce of S over 4 ranks moves 1.5 S per rank, over 2 ranks S: 1.5 times the time is no slower link."""
    a = run_of_calls(1000, *(call(rank, 100, 300) for rank in range(2)))
    b = run_of_calls(1000, *(call(rank, 100, 400, n=4) for rank in range(4)), ranks=4)
    assert parts_of(a, b)["bytes"] == (200, 300)
    assert parts_of(a, b)["bandwidth"] == (0, 0)


def test_communication_that_one_side_lacks_is_bytes() -> None:
    a = run_of_calls(1000, ranks=1)
    b = run_of_calls(1000, call(0, 100, 300), call(1, 100, 300))
    assert parts_of(a, b)["bytes"] == (0, 200)


def wait(rank: int, start: int, end: int) -> dict[str, Any]:
    return {"rank": rank, "step": 0, "op": "all_reduce", "start_ns": start, "end_ns": end, "thread": 1}


def in_flight(rank: int, start: int, end: int) -> dict[str, Any]:
    """An asynchronous collective whose call takes 10 ns."""
    return call(rank, start, start + 10) | {"async_op": True, "end_ns": end}


def test_what_an_asynchronous_caller_does_not_stand_in_is_hidden() -> None:
    """200 ns in flight, of which the caller stands 10 issuing and 50 waiting."""
    run = run_of_calls(
        1000, *(in_flight(rank, 100, 300) for rank in range(2)), waits=[wait(rank, 250, 300) for rank in range(2)]
    )
    amounts = side_amounts(side(run), {})
    assert (amounts.hidden, amounts.skew, amounts.split, amounts.exposed) == (140, 0, 60, 60)
    assert parts_of(run, run)["overlap"] == (-140, -140)


def test_calls_in_flight_at_once_are_served_one_after_another() -> None:
    """Three calls issued together take 100 ns each: 300 ns of transfer and not 100 + 200 + 300."""
    calls = [in_flight(rank, 100 + 10 * at, 200 + 100 * at) for rank in range(2) for at in range(3)]
    run = run_of_calls(1000, *calls, waits=[wait(rank, 130, 400) for rank in range(2)])
    amounts = side_amounts(side(run), {})
    assert amounts.ops["all_reduce"].transfer == 300
    assert (amounts.hidden, amounts.skew, amounts.split, amounts.exposed) == (0, 0, 300, 300)


def test_what_a_caller_stands_in_after_completion_is_the_remainder() -> None:
    run = run_of_calls(
        1000, *(in_flight(rank, 100, 300) for rank in range(2)), waits=[wait(rank, 110, 340) for rank in range(2)]
    )
    assert parts_of(run, run)["other"] == (40, 40)


def test_calls_without_partners_or_sizes_are_the_remainder() -> None:
    run = run_of_calls(
        1000, call(0, 100, 300, size=None), call(1, 100, 300, size=None), call(0, 400, 450, op="broadcast")
    )
    amounts = side_amounts(side(run), {})
    assert amounts.split == 0
    assert parts_of(run, run)["other"] == (Fraction(450, 2), Fraction(450, 2))


def test_a_barrier_is_latency() -> None:
    run = run_of_calls(1000, call(0, 100, 160, None, "barrier"), call(1, 130, 160, None, "barrier"))
    found = parts_of(run, run)
    assert found["latency"] == (30, 30)
    assert found["skew"] == (15, 15)


def ceiling(alpha_ns: float) -> CommCeiling:
    fit = AlphaBeta(
        alpha_ns=alpha_ns, alpha_error_ns=1, beta_ns_per_byte=0.1, beta_error_ns_per_byte=0.01, relative_rms=0.1,
        worst=0.2,
    )  # fmt: skip
    curve = CommCurve(op="all_reduce", group_size=2, nodes=1, points=(), fit=fit)
    return CommCeiling(
        version=1, backend="gloo", device_type="cpu", device_name="", ranks=2, nodes=1, setup=None, link="loopback",
        measured_realtime_ns=0, torch_version="", curves=(curve,),
    )  # fmt: skip


def test_latency_is_calls_times_alpha_of_the_measured_ceilings() -> None:
    a = run_of_calls(1000, call(0, 100, 300), call(1, 100, 300), alpha_ns=20)
    twice = [call(rank, start, start + 200) for rank in range(2) for start in (100, 400)]
    b = run_of_calls(1000, *twice, alpha_ns=70)
    found = parts_of(a, b)
    assert found["latency"] == (20, 140)
    assert [sum(sides) for sides in zip(found["bytes"], found["bandwidth"], strict=True)] == [180, 260]
    assert "alpha" in next(p.method for p in communication_parts(side(a), side(b)) if p.key == "communication.latency")


def test_a_latency_that_only_one_side_knows_is_not_used() -> None:
    a = run_of_calls(1000, call(0, 100, 300), call(1, 100, 300), alpha_ns=20)
    b = run_of_calls(1000, call(0, 100, 300), call(1, 100, 300))
    latency = next(part for part in communication_parts(side(a), side(b)) if part.key == "communication.latency")
    assert (latency.baseline, latency.candidate) == (0, 0)
    assert "was not measured" in latency.method


def test_latency_is_at_most_the_transfer() -> None:
    run = run_of_calls(1000, call(0, 100, 300), call(1, 100, 300), alpha_ns=10_000)
    assert parts_of(run, run)["latency"] == (200, 200)
    assert parts_of(run, run)["bytes"] == (0, 0)


def test_the_sentence_names_what_is_large_and_what_of_it() -> None:
    parts = [
        Part(key="compute.forward", label="Forward", group="compute", baseline=Fraction(100), candidate=Fraction(101)),
        Part(
            key="communication.bytes",
            label="Bytes",
            group="communication",
            baseline=Fraction(0),
            candidate=Fraction(30),
        ),
        Part(
            key="communication.skew", label="Skew", group="communication", baseline=Fraction(0), candidate=Fraction(70)
        ),
    ]
    waterfall = build("step time", "ns", 1, parts, "", ("one", "two"))
    assert explained(waterfall) == "+100 ns exposed communication (skew +70 ns, bytes +30 ns)"
    assert "two is 201 ns against 100 ns of one (+101 %)" in waterfall.sentence
