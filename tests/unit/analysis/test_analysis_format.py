import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agprof.model.figure import Figure
from agprof.model.format import DASH, format_figure, format_interval, format_value, percent, significant

SCALED = st.sampled_from(["ns", "bytes", "bytes/s", "FLOP", "FLOP/s", "Hz"])
FACTORS = {
    "ns": 1, "µs": 1e3, "ms": 1e6, "s": 1e9,
    "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40,
    **{prefix + unit: factor
       for prefix, factor in {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}.items()
       for unit in ("B/s", "FLOP", "FLOP/s", "Hz")},
}  # fmt: skip


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (374_400_000, "ns", "374 ms"),
        (999_600, "ns", "1.00 ms"),
        (999.4, "ns", "999 ns"),
        (1_234_000_000_000, "ns", "1,230 s"),
        (4_404_019, "bytes", "4.20 MiB"),
        (1023.9, "bytes", "1.00 KiB"),
        (1020, "bytes", "1,020 B"),
        (4, "bytes", "4 B"),
        (40, "ns", "40 ns"),
        (61e9, "bytes/s", "61.0 GB/s"),
        (1.5e12, "FLOP/s", "1.50 TFLOP/s"),
        (0.384, "ratio", "38 %"),
        (0.0, "ratio", "0 %"),
        (1, "ratio", "100 %"),
        (112_663_480, "1", "112,663,480"),
        (12.345, "1", "12.3"),
        (12_345.6, "tokens/s", "12,300 tokens/s"),
        (0.94, "cores", "0.940 cores"),
        (0, "ns", "0 ns"),
        (None, "ns", DASH),
        (math.nan, "ns", DASH),
        (math.inf, "bytes", DASH),
    ],
)
def test_examples(value: float | None, unit: str, text: str) -> None:
    assert format_value(value, unit) == text


@given(st.floats(1e-3, 1e20), SCALED)
def test_the_text_reads_back_to_three_digits(value: float, unit: str) -> None:
    number, name = format_value(value, unit).split(" ")
    assert float(number.replace(",", "")) * FACTORS[name] == pytest.approx(value, rel=0.0051)


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e30, max_value=1e30))
def test_three_significant_digits_and_no_exponent(value: float) -> None:
    text = significant(value)
    assert re.fullmatch(r"-?\d{1,3}(,\d{3})*(\.\d+)?", text)
    assert float(text.replace(",", "")) == pytest.approx(value, rel=0.0051)
    digits = re.sub(r"[-,.]", "", text).lstrip("0")
    assert len(digits.rstrip("0")) <= 3


@given(st.floats(0, 10))
def test_percent_reads_back(ratio: float) -> None:
    assert float(percent(ratio).removesuffix(" %").replace(",", "")) / 100 == pytest.approx(ratio, rel=0.051)


@given(st.floats(), SCALED | st.sampled_from(["1", "ratio", "cores", "tokens/s"]))
def test_any_float_has_a_text(value: float, unit: str) -> None:
    assert format_value(value, unit)


def figure(value: float | None, unit: str = "ns", low: float | None = None, high: float | None = None) -> Figure:
    return Figure(value=value, unit=unit, source="measured", n=46, low=low, high=high, reason="no step")


def test_a_figure_has_its_interval_in_the_unit_of_its_value() -> None:
    assert format_figure(figure(374e6, low=371e6, high=1379e6)) == "374 ms [371, 1,380], n = 46"
    assert format_interval(figure(0.5, "ratio", 0.4, 0.6)) == "[40 %, 60 %]"
    assert format_figure(figure(374e6)) == "374 ms, n = 46"
    assert format_figure(figure(None)) == "– (no step)"
    assert format_interval(figure(None)) == ""
