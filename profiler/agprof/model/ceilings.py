"""What `agprof peak` measured on a device: kept in agprof's cache, one file per device, and copied into run folders."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

CEILING_VERSION = 1
MAX_TEXT = 200
ALONE = 0.8
"""A measurement that got less than this of its cores' time was not alone."""

DeviceType = Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductCeiling:
    """The best median rate of matrix products in one element type."""

    dtype: str
    """torch's name, as `bfloat16`; `tf32` is float32 on the tensor cores."""
    flops_per_second: float
    low: float
    """Slowest and fastest single measurement of that shape."""
    high: float
    shape: tuple[int, int, int]
    """m, n, k of m x k times k x n."""
    repeats: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BandwidthCeiling:
    """The best median rate of streaming through memory."""

    kind: str
    """copy (read one, write one) | triad (read two, write one)"""
    bytes_per_second: float
    low: float
    high: float
    array_bytes: int
    repeats: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredCeiling:
    """One device, measured by one process that had it for itself."""

    device_type: DeviceType
    device_name: str
    """As the ranks' fact `device.name` for a GPU; the CPU's model else."""
    threads: int | None
    """Threads of the process on a CPU; None on a GPU."""
    measured_realtime_ns: int
    torch_version: str
    quick: bool
    products: tuple[ProductCeiling, ...]
    bandwidth: BandwidthCeiling | None
    cpu_share: float | None = None
    """CPU time / (time x threads) of the whole measurement on a CPU: far below 1, it had to share its cores."""

    def product(self, dtype: str) -> ProductCeiling | None:
        return next((product for product in self.products if product.dtype == dtype), None)

    def renamed(self, device_name: str) -> "MeasuredCeiling":
        return replace(self, device_name=device_name)

    def to_dict(self) -> dict[str, Any]:
        return {"version": CEILING_VERSION, **asdict(self)}


def read_ceiling(value: object) -> MeasuredCeiling:
    """What `to_dict` made, also after JSON. Raises ValueError with the rule that is broken."""
    if not isinstance(value, Mapping):
        raise ValueError("is not an object")
    if value.get("version") != CEILING_VERSION:
        raise ValueError(f"has version {value.get('version')!r:.40}; this agprof reads {CEILING_VERSION}")
    device_type = value.get("device_type")
    if device_type not in {"cpu", "cuda"}:
        raise ValueError("names no device_type cpu or cuda")
    threads = value.get("threads")
    bandwidth = value.get("bandwidth")
    products = value.get("products")
    if not isinstance(products, list | tuple):
        raise ValueError("has no list of products")
    return MeasuredCeiling(
        device_type="cuda" if device_type == "cuda" else "cpu",
        device_name=_text(value, "device_name"),
        threads=None if threads is None else _count(value, "threads"),
        measured_realtime_ns=_count(value, "measured_realtime_ns"),
        torch_version=_text(value, "torch_version"),
        quick=value.get("quick") is True,
        products=tuple(_product(product) for product in products[:16]),
        bandwidth=None if bandwidth is None else _bandwidth(bandwidth),
        cpu_share=None if value.get("cpu_share") is None else _rate(value, "cpu_share"),
    )


def _product(value: object) -> ProductCeiling:
    if not isinstance(value, Mapping):
        raise ValueError("has a product that is not an object")
    shape = value.get("shape")
    if not isinstance(shape, list | tuple) or len(shape) != 3 or not all(_is_count(size) for size in shape):
        raise ValueError("has a product without shape m, n, k")
    return ProductCeiling(
        dtype=_text(value, "dtype"),
        flops_per_second=_rate(value, "flops_per_second"),
        low=_rate(value, "low"),
        high=_rate(value, "high"),
        shape=(shape[0], shape[1], shape[2]),
        repeats=_count(value, "repeats"),
    )


def _bandwidth(value: object) -> BandwidthCeiling:
    if not isinstance(value, Mapping):
        raise ValueError("has a bandwidth that is not an object")
    return BandwidthCeiling(
        kind=_text(value, "kind"),
        bytes_per_second=_rate(value, "bytes_per_second"),
        low=_rate(value, "low"),
        high=_rate(value, "high"),
        array_bytes=_count(value, "array_bytes"),
        repeats=_count(value, "repeats"),
    )


def _text(value: Mapping[Any, Any], key: str) -> str:
    text = value.get(key)
    if not isinstance(text, str):
        raise ValueError(f"has no text {key}")
    return text[:MAX_TEXT]


def _is_count(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 0 < number < 2**63


def _count(value: Mapping[Any, Any], key: str) -> int:
    number = value.get(key)
    if not _is_count(number):
        raise ValueError(f"has no count {key} above 0")
    return int(str(number))


def _rate(value: Mapping[Any, Any], key: str) -> float:
    number = value.get(key)
    good = isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number) and number > 0
    if not good:
        raise ValueError(f"has no rate {key} above 0")
    return float(str(number))
