"""Where the devices' time goes, summed over ranks and put in words: the ground of verdict and findings from traces."""

from dataclasses import dataclass

from agprof.analysis.trace_sentences import causes, totals
from agprof.model.format import format_value, percent
from agprof.model.trace_answers import KernelRow, TraceAnswer, TraceBreakdown

PARTS = ("compute", "communication", "copies", "launch", "kernel wait", "synchronisation", "data")
"""What a device's time can be bound by."""


@dataclass(frozen=True, slots=True)
class Shares:
    """Where the devices' time goes, summed over ranks, and what one step of one rank is."""

    window_ns: int
    parts_ns: dict[str, int]
    unknown_ns: int
    """Idle of which the trace does not say why."""
    unit: str
    """`step`, or `window` where the trace marks no step."""
    units: int
    """Windows or steps of ranks that window_ns holds."""

    def share(self, part: str) -> float:
        return self.parts_ns[part] / self.window_ns if self.window_ns else 0.0

    def each(self, ns: float) -> float:
        """Of a sum: the mean per rank and step."""
        return ns / self.units if self.units else 0.0

    def text(self, part: str) -> str:
        """`5.94 ms of 14.7 ms a step (40 %)`."""
        part_ns, all_ns = self.each(self.parts_ns[part]), self.each(self.window_ns)
        of = f"{format_value(part_ns, 'ns')} of {format_value(all_ns, 'ns')}"
        return f"{of} a {self.unit} ({percent(self.share(part))})"


def shares_of(trace: TraceAnswer) -> Shares | None:
    """Over the marked steps where there are any on the device, else over the whole windows; None without a device."""
    rows: tuple[TraceBreakdown, ...] = trace.steps or trace.windows
    window = sum(row.window_ns for row in rows)
    if not window:
        return None
    parts, why = totals(rows), causes(rows)
    return Shares(
        window_ns=window,
        parts_ns={
            "compute": parts["compute_ns"],
            "communication": parts["exposed_communication_ns"],
            "copies": parts["exposed_memcpy_ns"] + parts["exposed_memset_ns"],
            **{cause: why[cause] for cause in ("launch", "kernel wait", "synchronisation", "data")},
        },
        unknown_ns=why["unknown"] + parts["exposed_other_ns"],
        unit="step" if trace.steps else "window",
        units=len(rows),
    )


def waiting(trace: TraceAnswer) -> str:
    """How much of communication is waiting, where calls could be matched."""
    matched = [row for row in trace.collectives if row.wait_ns is not None]
    spent = sum(row.sum_ns for row in matched)
    if not spent:
        return ""
    waited = sum((row.wait_ns or 0.0) / row.mean_ns * row.sum_ns for row in matched if row.mean_ns)
    return f" {percent(waited / spent)} of the time in matched collectives is waiting for the last rank."


def short_name(row: KernelRow) -> str:
    return row.name if len(row.name) <= 80 else f"{row.name[:79]}…"
