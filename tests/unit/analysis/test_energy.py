"""Energy against closed forms: counters to 0.1 %, through a reset; integrals of power to 1 %; prices, phases, scope."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agprof.analysis.energy import analyse_energy
from agprof.analysis.energy_curve import EnergyCurve, gpu_curve
from agprof.analysis.gpu_mapping import map_gpus
from agprof.analysis.view import View
from agprof.model.energy_answers import EnergyAnswer
from known_power import (
    BEGIN_NS,
    FUNCTIONS,
    KnownPower,
    S,
    constant,
    gpu_samples,
    ramp,
    sample_times,
    sine,
    square,
    step_rows,
)
from rows_of_gpus import gpu_row, uuid, view_of

WARMUP = {"workload": {"profile": {"warmup_steps": 10}}}
ON_GPU_0 = {0: {"device.type": "cuda", "device.uuid": uuid(0)}}


def seconds(start_s: float, end_s: float) -> tuple[int, int]:
    return BEGIN_NS + round(start_s * S), BEGIN_NS + round(end_s * S)


def curve_of(rows: list[dict[str, Any]]) -> EnergyCurve:
    def readings(name: str, kind: str | None = None) -> Any:
        values = [row[name] if kind is None or row["power_kind"] == kind else None for row in rows]
        return np.array(values, dtype=np.float64)

    average = np.where(
        np.isnan(readings("power_average_mw")), readings("power_mw", "average_1s"), readings("power_average_mw")
    )
    times = np.array([row["time_ns"] for row in rows])
    curve = gpu_curve(times, readings("energy_mj"), readings("power_mw", "instant"), average)
    assert curve is not None
    return curve


def energy_of(view: View) -> EnergyAnswer:
    answer = analyse_energy(view, map_gpus(view))
    assert answer is not None
    return answer


def a_run(samples: list[dict[str, Any]], steps: list[dict[str, Any]] | None = None, **options: Any) -> View:
    """20 s, then 60 steps of 1 s of which the first 10 are warm-up, then 20 s."""
    rows = {"gpus": [gpu_row(0)], "gpu_samples": samples, "steps": step_rows(60, 20, 1) if steps is None else steps}
    return view_of(rows | options.pop("rows", {}), facts=ON_GPU_0, **{"manifest": WARMUP, **options})


# -- closed forms --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", FUNCTIONS, ids=lambda power: power.name)
@pytest.mark.parametrize("resets_s", [(), (47.31,), (0.05, 33.3, 33.9, 99.9)], ids=["", "reset", "resets"])
def test_the_counter_to_a_thousandth(power: KnownPower, resets_s: tuple[float, ...]) -> None:
    answer = energy_of(a_run(gpu_samples(power, sample_times(100), resets_s=resets_s)))
    assert answer.run.value == pytest.approx(power.between(0, 100), rel=1e-3)
    assert answer.steady.value == pytest.approx(power.between(30, 80), rel=1e-3)
    assert answer.gpus[0].resets == len(resets_s)
    assert answer.gpus[0].method == ("counter and integral" if resets_s else "counter")
    assert (answer.run.low or 0) <= power.between(0, 100) <= (answer.run.high or 0)


@pytest.mark.parametrize("power", FUNCTIONS, ids=lambda power: power.name)
@pytest.mark.parametrize("kind", ["instant", "average"])
def test_without_a_counter_the_integral_to_a_hundredth(power: KnownPower, kind: str) -> None:
    options = {"counter": False, "instant": kind == "instant", "average": kind == "average"}
    answer = energy_of(a_run(gpu_samples(power, sample_times(100), **options)))
    assert answer.run.value == pytest.approx(power.between(0, 100), rel=1e-2)
    assert answer.steady.value == pytest.approx(power.between(30, 80), rel=1e-2)
    assert answer.gpus[0].method == f"integral of {kind} power"
    assert (answer.run.low or 0) <= power.between(0, 100) <= (answer.run.high or 0)


def test_averages_lie_half_a_second_back() -> None:
    """A ramp tells: unshifted it would be 0.5 s x 20 W/s x 50 s = 500 J off."""
    power = ramp(100, 20)
    rows = gpu_samples(power, sample_times(100), counter=False, instant=False, average=True)
    measured = curve_of(rows).window(*seconds(30, 80))
    assert measured.joules == pytest.approx(power.between(30, 80), abs=20)


def test_instant_power_is_taken_before_averages_and_the_counter_before_both() -> None:
    rows = gpu_samples(constant(300), sample_times(100), counter=False)
    for row in rows:
        row["power_average_mw"] = 900_000
    assert curve_of(rows).window(*seconds(10, 60)).joules == pytest.approx(15_000)
    with_counter = gpu_samples(constant(300), sample_times(100))
    for row in with_counter:
        row["power_mw"] = 900_000
    assert curve_of(with_counter).window(*seconds(10, 60)).joules == pytest.approx(15_000, rel=1e-6)


@pytest.mark.parametrize("sensor", [0.96, 1.04])
@pytest.mark.parametrize("power", FUNCTIONS, ids=lambda power: power.name)
def test_the_interval_holds_the_truth_where_sensor_and_refresh_are_off(power: KnownPower, sensor: float) -> None:
    rows = gpu_samples(power, sample_times(100), stale_s=0.1, sensor=sensor)
    for start in (10, 31.7, 55.01):
        measured = curve_of(rows).window(*seconds(start, start + 5))
        assert measured.low <= power.between(start, start + 5) <= measured.high
        assert measured.high - measured.low < 0.2 * measured.joules


def test_a_counter_that_stands_still_counts_nothing() -> None:
    rows = gpu_samples(constant(300), sample_times(100))
    for row in rows:
        row["energy_mj"] = 17
    measured = curve_of(rows).window(*seconds(10, 60))
    assert measured.joules == pytest.approx(15_000)
    assert measured.counter_ns == 0


def test_a_counter_that_jumps_beyond_reason_began_anew() -> None:
    rows = gpu_samples(constant(300), sample_times(100))
    for row in rows[200:]:
        row["energy_mj"] += 10**12
    curve = curve_of(rows)
    assert curve.window(*seconds(0, 100)).joules == pytest.approx(30_000, rel=1e-3)
    assert len(curve.resets_ns) == 1


# -- gaps ----------------------------------------------------------------------------------------------------------


def test_the_counter_counts_through_a_gap() -> None:
    power = square(120, 680, 7.3)
    times = [t for t in sample_times(100) if not 40 < t < 70]
    measured = curve_of(gpu_samples(power, times)).window(*seconds(10, 90))
    assert measured.joules == pytest.approx(power.between(10, 90), rel=1e-3)
    assert measured.left_out_ns == 0


def test_a_window_that_ends_in_a_gap_says_how_little_it_knows() -> None:
    power = square(120, 680, 30)
    times = [t for t in sample_times(100) if not 40 < t < 70]
    measured = curve_of(gpu_samples(power, times)).window(*seconds(10, 55))
    assert measured.low <= power.between(10, 55) <= measured.high
    assert measured.high - measured.low > power.between(40, 70) / 2


def test_an_integral_leaves_a_gap_out_and_says_so() -> None:
    times = [t for t in sample_times(100) if not 40 < t < 70]
    answer = energy_of(a_run(gpu_samples(constant(400), times, counter=False)))
    assert answer.run.value == pytest.approx(400 * 70, rel=0.01)
    assert (answer.run.high or 0) > 400 * 100
    assert "left out since nothing was read: 30" in answer.run.method


def test_a_reset_within_a_gap_is_not_bridged() -> None:
    times = [t for t in sample_times(100) if not 40 < t < 60]
    curve = curve_of(gpu_samples(constant(400), times, resets_s=(50,)))
    measured = curve.window(*seconds(0, 100))
    assert measured.joules == pytest.approx(400 * 80, rel=0.01)
    assert 19 * S < measured.left_out_ns < 21 * S
    assert measured.high > 400 * 100


def test_a_run_of_which_less_than_half_is_known_has_no_figure() -> None:
    times = [t for t in sample_times(100) if not 20 < t < 80]
    answer = energy_of(a_run(gpu_samples(constant(400), times, counter=False)))
    assert answer.run.value is None
    assert "known for only 40" in (answer.run.reason or "")


def test_a_lost_gpu_leaves_rows_without_values() -> None:
    rows = gpu_samples(constant(400), sample_times(100), counter=False)
    for row in rows[200:250]:
        row["power_mw"] = row["power_kind"] = None
    measured = curve_of(rows).window(*seconds(0, 100))
    assert measured.joules == pytest.approx(400 * 90, rel=0.01)
    assert 9.5 * S < measured.left_out_ns < 10.5 * S
    assert (
        measured.samples
        == curve_of(gpu_samples(constant(400), sample_times(100))).window(*seconds(0, 100)).samples - 50
    )


def test_a_period_that_was_doubled_is_no_gap() -> None:
    times = [*sample_times(40), *[40 + 1.6 * k for k in range(1, 38)]]
    measured = curve_of(gpu_samples(constant(400), times, counter=False)).window(*seconds(0, 99))
    assert measured.left_out_ns == 0
    assert measured.joules == pytest.approx(400 * 99)


# -- too short -----------------------------------------------------------------------------------------------------


def test_windows_under_five_seconds_have_no_figure() -> None:
    answer = energy_of(a_run(gpu_samples(constant(400), sample_times(100)), step_rows(40, 20, 0.1)))
    assert answer.run.value is not None
    for figure in (answer.steady, answer.per_step, answer.per_sample, answer.per_token, answer.tokens_per_joule):
        assert figure.value is None
        assert "3.00 s in a row: under 5 s the sensors can't tell" in (figure.reason or "")
    short = energy_of(a_run(gpu_samples(constant(400), sample_times(0.8)), []))
    assert short.run.value is None
    assert short.kwh.value is None
    assert "800 ms are too short" in (short.run.reason or "")


def test_no_step_at_all() -> None:
    answer = energy_of(a_run(gpu_samples(constant(400), sample_times(100)), []))
    assert answer.run.value == pytest.approx(40_000, rel=1e-3)
    assert answer.per_step.reason == "no steady step was seen"
    assert answer.phases == ()
    assert answer.sentence == "1 GPU used 40.0 kJ (0.0111 kWh) over the run."
    assert "0 tokens" not in answer.per_token.method
    assert answer.per_token.method == "energy of the steady steps / tokens of all ranks"


# -- what is made of it --------------------------------------------------------------------------------------------


def test_per_step_sample_and_token() -> None:
    answer = energy_of(a_run(gpu_samples(constant(400), sample_times(100))))
    assert answer.per_step.value == pytest.approx(400, rel=1e-3)
    assert answer.per_sample.value == pytest.approx(400 / 8, rel=1e-3)
    assert answer.per_token.value == pytest.approx(400 / 4096, rel=1e-3)
    assert answer.tokens_per_joule.value == pytest.approx(4096 / 400, rel=1e-3)
    assert answer.kwh.value == pytest.approx(40_000 / 3.6e6, rel=1e-3)
    assert answer.gpus[0].mean_power.value == pytest.approx(400, rel=1e-3)
    assert (answer.tokens_per_joule.low or 0) < 4096 / 400 < (answer.tokens_per_joule.high or 0)
    assert answer.sentence == (
        "1 GPU used 40.0 kJ (0.0111 kWh) over the run; a steady step takes 400 J and 0.0977 J a token, "
        "at 400 W in the mean."
    )


def test_tokens_that_were_not_seen_say_how_to_tell_them() -> None:
    answer = energy_of(a_run(gpu_samples(constant(400), sample_times(100)), step_rows(60, 20, 1, tokens=None)))
    assert answer.per_token.value is None
    assert "agprof.step(tokens=...)" in (answer.per_token.reason or "")
    assert answer.per_sample.value == pytest.approx(50, rel=1e-3)


def test_a_profiled_step_between_steady_ones_is_not_in_them() -> None:
    steps = step_rows(60, 20, 1)
    steps[30]["profiled"] = True
    power = KnownPower(
        "spike", lambda t: 4000 if 50 <= t < 51 else 400, lambda t: 400 * t + 3600 * min(1, max(0, t - 50))
    )
    answer = energy_of(a_run(gpu_samples(power, sample_times(100)), steps))
    assert answer.per_step.value == pytest.approx(400, rel=0.01)
    (profiled,) = [phase for phase in answer.phases if phase.phase == "profiled steps"]
    assert profiled.energy.value is None
    assert "1.00 s are too short" in (profiled.energy.reason or "")


def test_idle_power_is_the_lowest_second_before_the_first_step() -> None:
    power = KnownPower("start", lambda t: 70 if t < 10 else 400, lambda t: 70 * min(t, 10) + 400 * max(0, t - 10))
    answer = energy_of(a_run(gpu_samples(power, sample_times(100))))
    assert answer.gpus[0].idle_power.value == pytest.approx(70, rel=1e-3)
    less = KnownPower(
        "less", lambda t: 60 if 3 <= t < 7 else power.watts(t), lambda t: power.joules(t) - 10 * min(4, max(0, t - 3))
    )
    lost = gpu_samples(less, sample_times(100))
    for row in lost[15:35]:
        row["power_mw"] = row["power_kind"] = row["energy_mj"] = None
    figure = energy_of(a_run(lost)).gpus[0].idle_power
    assert figure.value == pytest.approx(70, rel=0.01)
    assert (figure.high or 0) < 2 * 70, "not of a second in the gap"
    at_once = energy_of(a_run(gpu_samples(power, sample_times(100)), step_rows(60, 0, 1)))
    assert at_once.gpus[0].idle_power.value is None


PRICES = {"currency": "CHF", "price_per_kwh": 0.3, "price_per_gpu_hour": 2.5, "co2_g_per_kwh": 400, "pue": 1.2}


def priced(**energy: Any) -> EnergyAnswer:
    hour = gpu_samples(constant(360), sample_times(3600, 2.0))
    return energy_of(a_run(hour, manifest={"workload": {"energy": energy}}))


def test_cost_and_co2_are_what_was_declared() -> None:
    answer = priced(**PRICES, source="the site's bill")
    assert answer.kwh.value == pytest.approx(0.36, rel=1e-3)
    assert answer.cost.value == pytest.approx(2.5 + 0.36 * 0.3 * 1.2, rel=1e-3)
    assert answer.co2.value == pytest.approx(0.36 * 400 * 1.2, rel=1e-3)
    assert (answer.cost.unit, answer.currency, answer.co2.unit) == ("CHF", "CHF", "g")
    assert answer.declared == "0.3 CHF/kWh, 2.5 CHF per GPU hour, 400 g CO2/kWh, PUE 1.2 (source: the site's bill)"


def test_nothing_is_assumed_of_prices() -> None:
    answer = priced()
    assert answer.cost.value is None
    assert "energy.price_per_kwh" in (answer.cost.reason or "")
    assert answer.co2.reason == "energy.co2_g_per_kwh is not given in the workload file"
    assert answer.declared == ""
    only_energy = priced(price_per_kwh=0.5)
    assert only_energy.cost.value == pytest.approx(0.18, rel=1e-3)
    assert "energy.price_per_gpu_hour is not given" in only_energy.cost.method
    assert "energy.pue is not given" in only_energy.cost.method
    only_hours = priced(price_per_gpu_hour=2.0)
    assert only_hours.cost.value == pytest.approx(2.0, rel=1e-3)
    assert "energy.price_per_kwh is not given" in only_hours.cost.method


@pytest.mark.parametrize("value", [float("nan"), -1, True, "3", None, [], {}, 10**400])
def test_a_manifest_that_holds_no_number_holds_no_price(value: Any) -> None:
    answer = priced(price_per_kwh=value, co2_g_per_kwh=value)
    assert (answer.cost.value, answer.co2.value) == (None, None)


# -- whose energy --------------------------------------------------------------------------------------------------


def four_gpus(facts: dict[int, dict[str, Any]], gpus: list[dict[str, Any]] | None = None) -> EnergyAnswer:
    times = sample_times(100)
    samples = [row for gpu in range(4) for row in gpu_samples(constant(100 * (gpu + 1)), times, gpu=gpu)]
    rows = {"gpus": gpus or [gpu_row(n) for n in range(4)], "gpu_samples": samples}
    rows["steps"] = [row for rank in facts for row in step_rows(60, 20, 1, rank=rank)]
    return energy_of(view_of(rows, facts=facts, manifest=WARMUP))


def on(gpu: int, kind: str = "GPU") -> dict[str, Any]:
    return {"device.type": "cuda", "device.uuid": uuid(gpu, kind=kind)}


def test_only_the_gpus_of_the_run_are_summed() -> None:
    answer = four_gpus({0: on(1), 1: on(3)})
    assert answer.run.value == pytest.approx((200 + 400) * 100, rel=1e-3)
    assert [gpu.in_run for gpu in answer.gpus] == [False, True, False, True]
    assert answer.gpus[2].run.value == pytest.approx(30_000, rel=1e-3)
    assert answer.scope == "2 GPUs"
    assert answer.per_token.value == pytest.approx(600 / (2 * 4096), rel=1e-3)


def test_a_rank_whose_gpu_is_not_known_brings_in_the_whole_node() -> None:
    answer = four_gpus({0: on(1), 1: {"device.type": "cuda"}})
    assert answer.run.value == pytest.approx(1000 * 100, rel=1e-3)
    assert answer.scope == "4 GPUs (all of node 0, since which of them rank 1 uses is not known)"


def test_ranks_that_share_a_gpu_count_it_once() -> None:
    assert four_gpus({0: on(1), 1: on(1)}).run.value == pytest.approx(200 * 100, rel=1e-3)


def test_of_a_mig_instance_the_whole_gpu_is_counted_and_said() -> None:
    gpus = [gpu_row(n, mig_enabled=n == 2) for n in range(4)]
    gpus.append(gpu_row(4, uuid=uuid(9, kind="MIG"), mig_parent=2, pci_bus_id=None))
    answer = four_gpus({0: on(9, "MIG")}, gpus)
    assert answer.run.value == pytest.approx(300 * 100, rel=1e-3)
    assert [gpu.gpu for gpu in answer.gpus] == [0, 1, 2, 3]
    assert answer.scope == "1 GPU (GPU 2 of node 0 whole, although the run uses MIG instances of it)"


def test_ranks_on_the_cpu_use_no_gpu() -> None:
    answer = four_gpus({0: {"device.type": "cpu"}})
    assert answer.run.value is None
    assert answer.run.reason == "no rank of the run uses a GPU, and RAPL could not be read"


def test_one_gpu_without_power_leaves_no_sum() -> None:
    times = sample_times(100)
    samples = gpu_samples(constant(100), times) + gpu_samples(constant(1), times, gpu=1, counter=False, instant=False)
    rows = {"gpus": [gpu_row(0), gpu_row(1)], "gpu_samples": samples, "steps": step_rows(60, 20, 1)}
    answer = energy_of(view_of(rows, facts={0: on(0), 1: on(1)}))
    assert answer.run.reason == "GPU 1 of node 0: neither its energy counter nor its power could be read"
    assert answer.gpus[0].run.value == pytest.approx(10_000, rel=1e-3)
    assert answer.gpus[1].method is None


def test_nothing_was_seen() -> None:
    view = view_of({"steps": step_rows(20, 0, 1)}, facts={0: {"device.type": "cpu"}})
    assert analyse_energy(view, map_gpus(view)) is None


def rapl(watts: float, dram: float | None, count: int = 100, start_s: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "node": 0, "time_ns": BEGIN_NS + (start_s + k) * S, "period_ns": S,
            "cpu_energy_uj": None if k == 0 else round(watts * 1e6),
            "dram_energy_uj": None if k == 0 or dram is None else round(dram * 1e6),
        }
        for k in range(count + 1)
    ]  # fmt: skip


def test_rapl_is_in_the_sums_and_the_scope_says_so() -> None:
    samples = gpu_samples(constant(400), sample_times(100))
    answer = energy_of(a_run(samples, rows={"host_samples": rapl(80, 20)}))
    assert answer.run.value == pytest.approx(500 * 100, rel=1e-3)
    assert answer.per_step.value == pytest.approx(500, rel=1e-3)
    assert answer.scope == "1 GPU and the CPU packages of 1 node"
    assert [(node, round(figure.value or 0)) for node, figure in answer.host] == [(0, 10_000)]


def test_a_run_on_the_cpu_has_the_energy_of_its_packages() -> None:
    rows = {"host_samples": rapl(80, None), "steps": step_rows(60, 20, 1)}
    answer = energy_of(view_of(rows, facts={0: {"device.type": "cpu"}}, manifest=WARMUP))
    assert answer.run.value == pytest.approx(8_000, rel=1e-3)
    assert answer.per_step.value == pytest.approx(80, rel=1e-3)
    assert answer.gpus == ()
    assert answer.scope == "the CPU packages of 1 node"


def test_rapl_that_was_read_for_a_short_time_only_is_not_in_the_sums() -> None:
    samples = gpu_samples(constant(400), sample_times(100))
    answer = energy_of(a_run(samples, rows={"host_samples": rapl(80, 20, count=30)}))
    assert answer.run.value == pytest.approx(400 * 100, rel=1e-3)
    assert answer.scope == "1 GPU"
    assert answer.host[0][1].value is None


# -- phases --------------------------------------------------------------------------------------------------------


def a_range(name: str, start_s: float, end_s: float, number: int) -> dict[str, Any]:
    start, end = seconds(start_s, end_s)
    return {
        "rank": 0, "span": number, "step": 0, "micro_step": 0, "category": "range", "name": name, "start_ns": start,
        "end_ns": end, "thread": 1, "depth": 0,
    }  # fmt: skip


def test_phases_of_five_seconds_and_more() -> None:
    power = ramp(100, 4)
    spans = [a_range("evaluation", 40, 46, 0), a_range("evaluation", 60, 62, 1), a_range("checkpoint", 70, 74.9, 2)]
    answer = energy_of(a_run(gpu_samples(power, sample_times(100)), rows={"spans": spans}))
    phases = {phase.phase: phase for phase in answer.phases}
    expected = {"before the first step": (0, 20), "warm-up steps": (20, 30), "steady steps": (30, 80)}
    expected |= {"after the last step": (80, 100), "evaluation": (40, 46)}
    for name, window in expected.items():
        assert phases[name].energy.value == pytest.approx(power.between(*window), rel=1e-3), name
        length = window[1] - window[0]
        assert phases[name].mean_power.value == pytest.approx(power.between(*window) / length, rel=1e-3)
        assert phases[name].duration_ns == pytest.approx(length * S, abs=10)
    assert phases["evaluation"].left_out_ns == 2 * S
    assert phases["checkpoint"].energy.value is None
    assert "no stretch of 5 s or more" in (phases["checkpoint"].energy.reason or "")
    parts = ("before the first step", "warm-up steps", "steady steps", "after the last step")
    assert sum(phases[name].energy.value or 0 for name in parts) == pytest.approx(answer.run.value or 0, rel=1e-9)


def test_the_parts_of_rlhf() -> None:
    spans, steps = [], []
    for number in range(6):
        begin = 20 + 16 * number
        spans += [
            a_range("generate", begin, begin + 6, 3 * number),
            a_range("train/actor", begin + 7, begin + 15, 3 * number + 1),
        ]
        steps += step_rows(1, begin, 16)
        steps[-1]["step"] = number
    power = sine(400, 250, 16)
    answer = energy_of(a_run(gpu_samples(power, sample_times(140)), steps, rows={"spans": spans}, manifest={}))
    phases = {phase.phase: phase for phase in answer.phases}
    for name, start, end in (("generate", 0, 6), ("train/actor", 7, 15)):
        expected = sum(power.between(20 + 16 * k + start, 20 + 16 * k + end) for k in range(6))
        assert phases[name].energy.value == pytest.approx(expected, rel=1e-3)


# -- two nodes -----------------------------------------------------------------------------------------------------


def test_nodes_with_clocks_of_their_own() -> None:
    """Node 1 was started an hour earlier: its monotonic clock is ahead."""
    ahead, times = 3600 * S, sample_times(100)
    power = ramp(100, 4)
    samples = gpu_samples(power, times) + gpu_samples(power, times, node=1)
    steps = step_rows(60, 20, 1) + step_rows(60, 20, 1, rank=1)
    for row in (*samples, *steps):
        if row.get("node") == 1 or row.get("rank") == 1:
            row |= {name: row[name] + ahead for name in ("time_ns", "start_ns", "end_ns") if name in row}
    rows = {"gpus": [gpu_row(0), gpu_row(0, node=1)], "gpu_samples": samples, "steps": steps}
    facts = {0: on(0), 1: {"device.type": "cuda", "device.uuid": uuid(0, node=1)}}
    view = view_of(rows, facts=facts, node_of={0: 0, 1: 1}, ahead_ns={1: ahead}, manifest=WARMUP)
    answer = energy_of(view)
    assert answer.run.value == pytest.approx(2 * power.between(0, 100), rel=1e-3)
    assert answer.steady.value == pytest.approx(2 * power.between(30, 80), rel=1e-3)
    assert [(gpu.node, gpu.gpu) for gpu in answer.gpus] == [(0, 0), (1, 0)]


# -- properties ----------------------------------------------------------------------------------------------------

POWERS = st.sampled_from(
    [constant(400), constant(0), ramp(0, 7), square(80, 700, 11.0), square(0, 500, 0.7), sine(300, 300, 4.0)]
)
KINDS = st.sampled_from(
    [{}, {"counter": False}, {"counter": False, "instant": False, "average": True}, {"resets_s": (13.37, 22.0)}]
)
BORDERS = st.lists(st.floats(-5, 45), min_size=3, max_size=6).map(sorted)


@settings(deadline=None)
@given(POWERS, KINDS, BORDERS, st.sets(st.integers(0, 199), max_size=120))
def test_windows_side_by_side_add_up(
    power: KnownPower, options: dict[str, Any], borders: list[float], lost: set[int]
) -> None:
    rows = gpu_samples(power, sample_times(40), **options)
    curve = curve_of([row for number, row in enumerate(rows) if number not in lost])
    parts = [curve.window(*seconds(a, b)) for a, b in pairwise(borders)]
    whole = curve.window(*seconds(borders[0], borders[-1]))
    assert sum(part.joules for part in parts) == pytest.approx(whole.joules, rel=1e-9, abs=1e-6)
    for name in ("counter_ns", "integral_ns", "left_out_ns", "resets"):
        assert sum(getattr(part, name) for part in parts) == getattr(whole, name)
    assert whole.duration_ns == seconds(borders[0], borders[-1])[1] - seconds(borders[0], borders[-1])[0]
    assert all(part.joules >= 0 and part.low >= 0 and part.low <= part.joules <= part.high for part in parts)


@settings(deadline=None)
@given(POWERS, st.sampled_from([{}, {"resets_s": (13.37,)}]), st.sets(st.integers(2, 197), max_size=150))
def test_rows_that_are_lost_change_little_where_there_is_a_counter(
    power: KnownPower, options: dict[str, Any], lost: set[int]
) -> None:
    rows = gpu_samples(power, sample_times(40), **options)
    whole = curve_of(rows).window(*seconds(0, 40))
    thinned = curve_of([row for number, row in enumerate(rows) if number not in lost]).window(*seconds(0, 40))
    if "resets_s" in options:
        assert thinned.low - 1e-6 <= power.between(0, 40) <= thinned.high + 1e-6
    else:
        assert thinned.joules == pytest.approx(whole.joules, rel=1e-9, abs=1e-6)


@settings(deadline=None)
@given(POWERS, st.integers(0, 2))
def test_every_third_row_that_is_lost_changes_an_integral_little(power: KnownPower, phase: int) -> None:
    rows = gpu_samples(power, sample_times(40), counter=False)
    thinned = curve_of([row for number, row in enumerate(rows) if number % 3 != phase or number in (0, 200)])
    measured = thinned.window(*seconds(0, 40))
    assert measured.left_out_ns == 0
    assert measured.low <= power.between(0, 40) <= measured.high


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 3 * S),
            st.none() | st.integers(-5, 10**7),
            st.none() | st.integers(-5, 10**6),
            st.none() | st.integers(-5, 10**6),
        ),
        min_size=2,
        max_size=60,
    ),
    st.tuples(st.integers(-10 * S, 100 * S), st.integers(0, 100 * S)),
)
def test_whatever_was_written_energy_is_never_negative(
    rows: list[tuple[int, int | None, int | None, int | None]], window: tuple[int, int]
) -> None:
    times, at = [], 0
    for step, *_ in rows:
        at += step
        times.append(at)
    readings = (np.array([row[column] for row in rows], dtype=np.float64) for column in (1, 2, 3))
    curve = gpu_curve(np.array(times), *readings)
    assert curve is not None
    measured = curve.window(window[0], window[0] + window[1])
    assert measured.joules >= 0
    assert math.isfinite(measured.high)
    assert measured.low <= measured.joules <= measured.high
    assert min(measured.counter_ns, measured.integral_ns, measured.left_out_ns) >= 0
    assert measured.duration_ns == window[1]
