"""Times matrix products and copies on the device at hand: what `agprof peak` runs, in a process of its own.

    python -m agprof.instruments.peak_bench --device cpu --seconds 20

Writes one JSON object a line: `{"doing": ...}` before each measurement, and one `{"result": MeasuredCeiling}` at the
end. On a CPU it uses the threads that OMP_NUM_THREADS gives it, as a rank does.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from agprof.model.ceilings import BandwidthCeiling, MeasuredCeiling, ProductCeiling

CPU_SIZES = (512, 1024, 2048)
GPU_SIZES = (2048, 4096, 8192, 16384)
CPU_ARRAY_BYTES = 128 * 2**20
GPU_ARRAY_BYTES = 2**30
DTYPES = ("float32", "bfloat16", "float16")
MIN_REPEATS = 5
MAX_REPEATS = 200
ROUND = 5
"""Repetitions that a median is taken of; the best of the rounds counts."""
WARMUP = 2

Timer = Callable[[Callable[[], Any]], float]
"""Seconds that a call took on the device."""


def main() -> int:
    options = argparse.ArgumentParser(description="times matrix products and copies; see agprof peak")
    options.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    options.add_argument("--seconds", type=float, default=20.0, help="about how long to measure")
    options.add_argument("--quick", action="store_true", help="note in the result that it was a short measurement")
    given = options.parse_args()
    import torch

    cuda = torch.cuda.is_available() if given.device != "cpu" else False
    if given.device == "cuda" and not cuda:
        _say(error="torch sees no CUDA device here")
        return 1
    _say(result=measure(torch, cuda=cuda, seconds=given.seconds, quick=given.quick, say=_say).to_dict())
    return 0


def _say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def measure(torch: Any, *, cuda: bool, seconds: float, quick: bool, say: Callable[..., None]) -> MeasuredCeiling:
    """Measure for about `seconds`; `say(doing=...)` before each measurement. The CPU's name is left to the caller."""
    device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
    threads = None if cuda else int(torch.get_num_threads())
    timer = _cuda_timer(torch) if cuda else _timer(time.thread_time if threads == 1 else time.perf_counter)
    kinds = [*DTYPES, "tf32"] if cuda else list(DTYPES)
    share = seconds / (len(kinds) + 1)
    products = []
    begin, cpu_begin = time.perf_counter(), time.process_time()
    with torch.no_grad():
        for kind in kinds:
            say(doing=f"matrix products in {kind}")
            product = _product_ceiling(torch, device, kind, share, timer)
            if product is not None:
                products.append(product)
        say(doing="copies")
        bandwidth = _bandwidth_ceiling(torch, device, share, timer)
    return MeasuredCeiling(
        device_type="cuda" if cuda else "cpu",
        device_name=str(torch.cuda.get_device_properties(device).name) if cuda else "CPU",
        threads=threads,
        measured_realtime_ns=time.time_ns(),
        torch_version=str(torch.__version__),
        quick=quick,
        products=tuple(products),
        bandwidth=bandwidth,
        cpu_share=(time.process_time() - cpu_begin) / (time.perf_counter() - begin) / threads if threads else None,
    )


def _timer(clock: Callable[[], float]) -> Timer:
    """One thread is timed by its own CPU time, which leaves out when it had to wait for its core; several by the
    clock, for theirs would count waiting for one another."""

    def timed(call: Callable[[], Any]) -> float:
        begin = clock()
        call()
        return clock() - begin

    return timed


def _cuda_timer(torch: Any) -> Timer:
    def timed(call: Callable[[], Any]) -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    return timed


def repeated(call: Callable[[], Any], budget_s: float, timer: Timer, clock: Callable[[], float]) -> list[float]:
    """Seconds of each repetition, after warming up: at least MIN_REPEATS, then as many as the budget holds."""
    begin = clock()
    for _ in range(WARMUP):
        timer(call)
    times: list[float] = []
    while len(times) < MIN_REPEATS or (len(times) < MAX_REPEATS and clock() - begin < budget_s):
        times.append(timer(call))
    return times


def best_median(times: list[float]) -> float:
    """The lowest median of any round of successive repetitions: what the device does when nothing else disturbs it.

    >>> best_median([9, 9, 9, 9, 9, 1, 2, 3, 2, 1, 0])
    2
    """
    rounds = [times[at : at + ROUND] for at in range(0, len(times), ROUND)]
    return min(statistics.median(part) for part in rounds if len(part) == min(ROUND, len(times)))


def _product_ceiling(torch: Any, device: Any, kind: str, budget_s: float, timer: Timer) -> ProductCeiling | None:
    """The best median over shapes; None where the device can't multiply this type."""
    dtype = torch.float32 if kind == "tf32" else getattr(torch, kind)
    best: ProductCeiling | None = None
    sizes = GPU_SIZES if device.type == "cuda" else CPU_SIZES
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if kind == "tf32" else "highest")
    try:
        for size, share in _shares(sizes, budget_s):
            flops = 2.0 * size**3
            if best is not None and flops / best.flops_per_second * (MIN_REPEATS + WARMUP) > 2 * share:
                break  # emulated, or too large for the time there is: the smaller shapes have to do
            left, right = (_filled(torch, device, dtype, (size, size)) for _ in range(2))
            out = torch.empty((size, size), dtype=dtype, device=device)
            times = repeated(partial(torch.mm, left, right, out=out), share, timer, time.perf_counter)
            found = ProductCeiling(
                dtype=kind,
                flops_per_second=flops / best_median(times),
                low=flops / max(times),
                high=flops / min(times),
                shape=(size, size, size),
                repeats=len(times),
            )
            if best is None or found.flops_per_second > best.flops_per_second:
                best = found
    except RuntimeError as error:  # no such product here, or no memory for it
        print(f"{kind}: {error}", file=sys.stderr)
    finally:
        torch.set_float32_matmul_precision(before)
    return best


def _shares(sizes: tuple[int, ...], budget_s: float) -> Iterator[tuple[int, float]]:
    """Larger shapes get more of the time."""
    weights = [2.0**number for number in range(len(sizes))]
    for size, weight in zip(sizes, weights, strict=True):
        yield size, budget_s * weight / sum(weights)


def _filled(torch: Any, device: Any, dtype: Any, shape: tuple[int, ...]) -> Any:
    # Random numbers: zeros draw less power, and a GPU at its limit would be faster with them.
    return torch.randn(shape, dtype=torch.float32, device=device).to(dtype)


def _bandwidth_ceiling(torch: Any, device: Any, budget_s: float, timer: Timer) -> BandwidthCeiling | None:
    """Arrays far larger than the caches. Bytes are those of the arrays, without what a cache line's fill adds."""
    size = GPU_ARRAY_BYTES if device.type == "cuda" else CPU_ARRAY_BYTES
    best: BandwidthCeiling | None = None
    try:
        a, b, c = (torch.ones(size // 4, dtype=torch.float32, device=device) for _ in range(3))
        ways: list[tuple[str, int, Callable[[], Any]]] = [
            ("copy", 2, lambda: a.copy_(b)),
            ("triad", 3, lambda: torch.add(b, c, alpha=2.0, out=a)),
        ]
        for kind, arrays, call in ways:
            times = repeated(call, budget_s / len(ways), timer, time.perf_counter)
            moved = float(arrays * size)
            found = BandwidthCeiling(
                kind=kind,
                bytes_per_second=moved / best_median(times),
                low=moved / max(times),
                high=moved / min(times),
                array_bytes=size,
                repeats=len(times),
            )
            if best is None or found.bytes_per_second > best.bytes_per_second:
                best = found
    except RuntimeError as error:  # no such product here, or no memory for it
        print(f"copies: {error}", file=sys.stderr)
    return best


if __name__ == "__main__":
    sys.exit(main())
