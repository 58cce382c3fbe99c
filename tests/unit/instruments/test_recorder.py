import threading

import pytest

from agprof.instruments.recorder import MAX_FAULTS, MAX_WAITING_ROWS, Loss


def test_spans_nest_and_report_the_outermost_phase(rig):
    ended = []
    rig.recorder.on_phase_end.append(lambda name, time_ns: ended.append((name, time_ns)))
    outer = rig.recorder.open("phase", "optimizer")
    inner = rig.recorder.open("phase", "forward")
    assert rig.recorder.phase() == "forward"
    rig.recorder.close(inner)
    end = rig.recorder.close(outer)
    assert ended == [("optimizer", end)]
    assert rig.recorder.phase() == "other"
    spans = rig.finish()["spans"]
    assert [(span.name, span.depth) for span in spans] == [("forward", 1), ("optimizer", 0)]
    assert spans[1].start_ns < spans[0].start_ns < spans[0].end_ns < spans[1].end_ns == end


def test_closing_a_span_closes_what_is_open_inside_and_nothing_twice(rig):
    outer = rig.recorder.open("phase", "forward")
    inner = rig.recorder.open("range", "x")
    rig.recorder.close(outer)
    rig.recorder.close(inner)
    rig.recorder.close(outer)
    assert [span.name for span in rig.finish()["spans"]] == ["x", "forward"]


def test_a_discarded_span_leaves_no_row_and_no_depth(rig):
    lost = rig.recorder.open("phase", "optimizer")
    rig.recorder.open("range", "inside")
    rig.recorder.discard(lost)
    rig.recorder.discard(lost)
    rig.recorder.close(rig.recorder.open("phase", "forward"))
    (span,) = rig.finish()["spans"]
    assert (span.name, span.depth) == ("forward", 0)


def test_threads_have_their_own_spans(rig):
    outer = rig.recorder.open("phase", "forward")
    thread = threading.Thread(target=lambda: rig.recorder.close(rig.recorder.open("range", "other")))
    thread.start()
    thread.join()
    rig.recorder.close(outer)
    other, own = rig.finish()["spans"]
    assert other.thread != own.thread
    assert other.depth == 0


def test_steps_tile_the_time_line(rig):
    for loss in (1.0, 3.0, 5.0, 7.0):
        rig.recorder.close(rig.recorder.open("phase", "forward"))
        rig.recorder.end_micro_step(Loss(loss))
        if loss in (3.0, 7.0):
            rig.recorder.end_step()
    tables = rig.finish()
    first, second = tables["steps"]
    assert (first.loss, second.loss) == (2.0, 6.0)
    assert (first.micro_steps, second.micro_steps) == (2, 2)
    assert first.end_ns == second.start_ns
    assert first.start_ns == tables["spans"][0].start_ns
    micro = tables["micro_steps"]
    assert [(row.step, row.micro_step, row.loss) for row in micro] == [(0, 0, 1), (0, 1, 3), (1, 0, 5), (1, 1, 7)]
    assert micro[0].end_ns == micro[1].start_ns
    assert micro[2].start_ns == second.start_ns


def test_a_step_without_backward_has_no_loss(rig):
    rig.recorder.end_step()
    (step,) = rig.finish()["steps"]
    assert (step.loss, step.micro_steps, step.samples) == (None, 0, None)
    assert step.start_ns == step.end_ns


def test_losses_on_their_way_hold_back_rows_and_nothing_else(rig):
    arrived = []
    rig.recorder.end_micro_step(Loss(ready=lambda: 4.0 if arrived else None))
    rig.recorder.end_step()
    rig.recorder.resolve()
    rig.recorder.writer.flush()
    assert len(rig.recorder._waiting) == 2
    arrived.append(True)
    rig.recorder.resolve()
    assert not rig.recorder._waiting
    tables = rig.finish()
    assert tables["steps"][0].loss == tables["micro_steps"][0].loss == 4.0


def test_at_the_end_rows_are_written_without_the_losses_that_never_came(rig):
    rig.recorder.end_micro_step(Loss(2.0))
    rig.recorder.end_micro_step(Loss(ready=lambda: None))

    def fail() -> float:
        raise RuntimeError("device in error")

    rig.recorder.end_micro_step(Loss(ready=fail))
    rig.recorder.end_step()
    tables = rig.finish()
    assert [row.loss for row in tables["micro_steps"]] == [2.0, None, None]
    assert tables["steps"][0].loss == 2.0


def test_waiting_rows_are_bounded(rig):
    for _ in range(MAX_WAITING_ROWS + 10):
        rig.recorder._emit("steps", (), 0, [Loss(ready=lambda: None)])
    assert len(rig.recorder._waiting) == MAX_WAITING_ROWS
    rig.recorder._waiting.clear()


def test_resolve_on_two_threads_writes_each_row_once(rig):
    stop = threading.Event()

    def flush() -> None:
        while not stop.is_set():
            rig.recorder.resolve()

    thread = threading.Thread(target=flush)
    thread.start()
    for number in range(2000):
        rig.recorder.end_micro_step(Loss(float(number)))
        rig.recorder.resolve()
    rig.recorder.resolve_all()
    stop.set()
    thread.join()
    assert [row.loss for row in rig.finish()["micro_steps"]] == [float(number) for number in range(2000)]


def test_a_disarm_while_the_flusher_resolves_does_not_hang(rig):
    rig.recorder.end_step()
    rig.recorder._resolving.acquire()
    rig.recorder.resolve()  # returns
    rig.recorder._resolving.release()
    assert len(rig.finish()["steps"]) == 1


def test_guesses_give_way_to_given_counts(rig):
    recorder = rig.recorder
    recorder.guess_counts(8, 64)
    recorder.end_micro_step()
    recorder.add_counts(tokens=50, samples=None)  # after backward: still this step's
    recorder.end_step()
    recorder.guess_counts(8, 64)
    recorder.add_counts(tokens=60, samples=None)
    recorder.end_micro_step()
    recorder.end_step()
    tables = rig.finish()
    assert [(row.samples, row.tokens) for row in tables["steps"]] == [(8, 50), (8, 60)]


def test_tokens_without_padding_are_told_only_where_all_of_a_step_are(rig):
    recorder = rig.recorder
    recorder.guess_counts(2, 20, 15)
    recorder.end_micro_step()
    recorder.guess_counts(2, 20, None)  # a batch without a mask
    recorder.end_micro_step()
    recorder.end_step()
    recorder.guess_counts(2, 20, 15)
    recorder.guess_counts(2, 20, 10)  # fetched ahead
    recorder.end_micro_step()
    recorder.end_micro_step()
    recorder.end_step()
    recorder.guess_counts(2, 20, 15)
    recorder.guess_counts(2, 20, None)
    recorder.guess_counts(2, 20, 15)
    recorder.end_micro_step()
    recorder.end_step()
    tables = rig.finish()
    assert [row.unpadded_tokens for row in tables["micro_steps"]] == [15, None, 25, None, None]
    assert [(row.tokens, row.unpadded_tokens) for row in tables["steps"]] == [(40, None), (40, 25), (60, None)]


def test_tokens_that_the_training_counts_are_told_from_padding_by_it_alone(rig):
    recorder = rig.recorder
    recorder.guess_counts(2, 20, 15)
    recorder.add_counts(tokens=30, samples=2)
    recorder.end_micro_step()
    recorder.end_step()
    recorder.guess_counts(2, 20, 15)
    recorder.add_counts(30, 2, 24)
    recorder.end_micro_step()
    recorder.add_counts(30, 2, 26)
    recorder.end_micro_step()
    recorder.add_counts(10, None, 10)  # after the last backward
    recorder.end_step()
    steps = rig.finish()["steps"]
    assert [(row.tokens, row.unpadded_tokens) for row in steps] == [(30, None), (70, 60)]


def test_batches_of_an_evaluation_are_not_trained_on(rig):
    recorder = rig.recorder
    recorder.guess_counts(8, None)
    recorder.note_forward(with_grad=True)
    recorder.end_micro_step()
    recorder.end_step()
    for _ in range(5):
        recorder.guess_counts(100, None)
        recorder.note_forward(with_grad=False)
    recorder.guess_counts(8, None)
    recorder.note_forward(with_grad=False)  # a reference model
    recorder.note_forward(with_grad=True)
    recorder.end_micro_step()
    recorder.end_step()
    assert [row.samples for row in rig.finish()["steps"]] == [8, 8]


def test_batches_fetched_ahead_are_all_counted(rig):
    recorder = rig.recorder
    for _ in range(4):
        recorder.guess_counts(8, None)
    for _ in range(4):
        recorder.note_forward(with_grad=True)
        recorder.end_micro_step()
    recorder.end_step()
    assert rig.finish()["steps"][0].samples == 32


def test_the_third_fault_switches_off_and_is_the_last_written(rig):
    calls = []

    def broken() -> None:
        calls.append(1)
        raise ValueError("bad")

    guarded = rig.recorder.guard("thing", broken)
    ending = rig.recorder.guard("thing", broken, ends=True)
    for _ in range(10):
        assert guarded() is None
    assert len(calls) == MAX_FAULTS
    assert not rig.recorder.is_on("thing")
    assert rig.recorder.is_on("other")
    ending()
    assert len(calls) == MAX_FAULTS + 1
    faults = rig.finish()["faults"]
    assert [(row.instrument, row.where, row.error, row.count) for row in faults] == [
        ("thing", "broken", "ValueError: bad", count) for count in (1, 2, 3)
    ]


def test_an_error_that_can_not_be_printed_is_a_fault_all_the_same(rig):
    class OddError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    rig.recorder.fault("thing", "where", OddError())
    assert rig.finish()["faults"][0].error == "OddError"


@pytest.mark.parametrize("broken", ["push", "pop", "start_step", "end"])
def test_a_failing_nvtx_is_dropped_and_spans_go_on(rig, broken):
    class Nvtx:
        def __getattr__(self, name):
            def call(*_args):
                if name == broken:
                    raise OSError(name)
                return 1

            return call

    rig.recorder.nvtx = Nvtx()
    for _ in range(3):
        rig.recorder.close(rig.recorder.open("phase", "forward"))
        rig.recorder.end_step()
    assert rig.recorder.nvtx is None
    tables = rig.finish()
    assert len(tables["spans"]) == len(tables["steps"]) == 3
    assert [row.instrument for row in tables["faults"]] == ["nvtx"]


@pytest.mark.parametrize("broken", ["begin", "end", "resolve"])
def test_a_failing_device_timer_is_dropped_and_spans_go_on(rig, broken):
    class Device:
        dropped = 0

        def __getattr__(self, name):
            def call(*_args):
                if name == broken:
                    raise RuntimeError("CUDA error")
                return False if name == "is_capturing" else object()

            return call

    rig.recorder.device = Device()
    for _ in range(3):
        rig.recorder.close(rig.recorder.open("phase", "forward"))
        rig.recorder.end_step()
        rig.recorder.resolve()
    assert rig.recorder.device is None
    tables = rig.finish()
    assert len(tables["spans"]) == len(tables["steps"]) == 3
    assert [row.instrument for row in tables["faults"]] == ["device"]


def test_facts_that_json_can_not_hold_are_text(rig):
    rig.recorder.fact("a", {"x": object})
    assert "object" in rig.finish()["facts"][0].value


def test_a_helper_thread_works_in_the_main_threads_phase(rig):
    recorder = rig.recorder
    span = recorder.open("phase", "backward")
    seen = []
    thread = threading.Thread(target=lambda: seen.append(recorder.phase()))
    thread.start()
    thread.join()
    recorder.close(span)
    assert seen == ["backward"]
    assert recorder.phase() == "other"
