"""`monitor:` of a workload file: what is sampled on each node beside the ranks, how often, and who may ask for it."""

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field

from agprof.config.section import Section, broken_rule

Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(ge=0.05, le=60)]

LOOPBACK = "127.0.0.1"


class PrometheusSection(Section):
    """An HTTP server on each node with the sampler's newest values for Prometheus, at /metrics."""

    port: Port
    """TCP port."""
    host: Annotated[str, Field(min_length=1, max_length=253)] = LOOPBACK
    """Address to listen on. 0.0.0.0 lets everybody on the network read the values."""


def _prometheus(value: Any) -> Any:
    if value is None or value is False:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return {"port": value}
    if isinstance(value, dict | PrometheusSection):
        return value
    raise broken_rule("must be a port or a mapping of options, as in `prometheus: 9109`")


Prometheus: TypeAlias = Annotated[
    PrometheusSection | None,
    BeforeValidator(_prometheus, json_schema_input_type=Port | PrometheusSection | Literal[False] | None),
]


def _nvml(value: Any) -> Any:
    # YAML 1.1 reads a bare `off` as false.
    return "off" if value is False else "auto" if value is True else value


class MonitorSection(Section):
    """What is sampled on each node beside the ranks."""

    enabled: bool = True
    """Run the sampler."""
    fast_period_s: Seconds = 0.2
    """Seconds between samples of the GPUs' power, energy, clocks, utilization and traffic."""
    period_s: Seconds = 1.0
    """Seconds between samples of host, processes, the GPUs' memory, temperature and unit activity."""
    slow_period_s: Seconds = 5.0
    """Seconds between samples of cores, the GPUs' processes and memory errors."""
    nvml: Annotated[Literal["auto", "off"], BeforeValidator(_nvml)] = "auto"
    """Ask NVML for the GPUs; off never loads it."""
    prometheus: Prometheus = None
    """Serve the newest values to Prometheus: a port on the loopback, or a mapping with port and host."""

    def periods_s(self) -> tuple[float, float, float]:
        """Periods of the tiers fast, medium and slow: none is slower than the next, where only some were given."""
        return min(self.fast_period_s, self.period_s), self.period_s, max(self.slow_period_s, self.period_s)
