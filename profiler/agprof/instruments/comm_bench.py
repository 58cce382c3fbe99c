"""Times collectives over sizes on all ranks: what `agprof bench-comm` starts on each, by a launcher.

    torchrun --nproc-per-node 2 -m agprof.instruments.comm_bench --backend gloo --device cpu --most-bytes 16777216

Rank 0 writes a JSON object a line: `{"doing": ...}` before each size, `{"result": [curve, ...]}` at the end. Sizes are
the total bytes S of nccl-tests. A repetition is a burst of calls back to back, as nccl-tests does; its time is that of
the slowest rank, divided by the calls.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

OPS = ("all_reduce", "all_gather", "reduce_scatter", "broadcast", "all_to_all")
LEAST_BYTES = 1024
CPU_MOST_BYTES = 64 * 2**20
GPU_MOST_BYTES = 2**30
FACTOR = 4
"""From one size to the next."""
REPEATS = 7
MAX_CALLS = 200
WARM_UP = 3
BURST_S = 0.05
"""Aimed length of a repetition: long against the clock's and the barrier's grain."""
_ELEMENT_BYTES = 4

Call = Callable[[], Any]


def sizes(least: int, most: int) -> tuple[int, ...]:
    """Total bytes, from the least on by the factor; the most is among them."""
    found = []
    size = least
    while size < most:
        found.append(size)
        size *= FACTOR
    return (*found, most)


def main() -> int:
    """Measure on this rank. Returns the exit code."""
    options = _options()
    import torch
    import torch.distributed as dist

    cuda = options.device == "cuda"
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group(options.backend)
    bench = Bench(torch, dist, device, options.seconds)
    curves = []
    for op in options.ops:
        points = []
        for size in sizes(options.least_bytes, options.most_bytes):
            bench.say(doing=f"{op} of {size:,} bytes")
            point = bench.measure(op, size)
            if point is None:
                break
            points.append(point)
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
    parser.add_argument("--ops", type=lambda text: text.split(","), default=list(OPS))
    parser.add_argument("--least-bytes", type=int, default=LEAST_BYTES)
    parser.add_argument("--most-bytes", type=int, default=CPU_MOST_BYTES)
    parser.add_argument("--seconds", type=float, default=60.0, help="about how long all of it may take")
    return parser.parse_args()


class Bench:
    """The measurement on one rank. All ranks do the same, and agree on how often by what rank 0 says."""

    def __init__(self, torch: Any, dist: Any, device: Any, seconds: float) -> None:
        self._torch = torch
        self._dist = dist
        self._device = device
        self._deadline = time.monotonic() + seconds
        self.n = int(dist.get_world_size())

    def say(self, **what: Any) -> None:
        """Print a line, on rank 0 alone."""
        if self._dist.get_rank() == 0:
            print(json.dumps(what), flush=True)

    def device_name(self) -> str:
        """The GPU's name; `CPU` without one."""
        cuda = self._device.type == "cuda"
        return str(self._torch.cuda.get_device_properties(self._device).name) if cuda else "CPU"

    def measure(self, op: str, size: int) -> dict[str, int] | None:
        """One point; None when the backend has no such operation, or the time is over."""
        prepared = self._prepare(op, size)
        if prepared is None:
            return None
        call, total_bytes = prepared
        estimate_s = self._slowest(self._burst(call, WARM_UP))
        if not self._agree(float(time.monotonic() < self._deadline)):
            return None
        calls = int(self._agree(float(max(1, min(MAX_CALLS, round(BURST_S / max(estimate_s, 1e-9)))))))
        times = [round(self._slowest(self._burst(call, calls)) * 1e9) for _ in range(REPEATS)]
        return {
            "bytes": total_bytes,
            "repeats": REPEATS,
            "median_ns": round(statistics.median(times)),
            "low_ns": min(times),
            "high_ns": max(times),
        }

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
        value = self._torch.tensor([seconds], dtype=self._torch.float64, device=self._device)
        self._dist.all_reduce(value, op=self._dist.ReduceOp.MAX)
        return float(value.item())

    def _agree(self, value: float) -> float:
        tensor = self._torch.tensor([value], dtype=self._torch.float64, device=self._device)
        self._dist.broadcast(tensor, src=0)
        return float(tensor.item())

    def _prepare(self, op: str, size: int) -> tuple[Call, int] | None:
        """(the call, its total bytes S), the same on all ranks; None where the backend can't do it."""
        each = max(1, size // _ELEMENT_BYTES // self.n)
        whole = self._torch.zeros(each * self.n, dtype=self._torch.float32, device=self._device)
        part = self._torch.zeros(each, dtype=self._torch.float32, device=self._device)
        dist = self._dist
        calls: dict[str, Call] = {
            "all_reduce": lambda: dist.all_reduce(whole),
            "broadcast": lambda: dist.broadcast(whole, src=0),
            "all_gather": lambda: dist.all_gather_into_tensor(whole, part),
            "reduce_scatter": lambda: dist.reduce_scatter_tensor(part, whole),
            "all_to_all": lambda: dist.all_to_all_single(other, whole),
        }
        other = self._torch.zeros_like(whole) if op == "all_to_all" else None
        call = calls[op]
        works = 1.0
        try:
            call()
        except (RuntimeError, NotImplementedError):
            works = 0.0
        tensor = self._torch.tensor([works], dtype=self._torch.float64, device=self._device)
        self._dist.all_reduce(tensor, op=self._dist.ReduceOp.MIN)
        return (call, each * self.n * _ELEMENT_BYTES) if tensor.item() else None


def op_list(names: Sequence[str]) -> str:
    """For the command line of `main`."""
    return ",".join(names)


if __name__ == "__main__":
    raise SystemExit(main())
