"""Energy from NVML to the answer: the fake library with a known power, the sampler's parts or process, the analysis.

A hundred seconds of the fast tier pass on a clock that the test sets; the process runs in real time for a moment.
"""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from agprof.analysis.energy import analyse_energy
from agprof.analysis.energy_sources import gpu_sources
from agprof.analysis.gpu_mapping import map_gpus
from agprof.analysis.view import View, prepare
from agprof.model.energy_answers import EnergyAnswer
from agprof.store import layout
from agprof.store.frames import StreamFollower
from agprof.store.reader import read_run
from fakes.nvml.build import FakeNvml
from known_power import BEGIN_NS, KnownPower, constant, ramp, sample_times, square, step_rows
from nvml_rig import Rig, RigMaker
from nvml_scenario import A100, H100, Profile, Scenario, inherited, uuid_of
from rows_of_gpus import view_of

RAMP = ramp(100, 5)
SQUARE = square(100, 600, 10)
WARMUP = {"workload": {"profile": {"warmup_steps": 10}}}


def scenario_of(
    power: KnownPower, *, profile: Profile = H100, without: tuple[str, ...] = (), averaged: bool = False
) -> Scenario:
    """GPU 0 draws `power` for 100 s: the ramp or the square wave, as the fake can draw them.

    `averaged`: what is read is the ramp's mean over the second before, which is the ramp half a second late.
    """
    scenario = Scenario(profile, gpus=2, without=without)
    names = [name for name in ("power_instant_mw", "power_usage_mw") if name not in without]
    if power is RAMP:
        late_mw = 2_500 if averaged else 0
        scenario.at(0, 0, **dict.fromkeys(names, 100_000 - late_mw))
        scenario.ramp(100, 0, **dict.fromkeys(names, 600_000 - late_mw))
    else:
        for start in range(0, 100, 5):
            scenario.at(start, 0, **dict.fromkeys(names, power.watts(start) * 1e3))
    return scenario


def sampled(rig: Rig) -> EnergyAnswer:
    """100 s of the fast tier, with 60 steps of a second from 20 s on, of which the first 10 are warm-up."""
    for number, time_s in enumerate(sample_times(100)):
        rig.sample(time_s, "fast", *(("medium", "slow") if number == 0 else ()))
    tables = {name: [{"node": 0, **row} for row in rig.rows(name)] for name in ("gpus", "gpu_samples")}
    steps = step_rows(60, 20, 1)
    for row in steps:
        row |= {name: row[name] - BEGIN_NS for name in ("start_ns", "end_ns")}
    told = {"device.type": "cuda", "device.uuid": uuid_of(0).removeprefix("GPU-")}
    view = view_of({**tables, "steps": steps}, facts={0: told}, manifest=WARMUP)
    answer = analyse_energy(view, map_gpus(view))
    assert answer is not None
    assert answer.scope == "1 GPU"
    return answer


@pytest.mark.parametrize("profile", [A100, H100], ids=["A100", "H100"])
@pytest.mark.parametrize("power", [RAMP, SQUARE], ids=["ramp", "square"])
def test_the_counter_to_a_thousandth_from_nvml_to_the_answer(
    rig: RigMaker, power: KnownPower, profile: Profile
) -> None:
    with rig(scenario_of(power, profile=profile)) as found:
        answer = sampled(found)
    assert answer.run.value == pytest.approx(power.between(0, 100), rel=1e-3)
    assert answer.steady.value == pytest.approx(power.between(30, 80), rel=1e-3)
    assert answer.per_step.value == pytest.approx(power.between(30, 80) / 50, rel=1e-3)
    assert answer.gpus[0].method == "counter"


@pytest.mark.parametrize("power", [RAMP, SQUARE], ids=["ramp", "square"])
def test_a_counter_that_begins_anew_from_nvml_to_the_answer(rig: RigMaker, power: KnownPower) -> None:
    scenario = scenario_of(power)
    for reset_s in (12.34, 57.06):
        scenario.at(reset_s, 0, energy_mj=0)
        scenario.integral(reset_s, 0, energy_mj="power_instant_mw")
    with rig(scenario) as found:
        answer = sampled(found)
    assert answer.run.value == pytest.approx(power.between(0, 100), rel=1e-3)
    assert answer.steady.value == pytest.approx(power.between(30, 80), rel=1e-3)
    assert (answer.gpus[0].method, answer.gpus[0].resets) == ("counter and integral", 2)


@pytest.mark.parametrize(
    ("profile", "without", "kind"),
    [
        (H100, ("energy_mj", "power_average_mw"), "instant"),
        (A100, ("energy_mj", "power_average_mw", "power_instant_mw"), "instant"),
        (H100, ("energy_mj", "power_average_mw", "power_instant_mw"), "average"),
    ],
    ids=["field 186", "PowerUsage of an A100", "PowerUsage of an H100"],
)
def test_without_a_counter_to_a_hundredth_from_nvml_to_the_answer(
    rig: RigMaker, profile: Profile, without: tuple[str, ...], kind: str
) -> None:
    with rig(scenario_of(RAMP, profile=profile, without=without, averaged=kind == "average")) as found:
        answer = sampled(found)
    assert answer.run.value == pytest.approx(RAMP.between(0, 100), rel=1e-2)
    assert answer.steady.value == pytest.approx(RAMP.between(30, 80), rel=1e-3)
    assert answer.gpus[0].method == f"integral of {kind} power"
    assert (answer.steady.low or 0) < RAMP.between(30, 80) < (answer.steady.high or 0)


def test_a_gpu_that_is_lost_and_comes_back_counts_through_it(rig: RigMaker) -> None:
    scenario = scenario_of(SQUARE)
    scenario.lost(0, 40, 55)
    with rig(scenario) as found:
        answer = sampled(found)
    assert answer.run.value == pytest.approx(SQUARE.between(0, 100), rel=1e-3)
    assert answer.gpus[0].method == "counter"


def gpu_rows(run: Path) -> int:
    follower = StreamFollower(layout.node_stream(run, 0))
    return sum(len(rows) for name, rows in follower.poll() if name == "gpu_samples")


@pytest.mark.parametrize("what", ["counter", "reset", "no counter"])
def test_the_process_itself(fake_nvml: FakeNvml, tmp_path: Path, what: str) -> None:
    """Two seconds in real time: too short for a figure, long enough for the curve."""
    power = constant(500)
    scenario = Scenario(H100, without=("energy_mj",) if what == "no counter" else ())
    scenario.at(0, 0, power_instant_mw=500_000)
    if what == "reset":
        scenario.at(1, 0, energy_mj=0)
        scenario.integral(1, 0, energy_mj="power_instant_mw")
    run = tmp_path / "run"
    run.mkdir()
    command = [sys.executable, "-m", "agprof.sampler", "--run-dir", str(run), "--nvml", "auto"]
    environment = inherited(scenario.environment(tmp_path, fake_nvml.build()))
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=environment) as process:
        try:
            deadline = time.monotonic() + 20
            while not layout.node_stream(run, 0).exists() or gpu_rows(run) < 12:
                assert time.monotonic() < deadline, "no samples came"
                time.sleep(0.05)
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(10) == 0
        finally:
            process.kill()
    view = prepare(read_run(run))
    curve, resets = only_curve(view)
    measured = curve.window(curve.start_ns, curve.end_ns)
    seconds = (curve.end_ns - curve.start_ns) / 1e9
    assert resets == (1 if what == "reset" else 0)
    assert (measured.counter_ns > 0) == (what != "no counter")
    assert (measured.integral_ns > 0) == (what != "counter")
    assert measured.joules == pytest.approx(power.between(0, seconds), abs=500 * 0.1)
    assert measured.low <= power.between(0, seconds) <= measured.high
    answer = analyse_energy(view, map_gpus(view))
    assert answer is not None
    assert answer.run.value is None
    assert "under 5 s the sensors can't tell" in (answer.run.reason or "")


def only_curve(view: View) -> tuple[Any, int]:
    (source,), _ = gpu_sources(view, map_gpus(view))
    assert source.curve is not None
    assert source.in_run
    return source.curve, len(source.curve.resets_ns)
