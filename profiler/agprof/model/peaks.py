"""What GPUs can do by their data sheets: dense TFLOP/s by element type, bandwidth, power.

A name is looked up whole: blanks and capitals count for nothing, and the word NVIDIA may be missing, which drivers
before 470 left out. No part of a name decides, so that `NVIDIA A100X`, `NVIDIA L40G`, a laptop's GPU, a MIG slice or
`NVIDIA H100 SomethingNew` can't be given the figures of their namesakes. A name that is not here has no peak: there is
no default; the workload file's `peak:` can give one.

The 16-bit rates are those with fp32 accumulation, which torch uses, and without the sparsity that data sheets print.
They are held by a formula: SMs x FLOP/clock/SM x boost clock.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

PeakSource = Literal["seen", "recalled"]
"""seen: read in a vendor's sheet or a published table of vendors' numbers; recalled: held by the formula alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePeak:
    """The data sheet of one device, of one GPU. Rates are dense TFLOP/s; None: the device has no such unit."""

    label: str
    names: tuple[str, ...]
    """As NVML and torch give them."""
    bf16: float | None
    fp16: float | None
    tf32: float | None
    fp32: float
    """Without tensor cores."""
    bandwidth_gb_per_s: float
    """Device memory, 1e9 bytes/s."""
    tdp_w: float
    check: tuple[int, int, float] | None
    """SMs, 16-bit FLOP per clock and SM, boost clock in GHz; their product is the 16-bit rate."""
    source: PeakSource

    def tflops(self, dtype: str, *, tf32: bool = False) -> float | None:
        """Peak of a torch element type as `bfloat16`; None when the sheet has none.

        `tf32`: the run allowed float32 products to be computed as TF32.
        """
        if dtype == "float32":
            return self.tf32 if tf32 and self.tf32 is not None else self.fp32
        return {"bfloat16": self.bf16, "float16": self.fp16}.get(dtype)

    @property
    def formula(self) -> str:
        """`132 SM x 4096 FLOP x 1.83 GHz`; empty when the row has no check."""
        if self.check is None:
            return ""
        multiprocessors, per_clock, clock_ghz = self.check
        return f"{multiprocessors} SM x {per_clock} FLOP x {clock_ghz:g} GHz"


def _row(
    label: str,
    names: tuple[str, ...],
    rates: tuple[float | None, float | None, float | None, float],
    bandwidth_gb_per_s: float,
    tdp_w: float,
    check: tuple[int, int, float] | None,
    source: PeakSource = "seen",
) -> DevicePeak:
    """`rates`: bf16, fp16, tf32, fp32."""
    bf16, fp16, tf32, fp32 = rates
    return DevicePeak(
        label=label,
        names=names,
        bf16=bf16,
        fp16=fp16,
        tf32=tf32,
        fp32=fp32,
        bandwidth_gb_per_s=bandwidth_gb_per_s,
        tdp_w=tdp_w,
        check=check,
        source=source,
    )


_A100 = (312.0, 312.0, 156.0, 19.5)
_A100_CHECK = (108, 2048, 1.41)
_H100_SXM = (989.4, 989.4, 494.7, 66.9)
_H100_SXM_CHECK = (132, 4096, 1.83)
_H100_NVL = (835.0, 835.0, 417.0, 60.0)
_H100_NVL_CHECK = (132, 4096, 1.545)

PEAKS: tuple[DevicePeak, ...] = (
    _row("V100 SXM2", ("Tesla V100-SXM2-16GB", "Tesla V100-SXM2-32GB"),
         (None, 125.0, None, 15.7), 900, 300, (80, 1024, 1.53)),
    _row("V100 PCIe", ("Tesla V100-PCIE-16GB", "Tesla V100-PCIE-32GB"),
         (None, 112.0, None, 14.0), 900, 250, (80, 1024, 1.37)),
    _row("V100S PCIe", ("Tesla V100S-PCIE-32GB",), (None, 130.0, None, 16.4), 1134, 250, (80, 1024, 1.597)),
    _row("T4", ("Tesla T4",), (None, 65.0, None, 8.1), 320, 70, (40, 1024, 1.59)),
    _row("A10", ("NVIDIA A10",), (125.0, 125.0, 62.5, 31.2), 600, 150, (72, 1024, 1.695)),
    _row("A30", ("NVIDIA A30",), (165.0, 165.0, 82.0, 10.3), 933, 165, (56, 2048, 1.44), "recalled"),
    _row("A40", ("NVIDIA A40",), (149.7, 149.7, 74.8, 37.4), 696, 300, (84, 1024, 1.74)),
    _row("A100 SXM 40 GB", ("NVIDIA A100-SXM4-40GB",), _A100, 1555, 400, _A100_CHECK),
    _row("A100 PCIe 40 GB", ("NVIDIA A100-PCIE-40GB",), _A100, 1555, 250, _A100_CHECK),
    _row("A100 PCIe 80 GB", ("NVIDIA A100 80GB PCIe",), _A100, 1935, 300, _A100_CHECK),
    _row("A100 SXM 80 GB", ("NVIDIA A100-SXM4-80GB",), _A100, 2039, 400, _A100_CHECK),
    _row("RTX A6000", ("NVIDIA RTX A6000",), (154.8, 154.8, 77.4, 38.7), 768, 300, (84, 1024, 1.80)),
    _row("L4", ("NVIDIA L4",), (121.0, 121.0, 60.0, 30.3), 300, 72, (58, 1024, 2.04)),
    _row("L40", ("NVIDIA L40",), (181.0, 181.0, 90.5, 90.5), 864, 300, (142, 512, 2.49)),
    _row("L40S", ("NVIDIA L40S",), (362.0, 362.0, 183.0, 91.6), 864, 350, (142, 1024, 2.49)),
    _row("H100 SXM", ("NVIDIA H100 80GB HBM3",), _H100_SXM, 3350, 700, _H100_SXM_CHECK),
    _row("H100 PCIe", ("NVIDIA H100 PCIe",), (756.0, 756.0, 378.0, 51.2), 2000, 350, (114, 4096, 1.62)),
    _row("H100 NVL, one GPU", ("NVIDIA H100 NVL",), _H100_NVL, 3900, 400, _H100_NVL_CHECK),
    _row("GH200, its GPU", ("NVIDIA GH200 480GB",), _H100_SXM, 4000, 900, _H100_SXM_CHECK, "recalled"),
    _row("H200 SXM", ("NVIDIA H200",), _H100_SXM, 4800, 700, _H100_SXM_CHECK),
    _row("H200 NVL", ("NVIDIA H200 NVL",), _H100_NVL, 4800, 600, _H100_NVL_CHECK, "recalled"),
    _row("B200 (HGX)", ("NVIDIA B200",), (2250.0, 2250.0, 1125.0, 80.0), 8000, 1000, None),
    _row("GB200, one GPU", ("NVIDIA GB200",), (2500.0, 2500.0, 1250.0, 80.0), 8000, 1200, None),
    _row("RTX 3090", ("NVIDIA GeForce RTX 3090",),
         (71.0, 71.0, 35.6, 35.6), 936, 350, (82, 512, 1.695), "recalled"),
    _row("RTX 4090", ("NVIDIA GeForce RTX 4090",), (165.2, 165.2, 82.6, 82.6), 1008, 450, (128, 512, 2.52)),
    _row("RTX 5090", ("NVIDIA GeForce RTX 5090",),
         (209.5, 209.5, 104.8, 104.8), 1792, 575, (170, 512, 2.407), "recalled"),
)  # fmt: skip


def find_peak(name: str) -> DevicePeak | None:
    """The row of a device by its exact name; None when it is not in the table.

    >>> find_peak("NVIDIA L40S").bf16, find_peak("NVIDIA A100X")
    (362.0, None)
    """
    return _BY_NAME.get(_bare(name))


def _bare(name: str) -> str:
    return " ".join(name.split()).casefold().removeprefix("nvidia ")


_BY_NAME: Mapping[str, DevicePeak] = {_bare(name): peak for peak in PEAKS for name in peak.names}
