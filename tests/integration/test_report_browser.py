"""The report in a real Chromium: quiet, self-contained, alive, in both colours, on a wide and a narrow screen."""

import time
from dataclasses import replace

import pytest
from devtools import browser

from agprof_reports.run import write
from sample_answers import hostile_answers, sample_answers
from sample_compute_answers import h100_compute, many_modules, rlhf_compute, unknown_device_compute
from sample_memory_answers import out_of_memory, too_much_explained

pytestmark = pytest.mark.system("chromium")

SECTIONS = ["verdict", "findings", "kpis", "time", "communication", "compute", "memory", "system", "ranks"]
OPEN_LIMIT_S = 2.0
# colours of text and of what stands behind it, as the browser computes them; WCAG 2 contrast
CONTRAST = """
(() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (c) => c.slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const c = rgb(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  const worst = [];
  for (const e of document.querySelectorAll('main *, nav *')) {
    const words = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!words || !e.checkVisibility() || e.closest('svg')) continue;
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
    worst.push([(a + 0.05) / (b + 0.05), e.className + ' ' + e.textContent.slice(0, 30)]);
  }
  return worst.sort((x, y) => x[0] - y[0])[0];
})()
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports")
    for name, answers in {
        "two": sample_answers(),
        "many": replace(sample_answers(64, 1000), compute=many_modules()),
        "empty": sample_answers(1, 0),
        "hostile": hostile_answers(),
        "oom": replace(sample_answers(), compute=h100_compute(), memory=out_of_memory()),
        "odd": replace(sample_answers(), compute=unknown_device_compute(), memory=too_much_explained()),
        "rlhf": replace(sample_answers(), compute=rlhf_compute()),
    }.items():
        write(answers, folder / f"{name}.html")
    return folder


def outside(page, path):
    """Requests for anything but the file and what it carries in itself."""
    return [url for url in page.requests if url != path.as_uri() and not url.startswith("data:")]


@pytest.mark.parametrize("name", ["two", "many", "empty", "hostile", "oom", "odd", "rlhf"])
def test_every_chart_is_drawn_without_a_word_on_the_console_or_a_request(page, files, name):
    path = files / f"{name}.html"
    page.open(path)
    page.draw_all()
    assert page.problems == []
    assert outside(page, path) == []
    assert page.evaluate("document.querySelectorAll('[data-failed]').length") == 0
    assert page.evaluate("[...document.querySelectorAll('.plot')].every((p) => p.querySelector('.main-svg'))")
    ids = page.evaluate("[...document.querySelectorAll('main > section')].map((s) => s.id)")
    urgent = ["oom"] if name in ("oom", "hostile") else []
    expected = [SECTIONS[0], *urgent, *SECTIONS[1:]]
    if name == "hostile":
        expected.insert(-1, "energy")
    assert ids[: len(expected)] == expected


def test_hostile_names_run_nothing(page, files):
    page.open(files / "hostile.html")
    page.draw_all()
    assert page.evaluate("document.title").startswith("</script><img src=x")
    assert page.evaluate("document.querySelectorAll('main img, main script:not([type]), main iframe').length") == 0
    assert page.evaluate("[...document.querySelectorAll('a')].every((a) => a.protocol === 'file:')")
    assert page.evaluate("[...document.querySelectorAll('svg a')].length") == 0


def test_the_policy_holds(page, files):
    page.open(files / "two.html")
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.ran = 1'}))"
    )
    assert page.evaluate("window.ran === undefined")
    assert page.evaluate("fetch('https://example.org').then(() => 'sent', () => 'refused')") == "refused"
    assert any("Content Security Policy" in problem for problem in page.problems)


def test_a_large_run_opens_in_two_seconds(page, files):
    begin = time.monotonic()
    page.open(files / "many.html")
    page.until("document.querySelector('.headline').getBoundingClientRect().height > 0")
    assert time.monotonic() - begin < OPEN_LIMIT_S


@pytest.mark.parametrize("name", ["two", "oom"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_it_fits_and_can_be_read(page, files, width, scheme, name):
    page.open(files / f"{name}.html", width=width, scheme=scheme)
    page.draw_all()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate("innerWidth") == width
    contrast, where = page.evaluate(CONTRAST)
    assert contrast >= 4.5, where
    assert page.evaluate("getComputedStyle(document.querySelector('nav.sections')).position") == (
        "sticky" if width >= 1100 else "static"
    )


def test_the_switch_changes_page_and_charts(page, files):
    page.open(files / "two.html", scheme="light")
    page.draw_all()
    look = """[getComputedStyle(document.body).backgroundColor,
      document.querySelector('#chart-steps .plot')._fullLayout.font.color]"""
    light = page.evaluate(look)
    page.evaluate("document.getElementById('theme').click()")
    page.until("document.querySelector('#chart-steps .plot')._fullLayout.font.color === '#E8E8E6'")
    dark = page.evaluate(look)
    assert light == ["rgb(255, 255, 255)", "#1A1A1A"]
    assert dark == ["rgb(21, 23, 26)", "#E8E8E6"]
    page.evaluate("document.getElementById('theme').click()")
    page.until("document.querySelector('#chart-steps .plot')._fullLayout.font.color === '#1A1A1A'")
    page.evaluate("localStorage.clear()")


def place(page, selector):
    page.evaluate(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center', behavior: 'instant'}})")
    return page.evaluate(
        f"(({{x, y, width, height}}) => [x, y, width, height])"
        f"(document.querySelector({selector!r}).getBoundingClientRect())"
    )


def test_hover_tells_all_phases_of_a_moment(page, files):
    page.open(files / "two.html")
    page.draw_all()
    x, y, width, height = place(page, "#chart-steps .nsewdrag")
    page.mouse("mouseMoved", x + width / 2, y + height / 2)
    page.mouse("mouseMoved", x + width / 2 + 2, y + height / 2)
    page.until("document.querySelector('#chart-steps .hoverlayer').textContent.includes('backward')")
    text = page.evaluate("document.querySelector('#chart-steps .hoverlayer').textContent")
    assert "exposed communication" in text
    assert "slowest: rank" in text
    assert page.problems == []


def test_zoom_of_one_chart_moves_all_over_the_run(page, files):
    page.open(files / "two.html")
    page.draw_all()
    whole = page.evaluate("document.querySelector('#chart-memory-curves .plot')._fullLayout.xaxis.range")
    x, y, width, height = place(page, "#chart-steps .nsewdrag")
    page.mouse("mousePressed", x + width * 0.4, y + height / 2, "left")
    for share in (0.45, 0.5, 0.6):
        page.mouse("mouseMoved", x + width * share, y + height / 2, "left")
    page.mouse("mouseReleased", x + width * 0.6, y + height / 2, "left")
    ranges = (
        "[...document.querySelectorAll('[data-axis=run] .plot')]"
        ".map((p) => p._fullLayout.xaxis.range.map((v) => +v.toFixed(6)).join())"
    )
    page.until(f"new Set({ranges}).size === 1 && document.querySelector('.reset:not([hidden])')")
    low, high = page.evaluate("document.querySelector('#chart-memory-curves .plot')._fullLayout.xaxis.range")
    assert low == pytest.approx(whole[1] * 0.4, rel=0.02)
    assert high == pytest.approx(whole[1] * 0.6, rel=0.02)
    page.evaluate("document.querySelector('.reset:not([hidden])').click()")
    page.until(f"new Set({ranges}).size === 1 && !document.querySelector('.reset:not([hidden])')")
    assert page.evaluate("document.querySelector('#chart-memory-curves .plot')._fullLayout.xaxis.range") == whole


def test_charts_zoom_by_keyboard(page, files):
    page.open(files / "two.html")
    page.draw_all()
    page.evaluate("document.querySelector('#chart-steps .plot').focus()")
    width = "(([a, b]) => b - a)(document.querySelector('#chart-steps .plot')._fullLayout.xaxis.range)"
    before = page.evaluate(width)
    page.call("Input.dispatchKeyEvent", type="keyDown", key="+", text="+")
    page.until(f"{width} < {before * 0.6}")
    page.call("Input.dispatchKeyEvent", type="keyDown", key="0", text="0")
    page.until(f"{width} === {before}")


def test_a_mark_tells_where_a_figure_comes_from(page, files):
    page.open(files / "two.html")
    x, y, width, height = place(page, "[data-key=step_time] .source")
    page.mouse("mouseMoved", x + width / 2, y + height / 2)
    page.until("!document.getElementById('tip').hidden")
    assert "bootstrap 95 % interval" in page.evaluate("document.getElementById('tip').textContent")
    page.call("Input.dispatchKeyEvent", type="keyDown", key="Escape")
    assert page.evaluate("document.getElementById('tip').hidden")
    page.evaluate("document.querySelector('[data-key=mfu] .source').focus()")
    assert page.evaluate("document.getElementById('tip').textContent") == "not measured: no peak is known for a CPU"


def test_tables_sort_search_and_copy(page, files):
    page.open(files / "two.html")
    rows = "[...document.querySelectorAll('#table-collectives tbody tr')].map((r) => r.cells[0].textContent)"
    page.evaluate("document.querySelectorAll('#table-collectives th button')[6].click()")
    assert page.evaluate(rows) == ["all_gather", "reduce_scatter", "all_reduce", "broadcast"]
    page.evaluate("document.querySelectorAll('#table-collectives th button')[6].click()")
    assert page.evaluate(rows) == ["broadcast", "all_reduce", "reduce_scatter", "all_gather"]
    assert page.evaluate("document.querySelectorAll('#table-collectives th')[6].ariaSort") == "ascending"
    page.evaluate("""(() => {
      const box = document.querySelector('#table-configuration input');
      box.value = 'version'; box.dispatchEvent(new Event('input'));
    })()""")
    shown = "[...document.querySelectorAll('#table-configuration tbody tr')].filter((r) => !r.hidden).length"
    assert page.evaluate(shown) == 2
    page.evaluate("""(() => {
      document.execCommand = () => { window.copied = document.activeElement.value; return true; };
      const writeText = (text) => { window.copied = text; return Promise.resolve(); };
      Object.defineProperty(navigator, 'clipboard', {value: {writeText}});
      document.querySelector('#table-configuration .copy').click();
      document.querySelector('#table-collectives .copy').click();
    })()""")
    page.until("window.copied && window.copied.startsWith('operation')")
    head, first, *_ = page.evaluate("window.copied").splitlines()
    assert head.startswith('operation,group,ranks,type,issued in,calls,"size of a call, bytes"')
    assert first.startswith("broadcast,default,2,")


def test_modules_switch_between_flops_and_time(page, files):
    page.open(files / "two.html")
    page.draw_all()
    values = "JSON.stringify(document.querySelector('#chart-modules .plot').data[0].values)"
    before = page.evaluate(values)
    page.evaluate("document.querySelectorAll('#chart-modules .chart-tools button')[1].click()")
    page.until(f"{values} !== {before!r}")
    assert page.problems == []


def hover(page, selector, x_share, y_share):
    x, y, width, height = place(page, selector)
    page.mouse("mouseMoved", x + width * x_share, y + height * y_share)
    page.mouse("mouseMoved", x + width * x_share + 1, y + height * y_share)


def said(page, chart):
    page.until(f"document.querySelector('#chart-{chart} .hoverlayer').textContent")
    return page.evaluate(f"document.querySelector('#chart-{chart} .hoverlayer').textContent")


def test_a_point_of_the_roofline_tells_its_modules_and_how_near_the_roof_it_is(page, files):
    page.open(files / "two.html")
    page.draw_all()
    place(page, "#chart-roofline .nsewdrag")
    points = "document.querySelectorAll('#chart-roofline .scatterlayer .point')"
    at = f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])({points}[0].getBoundingClientRect())"
    x, y = page.evaluate(at)
    page.mouse("mouseMoved", x - 1, y)
    page.mouse("mouseMoved", x, y)
    text = said(page, "roofline")
    assert "FLOP per byte" in text
    assert "% of the roof, bound by" in text
    assert page.problems == []


def test_the_account_tells_all_parts_of_a_rank_at_once(page, files):
    page.open(files / "two.html")
    page.draw_all()
    hover(page, "#chart-memory-account .nsewdrag", 0.5, 0.9)
    text = said(page, "memory-account")
    for part in ("parameters", "activations", "unexplained", "total, measured"):
        assert part in text
    assert page.problems == []


def test_the_step_tells_its_live_bytes_at_a_moment(page, files):
    page.open(files / "two.html")
    page.draw_all()
    hover(page, "#chart-memory-step .nsewdrag", 0.4, 0.5)
    text = said(page, "memory-step")
    assert "rank 0" in text
    assert "rank 1" in text
    assert "MiB" in text


def test_hatches_tell_unexplained_from_every_colour(page, files):
    page.open(files / "odd.html", scheme="dark")
    page.draw_all()
    patterns = "document.querySelectorAll('#chart-memory-account pattern').length"
    assert page.evaluate(patterns) >= 4
    fills = """[...document.querySelectorAll('#chart-memory-account .bars .point path')]
      .map((bar) => getComputedStyle(bar).fill).filter((fill) => fill.startsWith('url')).length"""
    assert page.evaluate(fills) > 0
    assert page.problems == []


@pytest.mark.parametrize(
    ("table", "label"),
    [
        ("table-modules", "device time"),
        ("table-modules", "of the ceiling"),
        ("table-operations", "FLOPs"),
        ("table-memory-zero", "on the device"),
        ("table-allocations", "size"),
        ("table-memory-parts", "size"),
        ("table-roofline", "of the roof"),
    ],
)
def test_tables_of_compute_and_memory_sort_by_value(page, files, table, label):
    page.open(files / "two.html")
    column = f"[...document.querySelectorAll('#{table} th')].findIndex((th) => th.textContent.startsWith({label!r}))"
    page.evaluate(f"document.querySelectorAll('#{table} th button')[{column}].click()")
    values = page.evaluate(f"""[...document.querySelectorAll('#{table} tbody tr')].map((row) => {{
      const cell = row.cells[{column}];
      return parseFloat(cell.dataset.v ?? cell.textContent.replace(/,/g, ''));
    }}).filter((value) => !Number.isNaN(value))""")
    assert len(set(values)) > 2
    assert values == sorted(values, reverse=True)


def test_a_stack_is_folded_until_it_is_asked_for(page, files):
    page.open(files / "two.html")
    stack = "document.querySelector('#table-allocations details.name')"
    closed = page.evaluate(f"{stack}.getBoundingClientRect().height")
    page.evaluate(f"{stack}.querySelector('summary').click()")
    assert page.evaluate(f"{stack}.open")
    assert page.evaluate(f"{stack}.getBoundingClientRect().height") >= 4 * closed


def test_links_lead_from_the_list_to_memory_that_ran_out(page, files):
    page.open(files / "oom.html")
    links = page.evaluate("[...document.querySelectorAll('nav.sections a')].map((a) => a.hash)")
    assert links[:3] == ["#verdict", "#oom", "#kpis"]
    top = "document.getElementById('{}').getBoundingClientRect().top"
    assert page.evaluate(top.format("oom")) < page.evaluate(top.format("findings"))


def test_without_javascript_the_answers_are_there(page, files):
    page.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        page.open(files / "two.html")
        rows = page.evaluate("document.querySelectorAll('tbody tr').length")
        assert rows > 80
        bars = "[...document.querySelectorAll('svg.bars')].map((bar) => bar.getBoundingClientRect().height)"
        step, phases, *others = page.evaluate(bars)
        assert [step, phases] == [24, 48]
        assert others == [3 * 42, 4 * 42, 8 * 42]  # FLOPs three ways, account, ZeRO: labels above their bars
        assert page.evaluate("[...document.querySelectorAll('svg.bars .tick')].length") == 4 + 4
        assert "needs JavaScript" in page.evaluate("document.querySelector('#chart-steps').innerText")
        assert page.evaluate("document.querySelectorAll('.table-tools, .main-svg').length") == 0
    finally:
        page.call("Emulation.setScriptExecutionDisabled", value=False)
