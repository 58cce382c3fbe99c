"""The table of peaks: the right row for every name, held by the formula, and never a row for a namesake."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agprof.model.peaks import PEAKS, DevicePeak, find_peak

KNOWN = {
    # name: bf16, fp16, tf32, fp32 in TFLOP/s, GB/s, W
    "Tesla V100-SXM2-32GB": (None, 125, None, 15.7, 900, 300),
    "Tesla V100-SXM2-16GB": (None, 125, None, 15.7, 900, 300),
    "Tesla V100-PCIE-16GB": (None, 112, None, 14, 900, 250),
    "Tesla V100-PCIE-32GB": (None, 112, None, 14, 900, 250),
    "Tesla V100S-PCIE-32GB": (None, 130, None, 16.4, 1134, 250),
    "Tesla T4": (None, 65, None, 8.1, 320, 70),
    "NVIDIA A10": (125, 125, 62.5, 31.2, 600, 150),
    "NVIDIA A30": (165, 165, 82, 10.3, 933, 165),
    "NVIDIA A40": (149.7, 149.7, 74.8, 37.4, 696, 300),
    "NVIDIA A100-SXM4-40GB": (312, 312, 156, 19.5, 1555, 400),
    "NVIDIA A100-PCIE-40GB": (312, 312, 156, 19.5, 1555, 250),
    "NVIDIA A100 80GB PCIe": (312, 312, 156, 19.5, 1935, 300),
    "NVIDIA A100-SXM4-80GB": (312, 312, 156, 19.5, 2039, 400),
    "NVIDIA RTX A6000": (154.8, 154.8, 77.4, 38.7, 768, 300),
    "NVIDIA L4": (121, 121, 60, 30.3, 300, 72),
    "NVIDIA L40": (181, 181, 90.5, 90.5, 864, 300),
    "NVIDIA L40S": (362, 362, 183, 91.6, 864, 350),
    "NVIDIA H100 80GB HBM3": (989.4, 989.4, 494.7, 66.9, 3350, 700),
    "NVIDIA H100 PCIe": (756, 756, 378, 51.2, 2000, 350),
    "NVIDIA H100 NVL": (835, 835, 417, 60, 3900, 400),
    "NVIDIA GH200 480GB": (989.4, 989.4, 494.7, 66.9, 4000, 900),
    "NVIDIA H200": (989.4, 989.4, 494.7, 66.9, 4800, 700),
    "NVIDIA H200 NVL": (835, 835, 417, 60, 4800, 600),
    "NVIDIA B200": (2250, 2250, 1125, 80, 8000, 1000),
    "NVIDIA GB200": (2500, 2500, 1250, 80, 8000, 1200),
    "NVIDIA GeForce RTX 3090": (71, 71, 35.6, 35.6, 936, 350),
    "NVIDIA GeForce RTX 4090": (165.2, 165.2, 82.6, 82.6, 1008, 450),
    "NVIDIA GeForce RTX 5090": (209.5, 209.5, 104.8, 104.8, 1792, 575),
}
NAMESAKES = (
    "NVIDIA A100X", "NVIDIA A100-SXM-64GB", "NVIDIA A10G", "NVIDIA A10M", "NVIDIA A30X", "NVIDIA A40-48Q",
    "NVIDIA L40G", "NVIDIA L40-48C", "NVIDIA L4 Tensor", "NVIDIA H100", "NVIDIA H100 SomethingNew",
    "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA A100-SXM4-40GB MIG 3g.20gb", "NVIDIA H100 64GB HBM2e", "NVIDIA H800",
    "NVIDIA H20", "NVIDIA H200 NVLX", "NVIDIA GH200 144G HBM3e", "NVIDIA B200 NVL", "NVIDIA B300", "NVIDIA GB300",
    "NVIDIA GeForce RTX 3090 Ti", "NVIDIA GeForce RTX 4090 D", "NVIDIA GeForce RTX 4090 Laptop GPU",
    "NVIDIA GeForce RTX 5090 D", "NVIDIA RTX 6000 Ada Generation", "Quadro RTX 6000", "Tesla V100-SXM3-32GB",
    "Tesla P100-SXM2-16GB", "Tesla T40", "AMD Instinct MI300X", "CPU", "NVIDIA", "", " ", "L", "nvidia l40s\u0000",
)  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_each_name_has_its_row(name: str) -> None:
    peak = find_peak(name)
    assert peak is not None
    found = (peak.bf16, peak.fp16, peak.tf32, peak.fp32, peak.bandwidth_gb_per_s, peak.tdp_w)
    assert found == KNOWN[name]


def test_every_row_stands_in_the_table_above() -> None:
    assert {name for peak in PEAKS for name in peak.names} == set(KNOWN)
    assert len({name.casefold() for peak in PEAKS for name in peak.names}) == sum(len(peak.names) for peak in PEAKS)


@pytest.mark.parametrize("name", NAMESAKES)
def test_a_namesake_has_none(name: str) -> None:
    assert find_peak(name) is None


@given(st.sampled_from(sorted(KNOWN)), st.text(min_size=1, max_size=12))
def test_nothing_may_be_added_to_a_name(name: str, more: str) -> None:
    whole = name + more
    expected = " ".join(whole.split()).casefold() in {known.casefold() for known in KNOWN}
    assert (find_peak(whole) is not None) == expected


def test_drivers_before_470_leave_the_maker_out() -> None:
    assert find_peak("A100-SXM4-40GB") is find_peak("NVIDIA A100-SXM4-40GB")
    assert find_peak("  nvidia   l40s ") is find_peak("NVIDIA L40S")


@pytest.mark.parametrize("peak", PEAKS, ids=lambda peak: peak.label)
def test_the_formula_gives_the_16_bit_rate(peak: DevicePeak) -> None:
    if peak.check is None:
        assert peak.label.startswith(("B200", "GB200"))
        assert peak.formula == ""
        return
    multiprocessors, per_clock, clock_ghz = peak.check
    tflops = multiprocessors * per_clock * clock_ghz / 1000
    assert peak.fp16 == pytest.approx(tflops, rel=0.008)
    assert f"{multiprocessors} SM" in peak.formula


@pytest.mark.parametrize("peak", PEAKS, ids=lambda peak: peak.label)
def test_the_rates_of_a_row_fit_together(peak: DevicePeak) -> None:
    assert peak.bf16 in {None, peak.fp16}
    assert peak.fp16 is not None
    if peak.tf32 is not None:
        assert peak.fp16 / peak.tf32 == pytest.approx(2, rel=0.02)


def test_l40s_is_362() -> None:
    peak = find_peak("NVIDIA L40S")
    assert peak is not None
    assert peak.tflops("bfloat16") == 362


def test_float32_counts_against_tf32_only_where_the_run_allowed_it() -> None:
    h100, v100 = find_peak("NVIDIA H100 80GB HBM3"), find_peak("Tesla V100-SXM2-32GB")
    assert h100 is not None
    assert v100 is not None
    assert h100.tflops("float32") == 66.9
    assert h100.tflops("float32", tf32=True) == 494.7
    assert v100.tflops("float32", tf32=True) == 15.7  # it has no such unit
    assert v100.tflops("bfloat16") is None
    assert h100.tflops("float64") is None


def test_the_page_on_compute_shows_the_table() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "compute.md").read_text(encoding="utf-8")
    for peak in PEAKS:
        figures = (peak.bf16, peak.fp16, peak.tf32, peak.fp32, peak.bandwidth_gb_per_s, peak.tdp_w)
        cells = [", ".join(f"`{name}`" for name in peak.names)]
        cells += ["–" if figure is None else f"{figure:g}" for figure in figures]
        cells += [peak.formula or "–", peak.source]
        assert f"| {' | '.join(cells)} |" in page
