"""Hand-made answers from device traces, for tests of what draws them. Deterministic; no trace is read."""

import random
from dataclasses import replace

from agprof.model.answers import RunAnswers
from agprof.model.trace_answers import (
    CriticalPath,
    CriticalSegment,
    KernelGroup,
    KernelRow,
    LaunchRow,
    TraceAnswer,
    TraceBreakdown,
    TraceCollectiveRow,
    TraceLane,
    TraceMemory,
    TraceQuality,
    TraceStraggler,
    TraceTimeline,
)
from sample_answers import HOSTILE, sample_answers

US, MS = 1_000, 1_000_000
MIB = 1 << 20
CAUSES = ("launch", "kernel wait", "synchronisation", "data", "unknown")
GEMM = "ampere_sgemm_128x64_tn"
NORM = (
    "void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<float, float>(int, float, float const*, "
    "float const*, float const*, float*, float*, float*)"
)
ADD = (
    "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>, "
    "at::detail::Array<char*, 3> >"
)
REDUCE = "ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)"
COPY = "Memcpy HtoD (Pinned -> Device)"
SET = "Memset (Device)"
KINDS = (
    "compute", "communication", "memcpy", "memset", "operator", "launch", "annotation", "python", "synchronisation",
    "other",
)  # fmt: skip


def with_trace(ranks: int = 2, slices: int = 3_000, steps: int = 4) -> RunAnswers:
    """A run with device traces beside its own measurements."""
    return replace(sample_answers(ranks), trace=sample_trace(ranks, slices, steps))


def sample_trace(ranks: int = 2, slices: int = 3_000, steps: int = 4, seed: int = 3) -> TraceAnswer:
    """Traces in which the host keeps the device waiting, and rank 1 the others."""
    rng = random.Random(seed)
    per_step = [breakdown(rng, rank, step) for rank in range(ranks) for step in range(steps)]
    timeline = sample_timeline(slices, seed)
    return TraceAnswer(
        sentence="Of 148 ms on each device 57.2 % compute, 11.4 % stand in exposed communication, 2.3 % in copies; "
        "29.1 % are idle, mostly because the host had not launched the next kernel.",
        definitions="exact",
        has_device=True,
        windows=tuple(_sum(rank, [row for row in per_step if row.rank == rank]) for rank in range(ranks)),
        steps=tuple(per_step),
        kernels=_kernels(ranks),
        groups=_groups(),
        collectives=_collectives(ranks),
        communication_sentence="68 all-reduces of 24.0 MiB take 17.9 ms a step and reach 61.2 GB/s of bus bandwidth.",
        unclassified=(_kernel("custom_allgather_v2_kernel", "compute", 8, 12 * US, ranks, 1.0),),
        launches=tuple(
            LaunchRow(
                rank=rank,
                activities=5_310 + rank,
                without_launch=12 * rank,
                graph_kernels=0,
                delay_median_ns=9_400 + 300 * rank,
                delay_p95_ns=41_000,
                delay_max_ns=2_300_000,
                queue_mean=3.4,
                queue_max=41,
            )
            for rank in range(ranks)
        ),
        stragglers=tuple(
            TraceStraggler(
                rank=rank,
                collectives=68,
                wait_ns=(9 if rank != 1 else 2) * MS,
                last_share=0.82 if rank == 1 else 0.18 / max(ranks - 1, 1),
                lateness_ns=120_000.0 if rank == 1 else 0.0,
                is_straggler=rank == 1,
                caused_wait_ns=9 * (ranks - 1) * MS if rank == 1 else 0,
            )
            for rank in range(ranks)
        )
        if ranks > 1
        else (),
        stragglers_sentence="Rank 1 comes last to 82 % of 68 collectives, 120 µs after the rank before it."
        if ranks > 1
        else "One rank has nobody to wait for.",
        critical_path=_critical_path(timeline),
        critical_path_sentence="Of 37.0 ms on the critical path of step 2, 51 % are kernels, 22 % operators.",
        memory=_memory(ranks),
        timeline=timeline,
        quality=tuple(
            TraceQuality(
                rank=rank,
                source=f"rank{rank}.pt.trace.json.gz",
                format="kineto",
                events=216_310,
                left_out={"flow events": 41_200},
                dropped_events=0,
                truncated=None,
                steps=steps,
                kernels_without_launch=12 * rank,
                collectives_with_size=68,
                collectives=68,
                timestamp_unit="ns",
                notes=("no distributedInfo: the rank is from the file's name",) if rank else (),
            )
            for rank in range(ranks)
        ),
        quality_sentence=f"{ranks} traces, 216,310 events each; 0.2 % of kernels lack their launch.",
    )


def breakdown(rng: random.Random, rank: int, step: int | None, window_ns: int = 37 * MS) -> TraceBreakdown:
    compute = int(window_ns * (0.57 + rng.uniform(-0.03, 0.03)))
    communication = int(window_ns * 0.17)
    overlapped = int(communication * 0.33)
    copies = int(window_ns * 0.023)
    sets = int(window_ns * 0.001)
    idle = window_ns - compute - (communication - overlapped) - copies - sets
    causes = dict(zip(CAUSES, (int(idle * 0.5), int(idle * 0.2), int(idle * 0.15), int(idle * 0.1), 0), strict=True))
    causes["unknown"] = idle - sum(causes.values())
    return TraceBreakdown(
        rank=rank,
        step=step,
        start_ns=(step or 0) * window_ns,
        window_ns=window_ns,
        compute_ns=compute,
        exposed_communication_ns=communication - overlapped,
        exposed_memcpy_ns=copies,
        exposed_memset_ns=sets,
        idle_ns=idle,
        communication_ns=communication,
        overlapped_communication_ns=overlapped,
        overlap_ratio=overlapped / communication,
        idle_by_cause_ns=causes,
    )


def _sum(rank: int, rows: list[TraceBreakdown]) -> TraceBreakdown:
    total = lambda name: sum(getattr(row, name) for row in rows)  # noqa: E731
    communication, overlapped = total("communication_ns"), total("overlapped_communication_ns")
    return TraceBreakdown(
        rank=rank,
        step=None,
        start_ns=0,
        window_ns=total("window_ns"),
        compute_ns=total("compute_ns"),
        exposed_communication_ns=total("exposed_communication_ns"),
        exposed_memcpy_ns=total("exposed_memcpy_ns"),
        exposed_memset_ns=total("exposed_memset_ns"),
        idle_ns=total("idle_ns"),
        communication_ns=communication,
        overlapped_communication_ns=overlapped,
        overlap_ratio=overlapped / communication if communication else None,
        idle_by_cause_ns={cause: sum(row.idle_by_cause_ns[cause] for row in rows) for cause in CAUSES},
    )


def _kernel(name: str, kind: str, count: int, mean_ns: int, ranks: int, share: float) -> KernelRow:
    return KernelRow(
        name=name,
        kind=kind,  # type: ignore[arg-type]
        library="nccl" if kind == "communication" else None,
        count=count * ranks,
        sum_ns=count * mean_ns * ranks,
        mean_ns=float(mean_ns),
        min_ns=mean_ns // 3,
        max_ns=mean_ns * 4,
        share=share,
        ranks=ranks,
    )


def _kernels(ranks: int) -> tuple[KernelRow, ...]:
    plain = [
        (GEMM, "compute", 960, 61 * US),
        (REDUCE, "communication", 68, 352 * US),
        (NORM, "compute", 192, 44 * US),
        (ADD, "compute", 2_400, 3 * US),
        (COPY, "memcpy", 40, 85 * US),
        (SET, "memset", 310, 2 * US),
        *((f"triton_poi_fused_add_{i}_kernel", "compute", 96, (30 - i) * US) for i in range(24)),
    ]
    total = sum(count * mean for _, _, count, mean in plain)
    rows = [_kernel(name, kind, count, mean, ranks, count * mean / total) for name, kind, count, mean in plain]
    return tuple(sorted(rows, key=lambda row: -row.sum_ns))


def _groups() -> tuple[KernelGroup, ...]:
    plain = (
        ("op", "aten::mm", 960, 58.6, 0.55), ("op", "aten::native_layer_norm", 192, 8.4, 0.08),
        ("op", "aten::add_", 2_400, 7.2, 0.07), ("module", "model.layers.0.mlp", 480, 29.3, 0.27),
        ("module", "model.layers.0.attention", 576, 21.0, 0.2), ("phase", "forward", 1_770, 32.0, 0.3),
        ("phase", "backward", 3_540, 66.0, 0.62), ("phase", "optimizer", 60, 8.0, 0.08),
    )  # fmt: skip
    return tuple(
        KernelGroup(by=by, name=name, count=count, sum_ns=int(ms * MS), share=share)  # type: ignore[arg-type]
        for by, name, count, ms, share in plain
    )


def _collectives(ranks: int) -> tuple[TraceCollectiveRow, ...]:
    known = TraceCollectiveRow(
        library="nccl",
        op="all_reduce",
        group="default",
        group_size=ranks,
        dtype="float32",
        bytes_per_call=24 * MIB,
        count=68 * ranks,
        sum_ns=68 * ranks * 352 * US,
        mean_ns=352.0 * US,
        min_ns=280 * US,
        max_ns=1_100 * US,
        transfer_ns=290.0 * US,
        wait_ns=62.0 * US,
        algorithm_bandwidth=86.8e9,
        bus_bandwidth=61.2e9,
    )
    unknown = replace(
        known,
        op="send_recv",
        group=None,
        group_size=None,
        dtype=None,
        bytes_per_call=None,
        count=4,
        transfer_ns=None,
        wait_ns=None,
        algorithm_bandwidth=None,
        bus_bandwidth=None,
    )
    return known, unknown


def _memory(ranks: int) -> tuple[TraceMemory, ...]:
    times = tuple(148 * MS * i // 600 for i in range(601))
    rows = []
    for rank in range(ranks):
        allocated = tuple(int((2_000 + 900 * abs((i % 150) / 75 - 1) + 40 * rank) * MIB) for i in range(601))
        rows.append(
            TraceMemory(
                rank=rank,
                device=f"cuda {rank}",
                peak_bytes=max(allocated),
                peak_at_ns=times[allocated.index(max(allocated))],
                x_ns=times,
                allocated_bytes=allocated,
                reserved_bytes=(None,) * 10 + (3_100 * MIB,) * 591,
            )
        )
    return tuple(rows)


def sample_timeline(slices: int, seed: int = 3, window_ns: int = 37 * MS) -> TraceTimeline:
    """Two streams and a thread of four depths, `slices` slices in all."""
    rng = random.Random(seed)
    names = (GEMM, REDUCE, NORM, ADD, COPY, SET, "aten::mm", "aten::linear", "cudaLaunchKernel", "ProfilerStep#2",
             "nn.Module: Linear_0", "cudaDeviceSynchronize")  # fmt: skip
    plan = (
        ("stream 7", "device", 0, 0.3, ((0, 0), (2, 0), (3, 0), (4, 2), (5, 3))),
        ("stream 20", "device", 0, 0.02, ((1, 1),)),
        ("thread 4121", "host", 0, 0.08, ((9, 6), (10, 7))),
        ("thread 4121", "host", 1, 0.2, ((7, 4), (11, 8))),
        ("thread 4121", "host", 2, 0.2, ((6, 4),)),
        ("thread 4121", "host", 3, 0.2, ((8, 5),)),
    )
    lanes = tuple(
        _lane(rng, label, group, depth, max(1, int(slices * share)), pairs, window_ns)
        for label, group, depth, share, pairs in plan
    )
    return TraceTimeline(
        rank=0,
        step=2,
        start_ns=74 * MS,
        window_ns=window_ns,
        names=names,
        kinds=KINDS,
        lanes=lanes,
        note="Python frames of less than 10 µs are left out.",
    )


def _lane(
    rng: random.Random, label: str, group: str, depth: int, count: int, pairs: tuple[tuple[int, int], ...], window: int
) -> TraceLane:
    pitch = window // count
    start, duration, chosen = [], [], []
    for i in range(count):
        begin = i * pitch + rng.randrange(max(pitch // 4, 1))
        start.append(begin)
        duration.append(max(1, int((pitch * (i + 1) - begin) * rng.uniform(0.2, 0.95))))
        chosen.append(pairs[min(int(rng.expovariate(1.2)), len(pairs) - 1)])
    return TraceLane(
        label=label,
        group=group,  # type: ignore[arg-type]
        depth=depth,
        start_ns=tuple(start),
        duration_ns=tuple(duration),
        name=tuple(name for name, _ in chosen),
        kind=tuple(kind for _, kind in chosen),
    )


def _critical_path(timeline: TraceTimeline) -> CriticalPath:
    """Through the kernels of the first stream; what lies between them is the host's."""
    lane = timeline.lanes[0]
    segments: list[CriticalSegment] = []
    at = 0

    def add(category: str, name: str, until: int, on_device: bool) -> None:
        nonlocal at
        if until > at:
            segments.append(
                CriticalSegment(
                    category=category,  # type: ignore[arg-type]
                    name=name,
                    start_ns=timeline.start_ns + at,
                    duration_ns=until - at,
                    on_device=on_device,
                    lane=7 if on_device else 4121,
                )
            )
            at = until

    step = max(1, len(lane.start_ns) // 200)
    for begin, duration, name in list(zip(lane.start_ns, lane.duration_ns, lane.name, strict=True))[::step]:
        add("operator", "aten::linear", begin - min(4_000, begin // 2), False)
        add("launch latency", timeline.names[name], begin, True)
        add("memcpy" if timeline.names[name] == COPY else "kernel", timeline.names[name], begin + duration, True)
    add("idle", "", timeline.window_ns, True)
    sums: dict[str, int] = {}
    for segment in segments:
        sums[segment.category] = sums.get(segment.category, 0) + segment.duration_ns
    return CriticalPath(
        rank=timeline.rank,
        step=timeline.step,
        start_ns=timeline.start_ns,
        total_ns=timeline.window_ns,
        by_category_ns=sums,
        slack_by_category_ns={"kernel": 3 * MS, "operator": 11 * MS, "communication": 5 * MS},
        segments=tuple(segments),
        segments_left_out=0,
        note="Waits on CUDA events count where the trace has cuda_sync events.",
    )


def without_device(answer: TraceAnswer) -> TraceAnswer:
    """What is left of it when no rank's trace holds a device activity."""
    return replace(
        answer,
        sentence="No trace holds an activity of a device, so there is no device time to divide.",
        has_device=False,
        windows=(),
        steps=(),
        kernels=(),
        groups=(),
        collectives=(),
        communication_sentence="",
        unclassified=(),
        launches=(),
        stragglers=(),
        stragglers_sentence="",
        critical_path=None,
        critical_path_sentence="",
        memory=(),
        timeline=None,
    )


def hostile_trace(name: str = HOSTILE) -> TraceAnswer:
    """The sample with `name` wherever a name from a trace can stand."""
    answer = sample_trace()
    rename = lambda items, **fields: tuple(replace(item, **fields) for item in items)  # noqa: E731
    assert answer.timeline is not None
    assert answer.critical_path is not None
    timeline = replace(
        answer.timeline,
        names=tuple(f"{name}{i}" for i in range(len(answer.timeline.names))),
        lanes=rename(answer.timeline.lanes, label=name),
        note=name,
    )
    return replace(
        answer,
        sentence=name,
        kernels=rename(answer.kernels, name=name, library=name),
        groups=rename(answer.groups, name=name),
        collectives=rename(answer.collectives, op=name, group=name, dtype=name, library=name),
        communication_sentence=name,
        unclassified=rename(answer.unclassified, name=name),
        stragglers_sentence=name,
        critical_path=replace(
            answer.critical_path, segments=rename(answer.critical_path.segments, name=name), note=name
        ),
        critical_path_sentence=name,
        memory=rename(answer.memory, device=name),
        timeline=timeline,
        quality=rename(answer.quality, source=name, truncated=name, notes=(name,), left_out={name: 3}),
        quality_sentence=name,
    )


def with_hostile_trace(name: str = HOSTILE) -> RunAnswers:
    return replace(sample_answers(), trace=hostile_trace(name))
