"""Times collectives over sizes on all ranks: what `agprof bench-comm` starts on each, by torchrun.

    torchrun --nproc-per-node 2 -m agprof.instruments.comm_bench --backend gloo --device cpu --most-bytes 16777216

Rank 0 writes a JSON object a line: `{"doing": ...}` before each size, `{"note": ...}` for what was left out and why,
`{"result": [curve, ...]}` at the end, or `{"error": ...}`. Sizes are the total bytes S of nccl-tests. A repetition is a
burst of calls back to back, as nccl-tests does; its time is that of the slowest rank, divided by the calls.
"""

import argparse
import gc
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agprof.model.comm_ceiling import OPS

LEAST_BYTES = 1024
CPU_MOST_BYTES = 64 * 2**20
GPU_MOST_BYTES = 2**30
FACTOR = 4
"""From one size to the next."""
QUICK_FACTOR = 16
REPEATS = 7
LEAST_REPEATS = 3
"""Below so many a size is not begun when there is no time for more."""
LEAST_SIZES = 3
"""That a fit needs: measured also when there is no time."""
MAX_CALLS = 200
WARM_UP = 3
BURST_S = 0.05
"""Aimed length of a repetition: long against the clock's and the barrier's grain."""
MEMORY_SHARE = 0.5
"""Of the memory that is free, what the ranks of a node may take together."""
_ELEMENT_BYTES = 4
_BUFFERS = {"all_reduce": 1.0, "broadcast": 1.0, "all_gather": 2.0, "reduce_scatter": 3.0, "all_to_all": 2.0}
"""Memory per total bytes and rank, at most; gloo's reduce-scatter copies its input."""

Call = Callable[[], Any]


def sizes(least: int, most: int, factor: int = FACTOR) -> tuple[int, ...]:
    """Total bytes, from the least on by the factor; the most is among them.

    >>> sizes(1024, 20000)
    (1024, 4096, 16384, 20000)
    """
    found = []
    size = least
    while size < most:
        found.append(size)
        size *= factor
    return (*found, most)


def expected_ns(points: Sequence[Mapping[str, int]], size: int) -> float:
    """Time of a size from the last two measured ones: along their slope, at most in proportion to the last."""
    before, last = points[-2], points[-1]
    slope = max(0.0, (last["median_ns"] - before["median_ns"]) / max(1, last["bytes"] - before["bytes"]))
    return min(last["median_ns"] + slope * (size - last["bytes"]), last["median_ns"] * size / last["bytes"])


def main() -> int:
    """Measure on this rank. Returns the exit code."""
    options = _options()
    import torch
    import torch.distributed as dist

    cuda = options.device == "cuda"
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    try:
        if cuda:
            torch.cuda.set_device(device)
        dist.init_process_group(options.backend)
    except (RuntimeError, ValueError, AssertionError) as error:
        if os.environ.get("RANK", "0") == "0":
            said = str(error).strip().splitlines() or [type(error).__name__]
            print(json.dumps({"error": f"{options.backend} on {options.device}: {said[0]}"}), flush=True)
        return 1
    bench = Bench(torch, dist, device)
    factor = QUICK_FACTOR if options.quick else FACTOR
    curves = []
    begin = time.monotonic()
    for done, op in enumerate(options.ops, start=1):
        # What one operation leaves of its time the next ones may use.
        deadline = begin + options.seconds * done / len(options.ops)
        points = bench.curve(op, sizes(options.least_bytes, options.most_bytes, factor), deadline)
        if points:
            curves.append({"op": op, "group_size": bench.n, "points": points})
    bench.say(result=curves, ranks=bench.n, torch=str(torch.__version__), device=bench.device_name())
    dist.barrier()
    dist.destroy_process_group()
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="times collectives; see agprof bench-comm")
    parser.add_argument("--backend", default="gloo")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--ops", type=_ops, default=list(OPS))
    parser.add_argument("--least-bytes", type=int, default=LEAST_BYTES)
    parser.add_argument("--most-bytes", type=int, default=CPU_MOST_BYTES)
    parser.add_argument("--seconds", type=float, default=60.0, help="about how long all of it may take")
    parser.add_argument("--quick", action="store_true", help="fewer sizes")
    return parser.parse_args()


def _ops(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in OPS]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown operation {unknown[0]!r:.40}; known are {', '.join(OPS)}")
    return names


class Bench:
    """The measurement on one rank. All ranks do the same: what depends on clocks or memory is agreed on."""

    def __init__(self, torch: Any, dist: Any, device: Any) -> None:
        self._torch = torch
        self._dist = dist
        self._device = device
        self.n = int(dist.get_world_size())

    def say(self, **what: Any) -> None:
        """Print a line, on rank 0 alone."""
        if self._dist.get_rank() == 0:
            print(json.dumps(what), flush=True)

    def device_name(self) -> str:
        """The GPU's name; `CPU` without one."""
        cuda = self._device.type == "cuda"
        return str(self._torch.cuda.get_device_properties(self._device).name) if cuda else "CPU"

    def curve(self, op: str, over: Sequence[int], deadline: float) -> list[dict[str, int]]:
        """The points of one operation until memory or time is over; none where the backend does not have it."""
        points: list[dict[str, int]] = []
        for size in over:
            self.say(doing=f"{op} of {size:,} bytes")
            if not self._fits(op, size):
                self.say(note=f"{op}: {size:,} bytes and more do not fit into the memory that is free")
                break
            if len(points) >= LEAST_SIZES and not self._in_time(points, size, deadline):
                self.say(note=f"{op}: no time for {size:,} bytes and more; give more with --seconds")
                break
            point = self._measure(op, size, deadline)
            self._free()
            if point is None:
                self.say(note=f"{op}: this backend can't do it with {size:,} bytes on this device")
                break
            points.append(point)
        return points

    def _measure(self, op: str, size: int, deadline: float) -> dict[str, int] | None:
        """One point; None when the backend has no such operation."""
        prepared = self._prepare(op, size)
        if prepared is None:
            return None
        call, total_bytes = prepared
        estimate_s = self._slowest(self._burst(call, 1))
        if estimate_s < BURST_S:
            estimate_s = self._slowest(self._burst(call, WARM_UP))
        calls = max(1, min(MAX_CALLS, round(BURST_S / max(estimate_s, 1e-9))))
        left_s = self._least(deadline - time.monotonic())
        repeats = max(LEAST_REPEATS, int(min(REPEATS, left_s / max(estimate_s * calls, 1e-9))))
        times = [max(1, round(self._slowest(self._burst(call, calls)) * 1e9)) for _ in range(repeats)]
        return {
            "bytes": total_bytes,
            "repeats": repeats,
            "median_ns": round(statistics.median(times)),
            "low_ns": min(times),
            "high_ns": max(times),
        }

    def _in_time(self, points: Sequence[Mapping[str, int]], size: int, deadline: float) -> bool:
        """Whether the least number of repetitions of the next size ends before the deadline, going by the last two."""
        expected_s = expected_ns(points, size) / 1e9 * (LEAST_REPEATS + 1)
        return self._least(deadline - time.monotonic()) > expected_s

    def _fits(self, op: str, size: int) -> bool:
        cuda = self._device.type == "cuda"
        free = self._torch.cuda.mem_get_info(self._device)[0] if cuda else _available_bytes()
        sharers = 1 if cuda else int(os.environ.get("LOCAL_WORLD_SIZE", self.n))
        needed = size * _BUFFERS[op] * sharers
        return free is None or self._least(free * MEMORY_SHARE - needed) >= 0

    def _free(self) -> None:
        gc.collect()
        if self._device.type == "cuda":
            self._torch.cuda.empty_cache()

    def _burst(self, call: Call, calls: int) -> float:
        """Seconds per call of this rank."""
        self._dist.barrier()
        self._synchronize()
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        self._synchronize()
        return (time.perf_counter() - begin) / calls

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            self._torch.cuda.synchronize(self._device)

    def _slowest(self, seconds: float) -> float:
        return self._over_ranks(seconds, self._dist.ReduceOp.MAX)

    def _least(self, value: float) -> float:
        return self._over_ranks(value, self._dist.ReduceOp.MIN)

    def _over_ranks(self, value: float, op: Any) -> float:
        """The same on all ranks, so that all decide alike."""
        tensor = self._torch.tensor([value], dtype=self._torch.float64, device=self._device)
        self._dist.all_reduce(tensor, op=op)
        return float(tensor.item())

    def _prepare(self, op: str, size: int) -> tuple[Call, int] | None:
        """(the call, its total bytes S), the same on all ranks; None where the backend can't do it."""
        each = max(1, size // _ELEMENT_BYTES // self.n)
        call: Call | None = None
        try:
            call = self._call(op, each)
        except (RuntimeError, MemoryError):
            pass  # no memory after all
        if not self._least(float(call is not None)) or call is None:
            return None
        works = 1.0
        try:
            call()
            self._synchronize()
        except (RuntimeError, NotImplementedError):
            works = 0.0
        return (call, each * self.n * _ELEMENT_BYTES) if self._least(works) else None

    def _call(self, op: str, each: int) -> Call:
        """The operation on buffers of its own; `each`: elements per rank."""
        dist, whole = self._dist, self._zeros(each * self.n)
        if op == "all_reduce":
            return lambda: dist.all_reduce(whole)
        if op == "broadcast":
            return lambda: dist.broadcast(whole, src=0)
        other = self._zeros(each * self.n if op == "all_to_all" else each)
        if op == "all_gather":
            return lambda: dist.all_gather_into_tensor(whole, other)
        if op == "reduce_scatter":
            return lambda: dist.reduce_scatter_tensor(other, whole)
        return lambda: dist.all_to_all_single(other, whole)

    def _zeros(self, elements: int) -> Any:
        return self._torch.zeros(elements, dtype=self._torch.float32, device=self._device)


def _available_bytes() -> float | None:
    """What Linux says it could give without swapping; None where it does not say."""
    try:
        with Path("/proc/meminfo").open(encoding="ascii") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return float(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


if __name__ == "__main__":
    raise SystemExit(main())
