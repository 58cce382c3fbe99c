"""GPUs whose power is a function of time with a closed form of its energy, as the sampler would have seen them."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

S = 1_000_000_000
BEGIN_NS = 5_000_000_000_000
"""Monotonic time at which the functions' t is 0."""


@dataclass(frozen=True)
class KnownPower:
    """Power in W at t seconds, and the J used since t = 0."""

    name: str
    watts: Callable[[float], float]
    joules: Callable[[float], float]

    def between(self, start_s: float, end_s: float) -> float:
        return self.joules(end_s) - self.joules(start_s)


def constant(watts: float) -> KnownPower:
    return KnownPower("constant", lambda _: watts, lambda t: watts * t)


def ramp(start_w: float, per_s: float) -> KnownPower:
    return KnownPower("ramp", lambda t: start_w + per_s * t, lambda t: start_w * t + per_s * t * t / 2)


def square(low_w: float, high_w: float, period_s: float) -> KnownPower:
    half = period_s / 2

    def joules(t: float) -> float:
        whole, rest = divmod(t, period_s)
        return whole * half * (low_w + high_w) + low_w * min(rest, half) + high_w * max(0.0, rest - half)

    return KnownPower("square", lambda t: low_w if t % period_s < half else high_w, joules)


def sine(mean_w: float, swing_w: float, period_s: float) -> KnownPower:
    turn = 2 * math.pi / period_s
    return KnownPower(
        "sine",
        lambda t: mean_w + swing_w * math.sin(turn * t),
        lambda t: mean_w * t + swing_w / turn * (1 - math.cos(turn * t)),
    )


FUNCTIONS = (constant(400), ramp(100, 4), square(120, 680, 7.3), sine(400, 250, 3.1))


def sample_times(seconds: float, period_s: float = 0.2, seed: int = 1) -> list[float]:
    """Seconds of the samples: a grid, each moved by up to a fifth of the period, the first and the last not."""
    chance = random.Random(seed)
    count = round(seconds / period_s)
    inner = [(k + chance.uniform(-0.2, 0.2)) * period_s for k in range(1, count)]
    return [0.0, *inner, seconds]


def gpu_samples(
    power: KnownPower,
    times: Sequence[float],
    *,
    gpu: int = 0,
    node: int = 0,
    counter: bool = True,
    instant: bool = True,
    average: bool = False,
    resets_s: Sequence[float] = (),
    stale_s: float = 0.0,
    sensor: float = 1.0,
) -> list[dict[str, Any]]:
    """Rows of `gpu_samples`. The counter begins anew at `resets_s`, and is `stale_s` old at most."""
    rows = []
    for t in times:
        read = math.floor(t / stale_s) * stale_s if stale_s else t
        base = max((reset for reset in resets_s if reset <= read), default=None)
        joules = power.joules(read) - power.joules(base) if base is not None else 1e6 + power.joules(read)
        mean = power.between(t - 1, t)
        watts = power.watts(t) if instant else mean
        rows.append(
            {
                "node": node,
                "time_ns": BEGIN_NS + round(t * S),
                "gpu": gpu,
                "power_mw": round(watts * sensor * 1e3) if instant or average else None,
                "power_kind": "instant" if instant else "average_1s" if average else None,
                "power_average_mw": round(mean * sensor * 1e3) if average else None,
                "energy_mj": round(joules * sensor * 1e3) if counter else None,
            }
        )
    return rows


def step_rows(
    count: int, first_s: float, each_s: float, *, rank: int = 0, samples: int = 8, tokens: int | None = 4096
) -> list[dict[str, Any]]:
    """Steps that follow on one another from `first_s`."""
    return [
        {
            "rank": rank,
            "step": number,
            "start_ns": BEGIN_NS + round((first_s + number * each_s) * S),
            "end_ns": BEGIN_NS + round((first_s + (number + 1) * each_s) * S),
            "micro_steps": 1,
            "samples": samples,
            "tokens": tokens,
            "profiled": False,
        }
        for number in range(count)
    ]
