"""`energy:` of a workload file: prices and intensities. None has a default: what is not given is not computed."""

from typing import Annotated

from pydantic import Field

from agprof.config.section import Section

Price = Annotated[float, Field(ge=0, le=1_000_000)]


class EnergySection(Section):
    """What energy and GPUs cost, for the report's sums. A figure that is not given is not assumed."""

    currency: Annotated[str, Field(min_length=1, max_length=8)] = "EUR"
    """Currency of the prices."""
    price_per_kwh: Price | None = None
    """Price of a kilowatt-hour."""
    price_per_gpu_hour: Price | None = None
    """Price of one GPU for an hour, energy not included."""
    co2_g_per_kwh: Annotated[float, Field(ge=0, le=5000)] | None = None
    """Grams of CO2 (equivalent) per kilowatt-hour of the site's electricity."""
    pue: Annotated[float, Field(ge=1, le=10)] | None = None
    """Power usage effectiveness of the site: total energy over that of the computers. Price and CO2 are multiplied by
    it."""
    source: Annotated[str, Field(max_length=500)] = ""
    """Where the figures come from; the report prints it beside them."""
