"""The answers about compute: FLOPs three ways, utilisation, modules on the device, roofline. Part of `RunAnswers`.

FLOPs are multiply-adds x 2 of matrix products, convolutions and attention; definitions: docs/compute.md.
"""

from dataclasses import dataclass
from typing import Literal

from agprof.model.figure import Figure

FlopsWayName = Literal["counted", "modelled", "deepspeed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FlopsWay:
    """One way to know the FLOPs of the profiled step, of one rank."""

    way: FlopsWayName
    """counted: executed operations; modelled: shapes and requires_grad; deepspeed: as its flops profiler prints."""
    label: str
    scope: Literal["step", "micro-step"]
    """What the figures cover: DeepSpeed's profiler looks at the first micro-step only."""
    forward: Figure
    backward: Figure
    recomputed: Figure
    """Executed again in backward; not part of `total`."""
    total: Figure
    """forward + backward."""
    ratio_to_counted: float | None
    """total / the counted total of the same scope."""
    used: bool
    """FLOP/s and MFU are made of this one."""
    note: str
    """What this way gets wrong on this run, or how it is made; may be empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationRow:
    """Operations of one kind, pass and element type in the profiled step of one rank."""

    in_pass: str
    kind: str
    dtype: str | None
    calls: int
    flops: float
    flops_share: float | None
    """Of all executed FLOPs."""
    duration_ns: int | None
    flops_per_second: float | None
    of_datasheet: float | None
    """flops_per_second / the data sheet's peak of this element type."""
    of_achievable: float | None
    """flops_per_second / the ceiling that `agprof peak` measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceiling:
    """What a device can do in one element type: by its data sheet, by the workload file, or measured."""

    kind: Literal["datasheet", "declared", "measured"]
    dtype: str
    flops_per_second: float | None
    bytes_per_second: float | None
    source: str
    """`NVIDIA H100 SXM: 989 TFLOP/s (132 SM x 4096 x 1.83 GHz)`, `peak.tflops of the workload file`, `agprof peak on
    2026-11-25, 1 thread`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Utilisation:
    """One definition of MFU or HFU and its value, per rank."""

    key: str
    """mfu_full, mfu_causal, mfu_palm, hfu."""
    label: str
    convention: str
    """The formula in words: what is counted, what not, whose convention it is."""
    of_datasheet: Figure
    of_achievable: Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleRow:
    """One module in the profiled step; FLOPs and times with descendants, over all its micro-steps."""

    root: int
    path: str
    parent: str | None
    depth: int
    type: str
    params: int
    trainable_params: int
    calls: int | None
    recomputed_calls: int | None
    forward_flops: float | None
    backward_flops: float | None
    recomputed_flops: float | None
    modelled_flops: float | None
    """Forward and backward."""
    forward_ns: int | None
    """Device time."""
    backward_ns: int | None
    recomputed_ns: int | None
    flops_share: float | None
    """forward + backward + recomputed, of all roots together."""
    time_share: float | None
    """The same of device time."""
    flops_per_second: float | None
    """(forward + backward + recomputed FLOPs) / their device time."""
    of_ceiling: float | None
    """flops_per_second / the ceiling: measured where there is one, else the data sheet's."""
    intensity: float | None
    """FLOP / byte of forward and backward; bytes are modelled: operands and results of counted operations once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RooflinePoint:
    """A group of modules (same class and position in repeated blocks) against the roof."""

    label: str
    """As `llama_model.layers.*.mlp`."""
    modules: int
    in_pass: Literal["forward", "backward"]
    flops: float
    bytes: float
    """Modelled."""
    intensity: float
    duration_ns: int | None
    flops_per_second: float | None
    roof_flops_per_second: float | None
    """min(peak, intensity x bandwidth)."""
    bound_by: Literal["compute", "memory", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeAnswer:
    """FLOPs of a step, what share of the device they use, and which modules they are."""

    sentence: str
    params: Figure
    trainable_params: Figure
    forward_flops_per_micro_step: Figure
    """Counted forward FLOPs of the profiled step / its micro-steps."""
    flops_per_step: Figure
    """Counted: forward + backward, without recomputation, one rank."""
    executed_flops_per_step: Figure
    """Counted: recomputation included."""
    flops_per_second: Figure
    """Per rank: flops_per_step / median step time."""
    ways: tuple[FlopsWay, ...]
    dtype: str | None
    """Element type of most FLOPs, as really used."""
    ceilings: tuple[Ceiling, ...]
    peak_hint: str
    """Why there is no data sheet's peak or no measured ceiling, and how to get them; empty when both are there."""
    utilisation: tuple[Utilisation, ...]
    tokens_per_second: Figure
    """All positions, padding included, all ranks."""
    tokens_per_second_without_padding: Figure
    operations: tuple[OperationRow, ...]
    modules: tuple[ModuleRow, ...]
    roofline: tuple[RooflinePoint, ...]
    profiled_step: int | None
    profiled_micro_steps: int | None
