"""The comparison page, and communication and stragglers of a run's page, in a real Chromium."""

from itertools import pairwise

import pytest
from devtools import browser
from test_report_browser import CONTRAST, outside, place

from agprof_reports.compare import render_compare
from agprof_reports.run import write
from sample_answers import HOSTILE
from sample_comm_answers import SLOW, comm_answers, hostile_comm
from sample_compare_answers import compare_answer, hostile_compare

pytestmark = pytest.mark.system("chromium")

COMPARISONS = ["two", "choice", "sixteen", "hostile"]
RUNS = ["run", "run-64", "run-hostile"]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparisons")
    for name, text in {
        "two": render_compare(compare_answer(2)),
        "choice": render_compare(compare_answer(3), [compare_answer(3, 1), compare_answer(3, 2)]),
        "sixteen": render_compare(compare_answer(16)),
        "hostile": render_compare(hostile_compare(HOSTILE)),
    }.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    for name, answers in {
        "run": comm_answers(),
        "run-64": comm_answers(64, 1_000),
        "run-hostile": hostile_comm(HOSTILE),
    }.items():
        write(answers, folder / f"{name}.html")
    return folder


@pytest.mark.parametrize("name", [*COMPARISONS, *RUNS])
def test_every_chart_is_drawn_without_a_word_on_the_console_or_a_request(page, files, name):
    path = files / f"{name}.html"
    page.open(path)
    page.draw_all()
    assert page.problems == []
    assert outside(page, path) == []
    assert page.evaluate("document.querySelectorAll('[data-failed]').length") == 0
    assert page.evaluate("[...document.querySelectorAll('.plot')].every((p) => p.querySelector('.main-svg'))")


@pytest.mark.parametrize("name", ["hostile", "run-hostile"])
def test_hostile_names_run_nothing(page, files, name):
    page.open(files / f"{name}.html")
    page.draw_all()
    assert page.evaluate("document.title") != "PWNED"
    assert page.evaluate("document.querySelectorAll('main img, main iframe, main svg a').length") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize("name", ["two", "sixteen", "hostile", "run"])
def test_it_fits_and_can_be_read(page, files, name, width, scheme):
    page.open(files / f"{name}.html", width=width, scheme=scheme)
    page.draw_all()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    contrast, where = page.evaluate(CONTRAST)
    assert contrast >= 4.5, where


@pytest.mark.parametrize("width", [1440, 390])
def test_two_sides_fit_without_scrolling_sideways(page, files, width):
    page.open(files / "two.html", width=width)
    assert page.evaluate(
        "(({scrollWidth, clientWidth}) => scrollWidth <= clientWidth)(document.querySelector('.kpi-scroll'))"
    )


@pytest.mark.parametrize("width", [1440, 390])
def test_bars_of_the_waterfall_hang_together(page, files, width):
    page.open(files / "two.html", width=width)
    bars = page.evaluate("""[...document.querySelectorAll('#fall-step .fall-bar > rect')]
      .map((bar) => bar.getBoundingClientRect()).map(({left, right}) => [left, right])""")
    assert len(bars) == 12
    for (left, right), (next_left, next_right) in pairwise(bars):
        ends = (left, right, next_left, next_right)
        assert min(abs(a - b) for a in ends[:2] for b in ends[2:]) < 1.5, ends
    assert abs(bars[0][0] - bars[-1][0]) < 0.5


def test_a_hover_over_a_bar_tells_both_sides_and_the_evidence(page, files):
    page.open(files / "two.html")
    row = "#fall-step .fall-row:nth-child(6)"
    x, y, width, height = place(page, row)
    page.mouse("mouseMoved", x + width / 2, y + height / 2)
    page.until("!document.getElementById('tip').hidden")
    text = page.evaluate("document.getElementById('tip').textContent").replace("\u00a0", " ")
    assert text.startswith("Bandwidth: 31.0 ms → 402 ms (+371 ms)")
    assert text.endswith("24 calls of 4.2 MB at 118 MB/s against 1.9 GB/s")


def test_one_hover_tells_the_phases_of_all_sides(page, files):
    page.open(files / "two.html")
    x, y, width, height = place(page, "#chart-overlays")
    page.until("document.querySelector('#chart-overlays .plot').dataset.drawn")
    x, y, width, height = place(page, "#chart-overlays .nsewdrag")
    page.mouse("mouseMoved", x + width * 0.8 - 1, y + height / 2)
    page.mouse("mouseMoved", x + width * 0.8, y + height / 2)
    page.until("document.querySelector('#chart-overlays .hoverlayer .legendtitletext')")
    text = page.evaluate("document.querySelector('#chart-overlays .hoverlayer').textContent")
    assert "exposed communication, one-node" in text
    assert "exposed communication, two-nodes" in text


def shown(page, selector):
    return page.evaluate(
        f"[...document.querySelectorAll({selector!r})].filter((e) => e.checkVisibility()).map((e) => e.textContent)"
    )


@pytest.mark.parametrize("script", [True, False])
def test_the_baseline_is_chosen_with_and_without_javascript(page, files, script):
    page.call("Emulation.setScriptExecutionDisabled", value=not script)
    try:
        page.open(files / "choice.html")
        assert len(shown(page, ".headline")) == 1
        assert shown(page, ".side .tag") == ["baseline"]
        heads = ".kpi-table thead th .sub"
        assert shown(page, heads) == ["baseline", "candidate", "candidate"]
        x, y, width, height = place(page, "#pick-b2")
        for kind in ("mousePressed", "mouseReleased"):
            page.mouse(kind, x + width / 2, y + height / 2, "left")
        page.until("document.getElementById('pick-b2').checked")
        assert shown(page, heads) == ["candidate", "baseline", "candidate"]
        assert len(shown(page, ".headline")) == 1
        assert all("two-nodes" in title for title in shown(page, "#fall-step figcaption h3"))
        assert page.problems == []
    finally:
        page.call("Emulation.setScriptExecutionDisabled", value=False)


def test_without_javascript_answer_figures_waterfall_and_tables_are_there(page, files):
    page.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        page.open(files / "two.html")
        text = page.evaluate("document.querySelector('main').innerText").replace("\u00a0", " ")
        for words in ("with reservations", "+126 % worse", "+371 ms", "sum of the parts", "438,000,160 ns"):
            assert words in text
        assert page.evaluate("document.querySelectorAll('svg.interval .point').length") == 6
        assert page.evaluate("document.querySelectorAll('#fall-step .fall-bar > rect').length") == 12
        assert page.evaluate("document.querySelectorAll('#chart-overlays svg.bars rect').length") > 6
    finally:
        page.call("Emulation.setScriptExecutionDisabled", value=False)


def test_the_map_of_stragglers_tells_rank_step_and_time(page, files):
    page.open(files / "run-64.html")
    place(page, "#chart-straggler-map")
    page.until("document.querySelector('#chart-straggler-map .plot').dataset.drawn")
    x, y, width, height = place(page, "#chart-straggler-map .nsewdrag")
    at = y + height * (SLOW + 0.5) / 64
    page.mouse("mouseMoved", x + width * 0.5 - 1, at)
    page.mouse("mouseMoved", x + width * 0.5, at)
    page.until("document.querySelector('#chart-straggler-map .hoverlayer text')")
    text = page.evaluate("document.querySelector('#chart-straggler-map .hoverlayer').textContent")
    assert text.startswith(f"rank {SLOW}, step ")
    assert text.endswith(" ms")


def test_the_reader_chooses_what_shades_the_sizes(page, files):
    page.open(files / "run.html")
    place(page, "#chart-message-sizes")
    page.until("document.querySelector('#chart-message-sizes .plot').dataset.drawn")
    cells = "document.querySelector('#chart-message-sizes .plot')._fullData[0].z.flat().filter((z) => z)"
    assert sorted(page.evaluate(cells)) == [1, 1, 2, 6]
    page.evaluate("document.querySelectorAll('#chart-message-sizes .chart-tools button')[2].click()")
    page.until(f"Math.max(...{cells}) === 64")
    assert page.problems == []
