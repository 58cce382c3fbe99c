"""Names and figures as the pages print them."""

import doctest

import pytest

from agprof.model.figure import Figure
from agprof_reports import embed, figures, text


@pytest.mark.parametrize("module", [text, embed])
def test_examples_in_docstrings(module):
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("bad", ["\x00", "\u202e", "\u2066", "\u200b", "\ud800", "\u2028"])
def test_characters_that_hide_or_break_are_made_visible(bad):
    assert text.clean(f"a{bad}b") == "a\ufffdb"


def test_long_text_is_cut():
    assert len(text.clean("x" * 1_000_000)) == text.NAME_LIMIT


def test_labels_of_plotly_are_plain_text():
    assert text.label("<a href='x'>&") == "&lt;a href='x'&gt;&amp;"


def test_a_column_has_the_unit_of_its_largest_value():
    assert text.scale([None, float("nan"), 2.5e6, 1.0], "ns") == (1e6, "ms")


def test_a_figure_that_was_not_measured_is_a_dash_with_its_reason():
    shown = figures.shown(Figure(value=None, unit="ns", source="measured", n=0, reason="no GPU"))
    assert (shown.number, shown.unit, shown.reason) == ("–", "", "no GPU")
    assert shown.tip == "not measured: no GPU"


def test_a_tip_tells_source_method_interval_and_n():
    figure = Figure(value=374e6, unit="ns", source="measured", n=46, low=371e6, high=379e6, method="median")
    assert figures.tip(figure) == "measured: median; interval [371, 379] ms; n = 46"
    assert figures.shown(figure).interval == "[371, 379], n = 46"


def test_json_can_not_leave_its_element():
    encoded = embed.json_text({"a": "</script><!--&\u2028\u2029"})
    assert not set("<>&\u2028\u2029") & set(encoded)
