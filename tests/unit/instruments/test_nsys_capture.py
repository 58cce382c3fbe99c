"""When nsys is told to begin and to end, and what it is told first."""

import json

import pytest
from rank_streams import faults

from agprof.instruments.nsys import NsysCapture
from agprof.model.settings import NsysSettings


class Told:
    """Stands for NvtxRanges and for torch.cuda: writes down, in order, what it is told."""

    def __init__(self, initialized):
        self.words = []
        self.cuda = self
        self.profiler = self
        self.initialized = initialized

    # what NvtxRanges has
    def start_step(self, step):
        self.words.append(f"step {step}")
        return f"step {step}"

    def start(self, name=None):
        self.words.append(name if name is not None else "cudaProfilerStart")
        return name

    def end(self, token):
        self.words.append(f"/{token}")

    def mark(self, name, payload):
        self.words.append(f"{name}={payload}" if name == "agprof.rank" else name)

    # what torch has
    def is_initialized(self):
        return self.initialized

    def stop(self):
        self.words.append("cudaProfilerStop")


@pytest.fixture
def train(rig):
    """Trains `count` steps under a capture; returns what was told meanwhile and the rank's tables."""

    def run(count, **settings):
        told = Told(settings.pop("initialized", True))
        rig.recorder.nvtx = told if settings.pop("nvtx", True) else None
        capture = NsysCapture(rig.recorder, told, 3, NsysSettings(**settings))
        capture.arm()
        for _ in range(count):
            span = None
            if rig.recorder.nvtx is None:
                span = rig.recorder.open("phase", "forward")
            rig.recorder.end_micro_step()
            if span is not None:
                rig.recorder.close(span)
            rig.recorder.end_step()
        return told.words, rig.finish()

    return run


BEGIN = ["agprof.capture", "agprof.rank=3", "agprof.monotonic_ns"]
END = ["agprof.monotonic_ns", "/agprof.capture"]


def facts_of(tables):
    return {row.key: json.loads(row.value) for row in tables["facts"]}


def test_the_capture_holds_its_steps_whole_and_the_rank_comes_first(train):
    words, tables = train(6, first_step=2, steps=2)
    assert words == [
        "step 0", "/step 0", "step 1", *BEGIN, "/step 1", "step 2", "/step 2", "step 3", "/step 3", *END,
        "step 4", "/step 4", "step 5", "/step 5", "step 6", "/step 6",
    ]  # fmt: skip
    assert facts_of(tables)["nsys.steps"] == [2, 3]
    assert facts_of(tables)["nsys.begin_cost_ns"] > 0 and facts_of(tables)["nsys.end_cost_ns"] > 0
    assert not faults(tables)


def test_the_steps_that_pay_for_begin_and_end_count_as_profiled(train):
    _, tables = train(6, first_step=2, steps=2)
    assert [row.step for row in tables["steps"] if row.profiled] == [1, 4]


@pytest.mark.parametrize("first", [0, 1])
def test_a_capture_of_the_first_steps_begins_before_any(train, first):
    words, tables = train(3, first_step=first, steps=1)
    assert words[:3] == BEGIN
    assert words.index("/agprof.capture") == words.index(f"/step {first}") + 2
    assert facts_of(tables)["nsys.steps"] == [first, first]


def test_a_job_that_ends_early_ends_its_capture(train):
    words, tables = train(4, first_step=2, steps=100)
    assert words[-3:] == [*END, "/step 4"]
    assert facts_of(tables)["nsys.steps"] == [2, 3], "step 4 never ended"


def test_a_job_that_ends_before_captures_nothing(train):
    words, tables = train(2, first_step=5, steps=1)
    assert "agprof.capture" not in words
    assert "nsys.steps" not in facts_of(tables)


def test_with_a_gpu_the_profiler_api_begins_and_ends(train):
    words, tables = train(5, by="cuda", first_step=2, steps=1)
    assert words[words.index("cudaProfilerStart") + 1] == "agprof.rank=3"
    assert words.index("step 1") < words.index("cudaProfilerStart") < words.index("step 2")
    assert words.index("/step 2") < words.index("cudaProfilerStop") < words.index("step 3")
    assert not faults(tables)


def test_with_a_gpu_it_works_without_nvtx_and_touches_no_device_before_the_training_does(train):
    words, tables = train(3, by="cuda", first_step=0, steps=2, nvtx=False)
    assert words == ["cudaProfilerStart", "cudaProfilerStop"]
    assert "does not listen" in facts_of(tables)["nsys.absent"]
    assert not faults(tables)


def test_a_job_that_leaves_the_gpu_alone_is_not_made_to_touch_it(train):
    words, tables = train(5, by="cuda", first_step=2, steps=1, initialized=False)
    assert "cudaProfilerStart" not in words
    assert (
        facts_of(tables)["nsys.absent"] == "the training does not use the GPU, by which nsys was to be told its steps"
    )


def test_a_whole_life_has_its_rank_and_no_range(train):
    words, _ = train(1, by="whole", first_step=0, steps=0)
    assert words[:2] == ["agprof.rank=3", "agprof.monotonic_ns"]
    assert "agprof.capture" not in words


def test_a_tool_that_does_not_listen_is_a_fact_and_no_fault(train):
    words, tables = train(9, nvtx=False)
    assert words == []
    assert facts_of(tables)["nsys.absent"] == "nsys does not listen to NVTX in this rank"
    assert not faults(tables)
