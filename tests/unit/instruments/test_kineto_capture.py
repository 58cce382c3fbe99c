import json

import pytest
import torch
from rank_streams import faults

from agprof.instruments.kineto import KinetoCapture
from agprof.model.settings import InstrumentSettings, KinetoSettings
from agprof.store import layout


@pytest.fixture
def train(rig, tmp_path):
    """Trains `steps` steps with a capture; returns the rank's tables and the events of its file, None without one."""

    def run(steps, rank=0, inside=lambda step: None, **settings):
        KinetoCapture(rig.recorder, torch, tmp_path, rank, KinetoSettings(**settings)).arm()
        weight = torch.ones(4, 4, requires_grad=True)
        for step in range(steps):
            inside(step)
            (weight @ weight).sum().backward()
            rig.recorder.end_micro_step()
            rig.recorder.end_step()
        tables = rig.finish()
        file = layout.kineto_file(tmp_path, rank)
        assert not list(file.parent.glob("*.unfinished"))
        return tables, json.loads(file.read_text())["traceEvents"] if file.exists() else None

    return run


def steps_in(events):
    return [event["name"] for event in events if event["name"].startswith("ProfilerStep#")]


def test_the_active_steps_are_recorded_under_their_numbers(train):
    tables, events = train(9, first_step=2, warmup=1, active=3)
    assert steps_in(events) == ["ProfilerStep#3", "ProfilerStep#4", "ProfilerStep#5"]
    assert sum(event["name"] == "aten::mm" for event in events) == 3 * 3, "one forward and two backward products a step"
    facts = {row.key: json.loads(row.value) for row in tables["facts"]}
    assert facts["kineto.steps"] == [3, 5]
    assert not faults(tables)


@pytest.mark.parametrize("rank", [0, 1])
def test_every_rank_leaves_the_captured_steps_out_of_its_statistics(train, rank):
    tables, events = train(9, rank=rank, first_step=2, warmup=1, active=3, ranks=(0,))
    assert [row.step for row in tables["steps"] if row.profiled] == [2, 3, 4, 5, 6], "6 waits for the file"
    assert (events is None) == (rank == 1)


def test_from_the_first_step_on_and_without_warmup(train):
    _, events = train(3, first_step=0, warmup=0, active=2)
    assert steps_in(events) == ["ProfilerStep#0", "ProfilerStep#1"]


def test_a_job_that_ends_early_keeps_what_there_is(train):
    _, events = train(4, first_step=1, warmup=1, active=10)
    assert steps_in(events)[:2] == ["ProfilerStep#2", "ProfilerStep#3"]


def test_a_job_that_ends_before_the_first_active_step_has_no_file(train):
    tables, events = train(3, first_step=2, warmup=5, active=1)
    assert events is None
    assert not faults(tables)


def test_the_jobs_own_profiler_goes_before(train):
    seen = []

    def inside(step):
        if step == 3:
            with torch.profiler.profile() as own:
                torch.ones(2) + 1
            seen.extend(event.key for event in own.key_averages())

    tables, events = train(6, inside=inside, first_step=1, warmup=1, active=3)
    assert "aten::add" in seen
    assert events is None
    assert any(row.key == "kineto.absent" and "step 3" in row.value for row in tables["facts"])
    assert not faults(tables)


def test_ours_does_not_begin_while_the_jobs_own_is_there(train):
    own = torch.profiler.profile()

    def inside(step):
        if step == 0:
            own.start()
        if step == 4:
            own.stop()

    tables, events = train(6, inside=inside, first_step=1, warmup=0, active=2)
    assert own.key_averages()
    assert events is None
    assert any(row.key == "kineto.absent" for row in tables["facts"])


def test_settings_travel_through_the_environment():
    settings = InstrumentSettings(kineto=KinetoSettings(first_step=7, ranks=(0, 3), stacks=True))
    assert InstrumentSettings.from_json(settings.to_json()) == settings
    assert settings.kineto.last_step == 10
