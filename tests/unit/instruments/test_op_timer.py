"""Operations on a device that works asynchronously: their times come from events, when the device has done them."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from agprof.instruments.flops import FlopsPart
from agprof.instruments.op_timer import MAX_PAIRS, OpTimer, duration_ns, is_done
from agprof.instruments.op_watch import OpWatch, watching
from collected_rows import CollectedRows, collecting_recorder, finish

NS_PER_OPERATION = 250_000


class Device:
    """Does every operation in the same time, and tells that it has done one only when it `is_idle`."""

    def __init__(self) -> None:
        self.now_ms = 0.0
        self.records = 0
        self.is_idle = False
        self.is_capturing = False

    def event(self) -> "Event":
        return Event(self)

    def timer(self) -> OpTimer:
        return OpTimer(self.event, lambda: self.is_capturing)


class Event:
    def __init__(self, device: Device) -> None:
        self.device = device
        self.time_ms: float | None = None

    def record(self) -> None:
        if self.device.records % 2:  # the second of a pair
            self.device.now_ms += NS_PER_OPERATION / 1e6
        self.device.records += 1
        self.time_ms = self.device.now_ms

    def query(self) -> bool:
        return self.device.is_idle

    def elapsed_time(self, end: "Event") -> float:
        assert self.device.is_idle, "torch raises where an event has not been passed"
        assert self.time_ms is not None
        assert end.time_ms is not None
        return end.time_ms - self.time_ms


@pytest.fixture
def device() -> Device:
    return Device()


def model() -> Any:
    return torch.nn.Sequential(torch.nn.Linear(8, 16, bias=False), torch.nn.Linear(16, 4, bias=False)).to("meta")


def run_step(device: Device, timer: OpTimer | None = None) -> tuple[Any, CollectedRows, FlopsPart]:
    """One profile step on tensors without data, which are as little on the CPU as those of a GPU."""
    recorder, collected = collecting_recorder(profile_step=0)
    part = FlopsPart(recorder, torch)
    errors: list[BaseException] = []
    watch = OpWatch(torch, lambda _where, error: errors.append(error), timer=timer or device.timer())
    net = model()
    part.begin(0, watch)
    watch.watch(net)
    part.root(net, 0)
    watch.start()
    net(torch.ones(2, 8, device="meta")).sum().backward()
    torch.ones(100).sum()  # on the host, beside it
    watch.stop()
    watch.remove()
    part.end(0)
    assert errors == []
    return recorder, collected, part


def operations(collected: CollectedRows) -> Iterator[dict[str, Any]]:
    yield from collected.table("operations")


def test_rows_wait_for_the_device_and_hold_its_times(device: Device) -> None:
    recorder, collected, _part = run_step(device)
    assert collected.table("modules") == []
    recorder.end_step()
    assert collected.table("modules") == []
    device.is_idle = True
    recorder.end_step()
    rows = {row["path"]: row for row in collected.table("modules")}
    # The first layer makes no gradient of its input: one product less than the second.
    products = [
        (row["in_pass"], row["calls"], row["duration_ns"]) for row in operations(collected) if row["kind"] == "matmul"
    ]
    assert sorted(products) == [("backward", 3, 3 * NS_PER_OPERATION), ("forward", 2, 2 * NS_PER_OPERATION)]
    assert rows["0"]["forward_ns"] == rows["1"]["forward_ns"]
    assert rows["1"]["backward_ns"] > rows["0"]["backward_ns"] > 0
    assert rows[""]["forward_ns"] == rows["0"]["forward_ns"] + rows["1"]["forward_ns"]
    assert rows[""]["forward_ns"] % NS_PER_OPERATION == 0
    recorder.end_step()
    assert len(collected.table("modules")) == len(rows)
    finish(recorder)
    assert len(collected.table("modules")) == len(rows)


def test_what_runs_on_the_host_is_timed_there(device: Device) -> None:
    device.is_idle = True
    recorder, collected, _part = run_step(device)
    outside = [row for row in operations(collected) if row["in_pass"] == "outside" and row["kind"] == "other"]
    assert any(row["duration_ns"] % NS_PER_OPERATION for row in outside)
    finish(recorder)


def test_a_device_that_never_gets_there_leaves_times_unknown(device: Device) -> None:
    recorder, collected, _part = run_step(device)
    finish(recorder)
    rows = collected.table("modules")
    assert [row["forward_ns"] for row in rows] == [None, None, None]
    assert [row["forward_flops"] for row in rows] == [2 * 2 * (8 * 16 + 16 * 4), 2 * 2 * 8 * 16, 2 * 2 * 16 * 4]
    assert {row["duration_ns"] for row in operations(collected)} == {None}


def test_nothing_is_recorded_while_a_graph_is_captured(device: Device) -> None:
    device.is_capturing = device.is_idle = True
    recorder, collected, _part = run_step(device)
    assert device.records == 0
    assert {row["forward_ns"] for row in collected.table("modules")} == {None}
    finish(recorder)


def test_a_device_that_fails_leaves_the_step_alone() -> None:
    def broken() -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    errors: list[BaseException] = []
    watch = OpWatch(torch, lambda _where, error: errors.append(error), timer=OpTimer(broken, lambda: False))
    pairs = []
    watch.listeners.append(lambda operation: pairs.append((str(operation.function), operation.pair)))
    watch.start()
    made = torch.empty(3, device="meta")
    watch.stop()
    assert made.shape == (3,)
    assert pairs[0] == ("aten.empty.memory_format", None)
    assert {str(error)[:10] for error in errors} == {"CUDA error"}


def test_pairs_are_bounded(device: Device) -> None:
    timer = device.timer()
    timer._pairs = MAX_PAIRS - 1
    assert timer.end(timer.begin()) is not None
    assert timer.begin() is None
    assert timer.end(None) is None


def test_a_pair_is_done_when_both_are(device: Device) -> None:
    pair = (device.event(), device.event())
    for event in pair:
        event.record()
    assert not is_done(pair)
    device.is_idle = True
    assert is_done(pair)
    assert duration_ns(pair) == NS_PER_OPERATION


def test_on_a_cpu_there_are_no_events() -> None:
    seen = []
    with watching(torch, listeners=[lambda operation: seen.append((operation.pair, operation.duration_ns))]):
        torch.ones(3)
    assert seen[0][0] is None
    assert seen[0][1] > 0
