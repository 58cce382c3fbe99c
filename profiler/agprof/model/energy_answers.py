"""Answers on energy: what a run used, per step, sample and token, and what that costs."""

from dataclasses import dataclass
from typing import Literal

from agprof.model.figure import Figure

EnergyMethod = Literal["counter", "counter and integral", "integral of instant power", "integral of average power"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuEnergy:
    """One GPU over the whole run and over the steady window."""

    node: int
    gpu: int
    name: str | None
    run: Figure
    """J, with the interval of its uncertainty in low and high."""
    steady: Figure
    """J, over the steady window."""
    mean_power: Figure
    """W, over the steady window."""
    idle_power: Figure
    """W: the lowest mean over a second that was seen before the first step; told, not subtracted."""
    method: EnergyMethod | None
    """How; None: neither counter nor power was there."""
    resets: int
    """Times that the counter began anew within the run."""
    in_run: bool
    """A rank of the run uses it. The others are listed and not summed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseEnergy:
    """Energy of a group of stretches of one kind: warm-up, steady steps, checkpoint, evaluation, generate ...

    Stretches shorter than 5 s are beneath what the sensors can tell (FACTS: power is sampled a quarter of the time on
    A100 and H100): a group without a longer one has no figure, and says why.
    """

    phase: str
    duration_ns: int
    """Of the stretches that were counted."""
    left_out_ns: int
    """Of those too short."""
    energy: Figure
    """J."""
    mean_power: Figure
    """W."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyAnswer:
    """The energy section. GPUs only, unless RAPL could be read."""

    sentence: str
    scope: str
    """`4 GPUs`, `4 GPUs and the CPU packages of 1 node`: what the sums hold."""
    gpus: tuple[GpuEnergy, ...]
    host: tuple[tuple[int, Figure], ...]
    """(node, J of its CPU packages and memory over the run, RAPL)."""
    run: Figure
    """J, over the whole run."""
    steady: Figure
    """J, over the steady window."""
    per_step: Figure
    """J, over the steady window."""
    per_sample: Figure
    per_token: Figure
    tokens_per_joule: Figure
    """tokens/s/W, which is tokens/J."""
    kwh: Figure
    """kWh, over the whole run."""
    phases: tuple[PhaseEnergy, ...]
    cost: Figure
    """In `currency`, over the whole run; None with a reason when no price was given."""
    currency: str
    co2: Figure
    """g, over the whole run; None with a reason when no intensity was given."""
    declared: str
    """Prices and intensity as given, with their source."""
