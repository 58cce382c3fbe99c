"""The cards that come from device traces."""

from agprof.analysis.trace_shares import Shares, shares_of
from agprof.model.figure import Figure, Kpi
from agprof.model.trace_answers import TraceAnswer


def device_kpis(trace: TraceAnswer | None) -> tuple[Kpi, ...]:
    """Shares of the devices' time; none without a device.

    Exposed communication is the devices' here: of an imported run the host's phases only say when it was issued.
    """
    shares = shares_of(trace) if trace is not None else None
    if shares is None:
        return ()
    busy_ns = sum(shares.parts_ns[part] for part in ("compute", "communication", "copies"))
    return (
        _share(shares, "device_compute_share", "Device computes", shares.parts_ns["compute"], "compute kernels"),
        _share(
            shares,
            "exposed_communication_share",
            "Exposed communication",
            shares.parts_ns["communication"],
            "communication kernels with no compute kernel beside them",
        ),
        _share(shares, "device_idle_share", "Device idles", shares.window_ns - busy_ns, "no activity at all"),
    )


def _share(shares: Shares, key: str, label: str, part_ns: int, what: str) -> Kpi:
    figure = Figure(
        value=part_ns / shares.window_ns,
        unit="ratio",
        source="measured",
        n=shares.units,
        method=f"{what}, over the devices' {shares.unit}s of all ranks",
    )
    return Kpi(key=key, label=label, figure=figure, note="of the device's time")
