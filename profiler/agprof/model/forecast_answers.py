"""What a forecast is made for. Its answer is `ForecastAnswer` of `model/compare_answers.py`."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ForecastTarget:
    """A setup whose step time is asked for. None: as in the run that it is forecast from."""

    nodes: int | None = None
    ranks_per_node: int | None = None
    rate_bits_per_s: int | None = None
    """Of each node's link, each way."""
    delay_ns: int | None = None
    """One way."""
    emulated: bool = False
    """Its nodes share the cores of one machine; also true where those of the run do."""
