"""What one GPU's counters say about a period: bytes over its links, and time with its clocks held down."""

from dataclasses import dataclass

from agprof.sampler.nvml_counters import Counter
from agprof.sampler.nvml_device import Device, Nature
from agprof.sampler.nvml_fields import ALL_LINKS, Field, Fields
from agprof.sampler.states import SECOND_NS

PCIE_SENT, PCIE_RECEIVED = 197, 198
NVLINK_DATA_SENT, NVLINK_DATA_RECEIVED = 138, 139
"""In KiB, payload, up to NVLink 4."""
NVLINK5_SENT, NVLINK5_RECEIVED = 202, 204
"""In bytes, NVLink 5."""
THROTTLED_POWER = (74, 77, 271)
"""Nanoseconds with clocks held down by the software's power cap, the board's limit, the hardware's power brake."""
THROTTLED_THERMAL = (75, 269, 270)
"""For heat in general, by the software, by the hardware."""
THROTTLED_OTHER = (76, 79)
"""For sync boost, for reliability."""

KIB = 1024
BLACKWELL = 10
NVLINK_MOST_BYTES_PER_S = 1.8e12
"""One way: twice the 18 links of NVLink 5."""
PCIE_LANE_BYTES_PER_S = {1: 0.25e9, 2: 0.5e9, 3: 0.985e9, 4: 1.969e9, 5: 3.938e9, 6: 7.563e9}
"""One way, by generation."""


@dataclass(slots=True)
class Source:
    """One way to a counter's value."""

    field: Field
    unit_bytes: int
    counter: Counter


class Traffic:
    """Bytes per second one way over a link, from the first of its sources that the driver has."""

    __slots__ = ("_name", "_said", "_sources")

    def __init__(self, name: str, sources: list[Source]) -> None:
        self._name = name
        self._sources = sources
        self._said = False

    @property
    def field(self) -> Field:
        """The field to be read."""
        return self._sources[0].field

    def rate(self, now_ns: int, device: Device, fields: Fields) -> float | None:
        """From the field's value that was just read as one of `fields`."""
        source = self._sources[0]
        value, bits = source.field.value, source.field.bits
        if source.field.state == "unsupported" and len(self._sources) > 1:
            del self._sources[0]
            fields.add([self.field])
            return None
        device.say(now_ns, self._name, [source.field])
        rate = source.counter.rate(now_ns, value, bits)
        period_ns = source.counter.period_ns
        if not self._said and source.counter.ambiguous(period_ns, bits):
            self._said = True
            most = (1 << bits) * source.unit_bytes * SECOND_NS / period_ns / 1e9
            remark = f"a counter of {bits} bits: over {period_ns / SECOND_NS:.1f} s more than {most:.0f} GB/s is shown "
            device.note(now_ns, self._name, remark + "as less, and over more than 1 s nothing")
        return None if rate is None else rate * source.unit_bytes


class Throttled:
    """Time with clocks held down for one cause, which the driver counts in several counters.

    These overlap (heat in general, heat by the software's measure), so the one that grew most is taken: the time is at
    least that. None when one that the driver has was not read.
    """

    __slots__ = ("_counters", "_name", "fields")

    def __init__(self, name: str, numbers: tuple[int, ...]) -> None:
        self._name = name
        self.fields = [Field(number) for number in numbers]
        self._counters = [Counter(most_per_s=SECOND_NS) for _ in numbers]

    def change_ns(self, now_ns: int, device: Device) -> int | None:
        """From the values of `fields` that were just read."""
        device.say(now_ns, self._name, self.fields)
        most: int | None = None
        missing = False
        for field, counter in zip(self.fields, self._counters, strict=True):
            if field.state != "unsupported":
                change = counter.change(now_ns, field.value, field.bits)
                if change is None:
                    missing = True
                elif most is None or change > most:
                    most = change
        return None if missing else most


def links_of(nature: Nature) -> list[Traffic]:
    """In the order of the columns of `gpu_samples`."""
    most = pcie_most_bytes_per_s(nature)
    return [
        Traffic("pcie_sent", [Source(Field(PCIE_SENT), 1, Counter(most))]),
        Traffic("pcie_received", [Source(Field(PCIE_RECEIVED), 1, Counter(most))]),
        Traffic("nvlink_sent", _nvlink(nature, NVLINK_DATA_SENT, NVLINK5_SENT)),
        Traffic("nvlink_received", _nvlink(nature, NVLINK_DATA_RECEIVED, NVLINK5_RECEIVED)),
    ]


def throttling() -> list[Throttled]:
    """In the order of the columns of `gpu_samples`."""
    return [
        Throttled("throttled_power", THROTTLED_POWER),
        Throttled("throttled_thermal", THROTTLED_THERMAL),
        Throttled("throttled_other", THROTTLED_OTHER),
    ]


def pcie_most_bytes_per_s(nature: Nature) -> float:
    """One way; where the link is not known, the fastest there is."""
    generation, lanes = nature.pcie or (0, 16)
    return lanes * PCIE_LANE_BYTES_PER_S.get(generation, max(PCIE_LANE_BYTES_PER_S.values()))


def _nvlink(nature: Nature, kib: int, bytes_: int) -> list[Source]:
    sources = [
        Source(Field(kib, ALL_LINKS), KIB, Counter(NVLINK_MOST_BYTES_PER_S / KIB)),
        Source(Field(bytes_, ALL_LINKS), 1, Counter(NVLINK_MOST_BYTES_PER_S)),
    ]
    # Each generation is asked in its own words first.
    return sources[::-1] if (nature.architecture or 0) >= BLACKWELL else sources
