"""Hand-made answers of comparisons, for tests of what draws them. Deterministic; no run folder is read."""

import math
from dataclasses import replace

from agprof.model.compare_answers import (
    COMPARE_VERSION,
    Change,
    CompareAnswer,
    ConfigurationRow,
    ForecastAnswer,
    ForecastRow,
    GateRow,
    KpiRow,
    MovedRow,
    ScalingAnswer,
    ScalingPoint,
    Side,
    Waterfall,
    WaterfallPart,
)
from agprof.model.figure import Curve, Figure
from sample_figures import GIB, MIB, MS, figure, missing

NAMES = ("one-node", "two-nodes", "two-nodes-10gbit", "four-nodes")
_PARTS = (
    # key, label, group, ns of the baseline, ns of a candidate, evidence
    ("data", "Waiting for data", "data", 6_100_000, 6_400_000, ""),
    ("compute.forward", "Forward", "compute", 92_000_000, 95_300_000, ""),
    ("compute.backward", "Backward", "compute", 151_200_000, 185_900_007, ""),
    (
        "communication.bytes", "Bytes", "communication", 40_000_000, 47_000_000,
        "25.2 MB on the wire a step against 21.0 MB",
    ),
    (
        "communication.bandwidth", "Bandwidth", "communication", 31_000_000, 402_300_129,
        "24 calls of 4.2 MB at 118 MB/s against 1.9 GB/s",
    ),
    ("communication.latency", "Latency", "communication", 1_200_000, 24_500_000, "24 calls x 1.02 ms against 0.05 ms"),
    ("communication.overlap", "Overlap", "communication", -8_000_000, -31_400_000, "hidden behind backward"),
    ("communication.skew", "Skew", "communication", 21_000_000, 41_700_003, "rank 3 enters last in 41 of 46 steps"),
    ("optimizer", "Optimizer", "optimizer", 31_000_000, 22_100_000, ""),
    ("other", "Host and other", "other", 8_500_000, 18_200_021, ""),
)  # fmt: skip
_MEMORY = (
    ("parameters", 310 * MIB, 310 * MIB), ("gradients", 310 * MIB, 155 * MIB),
    ("optimizer_states", 620 * MIB, 310 * MIB), ("activations", 180 * MIB, 182 * MIB),
    ("buckets", 40 * MIB, 95 * MIB), ("unexplained", 22 * MIB + 17, 31 * MIB + 5),
)  # fmt: skip
_PHASES = ("data", "forward", "backward", "communication", "optimizer", "other")


def compare_answer(sides: int = 2, baseline: int = 0) -> CompareAnswer:
    """`sides` setups, of which each has more nodes than the one before."""
    labels = [NAMES[i] if i < len(NAMES) else f"setup-{i + 1}" for i in range(sides)]
    candidates = [i for i in range(sides) if i != baseline]
    return CompareAnswer(
        version=COMPARE_VERSION,
        agprof_version="0.1.0",
        sentence=f"{labels[candidates[0]]} takes 812 ms a step against 374 ms of {labels[baseline]} "
        "(+117 % [+115, +119]); the mean step's +438 ms is +401 ms exposed communication, +38.0 ms compute.",
        comparable="with reservations",
        reasons=("`OMP_NUM_THREADS` is 1 on one side and 2 on the other.", "two-nodes: 3 of 4 ranks are there."),
        baseline=baseline,
        sides=tuple(_side(label, i) for i, label in enumerate(labels)),
        configuration=_configuration(sides),
        kpis=_kpis(sides, baseline),
        waterfalls=tuple(fall for i in candidates for fall in (step_fall(i), memory_fall(i), energy_fall(i))),
        moved=tuple(row for i in candidates for row in _moved(i)),
        scaling=_scaling(sides),
        forecast=_forecast(),
        overlays=tuple(_overlay(i) for i in range(sides)),
        gates=(
            GateRow(condition="step_time<=+5%", passed=False, found="+117 % [+115, +119]"),
            GateRow(condition="memory.peak<=+2%", passed=True, found="−27 %"),
            GateRow(condition="mfu>=-3%", passed=None, found="not measured on one-node"),
        ),
        methods=(
            ("Change", "candidate - baseline, with a 95 % interval"),
            ("p", "Holm-corrected over all figures and candidates of the comparison"),
        ),
    )


def _side(label: str, i: int) -> Side:
    return Side(
        label=label,
        runs=tuple(f"anomalygpt-{label}-{k}" for k in range(3)),
        ranks=2 << i if i < 4 else 2 * (i + 1),
        nodes=i + 1,
        hosts=tuple(f"agp-node-{k}" for k in range(i + 1)),
        framework="DeepSpeed ZeRO-2",
        steady_steps=46,
        status="3 of 3 ended well",
        setup=label,
        problems=("3 of 4 ranks are there",) if i == 1 else (),
    )


def _configuration(sides: int) -> tuple[ConfigurationRow, ...]:
    def row(key: str, weight: str, why: str, first: str | None, rest: str | None) -> ConfigurationRow:
        return ConfigurationRow(key=key, values=(first, *[rest] * (sides - 1)), weight=weight, why=why)  # type: ignore[arg-type]

    return (
        row("setup.nodes", "expected", "what comparisons of setups are about", "1", "2"),
        row("deepspeed.zero_optimization.reduce_bucket_size", "expected", "size of buckets", "200000", "5000000"),
        row("environment.OMP_NUM_THREADS", "matters", "threads of CPU kernels", "1", "2"),
        row("version.torch", "matters", "kernels differ between versions", "2.13.0", None),
        row("model.parameters", "breaks", "not the same work", "112663480", "112663482"),
        row("environment.HOSTNAME", "harmless", "a name", "agp-node-0", "agp-node-1"),
    )


def _change(value: Figure, base: Figure, verdict: str, half: float = 0.02, p: float | None = 0.0004) -> Change:
    assert value.value is not None
    assert base.value is not None
    ratio = value.value / base.value - 1
    tested = verdict != "not tested"
    return Change(
        absolute=figure(value.value - base.value, value.unit),
        relative=figure(
            ratio, "ratio", low=ratio - half if tested else None, high=ratio + half if tested else None, n=3
        ),
        p_value=p if tested else None,
        test="permutation over repeats" if tested else "none",
        verdict=verdict,  # type: ignore[arg-type]
    )


def _kpis(sides: int, baseline: int) -> tuple[KpiRow, ...]:
    table = (
        ("step_time", "step time", "lower is better", 374e6, 812e6, "ns", "worse", 0.02),
        ("throughput.samples", "samples per second", "higher is better", 21.4, 19.7, "samples/s", "worse", 0.03),
        ("memory.peak", "memory peak", "lower is better", 1.45 * GIB, 1.06 * GIB, "bytes", "better", 0.01),
        ("communication.exposed", "exposed communication", "lower is better", 85.2e6, 484.1e6, "ns", "worse", 0.3),
        ("data.wait", "data wait", "lower is better", 6.1e6, 6.4e6, "ns", "no change shown", 0.09),
        ("gpu.power", "power", "neither", 312.0, 297.0, "W", "not tested", 0.0),
    )
    rows = []
    for key, label, direction, base, candidate, unit, verdict, half in table:
        values = []
        for i in range(sides):
            value = base if i == baseline else candidate * (1 + 0.04 * i)
            values.append(figure(value, unit, low=value * 0.99, high=value * 1.01, n=138))
        changes = tuple(
            None if i == baseline else _change(values[i], values[baseline], verdict, half) for i in range(sides)
        )
        rows.append(
            KpiRow(key=key, label=label, direction=direction, values=tuple(values), changes=changes)  # type: ignore[arg-type]
        )
    why = "the device's peak is not known"
    rows.append(
        KpiRow(
            key="mfu", label="MFU", direction="higher is better", values=(missing("ratio", why),) * sides,
            changes=(None,) * sides,
        )
    )  # fmt: skip
    return tuple(rows)


def step_fall(side: int) -> Waterfall:
    parts = tuple(
        WaterfallPart(
            key=key, label=label, group=group, baseline=float(a), candidate=float(b), change=float(b - a),
            evidence=evidence, method="measured: self time of the phase" if not evidence else "modelled at the mean",
        )
        for key, label, group, a, b, evidence in _PARTS
    )  # fmt: skip
    return _fall("step time", "ns", side, parts, "mean over ranks and steady steps; of repeats the mean over runs")


def memory_fall(side: int) -> Waterfall:
    parts = tuple(
        WaterfallPart(
            key=f"memory.{name}", label=name.replace("_", " "), group="other", baseline=float(a), candidate=float(b),
            change=float(b - a), evidence="", method="the account's part",
        )
        for name, a, b in _MEMORY
    )  # fmt: skip
    return _fall("memory peak", "bytes", side, parts, "highest rank")


def energy_fall(side: int) -> Waterfall:
    parts = (
        WaterfallPart(
            key="energy.time", label="Time of a step", group="compute", baseline=214.25, candidate=219.0, change=4.75,
            evidence="382 ms against 374 ms a step", method="mean step x the mean power of both sides",
        ),
        WaterfallPart(
            key="energy.power", label="Power", group="other", baseline=10.5, candidate=-2.125, change=-12.625,
            evidence="568 W against 601 W", method="remainder",
        ),
    )  # fmt: skip
    return _fall("energy per step", "J", side, parts, "mean over the steady window")


def _fall(quantity: str, unit: str, side: int, parts: tuple[WaterfallPart, ...], note: str) -> Waterfall:
    a, b = math.fsum(p.baseline for p in parts), math.fsum(p.candidate for p in parts)
    return Waterfall(
        quantity=quantity,  # type: ignore[arg-type]
        unit=unit,
        side=side,
        baseline=a,
        candidate=b,
        parts=parts,
        sentence=f"The {quantity} of {NAMES[side] if side < len(NAMES) else side} moved, mostly by {parts[0].label}.",
        note=note,
    )


def _moved(side: int) -> tuple[MovedRow, ...]:
    def row(kind: str, name: str, a: float | None, b: float | None, unit: str = "ns") -> MovedRow:
        return MovedRow(
            kind=kind, name=name, side=side, baseline=a, candidate=b, change=(b or 0.0) - (a or 0.0), unit=unit  # type: ignore[arg-type]
        )  # fmt: skip

    return (
        row("collective", "all_reduce, 4.20 MiB, 4 ranks", 84.0 * MS, 471.0 * MS),
        row("phase", "backward", 151.2 * MS, 185.9 * MS),
        row("module", "model.layers.3.self_attn", 9.1 * MS, 6.0 * MS),
        row("kernel", "void at::native::" + "vectorized_elementwise_kernel<4, " * 6 + "…", None, 2.2 * MS),
        row("range", "text tower", 31.4 * MS, None),
    )


def _scaling(sides: int) -> ScalingAnswer:
    points = []
    for i in range(sides):
        ranks = 2 << i if i < 4 else 2 * (i + 1)
        throughput = 21.4 * (ranks / 2) ** 0.62
        points.append(
            ScalingPoint(
                side=i, ranks=ranks, nodes=i + 1,
                throughput=figure(throughput, "samples/s", low=throughput * 0.95, high=throughput * 1.05),
                efficiency=figure(throughput / 21.4 / (ranks / 2), "ratio", "modelled"),
                step_time=figure(374e6 * (1 + i), "ns"),
                exposed=figure(85e6 + 180e6 * i, "ns"),
                energy_per_token=figure(0.8 + 0.3 * i, "J", "modelled"),
                cost=missing("EUR", "prices are not known", "declared"),
            )
        )  # fmt: skip
    return ScalingAnswer(
        sentence="two-nodes does 32.9 samples/s on 4 ranks, 77 % of what a rank of one-node (2) does.",
        kind="weak",
        points=tuple(points),
    )


def _forecast() -> ForecastAnswer:
    def row(label: str, nodes: int, link: str, ns: float, measured: Figure | None) -> ForecastRow:
        predicted = figure(ns, "ns", "modelled", low=ns * 0.9, high=ns * 1.1, n=24)
        return ForecastRow(
            label=label, ranks=2 * nodes, nodes=nodes, link=link, predicted=predicted, measured=measured
        )  # fmt: skip

    return ForecastAnswer(
        sentence="Four nodes at 1 Gbit/s would take 1.21 s a step [1.09, 1.33].",
        basis="compute time of two-nodes; alpha-beta fit of the emulated 1gbit 1ms link, 24 points",
        rows=(
            row("two-nodes", 2, "emulated 1gbit 1ms", 790e6, figure(812e6, "ns")),
            row("four-nodes", 4, "emulated 1gbit 1ms", 1.21e9, None),
            row("two-nodes, 200 Mbit/s", 2, "emulated 200mbit 1ms", 2.4e9, None),
        ),
    )


def _overlay(side: int, points: int = 100) -> tuple[Curve, ...]:
    """Two ranks, one of which reaches every phase a little later than the other."""
    bounds = [0.02, 0.27 - 0.03 * side, 0.7 - 0.08 * side, 0.93 - 0.01 * side, 0.985, 1.01]
    x = tuple((2 * at + 1) * 1_000_000 // (2 * points) for at in range(points))
    curves = []
    for number, name in enumerate(_PHASES):
        begin = bounds[number - 1] if number else 0.0
        y = tuple(sum(begin <= at / 1e6 * late < bounds[number] for late in (1.0, 0.98)) / 2 for at in x)
        curves.append(Curve(label=name, unit="ratio", x_ns=x, y=y))
    return tuple(curves)


def hostile_compare(name: str) -> CompareAnswer:
    """The sample with `name` wherever a name from outside can stand."""
    answer = compare_answer(3)
    return replace(
        answer,
        sentence=name,
        reasons=(name,),
        sides=tuple(
            replace(s, label=f"{name}{i}", runs=(name,), hosts=(name,), framework=name, status=name, problems=(name,))
            for i, s in enumerate(answer.sides)
        ),
        configuration=tuple(replace(r, key=name, values=(name,) * 3, why=name) for r in answer.configuration),
        kpis=tuple(replace(r, label=name) for r in answer.kpis),
        waterfalls=tuple(
            replace(w, sentence=name, note=name, parts=tuple(
                replace(p, key=name, label=name, group=name, evidence=name, method=name) for p in w.parts
            ))
            for w in answer.waterfalls
        ),
        moved=tuple(replace(r, name=name) for r in answer.moved),
        scaling=replace(answer.scaling, sentence=name) if answer.scaling is not None else None,
        forecast=replace(answer.forecast, sentence=name, basis=name, rows=tuple(
            replace(r, label=name, link=name) for r in answer.forecast.rows
        )) if answer.forecast is not None else None,
        gates=tuple(replace(g, condition=name, found=name) for g in answer.gates),
        methods=((name, name),),
    )  # fmt: skip
