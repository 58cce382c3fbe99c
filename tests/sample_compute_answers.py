"""Hand-made answers about compute, made from leaves so that parts add up to totals. Deterministic; no run is read."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from agprof.model.compute_answers import (
    Ceiling,
    ComputeAnswer,
    FlopsWay,
    ModuleRow,
    OperationRow,
    RooflinePoint,
    Utilisation,
)
from agprof.model.figure import Figure
from sample_figures import figure, missing
from sample_modules import Leaf, checkpointed_llama, frozen_trunks

STEP_NS = 374e6
PASSES = ("forward", "backward", "recomputed")
_HOW = "executed operations of the profile step, by torch's dispatch; multiply-adds x 2"


def ceilings_of_cpu() -> tuple[Ceiling, ...]:
    source = "`agprof peak` on 2026-11-25, 1 thread"
    return (
        Ceiling(
            kind="measured", dtype="float32", flops_per_second=83.1e9, bytes_per_second=11.4e9, source=source,
        ),
    )  # fmt: skip


def ceilings_of_h100() -> tuple[Ceiling, ...]:
    return (
        Ceiling(
            kind="datasheet",
            dtype="bfloat16",
            flops_per_second=989.4e12,
            bytes_per_second=3.35e12,
            source="NVIDIA H100 SXM: 989.4 TFLOP/s (132 SM x 4096 x 1.83 GHz), 3.35 TB/s",
        ),
        Ceiling(
            kind="measured",
            dtype="bfloat16",
            flops_per_second=794e12,
            bytes_per_second=2.81e12,
            source="`agprof peak` on 2026-11-25",
        ),
    )


def compute_answer(
    leaves: Sequence[Leaf],
    ceilings: Sequence[Ceiling],
    *,
    dtype: str = "float32",
    micro_steps: int = 2,
    step_ns: float = STEP_NS,
    ranks: int = 2,
    peak_hint: str = "",
) -> ComputeAnswer:
    """The answer that these leaves give on a device with these ceilings."""
    roof = best_ceiling(ceilings)
    cells = [_Cell(leaf, micro_steps, roof) for leaf in leaves]
    total = {name: math.fsum(cell.flops[name] for cell in cells) for name in PASSES}
    model, executed = total["forward"] + total["backward"], sum(total.values())
    rows = module_rows(cells, roof)
    tokens = 4096.0 * ranks / (step_ns / 1e9)
    largest = max((row for row in rows if row.depth == 1), key=lambda row: row.flops_share or 0)
    return ComputeAnswer(
        sentence=f"A step executes {executed / 1e9:,.1f} GFLOP on a rank; {largest.flops_share:.0%} of them are "
        f"`{largest.path}`'s, which takes {largest.time_share:.0%} of the device's time.",
        params=figure(float(sum(leaf.params for leaf in leaves)), "1", "counted", 1),
        trainable_params=figure(float(sum(leaf.params for leaf in leaves if leaf.trains)), "1", "counted", 1),
        forward_flops_per_micro_step=figure(total["forward"] / micro_steps, "FLOP", "counted", 1, method=_HOW),
        flops_per_step=figure(model, "FLOP", "counted", 1, method=_HOW),
        executed_flops_per_step=figure(executed, "FLOP", "counted", 1, method=_HOW),
        flops_per_second=figure(model / (step_ns / 1e9), "FLOP/s", "counted", 46),
        ways=ways_of(total, micro_steps),
        dtype=dtype,
        ceilings=tuple(ceilings),
        peak_hint=peak_hint,
        utilisation=utilisation_of(model, executed, step_ns, ceilings),
        tokens_per_second=figure(tokens, "tokens/s", low=tokens * 0.99, high=tokens * 1.01),
        tokens_per_second_without_padding=figure(tokens * 0.71, "tokens/s", low=tokens * 0.7, high=tokens * 0.72),
        operations=operations_of(cells, dtype, ceilings),
        modules=rows,
        roofline=roofline_of(cells, roof),
        profiled_step=4,
        profiled_micro_steps=micro_steps,
    )


def best_ceiling(ceilings: Sequence[Ceiling]) -> Ceiling | None:
    return next((c for kind in ("measured", "declared", "datasheet") for c in ceilings if c.kind == kind), None)


class _Cell:
    """FLOPs, bytes and device time of a leaf by pass, over all micro-steps."""

    def __init__(self, leaf: Leaf, micro_steps: int, roof: Ceiling | None) -> None:
        self.leaf = leaf
        self.micro_steps = micro_steps
        forward = leaf.flops * micro_steps
        self.flops = {
            "forward": forward,
            "backward": forward * (leaf.input_grad + leaf.trains),
            "recomputed": forward if leaf.recomputed and leaf.input_grad + leaf.trains else 0.0,
        }
        self.bytes = {name: flops / leaf.intensity for name, flops in self.flops.items()}
        self.ns = {name: int(self._seconds(flops, roof) * 1e9) for name, flops in self.flops.items()}

    def _seconds(self, flops: float, roof: Ceiling | None) -> float:
        peak = roof.flops_per_second if roof and roof.flops_per_second else 60e9
        bandwidth = roof.bytes_per_second if roof and roof.bytes_per_second else 9e9
        return flops / min(peak, self.leaf.intensity * bandwidth) * 1.25 * self.leaf.slowness


def module_rows(cells: Sequence[_Cell], roof: Ceiling | None) -> tuple[ModuleRow, ...]:
    """Leaves and all modules above them, parents first; what stands above is the sum of what stands below."""
    below: dict[tuple[int, str], list[_Cell]] = defaultdict(list)
    for cell in cells:
        path = cell.leaf.path
        while True:
            below[cell.leaf.root, path].append(cell)
            if not path:
                break
            path = path.rpartition(".")[0]
    all_flops = math.fsum(sum(cell.flops.values()) for cell in cells)
    all_ns = sum(sum(cell.ns.values()) for cell in cells)
    peak = roof.flops_per_second if roof else None
    rows = []
    order = {key: min(cells.index(cell) for cell in inside) for key, inside in below.items()}
    for (root, path), inside in sorted(below.items(), key=lambda item: (item[0][0], order[item[0]], len(item[0][1]))):
        flops = {name: math.fsum(cell.flops[name] for cell in inside) for name in PASSES}
        ns = {name: sum(cell.ns[name] for cell in inside) for name in PASSES}
        moved = math.fsum(cell.bytes["forward"] + cell.bytes["backward"] for cell in inside)
        seconds = sum(ns.values()) / 1e9
        rate = sum(flops.values()) / seconds if seconds else None
        leaf = inside[0].leaf if inside[0].leaf.path == path else None
        rows.append(
            ModuleRow(
                root=root,
                path=path,
                parent=path.rpartition(".")[0] if path else None,
                depth=path.count(".") + 1 if path else 0,
                type=leaf.type if leaf else "Model" if not path else "Block",
                params=sum(cell.leaf.params for cell in inside),
                trainable_params=sum(cell.leaf.params for cell in inside if cell.leaf.trains),
                calls=inside[0].micro_steps,
                recomputed_calls=inside[0].micro_steps if flops["recomputed"] else 0,
                forward_flops=flops["forward"],
                backward_flops=flops["backward"],
                recomputed_flops=flops["recomputed"],
                modelled_flops=flops["forward"] + flops["backward"],
                forward_ns=ns["forward"],
                backward_ns=ns["backward"],
                recomputed_ns=ns["recomputed"],
                flops_share=sum(flops.values()) / all_flops if all_flops else None,
                time_share=sum(ns.values()) / all_ns if all_ns else None,
                flops_per_second=rate,
                of_ceiling=rate / peak if rate is not None and peak else None,
                intensity=(flops["forward"] + flops["backward"]) / moved if moved else None,
            )
        )
    return tuple(rows)


def ways_of(total: dict[str, float], micro_steps: int) -> tuple[FlopsWay, ...]:
    """Counted, modelled, and as DeepSpeed's profiler prints: the first micro-step, backward as twice the forward."""

    def way(name: str, label: str, scope: str, forward: float, backward: float, again: float, note: str) -> FlopsWay:
        counted = (total["forward"] + total["backward"]) / (micro_steps if scope == "micro-step" else 1)
        source = "counted" if name == "counted" else "modelled"
        return FlopsWay(
            way=name,  # type: ignore[arg-type]
            label=label,
            scope=scope,  # type: ignore[arg-type]
            forward=figure(forward, "FLOP", source, 1),  # type: ignore[arg-type]
            backward=figure(backward, "FLOP", source, 1),  # type: ignore[arg-type]
            recomputed=figure(again, "FLOP", source, 1)  # type: ignore[arg-type]
            if name == "counted"
            else missing("FLOP", "this way does not see recomputation", "modelled"),
            total=figure(forward + backward, "FLOP", source, 1),  # type: ignore[arg-type]
            ratio_to_counted=(forward + backward) / counted if counted else None,
            used=name == "counted",
            note=note,
        )

    forward = total["forward"] / micro_steps
    return (
        way("counted", "counted", "step", total["forward"], total["backward"], total["recomputed"], ""),
        way(
            "modelled", "modelled", "step", total["forward"], total["backward"] * 1.004, 0.0,
            "From shapes and what requires a gradient.",
        ),
        way(
            "deepspeed", "DeepSpeed's profiler", "micro-step", forward, 2 * forward, 0.0,
            "It takes backward as twice the forward: frozen weights and what runs under no_grad are in it.",
        ),
    )  # fmt: skip


def utilisation_of(
    model: float, executed: float, step_ns: float, ceilings: Sequence[Ceiling]
) -> tuple[Utilisation, ...]:
    def of(flops: float, kind: str) -> Figure:
        peak = next((c.flops_per_second for c in ceilings if c.kind == kind and c.flops_per_second), None)
        if peak is None:
            why = "no data sheet is known for this device" if kind == "datasheet" else "`agprof peak` has not run here"
            return missing("ratio", why, "modelled")
        return figure(flops / (step_ns / 1e9) / peak, "ratio", "modelled", 46, method=f"FLOP/s / {kind} peak")

    return tuple(
        Utilisation(
            key=key,
            label=label,
            convention=convention,
            of_datasheet=of(flops, "datasheet"),
            of_achievable=of(flops, "measured"),
        )
        for key, label, convention, flops in (
            ("mfu_full", "MFU, full attention", "Counted forward and backward; attention over all pairs.", model),
            ("mfu_causal", "MFU, causal attention", "The same with half of attention.", model * 0.97),
            ("mfu_palm", "MFU by PaLM's formula", "(6 N + 12 L H Q T) per token.", model * 1.3),
            ("hfu", "HFU", "All that was executed, recomputation included.", executed),
        )
    )  # fmt: skip


def operations_of(cells: Sequence[_Cell], dtype: str, ceilings: Sequence[Ceiling]) -> tuple[OperationRow, ...]:
    sums: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for cell in cells:
        for name in filter(cell.flops.get, PASSES):
            held = sums[name, cell.leaf.kind]
            held[0] += cell.flops[name]
            held[1] += cell.ns[name]
            held[2] += 3 * cell.micro_steps
    executed = math.fsum(held[0] for held in sums.values())
    peaks = {c.kind: c.flops_per_second for c in ceilings}

    def of(rate: float, kind: str) -> float | None:
        peak = peaks.get(kind)  # type: ignore[call-overload]
        return rate / peak if peak else None

    rows = []
    for (name, kind), (flops, ns, calls) in sums.items():
        rate = flops / (ns / 1e9)
        rows.append(
            OperationRow(
                in_pass=name, kind=kind, dtype=dtype, calls=int(calls), flops=flops, flops_share=flops / executed,
                duration_ns=int(ns), flops_per_second=rate, of_datasheet=of(rate, "datasheet"),
                of_achievable=of(rate, "measured"),
            )
        )  # fmt: skip
    rows.append(
        OperationRow(
            in_pass="forward", kind="other", dtype=dtype, calls=412, flops=0.0, flops_share=0.0,
            duration_ns=9_200_000, flops_per_second=0.0, of_datasheet=None, of_achievable=None,
        )
    )  # fmt: skip
    return tuple(rows)


def roofline_of(cells: Sequence[_Cell], roof: Ceiling | None) -> tuple[RooflinePoint, ...]:
    groups: dict[tuple[str, str], list[_Cell]] = defaultdict(list)
    for cell in cells:
        label = ".".join("*" if part.isdigit() else part for part in cell.leaf.path.split("."))
        for name in ("forward", "backward"):
            if cell.flops[name]:
                groups[label, name].append(cell)
    return tuple(_point(label, name, inside, roof) for (label, name), inside in groups.items())  # type: ignore[arg-type]


def _point(
    label: str, in_pass: Literal["forward", "backward"], inside: list[_Cell], roof: Ceiling | None
) -> RooflinePoint:
    flops = math.fsum(cell.flops[in_pass] for cell in inside)
    moved = math.fsum(cell.bytes[in_pass] for cell in inside)
    ns = sum(cell.ns[in_pass] for cell in inside)
    peak = roof.flops_per_second if roof else None
    slope = roof.bytes_per_second * flops / moved if roof and roof.bytes_per_second else None
    above = None if peak is None or slope is None else min(peak, slope)
    return RooflinePoint(
        label=label,
        modules=len(inside),
        in_pass=in_pass,
        flops=flops,
        bytes=moved,
        intensity=flops / moved,
        duration_ns=ns,
        flops_per_second=flops / (ns / 1e9) if ns else None,
        roof_flops_per_second=above,
        bound_by="unknown" if peak is None or slope is None else "memory" if slope < peak else "compute",
    )


def cpu_compute(ranks: int = 2) -> ComputeAnswer:
    """A CPU run with a ceiling of its own machine: no data sheet."""
    hint = "No data sheet's peak: `CPU` is not in the table. Set `peak.tflops` in the workload file to give one."
    return compute_answer(frozen_trunks(), ceilings_of_cpu(), ranks=ranks, peak_hint=hint)


def h100_compute(ranks: int = 8) -> ComputeAnswer:
    """An H100 run with activation checkpointing, data sheet and measured ceiling."""
    return compute_answer(
        checkpointed_llama(), ceilings_of_h100(), dtype="bfloat16", micro_steps=4, step_ns=2.5e9, ranks=ranks
    )


def lora_compute() -> ComputeAnswer:
    """LoRA: nothing but inputs need gradients, so DeepSpeed's 2 x forward is 1.45 to 1.5 times too high."""
    leaves = checkpointed_llama(8, trains=False, recomputed=False)
    adapters = [
        Leaf(f"model.layers.{block}.adapter", "LoraLayer", 0.138e12, 1_048_576, trains=True, intensity=90)
        for block in range(8)
    ]
    return compute_answer([*leaves, *adapters], ceilings_of_h100(), dtype="bfloat16", step_ns=0.4e9)


def unknown_device_compute() -> ComputeAnswer:
    """A device that no table knows, and no measurement: no MFU, and a hint."""
    hint = (
        "No MFU: `Frobnicator 9000` is not in the table of peaks. Set `peak.tflops` in the workload file, or run "
        "`agprof peak` on the device."
    )
    return compute_answer(frozen_trunks(), (), peak_hint=hint)


def rlhf_compute() -> ComputeAnswer:
    """Four root modules: actor, reference, critic, reward."""
    leaves = [
        replace(leaf, root=root, trains=root in (0, 2), input_grad=root in (0, 2))
        for root in range(4)
        for leaf in checkpointed_llama(4, recomputed=False)
    ]
    return compute_answer(leaves, ceilings_of_h100(), dtype="float16", step_ns=0.9e9)


def many_modules(count: int = 1_000) -> ComputeAnswer:
    leaves = [
        Leaf(
            f"model.decoder.layers.{index // 8}.block.part_{index % 8}",
            "LlamaAttentionWithRotaryEmbedding",
            0.1e12 * (1 + index % 5),
            1_000_000 + index,
            trains=True,
            recomputed=index % 2 == 0,
            intensity=100.0 + index,
        )
        for index in range(count)
    ]
    return compute_answer(leaves, ceilings_of_h100(), dtype="bfloat16", step_ns=20e9)


def no_compute(reason: str = "the profile step was not reached") -> ComputeAnswer:
    """Nothing was counted."""
    return ComputeAnswer(
        sentence=f"Nothing was counted: {reason}.",
        params=missing("1", reason, "counted"),
        trainable_params=missing("1", reason, "counted"),
        forward_flops_per_micro_step=missing("FLOP", reason, "counted"),
        flops_per_step=missing("FLOP", reason, "counted"),
        executed_flops_per_step=missing("FLOP", reason, "counted"),
        flops_per_second=missing("FLOP/s", reason, "counted"),
        ways=(),
        dtype=None,
        ceilings=(),
        peak_hint="",
        utilisation=(),
        tokens_per_second=missing("tokens/s", "the batches held no tokens"),
        tokens_per_second_without_padding=missing("tokens/s", "the batches held no attention mask"),
        operations=(),
        modules=(),
        roofline=(),
        profiled_step=None,
        profiled_micro_steps=None,
    )


def hostile_compute(name: str) -> ComputeAnswer:
    """`name` wherever a name from outside can stand."""
    found = cpu_compute()
    return replace(
        found,
        sentence=name,
        peak_hint=name,
        dtype=name,
        ways=tuple(replace(way, label=name, note=name) for way in found.ways),
        ceilings=tuple(replace(ceiling, source=name, dtype=name) for ceiling in found.ceilings),
        operations=tuple(replace(row, kind=name, dtype=name) for row in found.operations),
        modules=tuple(
            replace(m, path=m.path and f"{m.path}{name}", parent=m.parent and f"{m.parent}{name}", type=name)
            for m in found.modules
        ),
        roofline=tuple(replace(point, label=f"{point.label}{name}") for point in found.roofline),
    )
