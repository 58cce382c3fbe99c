"""Hand-made answers of a run, for tests of what draws them. Deterministic; no run folder is read."""

import math
import random
from dataclasses import replace

from agprof.model.answers import (
    ANSWERS_VERSION,
    CollectiveRow,
    CommunicationAnswer,
    Finding,
    Identity,
    PhaseLine,
    Quality,
    RangeRow,
    RankPhases,
    RankRow,
    RunAnswers,
    StepRow,
    TimeAnswer,
    TimelineSpan,
    UnseenRow,
    Verdict,
)
from agprof.model.figure import Figure, Kpi
from sample_compute_answers import cpu_compute, hostile_compute, no_compute
from sample_energy_answers import hostile_energy
from sample_figures import MIB, MS, figure, missing
from sample_memory_answers import curves as memory_curves
from sample_memory_answers import hostile_memory, memory_answer
from sample_system_answers import cpu_system, hostile_system, times

PARTS_MS = {
    "data": 18.0,
    "forward": 92.0,
    "backward": 151.0,
    "communication": 84.0,
    "optimizer": 21.0,
    "other": 8.0,
}


def sample_answers(ranks: int = 2, steps: int = 50, seed: int = 7) -> RunAnswers:
    """A run that finished, bound by communication, with rank 1 a little slow."""
    rng = random.Random(seed)
    rows = _step_rows(rng, ranks, steps)
    warmup = min(3, steps)
    steady = [row for row in rows if row.kind == "steady"]
    phases = tuple(_phases(steady, rank) for rank in range(ranks)) if steady else ()
    step_ns = max((item.step_ns for item in phases), default=0.0)
    end_ns = max((row.start_ns + row.duration_ns for row in rows), default=10_000 * MS)
    step_time = figure(
        374e6, "ns", n=46, low=371e6, high=379e6, method="median of the slowest rank's step; bootstrap 95 % interval"
    )
    communication_ns = 84e6 if ranks > 1 else 0.0
    return RunAnswers(
        version=ANSWERS_VERSION,
        agprof_version="0.1.0",
        identity=Identity(
            name="anomalygpt-tiny",
            run_id="anomalygpt-tiny-20260101-120000",
            description="AnomalyGPT at its tiny preset on a miniature of MVTec",
            started_realtime_ns=1_767_268_800_000_000_000,
            duration_ns=end_ns + 4_000 * MS,
            world_size=ranks,
            nodes=1,
            framework="DeepSpeed ZeRO-2",
            device="CPU",
            dtype="float32",
            status="finished",
            status_sentence=f"finished, {steps} steps on {ranks} ranks",
        ),
        verdict=Verdict(
            bound_by="communication",
            headline="Bound by exposed communication: 84.0 of 374 ms a step (22.5 %) wait on 6 reductions of 4.20 MiB, "
            "which reach 61 % of the link's measured ceiling.",
            evidence=(
                "Backward is longer (151 ms), but it is computing; communication is the longest part that is not.",
                "Of the 96.0 ms spent in collectives, 12.0 ms (12.5 %) are hidden behind backward.",
                "Rank 1 arrives last in 41 of 46 steps; the others wait 9.10 ms for it.",
            ),
            confidence="measured",
            confidence_sentence="Wall time of each collective on each rank, over 46 steady steps.",
            next_step="Raise `zero_optimization.reduce_bucket_size` from 200,000 to 5,000,000 and run again.",
        ),
        findings=_findings(),
        kpis=_kpis(step_time),
        time=TimeAnswer(
            sentence="A steady step takes 374 ms [371, 379], n = 46; backward is 40.4 % of it, forward 24.6 %, "
            "exposed communication 22.5 %.",
            step_time=step_time,
            warmup_steps=warmup,
            warmup_rule="steps before the first whose duration lies within 10 % of the median of the second half",
            steady_steps=max(steps - warmup - 1, 0),
            profiled_steps=(4,) if steps > 4 else (),
            ranks=phases,
            steps=rows,
            timeline_steps=(steps - 2, steps - 1) if steps > 2 else None,
            timeline=_timeline(ranks, [row for row in rows if row.step >= steps - 2]) if steps > 2 else (),
            ranges=(
                RangeRow(name="text tower", calls_per_step=2.0, ns_per_step=31.4 * MS, share=0.084),
                RangeRow(name="memory bank", calls_per_step=1.0, ns_per_step=11.2 * MS, share=0.03),
            )
            if steps
            else (),
            phase_line=_phase_line(rows) if steps else None,
        ),
        communication=_communication(ranks, steps, communication_ns, step_ns),
        compute=cpu_compute(ranks) if steps > 4 else no_compute(),
        memory=memory_answer(ranks, memory_curves(rng, ranks, times(end_ns, 90 * MS))),
        system=cpu_system(rng, ranks, end_ns),
        ranks=tuple(
            RankRow(
                rank=rank,
                node=rank // 8,
                host=f"node-{rank // 8}",
                pid=4_100 + rank,
                device="CPU",
                steps=steps,
                step_time=figure(
                    phases[rank].step_ns, "ns", n=46, low=phases[rank].step_ns - 3e6, high=phases[rank].step_ns + 4e6
                )
                if phases
                else missing("ns", "no steady step"),
                ended="clean",
                last_step=steps - 1 if steps else None,
                last_phase="optimizer" if steps else None,
                faults=0,
            )
            for rank in range(ranks)
        ),
        configuration=(
            ("command", "python train.py --preset tiny --deepspeed ds.json"),
            ("deepspeed.zero_optimization.stage", "2"),
            ("deepspeed.zero_optimization.reduce_bucket_size", "200000"),
            ("deepspeed.gradient_accumulation_steps", "2"),
            ("environment.OMP_NUM_THREADS", "1"),
            ("version.torch", "2.13.0"),
            ("version.deepspeed", "0.19.8"),
        ),
        quality=Quality(
            sentence=f"Data of {ranks} of {ranks} ranks is complete; agprof itself took 0.41 % of a step.",
            ranks_expected=ranks,
            ranks_present=ranks,
            problems=("Rank 0: 2 memory samples are missing between 4.0 s and 4.5 s.",),
            cost=(
                Kpi(
                    key="cost_cpu",
                    label="CPU of the instruments",
                    figure=figure(0.0041, "ratio", n=46),
                    note="flusher thread, share of a core",
                ),
                Kpi(key="cost_bytes", label="written", figure=figure(3.1 * MIB, "bytes", "counted", n=1), note=""),
                Kpi(key="cost_sampler", label="memory of the sampler", figure=figure(41 * MIB, "bytes"), note=""),
            ),
            notes=("Profiled and warm-up steps are drawn, marked, and left out of statistics.",),
        ),
        methods=(
            ("step time", "end of one optimizer update to the end of the next, on the host's monotonic clock"),
            ("exposed communication", "time in which the calling thread stood in a collective or its wait()"),
            ("bus bandwidth", "algorithm bandwidth x 2 (n - 1) / n for all-reduce, as nccl-tests defines it"),
        ),
    )


def _step_rows(rng: random.Random, ranks: int, steps: int) -> tuple[StepRow, ...]:
    rows = []
    clock = 0
    for step in range(steps):
        kind = "warm-up" if step < 3 else "profiled" if step == 4 else "steady"
        factor = 1 + 1.6 * math.exp(-step) + (0.8 if kind == "profiled" else 0) + (0.25 if step % 37 == 36 else 0)
        parts_of = []
        for rank in range(ranks):
            slow = 1.06 if rank == 1 else 1.0
            parts = {
                name: int(value * MS * factor * slow * rng.gauss(1, 0.02))
                for name, value in PARTS_MS.items()
                if name != "communication"
            }
            parts_of.append(parts)
        longest = max(sum(parts.values()) for parts in parts_of)
        duration = longest + int((70 * MS if ranks > 1 else 0) * factor)
        for rank, parts in enumerate(parts_of):
            parts["communication"] = duration - sum(parts.values())
            ordered = {name: parts[name] for name in PARTS_MS}
            rows.append(
                StepRow(
                    rank=rank,
                    step=step,
                    start_ns=clock,
                    duration_ns=duration,
                    kind=kind,  # type: ignore[arg-type]
                    loss=2.4 * math.exp(-step / 30) + 0.3 + rng.gauss(0, 0.02),
                    parts_ns=ordered,
                )
            )
        clock += duration
    rows.sort(key=lambda row: (row.rank, row.step))
    return tuple(rows)


def _phases(steady: list[StepRow], rank: int) -> RankPhases:
    mine = [row for row in steady if row.rank == rank]
    parts = {name: sum(row.parts_ns[name] for row in mine) / len(mine) for name in PARTS_MS}
    return RankPhases(rank=rank, steps=len(mine), step_ns=sum(parts.values()), parts_ns=parts)


def _timeline(ranks: int, rows: list[StepRow]) -> tuple[TimelineSpan, ...]:
    spans = []
    begin = min(row.start_ns for row in rows)

    def span(rank: int, lane: str, name: str, start: int, duration: int, depth: int = 0) -> None:
        spans.append(
            TimelineSpan(rank=rank, lane=lane, name=name, start_ns=start, duration_ns=duration, depth=depth)  # type: ignore[arg-type]
        )

    for row in rows:
        at = row.start_ns - begin
        parts = row.parts_ns
        span(row.rank, "phase", "data", at, parts["data"])
        at += parts["data"]
        span(row.rank, "phase", "forward", at, parts["forward"])
        span(row.rank, "range", "text tower", at + 5 * MS, 31 * MS)
        span(row.rank, "range", "prompts", at + 8 * MS, 12 * MS, 1)
        span(row.rank, "range", "memory bank", at + 50 * MS, 11 * MS)
        at += parts["forward"]
        backward = parts["backward"] + parts["communication"]
        span(row.rank, "phase", "backward", at, backward)
        for bucket in range(6):
            start = at + int(backward * (0.18 + 0.13 * bucket))
            span(row.rank, "communication", "reduce_scatter", start, int(backward * 0.06) + bucket * MS)
        at += backward
        span(row.rank, "phase", "optimizer", at, parts["optimizer"])
        span(row.rank, "communication", "all_gather", at + 12 * MS, 7 * MS)
    return tuple(spans)


def _phase_line(rows: tuple[StepRow, ...]) -> PhaseLine:
    """Rank 0 stands in collectives within backward."""
    names = ("data", "forward", "backward", "optimizer")
    spans = []
    for row in rows:
        at = row.start_ns
        for index, name in enumerate(names if row.rank == 0 else ()):
            long = row.parts_ns[name] + (row.parts_ns["communication"] if name == "backward" else 0)
            spans.append((index, at, long))
            at += long
    phase, start_ns, duration_ns = zip(*spans, strict=True)
    return PhaseLine(rank=0, names=names, phase=phase, start_ns=start_ns, duration_ns=duration_ns)


def _findings() -> tuple[Finding, ...]:
    return (
        Finding(
            key="small-buckets",
            title="Gradient buckets are too small for the link",
            evidence="6 reductions of 4.20 MiB a step reach 1.31 GB/s; one of 24 MiB reached 2.14 GB/s at start-up.",
            section="communication",
            saving_ns_per_step=figure(
                33e6, "ns", "modelled", low=21e6, high=41e6, method="bytes per step over the ceiling's bandwidth"
            ),
            confidence="modelled",
            change="zero_optimization.reduce_bucket_size: 5000000",
            check="calls per step of reduce_scatter fall from 6 to 1 in the communication table.",
        ),
        Finding(
            key="frozen-text-tower",
            title="The frozen text tower is computed again at every step",
            evidence="text tower: 31.4 ms a step (8.4 %), none of it requires a gradient, and its input is constant.",
            section="compute",
            saving_ns_per_step=figure(31.4e6, "ns", method="time of the range `text tower`"),
            confidence="measured",
            change="model.cache_text_features: true",
            check="the range `text tower` leaves the table of ranges.",
        ),
        Finding(
            key="memory-headroom",
            title="Memory leaves room for a larger micro-batch",
            evidence="the peak is 1.36 GiB of 7.80 GiB per rank.",
            section="memory",
            saving_ns_per_step=None,
            confidence="rule of thumb",
            change="deepspeed.train_micro_batch_size_per_gpu: 4",
            check="samples per second rise, and the peak stays below 7 GiB.",
        ),
    )


def _kpis(step_time: Figure) -> tuple[Kpi, ...]:
    return (
        Kpi(key="step_time", label="step time", figure=step_time, note="median of the slowest rank"),
        Kpi(key="samples", label="samples", figure=figure(21.4, "samples/s", low=21.1, high=21.6), note="all ranks"),
        Kpi(key="tokens", label="tokens", figure=figure(10_950, "tokens/s", low=10_810, high=11_060), note="all ranks"),
        Kpi(
            key="flops", label="compute", figure=figure(41.2e9, "FLOP/s", "modelled"), note="per rank, forward counted"
        ),
        Kpi(key="memory", label="memory peak", figure=figure(1.36 * (1 << 30), "bytes"), note="rank 1, resident set"),
        Kpi(key="exposed", label="exposed communication", figure=figure(0.2246, "ratio"), note="of a step"),
        Kpi(key="mfu", label="MFU", figure=missing("ratio", "no peak is known for a CPU", "modelled"), note=""),
    )


def _communication(ranks: int, steps: int, exposed_ns: float, step_ns: float) -> CommunicationAnswer:
    none = ranks < 2 or not steps
    rows = (
        ()
        if none
        else (
            _collective("reduce_scatter", ranks, "backward", 6.0, 4.2 * MIB, 61.2, 70.1, 1.31e9),
            _collective("all_gather", ranks, "optimizer", 1.0, 25.2 * MIB, 15.7, 18.4, 2.04e9),
            _collective("all_reduce", ranks, "optimizer", 3.0, 4.0, 6.1, 6.4, None),
            _collective("broadcast", ranks, "forward", 1.0, None, 1.0, 1.1, None),
        )
    )
    reason = "one rank has nobody to talk to" if ranks < 2 else "no step was seen"
    return CommunicationAnswer(
        sentence="11 collectives a step move 50.4 MiB and stand in the way for 84.0 ms (22.5 %) of it."
        if not none
        else f"No collective was seen: {reason}.",
        calls_per_step=figure(11, "1", "counted") if not none else missing("1", reason, "counted"),
        bytes_per_step=figure(50.4 * MIB, "bytes", "counted") if not none else missing("bytes", reason, "counted"),
        exposed_per_step=figure(exposed_ns, "ns") if not none else missing("ns", reason),
        exposed_share=figure(exposed_ns / step_ns, "ratio") if not none else missing("ratio", reason),
        total_per_step=figure(96e6, "ns") if not none else missing("ns", reason),
        rows=rows,
        unseen=()
        if none
        else (UnseenRow(rank=0, group="default", op="all_reduce", recorded=150, seen=148, complete=True),),
        ledger_sentence="The flight recorder saw 2 of 550 collectives that our taps did not."
        if not none
        else "The flight recorder is empty too.",
    )


def _collective(
    op: str, size: int, caller: str, calls: float, nbytes: float | None, exposed: float, total: float, bw: float | None
) -> CollectiveRow:
    return CollectiveRow(
        op=op,
        group="default",
        group_size=size,
        dtype="float32" if nbytes else None,
        caller=caller,
        calls_per_step=calls,
        bytes_per_call=figure(nbytes, "bytes", "counted") if nbytes else missing("bytes", "sizes can't be known"),
        bytes_per_step=nbytes * calls if nbytes else None,
        exposed_ns_per_step=exposed * MS,
        total_ns_per_step=total * MS,
        share=exposed / 374,
        algorithm_bandwidth=figure(bw, "bytes/s") if bw else missing("bytes/s", "too small to say"),
        bus_bandwidth=figure(bw * (size - 1) / size, "bytes/s") if bw else missing("bytes/s", "too small to say"),
    )


HOSTILE = (
    "</script><img src=x onerror=\"document.title='PWNED'\"><script>document.title='PWNED'</script>"
    "\u2028\u202e\x00{{7*7}}%{x}<a href=\"javascript:document.title='PWNED'\">x</a>"
)


def hostile_answers(name: str = HOSTILE) -> RunAnswers:
    """The sample with `name` wherever a name from outside can stand."""
    answers = sample_answers()
    rename = lambda items, **fields: tuple(replace(item, **fields) for item in items)  # noqa: E731
    return replace(
        answers,
        identity=replace(
            answers.identity,
            name=name,
            run_id=name,
            description=name,
            framework=name,
            device=name,
            status_sentence=name,
        ),
        verdict=replace(answers.verdict, headline=name, evidence=(name,), next_step=name),
        findings=rename(answers.findings, title=name, evidence=name, change=name, check=name, section=name),
        time=replace(
            answers.time,
            sentence=name,
            timeline=rename(answers.time.timeline, name=name),
            ranges=rename(answers.time.ranges, name=name),
        ),
        communication=replace(
            answers.communication,
            rows=rename(answers.communication.rows, op=name, group=name, dtype=name, caller=name),
            ledger_sentence=name,
        ),
        compute=hostile_compute(name),
        memory=hostile_memory(name, answers.memory.curves),
        system=hostile_system(name),
        energy=hostile_energy(name),
        ranks=rename(answers.ranks, host=name, device=name, ended=name, last_phase=name),
        configuration=((name, name), ("key", name)),
        quality=replace(answers.quality, problems=(name,), notes=(name,)),
        methods=((name, name),),
    )
