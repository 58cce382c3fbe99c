"""Short ways to write figures in hand-made answers."""

from agprof.model.figure import Figure, Source

MS = 1_000_000
MIB = 1 << 20
GIB = 1 << 30


def figure(value: float | None, unit: str, source: Source = "measured", n: int = 46, **extra: object) -> Figure:
    return Figure(value=value, unit=unit, source=source, n=n, **extra)  # type: ignore[arg-type]


def missing(unit: str, reason: str, source: Source = "measured") -> Figure:
    return Figure(value=None, unit=unit, source=source, n=0, reason=reason)
