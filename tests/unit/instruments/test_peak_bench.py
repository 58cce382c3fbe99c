"""What `agprof peak` runs: how often it repeats, which shape and which median count, and on a GPU by which clock."""

from types import SimpleNamespace

import pytest
import torch

from agprof.instruments import peak_bench


class Clock:
    """Time passes only in calls."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def takes(self, *seconds):
        """A call that takes these times in turn, the last one for ever."""
        left = list(seconds)

        def call(*_args, **_kwargs):
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return call

    def timed(self, call):
        begin = self.now
        call()
        return self.now - begin


def test_at_least_five_repetitions_after_two_to_warm_up():
    clock = Clock()
    times = peak_bench.repeated(clock.takes(100, 50, 10), 1, clock.timed, clock)
    assert times == [10] * 5


def test_as_many_repetitions_as_the_time_holds_up_to_a_bound():
    clock = Clock()
    assert len(peak_bench.repeated(clock.takes(1), 22, clock.timed, clock)) == 20
    assert len(peak_bench.repeated(clock.takes(1), 1e9, clock.timed, clock)) == peak_bench.MAX_REPEATS


@pytest.mark.parametrize(
    ("times", "best"),
    [
        ([3.0], 3),
        ([5, 1, 9], 5),
        ([9, 9, 9, 9, 9, 1, 2, 3, 2, 1], 2),
        ([4, 4, 4, 4, 4, 0.1], 4),  # a lucky one at the end is no round
    ],
)
def test_the_best_median_of_a_round_counts(times, best):
    assert peak_bench.best_median(times) == best


def test_of_the_shapes_the_fastest_counts_and_those_too_slow_are_left_out(monkeypatch):
    seconds = {64: 2 * 64**3 / 1e6, 128: 2 * 128**3 / 2e6, 256: 2 * 256**3 / 2e6}  # 1, then 2 MFLOP/s
    clock, tried = Clock(), []

    def mm(left, _right, *, out):
        tried.append(len(left))
        clock.now += seconds[len(left)]
        return out

    monkeypatch.setattr(peak_bench, "CPU_SIZES", (64, 128, 256))
    monkeypatch.setattr(torch, "mm", mm)
    monkeypatch.setattr(peak_bench.time, "perf_counter", clock)
    found = peak_bench._product_ceiling(torch, torch.device("cpu"), "float32", 60.0, clock.timed)
    assert found is not None
    assert found.shape == (128, 128, 128)
    assert found.flops_per_second == pytest.approx(2e6)
    assert set(tried) == {64, 128}  # seven of 17 s would be more than twice its share of 34 s


def test_a_type_that_can_not_be_multiplied_is_left_out(monkeypatch, capsys):
    def mm(*_args, **_kwargs):
        raise RuntimeError("not implemented for 'Half'")

    monkeypatch.setattr(torch, "mm", mm)
    assert peak_bench._product_ceiling(torch, torch.device("cpu"), "float16", 0.1, Clock().timed) is None
    assert "float16: not implemented" in capsys.readouterr().err


def test_tf32_is_allowed_for_its_own_measurement_alone(monkeypatch):
    seen = {}
    monkeypatch.setattr(peak_bench, "CPU_SIZES", (8,))
    before = torch.get_float32_matmul_precision()
    for kind in ("float32", "tf32"):
        clock = Clock()

        def mm(_left, _right, *, out, kind=kind, clock=clock):
            seen[kind] = torch.get_float32_matmul_precision()
            clock.now += 1
            return out

        monkeypatch.setattr(torch, "mm", mm)
        found = peak_bench._product_ceiling(torch, torch.device("cpu"), kind, 0.1, clock.timed)
        assert found is not None
        assert found.dtype == kind
    assert seen == {"float32": "highest", "tf32": "high"}
    assert torch.get_float32_matmul_precision() == before


def test_bytes_are_those_of_the_arrays(monkeypatch):
    monkeypatch.setattr(peak_bench, "CPU_ARRAY_BYTES", 4096)
    clock = Clock()

    def timer(call):
        call()
        clock.now += 1
        return 1.0

    found = peak_bench._bandwidth_ceiling(torch, torch.device("cpu"), 0.01, timer)
    assert found is not None
    assert (found.kind, found.bytes_per_second, found.array_bytes) == ("triad", 3 * 4096, 4096)


def test_a_gpu_is_timed_by_its_own_events():
    made = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing
            made.append(self)
            self.did = []

        def record(self):
            self.did.append("record")

        def synchronize(self):
            self.did.append("synchronize")

        def elapsed_time(self, end):
            assert (self, end) == (made[0], made[1])
            return 250.0  # ms

    calls = []
    timed = peak_bench._cuda_timer(SimpleNamespace(cuda=SimpleNamespace(Event=Event)))
    assert timed(lambda: calls.append([event.did[:] for event in made])) == 0.25
    assert calls == [[["record"], []]]
    assert [event.did for event in made] == [["record"], ["record", "synchronize"]]
