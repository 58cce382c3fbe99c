"""What energy and GPU hours cost and emit, by the prices and the intensity that the workload file gives.

Nothing has a default: a figure that was not given is not assumed, and what rests on it is None with its key.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agprof.analysis.statistics import nothing
from agprof.analysis.view import View
from agprof.model.figure import Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """`energy:` of the workload file. None: not given."""

    currency: str
    price_per_kwh: float | None
    price_per_gpu_hour: float | None
    co2_g_per_kwh: float | None
    pue: float | None
    source: str

    @property
    def text(self) -> str:
        """`0.31 EUR/kWh, 2.4 EUR per GPU hour, PUE 1.2 (source: ...)`; empty when nothing was given."""
        words = [
            f"{_as_given(value)} {unit}"
            for value, unit in (
                (self.price_per_kwh, f"{self.currency}/kWh"),
                (self.price_per_gpu_hour, f"{self.currency} per GPU hour"),
                (self.co2_g_per_kwh, "g CO2/kWh"),
            )
            if value is not None
        ]
        if self.pue is not None:
            words.append(f"PUE {_as_given(self.pue)}")
        return ", ".join(words) + (f" (source: {self.source})" if words and self.source else "")


def declared(view: View) -> Declared:
    """As the manifest kept it."""
    workload = view.run.manifest.get("workload")
    section = workload.get("energy") if isinstance(workload, Mapping) else None
    tree: Mapping[str, Any] = section if isinstance(section, Mapping) else {}
    return Declared(
        currency=str(tree.get("currency") or "EUR")[:8],
        price_per_kwh=_number(tree.get("price_per_kwh")),
        price_per_gpu_hour=_number(tree.get("price_per_gpu_hour")),
        co2_g_per_kwh=_number(tree.get("co2_g_per_kwh")),
        pue=_number(tree.get("pue"), least=1.0),
        source=str(tree.get("source") or "")[:500],
    )


def _as_given(value: float) -> str:
    """A figure that somebody gave is not rounded."""
    return f"{value:.12g}"


def _number(value: Any, least: float = 0.0) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) and number >= least else None


def cost(prices: Declared, kwh: Figure, gpu_hours: float) -> Figure:
    """Energy and GPU hours, as far as prices were given for them."""
    unit = prices.currency
    terms = []
    if prices.price_per_gpu_hour is not None:
        terms.append(f"{gpu_hours:,.4g} GPU hours x {_as_given(prices.price_per_gpu_hour)} {unit}")
    if prices.price_per_kwh is not None:
        terms.append(f"kWh x {_as_given(prices.price_per_kwh)} {unit}{_pue_words(prices)}")
    method = " + ".join(terms)
    if not terms:
        reason = "neither energy.price_per_kwh nor energy.price_per_gpu_hour is given in the workload file"
        return nothing(unit, reason, source="declared")
    if prices.price_per_kwh is None and not gpu_hours:
        return nothing(unit, "the run uses no GPU, and energy.price_per_kwh is not given", source="declared")
    if prices.price_per_kwh is None:
        hours = gpu_hours * (prices.price_per_gpu_hour or 0.0)
        method += "; energy is not in it: energy.price_per_kwh is not given"
        return Figure(value=hours, unit=unit, source="declared", n=1, method=method)
    if prices.price_per_gpu_hour is None:
        method += "; GPU hours are not in it: energy.price_per_gpu_hour is not given"
    fixed = gpu_hours * (prices.price_per_gpu_hour or 0.0)
    return _scaled(kwh, prices.price_per_kwh * (prices.pue or 1.0), fixed, unit, method)


def co2(prices: Declared, kwh: Figure) -> Figure:
    """Energy times the site's intensity."""
    if prices.co2_g_per_kwh is None:
        return nothing("g", "energy.co2_g_per_kwh is not given in the workload file", source="declared")
    method = f"kWh x {_as_given(prices.co2_g_per_kwh)} g{_pue_words(prices)}"
    return _scaled(kwh, prices.co2_g_per_kwh * (prices.pue or 1.0), 0.0, "g", method)


def _pue_words(prices: Declared) -> str:
    return f" x PUE {_as_given(prices.pue)}" if prices.pue is not None else " (energy.pue is not given: not in it)"


def _scaled(kwh: Figure, factor: float, plus: float, unit: str, method: str) -> Figure:
    if kwh.value is None:
        return nothing(unit, kwh.reason or "the energy is not known", method=method, source="declared")
    low, high = (None if end is None else end * factor + plus for end in (kwh.low, kwh.high))
    return Figure(
        value=kwh.value * factor + plus, unit=unit, source="declared", n=kwh.n, low=low, high=high, method=method
    )
