"""What `agprof bench-comm` measured of the links between ranks: kept beside `peak.json`, and in run folders.

The alpha-beta model: a collective over n ranks takes t(S) = alpha + beta S, S the total bytes of nccl-tests. `alpha`
is the latency that is paid however little is sent, 1 / beta the algorithm bandwidth that large messages approach.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

COMM_CEILING_VERSION = 1
OPS = ("all_reduce", "all_gather", "reduce_scatter", "broadcast", "all_to_all")
MAX_TEXT = 200
_MAX_CURVES = 64
_MAX_POINTS = 256
_MOST = 2**53


@dataclass(frozen=True, slots=True, kw_only=True)
class CommPoint:
    """One size of one operation."""

    bytes: int
    """Total bytes S as nccl-tests defines it."""
    repeats: int
    median_ns: int
    """Of the slowest rank's time per call."""
    low_ns: int
    high_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AlphaBeta:
    """t = alpha + beta S, fitted with relative weights (each size counts alike)."""

    alpha_ns: float
    alpha_error_ns: float
    """Standard error."""
    beta_ns_per_byte: float
    beta_error_ns_per_byte: float
    relative_rms: float
    """Root mean square of (measured - fitted) / fitted: what a prediction is off by."""
    worst: float
    """Largest |measured - fitted| / fitted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommCurve:
    """One operation over one group of ranks."""

    op: str
    """all_reduce | all_gather | reduce_scatter | broadcast | all_to_all"""
    group_size: int
    nodes: int
    """That the group spans."""
    points: tuple[CommPoint, ...]
    fit: AlphaBeta | None
    """None with fewer than three sizes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommCeiling:
    """One session of `agprof bench-comm`."""

    version: int
    backend: str
    """gloo | nccl | ..."""
    device_type: str
    device_name: str
    ranks: int
    nodes: int
    setup: str | None
    """Name of the setup of the workload file, where one was given."""
    link: str
    """What joins the nodes, in words: `loopback`, `emulated 1gbit 1ms`, `eth0`."""
    measured_realtime_ns: int
    torch_version: str
    curves: tuple[CommCurve, ...]
    rate_bits_per_s: int | None = None
    """Of the link between nodes, each way, where it is known (emulated)."""
    delay_ns: int | None = None
    """One way, where it is known (emulated)."""
    quick: bool = False

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def read_comm_ceiling(value: object) -> CommCeiling:
    """What `to_dict` made, also after JSON. Raises ValueError with the rule that is broken."""
    data = _object(value, "it")
    if data.get("version") != COMM_CEILING_VERSION:
        raise ValueError(f"has version {data.get('version')!r:.40}; this agprof reads {COMM_CEILING_VERSION}")
    curves = _list(data, "curves", _MAX_CURVES)
    setup = data.get("setup")
    return CommCeiling(
        version=COMM_CEILING_VERSION,
        backend=_text(data, "backend"),
        device_type=_text(data, "device_type"),
        device_name=_text(data, "device_name"),
        ranks=_count(data, "ranks", 2),
        nodes=_count(data, "nodes", 1),
        setup=None if setup is None else _text(data, "setup"),
        link=_text(data, "link"),
        measured_realtime_ns=_count(data, "measured_realtime_ns", 0, most=2**63 - 1),
        torch_version=_text(data, "torch_version"),
        curves=tuple(_curve(curve) for curve in curves),
        rate_bits_per_s=None if data.get("rate_bits_per_s") is None else _count(data, "rate_bits_per_s", 1),
        delay_ns=None if data.get("delay_ns") is None else _count(data, "delay_ns", 0),
        quick=data.get("quick") is True,
    )


def _curve(value: object) -> CommCurve:
    data = _object(value, "a curve")
    op = _text(data, "op")
    if op not in OPS:
        raise ValueError(f"has a curve of {op!r:.40}; known are {', '.join(OPS)}")
    fit = data.get("fit")
    return CommCurve(
        op=op,
        group_size=_count(data, "group_size", 2),
        nodes=_count(data, "nodes", 1),
        points=tuple(read_point(point) for point in _list(data, "points", _MAX_POINTS)),
        fit=None if fit is None else _fit(fit),
    )


def read_point(value: object) -> CommPoint:
    """One point. Raises ValueError."""
    data = _object(value, "a point")
    point = CommPoint(
        bytes=_count(data, "bytes", 1),
        repeats=_count(data, "repeats", 1),
        median_ns=_count(data, "median_ns", 1),
        low_ns=_count(data, "low_ns", 1),
        high_ns=_count(data, "high_ns", 1),
    )
    if not point.low_ns <= point.median_ns <= point.high_ns:
        raise ValueError("has a point whose median_ns is not between low_ns and high_ns")
    return point


def _fit(value: object) -> AlphaBeta:
    data = _object(value, "a fit")
    fit = AlphaBeta(**{name: _amount(data, name) for name in AlphaBeta.__slots__})
    if fit.alpha_ns == 0 and fit.beta_ns_per_byte == 0:
        raise ValueError("has a fit by which every transfer takes no time")
    return fit


def _object(value: object, what: str) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"is no measurement: {what} is not an object")
    return value


def _list(value: Mapping[Any, Any], key: str, most: int) -> list[Any]:
    listed = value.get(key)
    if not isinstance(listed, list | tuple) or len(listed) > most:
        raise ValueError(f"has no list {key} of at most {most}")
    return list(listed)


def _text(value: Mapping[Any, Any], key: str) -> str:
    text = value.get(key)
    if not isinstance(text, str):
        raise ValueError(f"has no text {key}")
    return text[:MAX_TEXT]


def _count(value: Mapping[Any, Any], key: str, least: int, *, most: int = _MOST) -> int:
    number = value.get(key)
    if not isinstance(number, int) or isinstance(number, bool) or not least <= number <= most:
        raise ValueError(f"has no whole number {key} from {least} on")
    return number


def _amount(value: Mapping[Any, Any], key: str) -> float:
    number = value.get(key)
    good = isinstance(number, int | float) and not isinstance(number, bool)
    if not good or not 0 <= number <= _MOST:  # type: ignore[operator]
        raise ValueError(f"has no finite {key} of 0 or more")
    return float(number)  # type: ignore[arg-type]
