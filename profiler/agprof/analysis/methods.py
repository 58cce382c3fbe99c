"""How each term of the report is measured, as the method section prints it."""

from agprof.analysis.view import View

_METHODS = (
    (
        "step",
        "From the end of one optimizer update to the end of the next, on the host's monotonic clock; steps tile the "
        "time line of a rank. The step time is the median over steady steps of the slowest rank's step.",
    ),
    (
        "phases",
        "Self time on the rank's main thread: of nested phases the inner one counts. Time in which any thread of the "
        "rank stands in a collective is cut out of the phase around it and counts as communication; what no phase "
        "covers is `other`. The parts of a step add up to the step exactly, per rank. Shares and parts are means over "
        "ranks and steady steps, while the step time is a median of the slowest rank: the two differ a little.",
    ),
    (
        "exposed communication",
        "Union of the intervals in which a caller stands in a collective: call to return, and wait() on asynchronous "
        "ones. On a GPU a call that returns early runs on; that time is hidden from the host and is not counted here.",
    ),
    (
        "bandwidth",
        "As nccl-tests: algbw = S / t; busbw = algbw x 2(n-1)/n for all-reduce, x (n-1)/n for all-gather, "
        "reduce-scatter, all-to-all, gather and scatter, x 1 for broadcast, reduce, send; n is the size of that group, "
        "S the total bytes. t is the shortest duration over the ranks where a call could be matched on all of them, "
        "so waiting for the last one to enter is not in it. GB = 1e9 bytes.",
    ),
    (
        "intervals",
        "95 % for the median by order statistics (exact binomial, no distribution assumed); fewer than 6 values give "
        "lowest to highest.",
    ),
    (
        "memory",
        "Read at the borders of phases: torch's allocator on a GPU, the resident set on a CPU; the peak also takes in "
        "what the system itself kept as highest (getrusage, allocator), without resetting anybody's counter.",
    ),
    (
        "FLOPs",
        "Multiply-adds x 2. Forward: counted by DeepSpeed's flops profiler on one micro-step. Backward: modelled per "
        "module, once its forward where an input needs a gradient and once where a weight does.",
    ),
    (
        "savings",
        "Estimates: measured when the time itself was measured, modelled when a rule turns it into a saving, rule of "
        "thumb otherwise. They do not add up: one may hide another.",
    ),
)


_OF_TRACES = (
    (
        "device time",
        "From Kineto or Nsight Systems traces, as unions over a rank's streams: compute kernels; communication with no "
        "compute beside it; copies with no kernel; memsets with nothing; idle. They add up to the window exactly, "
        "which goes from the first activity's begin to the last one's end. A step on the device goes from the end of "
        "all work launched before it to the end of all launched by its end.",
    ),
    (
        "idle by cause",
        "Of the activity that ends a gap: after its launch call began it waited on the device; before, the launching "
        "thread stood in a data loader, in a synchronising call, or had not come so far (launch).",
    ),
    (
        "wait and transfer",
        "A collective's transfer is its shortest duration over the ranks, since the last to come waits for nobody; "
        "wait is the rest. A straggler came last more often than chance explains (binomial test, 1 % over all ranks), "
        "by 10 µs or more in the mean and for 1 % of its window or more in total.",
    ),
)


_OF_ENERGY = (
    (
        "energy",
        "Of a GPU: NVML's counter of energy at the ends of a window, on a line between the two samples around each; "
        "where it begins anew (a driver that is loaded again) or there is none, the trapezoid of power, instant or "
        "averaged over 1 s and moved back by half of it. Power read further apart than three periods is not joined. "
        "Intervals: 5 % of the sensor (NVML's documentation gives it for older GPUs, and nothing for later ones), 100 "
        "ms of age of the counter at each end; on A100 and H100 the sensor looks a quarter of the time "
        "(arXiv:2312.02741), so nothing under 5 s has a figure. Of a host: RAPL. Idle power is told, not subtracted.",
    ),
)


_OF_SYSTEM = (
    (
        "GPU and host",
        "Sampled beside the ranks; figures are means or medians over the steady steps (over the whole run where "
        "there are none), peaks and energy over the whole run. A stretch of more than three periods without a sample "
        "is a gap. Curves of long runs keep the lowest and the highest sample of each stretch.",
    ),
)
_OF_GPUS = (
    (
        "GPU utilization",
        "Share of the time in which at least one kernel ran; one small kernel at a time makes 100 %. How much of the "
        "GPU works is told by the activity of SMs, tensor cores and memory (NVML's GPM counters, Hopper and later).",
    ),
    (
        "held down",
        "Share of the time in which the driver kept clocks lower for power or heat: by its counters of time; where "
        "it has none, by the samples whose clock event reasons show it. Being idle and clocks set by an application "
        "do not count.",
    ),
)


def methods(view: View) -> tuple[tuple[str, str], ...]:
    """Term and how it is measured."""
    rule = f"Left out of statistics: {view.warmup_rule}. Here: {view.warmup_steps} step(s)."
    has_energy = view.tables["gpu_samples"].height or view.tables["host_samples"]["cpu_energy_uj"].count()
    of_energy = _OF_ENERGY if has_energy else ()
    of_gpus = _OF_GPUS if view.tables["gpu_samples"].height else ()
    of_system = _OF_SYSTEM if view.tables["host_samples"].height or of_gpus else ()
    return (
        *_METHODS[:1],
        ("warm-up", rule),
        *_METHODS[1:],
        *of_system,
        *of_gpus,
        *of_energy,
        *(_OF_TRACES if view.run.traces else ()),
    )
