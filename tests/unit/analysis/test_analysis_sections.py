"""Memory, system, quality, identity, configuration."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agprof.analysis.curves import thin, with_gaps
from agprof.analysis.run import analyse
from agprof.analysis.summary import terminal_lines
from agprof.model.answers import RunAnswers
from agprof.store import layout
from agprof.store.reader import read_run
from synthetic import BOOT_NS, MIB, MS, build_run, rank_header, row, write_stream

POINTS = st.lists(st.none() | st.floats(-1e9, 1e9), max_size=300).map(lambda ys: list(enumerate(ys)))


def answers_of(path: Path, **options: Any) -> RunAnswers:
    return analyse(read_run(build_run(path / "run", **options)))


@given(POINTS, st.integers(5, 60))
def test_a_thinned_curve_keeps_its_extremes_and_its_order(points: list[tuple[int, float | None]], most: int) -> None:
    kept = thin(points, most)
    assert len(kept) <= most
    assert kept == sorted(set(kept) & set(points), key=lambda point: point[0])
    values = [value for _, value in points if value is not None]
    left = [value for _, value in kept if value is not None]
    if values:
        assert (min(left), max(left)) == (min(values), max(values))
    if points:
        assert kept[0] == points[0]
        assert kept[-1] == points[-1]
    assert (None in [v for _, v in kept]) == (None in [v for _, v in points])


def test_a_long_stretch_becomes_a_gap() -> None:
    assert with_gaps([(0, 1.0), (10, 2.0), (100, 3.0)], 30) == [(0, 1.0), (10, 2.0), (55, None), (100, 3.0)]
    assert with_gaps([(0, 1.0), (100, float("nan"))], 0) == [(0, 1.0), (100, None)]


def test_memory_of_a_cpu_run_is_the_resident_set(tmp_path: Path) -> None:
    memory = answers_of(tmp_path).memory
    assert memory.kind == "host"
    assert memory.peak.value == 1200 * MIB
    assert memory.ranks[0].standing_bytes == 900 * MIB
    assert memory.ranks[0].peak_at == "the end of forward in step 0"
    assert [curve.label for curve in memory.curves] == ["rank 0 RSS", "rank 1 RSS"]


def test_memory_of_a_gpu_run_is_the_allocator(tmp_path: Path) -> None:
    memory = answers_of(tmp_path, gpus=2).memory
    assert memory.kind == "device"
    assert memory.peak.value == 1200 * MIB * 8
    assert {curve.label for curve in memory.curves if curve.rank == 1} == {"rank 1 allocated", "rank 1 reserved"}


def test_system_curves_and_figures(tmp_path: Path) -> None:
    system = answers_of(tmp_path, gpus=1).system
    labels = {curve.label: curve for curve in system.curves}
    assert {"rank 0 CPU", "rank 0 RSS", "rank 0 workers CPU", "host CPU", "network sent", "loopback"} <= set(labels)
    assert labels["GPU 0 power"].unit == "W"
    assert labels["GPU 0 power"].y[0] == 550
    assert labels["GPU 0 SM clock"].y[0] == 1830e6
    figures = {kpi.key: kpi.figure for kpi in system.figures}
    assert figures["gpu_utilization"].value == 0.9
    assert 0.8 <= (figures["host_cpu"].value or 0) <= 0.9


def test_without_a_sampler_the_section_says_so(tmp_path: Path) -> None:
    answers = answers_of(tmp_path, sampler=False)
    assert answers.system.curves == ()
    assert answers.system.sentence.startswith("No sampler ran")
    assert all(kpi.figure.reason for kpi in answers.system.figures)
    assert any("monitor.enabled: false" in note for note in answers.quality.notes)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"missing": (1,)}, "Rank 1 leaves no stream"),
        ({"ranks": 4, "missing": (1, 2)}, "Ranks 1 and 2 leave no stream"),
        ({"killed": 1}, "Rank 1 ended after step 6, last phase optimizer: killed (SIGKILL)."),
        ({"torn": 0}, "The stream of rank 0 ends in the middle of a frame"),
        ({"faults": True}, "Instrument flops failed 3 times in profile step on ranks 0 and 1: AttributeError"),
        ({"faults": True}, "14 rows were lost on ranks 0 and 1"),
        ({"unseen": True}, "16 of 328 collectives"),
        ({"steps": 0}, "No optimizer step was seen on any rank"),
        ({"bare": True}, "run.json is missing"),
    ],
)
def test_what_is_wrong_with_the_data_is_said(options: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    problems = answers_of(tmp_path, **options).quality.problems
    assert any(sentence in problem for problem in problems), problems


def test_complete_data_has_no_problem(tmp_path: Path) -> None:
    quality = answers_of(tmp_path).quality
    assert quality.problems == ()
    assert quality.sentence == "All 2 ranks are here and the data is complete."
    cost = {kpi.key: kpi.figure.value for kpi in quality.cost}
    assert cost["bytes_written"] == 80_000
    assert cost["sampler_rss"] == 30 * MIB
    assert 0 < (cost["flusher_cpu"] or 0) < 0.01


def test_identity(tmp_path: Path) -> None:
    identity = answers_of(tmp_path).identity
    assert (identity.name, identity.run_id, identity.world_size, identity.nodes) == ("synthetic", "run", 2, 1)
    assert identity.framework == "DeepSpeed ZeRO-2"
    assert identity.status_sentence == "finished, 12 steps on 2 ranks"


def test_configuration_is_flat_and_in_order(tmp_path: Path) -> None:
    rows = dict(answers_of(tmp_path).configuration)
    assert rows["command"] == "torchrun --nproc-per-node 2 train.py"
    assert rows["workload.launch.ranks_per_node"] == "2"
    assert rows["deepspeed.config.zero_optimization.reduce_bucket_size"] == "50000"
    assert rows["package torch"] == "2.13.0"
    assert "package peft" not in rows
    assert not any(key.startswith("compute.") for key in rows)


def test_configuration_keeps_home_folders_and_our_own_variables_out(tmp_path: Path) -> None:
    path = build_run(tmp_path / "run")
    manifest = json.loads((path / "run.json").read_text())
    manifest["argv"] = ["torchrun", "/home/somebody/train.py", "/root/x", "/rooted/y"]
    manifest["environment_changes"] = {"PATH": "/usr/bin", "AGPROF_HOME": "/x", "LD_PRELOAD": "/Users/me/lib.so"}
    (path / "run.json").write_text(json.dumps(manifest))
    rows = dict(analyse(read_run(path)).configuration)
    assert rows["command"] == "torchrun ~/train.py ~/x /rooted/y"
    assert [key for key in rows if key.startswith("environment_changes")] == ["environment_changes.LD_PRELOAD"]
    assert rows["environment_changes.LD_PRELOAD"] == "~/lib.so"


@pytest.mark.parametrize("width", [10, 40, 80, 200])
def test_the_summary_fits_its_width(width: int, tmp_path: Path) -> None:
    for number, options in enumerate(
        ({}, {"hostile": True, "gpus": 1}, {"killed": 1, "data_ms": 20, "omp_threads": 9})
    ):
        lines = terminal_lines(answers_of(tmp_path / str(number), **options), width)
        assert all(len(line) <= max(40, width) for line in lines)
        bar = next(line for line in lines if line.startswith("["))
        assert len(bar) == max(40, width)


def test_of_a_step_that_a_restarted_rank_ran_twice_the_later_one_counts(tmp_path: Path) -> None:
    path = build_run(tmp_path / "run", ranks=1, steps=6, profile_step=None)
    end = BOOT_NS + 10_000 * MS
    rows = [(step, end + step * MS, end + (step + 1) * MS, 1, None, None, None, False) for step in (4, 5, 6)]
    write_stream(layout.rank_stream(path, 0, attempt=1), rank_header(0, 1), {"steps": rows})
    answers = analyse(read_run(path))
    durations = {row.step: row.duration_ns for row in answers.time.steps}
    assert len(answers.time.steps) == 7
    assert durations[4] == durations[5] == durations[6] == MS
    assert durations[3] > 50 * MS
    assert any("Rank 0 restarted" in problem for problem in answers.quality.problems)


def test_a_gap_of_the_sampler_is_seen_in_the_curve_and_said(tmp_path: Path) -> None:
    path = build_run(tmp_path / "run", sampler=False)
    times = [BOOT_NS + i * 100 * MS for i in range(20) if not 8 <= i < 15]
    samples = [row("host_samples", time_ns=time, period_ns=100 * MS, cpu_ratio=0.5) for time in times]
    write_stream(layout.node_stream(path, 0), {"node": 0}, {"host_samples": samples})
    answers = analyse(read_run(path))
    (curve,) = answers.system.curves
    assert curve.y.count(None) == 1
    assert "The sampler of node 0 has a gap of 800 ms." in answers.quality.problems


def test_phases_of_a_gpu_run_are_said_to_be_the_hosts(tmp_path: Path) -> None:
    assert any("Phases are the host's time" in note for note in answers_of(tmp_path, gpus=2).quality.notes)


def test_the_time_line_begins_with_its_window_and_stays_inside(tmp_path: Path) -> None:
    answers = answers_of(tmp_path, jitter=0.0, other_ms=0.0)
    first, last = answers.time.timeline_steps or (0, 0)
    window = [row for row in answers.time.steps if first <= row.step <= last]
    begin = min(row.start_ns for row in window)
    length = max(row.start_ns + row.duration_ns for row in window) - begin
    spans = answers.time.timeline
    assert min(span.start_ns for span in spans) == 0
    assert max(span.start_ns + span.duration_ns for span in spans) <= length
    assert {span.lane for span in spans} == {"phase", "communication", "range"}
    calls = [span for span in spans if span.rank == 0 and span.lane == "communication"]
    assert len(calls) == 13 * (last - first + 1)
    assert {span.name for span in calls} == {"all_reduce 4.00 MiB", "all_gather 8.00 MiB"}


def test_the_line_of_phases_has_the_time_of_every_phase_of_the_lowest_rank(tmp_path: Path) -> None:
    """Without collectives nothing is cut out of a phase, so both ways of counting must agree to the nanosecond."""
    time = answers_of(tmp_path, ranks=1, collectives=0).time
    line = time.phase_line
    assert line is not None
    assert line.rank == 0
    for index, name in enumerate(line.names):
        spans = zip(line.phase, line.duration_ns, strict=True)
        told = sum(ns for phase, ns in spans if phase == index)
        assert told == sum(row.parts_ns[name] for row in time.steps) > 0
    ends = [start + long for start, long in zip(line.start_ns, line.duration_ns, strict=True)]
    assert all(end <= start for end, start in zip(ends[:-1], line.start_ns[1:], strict=True))
    first = next(row for row in time.steps if row.step == time.steps[0].step)
    assert first.start_ns <= line.start_ns[0] < first.start_ns + first.duration_ns


def test_a_run_too_long_for_a_line_of_phases_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agprof.analysis.timeline.MAX_PHASES", 20)
    assert answers_of(tmp_path).time.phase_line is None
