"""What the run's device can do: by its data sheet, by the workload file, and as `agprof peak` measured it."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from agprof.analysis.compute_profile import finite
from agprof.analysis.view import View
from agprof.model.ceilings import ALONE, MeasuredCeiling
from agprof.model.compute_answers import Ceiling
from agprof.model.format import significant
from agprof.model.peaks import DevicePeak, find_peak

SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """The ceilings of the element types that the run computed in."""

    all: tuple[Ceiling, ...]
    why_no_datasheet: str
    why_no_measured: str

    def datasheet(self, dtype: str | None) -> Ceiling | None:
        """The declared one, else the data sheet's."""
        return self._of(dtype, "declared") or self._of(dtype, "datasheet")

    def measured(self, dtype: str | None) -> Ceiling | None:
        return self._of(dtype, "measured")

    def best(self, dtype: str | None) -> Ceiling | None:
        """What utilisation of modules is held against: measured where there is one, else the data sheet's."""
        return self.measured(dtype) or self.datasheet(dtype)

    def bandwidth(self, dtype: str | None) -> float | None:
        """bytes/s of the same source as `best`."""
        best = self.best(dtype)
        return best.bytes_per_second if best is not None else None

    def hint(self, dtype: str | None) -> str:
        """What is missing for this element type, and how to get it; empty when both kinds are there."""
        no_datasheet = "" if self.datasheet(dtype) is not None else self.why_no_datasheet
        no_measured = "" if self.measured(dtype) is not None else self.why_no_measured
        return " ".join(f"{text[0].upper()}{text[1:]}." for text in (no_datasheet, no_measured) if text)

    def _of(self, dtype: str | None, kind: str) -> Ceiling | None:
        return next((ceiling for ceiling in self.all if ceiling.kind == kind and ceiling.dtype == dtype), None)


def find_ceilings(
    view: View, facts: Mapping[str, Any], dtypes: Iterable[str], main: str | None, *, convolves: bool = False
) -> Ceilings:
    """Ceilings of `dtypes` on the device of `facts`; `main` is the type that the reasons speak of.

    `convolves`: most FLOPs of float32 are convolutions, for which torch allows TF32 by itself.
    """
    device_type, name = str(facts.get("device.type", "")), str(facts.get("device.name", ""))
    allowed = facts.get("torch.allow_tf32.convolution" if convolves else "torch.allow_tf32.matmul")
    tf32 = allowed is True and device_type == "cuda"
    peak = find_peak(name) if device_type == "cuda" else None
    declared = _declared(view)
    measured = _measured(view.run.ceilings, facts)
    found: list[Ceiling] = []
    for dtype in dict.fromkeys([*([main] if main else []), *dtypes]):
        found += [
            ceiling
            for ceiling in (
                _declared_ceiling(declared, peak, dtype, tf32),
                _datasheet_ceiling(peak, dtype, tf32),
                _measured_ceiling(measured, dtype, tf32),
            )
            if ceiling is not None
        ]
    return Ceilings(
        all=tuple(found),
        why_no_datasheet=_why_no_datasheet(device_type, name, peak, main),
        why_no_measured=_why_no_measured(measured, facts, main),
    )


def _why_no_datasheet(device_type: str, name: str, peak: DevicePeak | None, dtype: str | None) -> str:
    key = SHORT.get(dtype or "", "bf16")
    how = f"give the figure of its data sheet in the workload file: `peak: {{tflops: {{{key}: ...}}}}`"
    if dtype is None and peak is not None:
        return "the element type that the run computed in is not known"
    if device_type == "cpu":
        return f"there is no table of CPUs' peaks: {how}"
    if not name:
        return f"the device is not known: {how}"
    if peak is None:
        return f"{name!r:.80} is not in agprof's table of peaks, and no other device's figure is taken for it: {how}"
    return f"the data sheet of {peak.label} has no rate for {dtype}: {how}"


def _why_no_measured(measured: MeasuredCeiling | None, facts: Mapping[str, Any], dtype: str | None) -> str:
    if measured is not None and dtype is None:
        return "the element type that the run computed in is not known"
    if measured is not None:
        return f"`agprof peak` could not measure {dtype} on this device"
    threads = facts.get("omp_num_threads")
    on_cpu = facts.get("device.type") == "cpu" and isinstance(threads, int)
    command = f"agprof peak --threads {threads}" if on_cpu and threads != 1 else "agprof peak"
    return f"no ceiling of this device was measured: run `{command}` once, and then the job again"


# -- declared ------------------------------------------------------------------------------------------------------


def _declared(view: View) -> Mapping[str, Any]:
    value: Any = view.run.manifest
    for key in ("workload", "peak"):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def _declared_ceiling(declared: Mapping[str, Any], peak: DevicePeak | None, dtype: str, tf32: bool) -> Ceiling | None:
    given = declared.get("tflops")
    rates = given if isinstance(given, Mapping) else {}
    key = SHORT.get(dtype)
    if dtype == "float32" and tf32 and (rates.get("tf32") is not None or (peak is not None and peak.tf32 is not None)):
        key = "tf32"
    tflops = finite(rates.get(key)) if key is not None else None
    bandwidth = finite(declared.get("bandwidth_gb_per_s"))
    if not tflops and not bandwidth:
        return None
    if not tflops:
        sheet = peak.tflops(dtype, tf32=tf32) if peak is not None else None
        if sheet is None:
            return None
        tflops, what = (
            sheet,
            f"`peak.bandwidth_gb_per_s` of the workload file; {significant(sheet)} TFLOP/s by agprof's table",
        )
    else:
        what = f"`peak.tflops.{key}` of the workload file"
    told = declared.get("source")
    source = f"{what}: {told}" if isinstance(told, str) and told else what
    if not bandwidth and peak is not None:
        bandwidth = peak.bandwidth_gb_per_s
    return Ceiling(
        kind="declared",
        dtype=dtype,
        flops_per_second=tflops * 1e12,
        bytes_per_second=bandwidth * 1e9 if bandwidth else None,
        source=source,
    )


# -- data sheet ----------------------------------------------------------------------------------------------------


def _datasheet_ceiling(peak: DevicePeak | None, dtype: str, tf32: bool) -> Ceiling | None:
    tflops = peak.tflops(dtype, tf32=tf32) if peak is not None else None
    if peak is None or tflops is None:
        return None
    as_tf32 = dtype == "float32" and tf32 and peak.tf32 is not None
    what = f"{peak.label}: {significant(tflops)} TFLOP/s" + (" as TF32, which the run allowed" if as_tf32 else "")
    formula = f" (16 bit: {peak.formula})" if peak.formula else ""
    return Ceiling(
        kind="datasheet",
        dtype=dtype,
        flops_per_second=tflops * 1e12,
        bytes_per_second=peak.bandwidth_gb_per_s * 1e9,
        source=f"{what}{formula}, {significant(peak.bandwidth_gb_per_s)} GB/s",
    )


# -- measured ------------------------------------------------------------------------------------------------------


def _measured(ceilings: Iterable[MeasuredCeiling], facts: Mapping[str, Any]) -> MeasuredCeiling | None:
    """The ceiling of a device as this rank had it: a GPU of the same name, or a CPU with as many threads."""
    device_type = facts.get("device.type")
    for ceiling in ceilings:
        if ceiling.device_type != device_type:
            continue
        fits = (
            ceiling.device_name == facts.get("device.name")
            if device_type == "cuda"
            else ceiling.threads == facts.get("omp_num_threads")
        )
        if fits:
            return ceiling
    return None


def _measured_ceiling(measured: MeasuredCeiling | None, dtype: str, tf32: bool) -> Ceiling | None:
    if measured is None:
        return None
    product = (measured.product("tf32") if dtype == "float32" and tf32 else None) or measured.product(dtype)
    if product is None:
        return None
    day = time.strftime("%Y-%m-%d", time.gmtime(measured.measured_realtime_ns // 10**9))
    threads = f", {measured.threads} thread{'s' * (measured.threads > 1)}" if measured.threads else ""
    as_tf32 = " as TF32" if product.dtype == "tf32" else ""
    share = measured.cpu_share
    alone = "one process alone"
    if share is not None and share < ALONE:
        alone = f"while it got {100 * share:.0f} % of its cores' time: may be too low, measure again when idle"
    return Ceiling(
        kind="measured",
        dtype=dtype,
        flops_per_second=product.flops_per_second,
        bytes_per_second=measured.bandwidth.bytes_per_second if measured.bandwidth is not None else None,
        source=f"agprof peak{' --quick' if measured.quick else ''} on {day}{threads}{as_tf32}, {alone}",
    )
