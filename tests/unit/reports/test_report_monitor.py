"""The page of a program that was only sampled, and the steps and phases that hovers of a training tell."""

from dataclasses import replace

from agprof_reports.moments import TICKS_PER_S, moments
from agprof_reports.page import build
from sample_answers import sample_answers
from sample_monitor_answers import monitor_answers


def test_a_program_without_steps_has_what_was_sampled_first():
    page = build(monitor_answers(8))
    assert [section.key for section in page.sections] == ["system", "energy", "configuration", "quality"]
    assert page.headline.startswith("`convert.sh` used 3.42 of 32 cores")
    assert page.evidence[1] == page.sections[0].sentence
    assert [card.key for card in page.kpis] == ["command_cpu", "command_memory", "energy_run", "energy_kwh"]
    assert (page.bound_word, page.findings_sentence, page.step_bar, page.moments) == ("", "", None, None)
    assert all(not card.shown.reason for card in page.kpis)
    assert page.sections[0].cards == ()
    titles = {
        chart.spec["layout"]["xaxis"].get("title", {}).get("text")
        for part in page.sections[0].parts
        for chart in part.charts
        if chart.axis == "run"
    }
    assert titles == {None, "time, s"}
    assert all(section.charts or section.tables or section.parts or section.lines for section in page.sections)


def test_a_recording_without_ranks_that_nobody_asked_for_is_told_by_its_samples():
    answers = monitor_answers(8)
    page = build(replace(answers, identity=replace(answers.identity, kind="training")))
    assert page.headline == answers.system.sentence
    assert [card.key for card in page.kpis][:2] == ["gpu_utilization", "gpu_tensor"]


def test_a_training_of_which_nothing_is_left_keeps_its_sections():
    answers = monitor_answers(0)
    started = replace(answers, identity=replace(answers.identity, kind="training", world_size=4))
    assert [section.key for section in build(started).sections][:3] == ["time", "communication", "compute"]


def decoded(packed):
    """What assets/moments.js makes of it: begins from distances."""
    at, out = 0, []
    for distance in packed["at"]:
        at += distance
        out.append(at)
    return out


def test_moments_give_back_the_steps_and_phases_of_the_lowest_rank():
    time = sample_answers(3, 40).time
    found = moments(time)
    rows = [row for row in time.steps if row.rank == 0]
    assert found["rank"] == 0
    assert found["steps"]["first"] == found["steps"]["last"] == [row.step for row in rows]
    assert decoded(found["steps"]) == [row.start_ns * TICKS_PER_S // 10**9 for row in rows]
    assert decoded(found["phases"]) == [ns * TICKS_PER_S // 10**9 for ns in time.phase_line.start_ns]
    assert found["phases"]["names"] == ["data wait", "forward", "backward", "optimizer"]
    assert moments(sample_answers(1, 0).time) is None
    assert moments(replace(time, phase_line=None))["phases"] is None


def test_moments_of_a_long_run_are_stretches_of_steps():
    time = sample_answers(1, 9_000).time
    steps = moments(time)["steps"]
    assert len(steps["first"]) == 3_000
    assert (steps["first"][1], steps["last"][1]) == (3, 5)
    assert steps["last"][-1] == 8_999
