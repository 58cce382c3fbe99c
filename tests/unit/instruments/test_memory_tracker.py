"""Live bytes against closed forms: every figure here is exact, to the byte."""

import gc
import weakref

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from agprof.instruments.memory_curve import MAX_POINTS, Curve, thinned
from agprof.instruments.memory_frames import format_frames
from agprof.instruments.memory_tracker import MemoryTracker
from agprof.instruments.op_watch import watching

FP32 = 4
BATCH, WIDTH, HIDDEN, BLOCKS = 8, 16, 64, 4


def track(run, *roots, known=(), **options):
    """The tracker of what `run` did; `known` tensors existed before."""
    tracker = MemoryTracker(torch, **options)
    for tensor in known:
        tracker.include(tensor, "parameters")
    tensor = None  # or the loop would keep the last one
    for root in roots:
        tracker.name_modules(root)
    with watching(torch, *roots, listeners=[tracker.listen]):
        tracker.start()
        try:
            kept = run()
        finally:
            live = tracker.live_bytes
            tracker.stop()
    del kept
    return tracker, live


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.wide = torch.nn.Linear(WIDTH, HIDDEN, bias=False)
        self.narrow = torch.nn.Linear(HIDDEN, WIDTH, bias=False)

    def forward(self, values):
        return self.narrow(torch.relu(self.wide(values)))


class Stack(torch.nn.Module):
    def __init__(self, checkpointed=False, reentrant=False):
        super().__init__()
        self.blocks = torch.nn.ModuleList(Block() for _ in range(BLOCKS))
        self.checkpointed = checkpointed
        self.reentrant = reentrant

    def forward(self, values):
        for block in self.blocks:
            values = checkpoint(block, values, use_reentrant=self.reentrant) if self.checkpointed else block(values)
        return values


def activations(model):
    """What forward leaves for backward, and by how much memory grew until then."""
    values = torch.randn(BATCH, WIDTH, requires_grad=True)
    at_backward = {}

    def run():
        loss = model(values).sum()
        at_backward["live"] = tracker.live_bytes
        loss.backward()

    tracker = MemoryTracker(torch)
    for tensor in (*model.parameters(), values):
        tracker.include(tensor, "parameters")
    with watching(torch, model, listeners=[tracker.listen]):
        tracker.start()
        before = tracker.live_bytes
        run()
        tracker.stop()
    return at_backward["live"] - before


BETWEEN = FP32 * ((BLOCKS - 1) * BATCH * WIDTH + 1)
"""Inputs of the blocks but the first, whose input was there before; the sum does not need its own. And the loss."""
WHOLE = BETWEEN + FP32 * BLOCKS * BATCH * HIDDEN
"""relu keeps its output, which the second product needs too; the first product's output is gone."""


def test_activations_of_a_stack_are_exact():
    assert activations(Stack()) == WHOLE


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_keeps_the_inputs_of_blocks_only(reentrant):
    assert activations(Stack(checkpointed=True, reentrant=reentrant)) == BETWEEN


def test_without_gradients_only_the_highest_pair_lives():
    model = Stack()
    values = torch.randn(BATCH, WIDTH)

    def run():
        with torch.no_grad():
            return model(values)

    tracker, live = track(run, model, known=[*model.parameters(), values])
    base = FP32 * (2 * BLOCKS * WIDTH * HIDDEN + BATCH * WIDTH)
    assert live == base + FP32 * BATCH * WIDTH
    # the product and its relu at once, beside the block's input
    assert tracker.peak_bytes == base + FP32 * (2 * BATCH * HIDDEN + BATCH * WIDTH)
    assert tracker.parts_at_peak() == {"parameters": base, "temporary": tracker.peak_bytes - base}


def test_meta_tensors_have_the_same_account():
    def peak(device):
        model = Stack().to(device)
        values = torch.randn(BATCH, WIDTH, device=device, requires_grad=True)
        tracker, _live = track(
            lambda: model(values).sum().backward(), model, known=[*model.parameters(), values], space="device"
        )
        return tracker.peak_bytes, tracker.parts_at_peak()

    on_meta = peak("meta")
    model = Stack()
    values = torch.randn(BATCH, WIDTH, requires_grad=True)
    real, _live = track(lambda: model(values).sum().backward(), model, known=[*model.parameters(), values])
    assert on_meta == (real.peak_bytes, real.parts_at_peak())


def test_tensors_without_data_count_only_if_asked():
    tracker, live = track(lambda: torch.empty(100, device="meta"), meta=False)
    assert live == tracker.peak_bytes == 0


def test_views_and_results_in_place_are_not_counted_again():
    def run():
        a = torch.ones(1000)
        b = a.view(10, 100).t()[3:].detach()
        a.add_(1).mul_(2)
        c, d = a.split(500)
        return a, b, c, d, a.expand(7, 1000)

    tracker, live = track(run)
    assert live == tracker.peak_bytes == 4000
    (record,) = tracker.at_peak()
    assert (record.bytes, record.shape, record.dtype) == (4000, "1000", "float32")


def test_a_storage_counts_whole_though_a_view_is_all_that_is_left():
    _tracker, live = track(lambda: torch.zeros(1000)[:2])
    assert live == 4000


def test_freed_tensors_leave():
    def run():
        a = torch.zeros(1000)
        b = a + 1
        del a
        return b + b

    tracker, live = track(run)
    assert (live, tracker.peak_bytes) == (4000, 8000)


def test_what_existed_before_and_goes_lowers_the_live_bytes():
    old = [torch.zeros(500)]
    tracker, live = track(old.clear, known=old)
    assert (live, tracker.peak_bytes) == (0, 2000)


def test_an_unknown_argument_is_nobodys_growth():
    old = [torch.zeros(500)]

    def run():
        view = old[0].view(5, 100)
        old.clear()
        del view
        return tracker.live_bytes

    tracker = MemoryTracker(torch)
    with watching(torch, listeners=[tracker.listen]):
        tracker.start()
        assert run() == 0
        tracker.stop()
    assert tracker.peak_bytes == 0


@pytest.mark.parametrize("base", [0, 10_000])
def test_resizing_a_storage_to_nothing_and_back(base):
    """As ZeRO-3 and FSDP do to whole parameters; it passes through no dispatch."""
    lives = []

    def run():
        a = torch.zeros(1000)
        storage = a.untyped_storage()
        for size in (0, 8000, 4000):
            storage.resize_(size)
            lives.append(tracker.live_bytes)
        return a

    tracker = MemoryTracker(torch, base_bytes=base)
    with watching(torch, listeners=[tracker.listen]):
        tracker.start()
        kept = run()
        tracker.stop()
    assert lives == [base, base + 8000, base + 4000]
    assert tracker.peak_bytes == base + 8000
    assert [(record.bytes, record.operation) for record in tracker.at_peak()] == [(8000, "resize_")]
    assert "resize_" not in vars(torch.UntypedStorage)
    del kept


def test_resizing_by_an_operation():
    def run():
        a = torch.zeros(1000)
        a.resize_(3000)
        return a

    _tracker, live = track(run)
    assert live == 12_000


def test_no_tensor_lives_longer():
    died = []

    def run():
        a = torch.zeros(1000)
        weakref.finalize(a, died.append, "a")
        weakref.finalize(a.untyped_storage(), died.append, "storage")
        b = a * 2
        del a
        gc.disable()
        died.append("deleted")
        return b

    try:
        track(run)
    finally:
        gc.enable()
    assert sorted(died[:2]) == ["a", "storage"]
    assert died[2] == "deleted"


def test_a_training_is_the_same_to_the_bit():
    def train(watched):
        torch.manual_seed(5)
        model = Stack()
        optimizer = torch.optim.Adam(model.parameters())

        def step():
            optimizer.zero_grad()
            model(torch.randn(BATCH, WIDTH)).square().mean().backward()
            optimizer.step()

        for number in range(4):
            if watched and number == 2:
                track(step, model, known=list(model.parameters()))
            else:
                step()
        return [parameter.detach() for parameter in model.parameters()]

    for plain, watched in zip(train(False), train(True), strict=True):
        assert torch.equal(plain, watched)


def test_gradients_are_told_by_who_owns_them():
    model = torch.nn.Linear(WIDTH, HIDDEN, bias=False)
    values = torch.randn(BATCH, WIDTH)
    tracker = MemoryTracker(torch)
    for tensor in (*model.parameters(), values):
        tracker.include(tensor, "parameters")
    with watching(torch, model, listeners=[tracker.listen]):
        tracker.start()
        model(values).sum().backward()
        tracker.mark(model.weight.grad, "gradients", "", "weight")
        tracker.stop()
    assert tracker.parts_at_peak()["gradients"] == FP32 * WIDTH * HIDDEN
    (gradient,) = [record for record in tracker.at_peak() if record.part == "gradients"]
    assert (gradient.in_pass, gradient.name, gradient.operation) == ("backward", "weight", "aten.mm.default")


def test_where_a_tensor_was_made():
    model = Stack()
    values = torch.randn(BATCH, WIDTH)

    def made_here():
        return model(values)

    tracker, _live = track(made_here, model)
    record = tracker.at_peak()[0]
    assert record.module == "blocks.3" or record.module.startswith("blocks.0")
    lines = format_frames(record.frames).splitlines()
    assert lines[-1].endswith(("Block.forward",))
    assert any(line.startswith(__file__) and "made_here" in line for line in lines)
    assert not any("/torch/" in line or "/agprof/instruments/" in line.split(" ")[0] for line in lines[-2:])


def test_records_do_not_grow_with_the_length_of_a_step():
    def run():
        kept = torch.zeros(10)
        for _ in range(60_000):
            torch.empty(1)
        return kept

    tracker, _live = track(run, stacks=False)
    assert len(tracker._records) < 45_000
    assert [record.bytes for record in tracker.at_peak()] == [40, 4]


def test_a_sparse_result_has_no_storage_and_does_no_harm():
    tracker, _live = track(lambda: torch.ones(3).to_sparse())
    assert tracker.peak_bytes >= 12


def test_a_tensor_without_one_shape_counts_and_does_no_harm():
    nested = torch.nested.nested_tensor([torch.ones(3), torch.ones(2)])
    tracker, live = track(lambda: torch.ones(5), known=[nested])
    assert (live, tracker.peak_bytes) == (5 * FP32 + 5 * FP32, 5 * FP32 + 5 * FP32)


def test_the_curve_keeps_its_extremes():
    curve = Curve()
    for time in range(3 * MAX_POINTS):
        curve.add(time, {777: 10**9, 9999: -5}.get(time, 100 + time % 7), None)
    points = curve.points(100)
    assert len(points) <= 100
    assert [time for time, *_ in points] == sorted(time for time, *_ in points)
    assert (max(points, key=lambda point: point[1])[:2], min(points, key=lambda point: point[1])[:2]) == (
        (777, 10**9),
        (9999, -5),
    )
    assert thinned(points, 1000) is points
