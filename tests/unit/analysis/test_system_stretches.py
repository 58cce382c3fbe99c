"""Stretches: of held-down clocks, of what was not measured, without a sampler; gaps in the curves."""

from itertools import pairwise

import polars as pl
import pytest

from agprof.analysis.system import analyse_system
from agprof.analysis.system_samples import Samples, on_axis, with_gaps_marked
from agprof.analysis.system_throttles import MOST_SPANS, in_words, throttle_spans
from agprof.model.figure import Curve
from agprof.model.system_answers import GpuRow, SystemAnswer
from agprof.model.tables import BY_NAME, NVML_LOADING
from agprof.store.reader import schema
from synthetic_system import BOOT_NS, SECOND, SystemRun


def answer(system: SystemRun) -> SystemAnswer:
    return analyse_system(system.view())


def curve(found: SystemAnswer, label: str) -> Curve:
    return next(curve for curve in found.curves if curve.label == label)


def gpu(found: SystemAnswer, number: int = 0) -> GpuRow:
    return next(row for row in found.gpus if row.gpu == number)


def test_the_loading_of_nvml_is_told_only_where_nothing_follows() -> None:
    loaded, ended = SystemRun(gpus=1), SystemRun(gpus=1)
    for system in (loaded, ended):
        system.where("gpu_samples", pl.lit(value=True), power_mw=None)
        system.add("sampler_state", at_s=1, field="gpu", state="retry", reason=NVML_LOADING)
    loaded.add("sampler_state", at_s=1.1, field="gpu", state="ok", reason="")
    assert answer(loaded).not_measured == ()
    assert gpu(answer(loaded)).power.reason == "not measured on this GPU"
    (item,) = answer(ended).not_measured
    assert (item.field, item.reason, item.until_ns) == ("gpu", NVML_LOADING, None)
    assert gpu(answer(ended)).power.reason == NVML_LOADING


def test_a_gap_is_a_gap_in_every_curve_and_is_said() -> None:
    system = SystemRun(seconds=60)
    for table in ("gpu_samples", "gpu_states", "gpu_activity", "host_samples", "process_samples"):
        system.drop(table, 20, 27)
    system.restart(25.5)
    system.outcome = {"notes": ["a note", "the sampler was killed (SIGKILL) and was started again after 1.0 s: a gap"]}
    found = answer(system)
    for label in ("GPU 0 power", "GPU 1 memory", "GPU 0 SM activity", "host CPU", "rank 0 RSS"):
        shown = curve(found, label)
        assert shown.y.count(None) == 1, label
        assert 19 * SECOND < shown.x_ns[shown.y.index(None)] < 27 * SECOND
    (gap,) = found.gaps
    assert (gap.node, gap.start_ns, gap.end_ns) == (0, 19 * SECOND, 27 * SECOND)
    assert gap.reason.startswith("the sampler was killed (SIGKILL)")


def test_a_sampler_that_was_started_again_leaves_a_gap_however_quick_that_was() -> None:
    system = SystemRun(seconds=60).drop("host_samples", 20, 21).restart(20.6).restart(40.5)
    found = [(gap.start_ns / SECOND, gap.end_ns / SECOND) for gap in answer(system).gaps]
    assert found == [(19, 21), (40, 41)]


def test_a_stopped_sampler_is_not_said_to_have_been_started_again() -> None:
    (gap,) = answer(SystemRun(seconds=60).drop("host_samples", 20, 40)).gaps
    assert gap.reason == "the sampler did not run: it was stopped, or got no CPU"
    assert answer(SystemRun(seconds=60)).gaps == ()


def test_a_sampler_that_ended_before_its_ranks_leaves_a_gap_up_to_their_end() -> None:
    gap, _ = answer(SystemRun(seconds=60, nodes=2).drop("host_samples", 40, 99)).gaps
    assert (gap.node, gap.start_ns, gap.end_ns) == (0, 39 * SECOND, 60 * SECOND)
    assert gap.reason == "the sampler ended before the ranks did"
    assert answer(SystemRun(seconds=60).drop("host_samples", 55, 99)).gaps == ()


def test_a_driver_that_hangs_leaves_the_host_without_a_gap() -> None:
    system = SystemRun(seconds=60).drop("gpu_samples", 20, 40)
    system.add("sampler_state", at_s=25, field="gpu", state="retry", reason="call nvmlX has not returned for 5 s")
    system.add("sampler_state", at_s=40, field="gpu", state="ok", reason="")
    found = answer(system)
    assert found.gaps == ()
    assert curve(found, "GPU 0 power").y.count(None) == 1
    (item,) = found.not_measured
    assert (item.field, item.state, item.since_ns, item.until_ns) == ("gpu", "retry", 25 * SECOND, 40 * SECOND)


def test_a_tier_that_slows_down_is_no_gap() -> None:
    times = [BOOT_NS + i * SECOND for i in range(100)] + [BOOT_NS + 100 * SECOND + i * 8 * SECOND for i in range(100)]
    system = SystemRun(seconds=1, gpus=0)
    rows = [{"node": 0, "time_ns": t, "period_ns": 1, "cpu_ratio": 0.5} for t in times]
    system.frames["host_samples"] = pl.DataFrame(rows, schema=schema(BY_NAME["host_samples"]))
    marked = with_gaps_marked(on_axis(system.view(), "host_samples"))
    assert not marked["gap_before"].any()


def test_states_become_stretches_and_a_restart_goes_on() -> None:
    system = SystemRun(seconds=60).restart(30)
    for at_s, field, state, reason in (
        (0, "gpu.0.activity", "unsupported", "no GPM"),
        (30.1, "gpu.0.activity", "unsupported", "no GPM"),
        (5, "host.disk", "retry", "EIO"),
        (9, "host.disk", "ok", ""),
        (20, "gpu.1", "retry", "lost"),
        (10, "tier.fast", "slowed", "the period is 0.4 s from here on"),
        (1, "self", "ok", ""),
        (2, "process.1", "unsupported", "process 12 has ended"),
    ):
        system.add("sampler_state", at_s=at_s, field=field, state=state, reason=reason)
    found = {item.field: item for item in answer(system).not_measured}
    assert set(found) == {"gpu.0.activity", "host.disk", "gpu.1", "tier.fast"}
    assert (found["gpu.0.activity"].since_ns, found["gpu.0.activity"].until_ns) == (0, None)
    assert (found["host.disk"].since_ns, found["host.disk"].until_ns) == (5 * SECOND, 9 * SECOND)
    # The new sampler read it, and said nothing: it was well again.
    assert (found["gpu.1"].since_ns, found["gpu.1"].until_ns) == (20 * SECOND, 30 * SECOND)
    assert found["tier.fast"].state == "slowed"


def test_a_field_that_comes_and_goes_is_told_once() -> None:
    system = SystemRun(seconds=60)
    for i in range(25):
        system.add("sampler_state", at_s=i, field="gpu.0", state="retry", reason="lost")
        system.add("sampler_state", at_s=i + 0.5, field="gpu.0", state="ok", reason="")
    (item,) = answer(system).not_measured
    assert item.reason == "lost (25 times)"
    assert (item.since_ns, item.until_ns) == (0, int(24.5 * SECOND))


def test_throttled_stretches_by_kind() -> None:
    system = SystemRun(seconds=60, gpus=2)
    system.between("gpu_samples", 10, 20, gpu=1, clock_event_reasons=0x4)
    system.between("gpu_samples", 15, 18, gpu=1, clock_event_reasons=0x4 | 0x20 | 0x40)
    system.between("gpu_samples", 30, 31, gpu=0, clock_event_reasons=0x80 | 0x8 | 0x1 | 0x2 | 0x100)
    found = answer(system)
    told = [(s.gpu, s.kind, s.start_ns / SECOND, s.end_ns / SECOND, s.reasons) for s in found.throttles]
    assert told == [
        (0, "hardware", 30, 31, ("hardware power brake", "hardware slowdown")),
        (1, "power", 10, 20, ("software power cap",)),
        (1, "thermal", 15, 18, ("software thermal slowdown", "hardware thermal slowdown")),
    ]
    assert found.decimation is None


def test_idle_and_application_clocks_hold_nothing_down() -> None:
    system = SystemRun(seconds=10).where("gpu_samples", pl.lit(value=True), clock_event_reasons=0x1 | 0x2 | 0x100)
    assert answer(system).throttles == ()
    assert in_words(0x1 | 0x2 | 0x100) == ()


def test_a_gap_ends_a_throttled_stretch() -> None:
    system = SystemRun(seconds=60, gpus=1).between("gpu_samples", 10, 50, clock_event_reasons=4)
    system.drop("gpu_samples", 20, 30)
    spans = answer(system).throttles
    assert [(s.start_ns, s.end_ns) for s in spans] == [(10 * SECOND, 20 * SECOND), (30 * SECOND, 50 * SECOND)]


def test_the_last_sample_stands_for_its_period() -> None:
    system = SystemRun(seconds=10, gpus=1).between("gpu_samples", 8, 11, clock_event_reasons=4)
    (span,) = answer(system).throttles
    assert (span.start_ns, span.end_ns) == (8 * SECOND, int(10.2 * SECOND))


def test_many_throttled_stretches_keep_their_sum_and_do_not_overlap() -> None:
    system = SystemRun(seconds=7200, gpus=2, step_s=10).where(
        "gpu_samples", (pl.col("time_ns") - BOOT_NS) % SECOND < SECOND // 2, clock_event_reasons=4
    )
    view = system.view()
    spans, note = throttle_spans(Samples(view))
    assert MOST_SPANS // 2 <= len(spans) <= MOST_SPANS + 2
    assert note is not None
    assert "as long as they are together" in note
    for number in (0, 1):
        own = [s for s in spans if s.gpu == number]
        assert all(a.end_ns <= b.start_ns for a, b in pairwise(own))
        # three of five samples show it
        assert sum(s.end_ns - s.start_ns for s in own) == pytest.approx(0.6 * 7200 * SECOND, rel=1e-3)


def test_inputs_are_not_changed_and_order_does_not_matter() -> None:
    system = SystemRun(seconds=30).between("gpu_samples", 5, 9, clock_event_reasons=4)
    view = system.view()
    before = {name: table.hash_rows().to_list() for name, table in view.tables.items()}
    found = analyse_system(view)
    assert {name: table.hash_rows().to_list() for name, table in view.tables.items()} == before
    for name in ("gpu_samples", "gpu_states", "host_samples", "network_samples"):
        system.frames[name] = system.frames[name].sample(fraction=1, shuffle=True, seed=3)
    assert analyse_system(system.view()) == found
