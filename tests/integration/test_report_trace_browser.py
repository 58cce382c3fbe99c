"""The section on device traces in a real Chromium: quiet, alive, fast enough to move, and inert with hostile names."""

import base64
from dataclasses import replace

import pytest
from devtools import browser

from agprof_reports.run import write
from sample_answers import sample_answers
from sample_trace_answers import COPY, sample_trace, with_hostile_trace, with_trace, without_device

pytestmark = pytest.mark.system("chromium")

FIGURE = "document.querySelector('#chart-trace-timeline')"
WINDOW_NS = 37_000_000
TABLES = ["kernels", "groups", "collectives", "unclassified", "launches", "stragglers", "quality", "critical-path"]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports")
    for name, answers in {
        "two": with_trace(),
        "large": with_trace(slices=100_000),
        "many": with_trace(64, 20_000, 10),
        "hostile": with_hostile_trace(),
        "megabyte": with_hostile_trace("x" * 1_000_000),
        "no-device": replace(sample_answers(1, 0), trace=without_device(sample_trace(1))),
    }.items():
        write(answers, folder / f"{name}.html")
    return folder


def open_timeline(page, path, **how):
    page.open(path, **how)
    page.evaluate(f"{FIGURE}.querySelector('.tl').scrollIntoView({{block: 'center', behavior: 'instant'}})")
    page.until(f"{FIGURE}.dataset.drawn")
    page.until(f"{FIGURE}.querySelector('canvas').getBoundingClientRect().height > 60")


def view(page):
    """Begin and end of what is shown, in ns, once a frame with it is drawn."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return page.evaluate(f"[+{FIGURE}.dataset.from, +{FIGURE}.dataset.to]")


def canvas(page):
    return page.evaluate(
        f"(({{x, y, width, height}}) => [x, y, width, height])"
        f"({FIGURE}.querySelector('canvas').getBoundingClientRect())"
    )


def key(page, name, text=None):
    page.call("Input.dispatchKeyEvent", type="keyDown", key=name, **({"text": text} if text else {}))
    page.call("Input.dispatchKeyEvent", type="keyUp", key=name)


def wheel(page, x, y, delta):
    page.call("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=delta)


def click(page, x, y):
    page.mouse("mouseMoved", x, y)
    page.mouse("mousePressed", x, y, "left")
    page.call("Input.dispatchMouseEvent", type="mouseReleased", x=x, y=y, button="left", buttons=0, clickCount=1)


def search(page, text):
    page.evaluate(f"""(() => {{
      const box = {FIGURE}.querySelector('input');
      box.value = {text!r}; box.dispatchEvent(new Event('input'));
    }})()""")


@pytest.mark.parametrize("name", ["two", "large", "many", "hostile", "megabyte", "no-device"])
def test_the_section_is_drawn_without_a_word_on_the_console_or_a_request(page, files, name):
    path = files / f"{name}.html"
    page.open(path)
    page.draw_all()
    assert page.problems == []
    assert [url for url in page.requests if url != path.as_uri() and not url.startswith("data:")] == []
    assert page.evaluate("document.querySelectorAll('[data-failed]').length") == 0
    sections = page.evaluate("[...document.querySelectorAll('main > section')].map((s) => s.id)")
    assert sections[sections.index("compute") + 1] == "trace"
    assert page.evaluate("document.querySelectorAll('[data-slices]').length") == (name != "no-device")


def test_every_part_has_its_table(page, files):
    page.open(files / "two.html")
    for table in TABLES:
        assert page.evaluate(f"document.querySelectorAll('#trace #table-trace-{table} tbody tr').length") > 0, table


@pytest.mark.parametrize("name", ["hostile", "megabyte"])
def test_hostile_names_run_nothing_and_stay_readable(page, files, name):
    page.open(files / f"{name}.html")
    page.draw_all()
    assert page.evaluate("document.title") != "PWNED"
    assert page.evaluate("document.querySelectorAll('main img, main script:not([type]), main iframe').length") == 0
    cell = "document.querySelector('#table-trace-kernels details.name')"
    closed, wide = page.evaluate(f"[{cell}.offsetHeight, {cell}.offsetWidth]")
    assert closed <= 24
    assert wide <= 460
    page.evaluate(f"{cell}.querySelector('summary').click()")
    assert page.evaluate(f"{cell}.offsetHeight") > closed
    assert page.evaluate(f"{cell}.textContent.length") > 100


def test_hostile_names_are_text_in_the_time_line(page, files):
    open_timeline(page, files / "hostile.html")
    x, y, width, _ = canvas(page)
    click(page, x + width / 2, y + 80)
    key(page, "+", "+")
    text = page.evaluate(
        f"{FIGURE}.querySelector('.tl-tip').textContent + {FIGURE}.querySelector('.tl-info').textContent"
    )
    assert "onerror" in text
    assert page.evaluate(f"{FIGURE}.querySelectorAll('.tl img, .tl script').length") == 0
    assert page.evaluate("document.title") != "PWNED"
    assert page.problems == []


def test_the_wheel_zooms_where_it_points_once_the_time_line_is_taken_up(page, files):
    open_timeline(page, files / "two.html")
    x, y, width, height = canvas(page)
    scrolled = page.evaluate("scrollY")
    wheel(page, x + width / 2, y + height / 2, -240)
    page.until(f"scrollY !== {scrolled}")  # an untouched time line leaves the wheel to the page
    assert view(page) == [0, WINDOW_NS]

    open_timeline(page, files / "two.html")
    x, y, width, height = canvas(page)
    at = x + 128 + (width - 128) * 0.75
    click(page, at, y + 4)
    wheel(page, at, y + height / 2, -400)
    page.until(f"+{FIGURE}.dataset.to - +{FIGURE}.dataset.from < {WINDOW_NS} * 0.6")
    low, high = view(page)
    assert low + (high - low) * 0.75 == pytest.approx(WINDOW_NS * 0.75, rel=0.01)
    page.evaluate(f"{FIGURE}.querySelector('.tl-zooms button:last-child').click()")
    assert view(page) == [0, WINDOW_NS]


def test_it_moves_by_drag_and_by_keys_and_stays_in_the_window(page, files):
    open_timeline(page, files / "two.html")
    x, y, width, height = canvas(page)
    click(page, x + width / 2, y + 4)
    key(page, "+", "+")
    low, high = view(page)
    assert high - low == pytest.approx(WINDOW_NS / 2, rel=1e-6)
    page.mouse("mousePressed", x + width / 2, y + height / 2, "left")
    for step in (20, 60, 120):
        page.mouse("mouseMoved", x + width / 2 - step, y + height / 2, "left")
    page.call("Input.dispatchMouseEvent", type="mouseReleased", x=x, y=y, button="left", buttons=0, clickCount=1)
    moved, _ = view(page)
    assert moved - low == pytest.approx(120 / (width - 128) * (high - low), rel=0.02)
    key(page, "ArrowLeft")
    assert view(page)[0] == pytest.approx(moved - (high - low) / 8, rel=0.01)
    for _ in range(12):
        key(page, "ArrowRight")
    assert view(page)[1] == WINDOW_NS
    key(page, "0", "0")
    assert view(page) == [0, WINDOW_NS]
    for _ in range(40):
        key(page, "+", "+")
    low, high = view(page)
    assert 1 <= high - low <= 40  # it ends at nanoseconds


def test_hover_names_the_slice_with_begin_and_duration(page, files):
    open_timeline(page, files / "two.html")
    lane = sample_trace().timeline.lanes[1]
    index = max(range(len(lane.start_ns)), key=lambda i: lane.duration_ns[i])
    x, y, width, _ = canvas(page)
    middle = lane.start_ns[index] + lane.duration_ns[index] / 2
    at = x + 128 + (width - 128) * middle / WINDOW_NS
    page.mouse("mouseMoved", at, y + 26 + 17 + 10 + 21 + 10)  # below ruler, path and first stream
    page.until(f"!{FIGURE}.querySelector('.tl-tip').hidden")
    text = page.evaluate(f"{FIGURE}.querySelector('.tl-tip').innerText").replace("\u00a0", " ")
    name, where, when = text.splitlines()
    assert name.startswith("ncclDevKernel_AllReduce")
    assert where == "communication, stream 20"
    duration, begin = when.split(" from ")
    assert float(duration.split()[0]) == pytest.approx(lane.duration_ns[index] / 1e3, rel=0.01)
    assert float(begin.split()[0]) == pytest.approx(lane.start_ns[index] / 1e6, rel=0.001)


def test_search_highlights_and_steps_through_what_it_finds(page, files):
    open_timeline(page, files / "two.html")
    before = page.evaluate(f"{FIGURE}.querySelector('canvas').toDataURL()")
    timeline = sample_trace().timeline
    wanted = sum(timeline.names[name] == COPY for lane in timeline.lanes for name in lane.name)
    search(page, "memcpy htod")
    page.until(f"{FIGURE}.dataset.matches === '{wanted}'")
    assert f"{wanted} of 3,000" in page.evaluate(f"{FIGURE}.querySelector('.tl-found').textContent")
    view(page)
    assert page.evaluate(f"{FIGURE}.querySelector('canvas').toDataURL()") != before
    page.evaluate(f"{FIGURE}.querySelector('[aria-label=\"next match\"]').click()")
    low, high = view(page)
    assert high - low < WINDOW_NS
    assert COPY in page.evaluate(f"{FIGURE}.querySelector('.tl-info').textContent")
    search(page, "no kernel has this name")
    page.until(f"{FIGURE}.querySelector('.tl-found').textContent === 'no such name'")
    search(page, "")
    page.until(f"{FIGURE}.querySelector('.tl-found').textContent === ''")


def test_two_fingers_zoom(page, files):
    open_timeline(page, files / "two.html", width=390)
    x, y, width, height = canvas(page)
    middle, at = x + 76 + (width - 76) / 2, y + height / 2

    def touch(kind, *gaps):
        points = [{"x": middle + gap, "y": at, "id": i} for i, gap in enumerate(gaps)]
        page.call("Input.dispatchTouchEvent", type=kind, touchPoints=points)

    page.call("Emulation.setTouchEmulationEnabled", enabled=True, maxTouchPoints=2)
    try:
        touch("touchStart", -20, 20)
        for gap in (25, 30, 40, 60):
            touch("touchMove", -gap, gap)
        touch("touchEnd")
        low, high = view(page)
    finally:
        page.call("Emulation.setTouchEmulationEnabled", enabled=False)
    assert high - low < WINDOW_NS * 0.6
    assert (low + high) / 2 == pytest.approx(WINDOW_NS / 2, rel=0.1)


def test_a_frame_of_a_hundred_thousand_slices_is_bounded_by_the_screen(page, files):
    open_timeline(page, files / "large.html")
    _, _, width, _ = canvas(page)
    assert page.evaluate(f"+{FIGURE}.dataset.rects") < 7 * width
    times = []
    page.evaluate(f"{FIGURE}.querySelector('.tl-box').focus()")
    for _ in range(12):
        key(page, "+", "+")
        view(page)
        times.append(page.evaluate(f"+{FIGURE}.dataset.drawMs"))
        assert page.evaluate(f"+{FIGURE}.dataset.rects") < 7 * width
    print(f"\nframe times, ms: {times}")  # told, not judged: the machine is shared
    assert page.problems == []


def test_colours_follow_the_switch(page, files):
    open_timeline(page, files / "two.html", scheme="light")
    corner = f"[...{FIGURE}.querySelector('canvas').getContext('2d').getImageData(2, 2, 1, 1).data].join()"
    assert page.evaluate(corner) == "255,255,255,255"
    page.evaluate("document.getElementById('theme').click()")
    page.until(f"{corner} === '21,23,26,255'")
    page.evaluate("localStorage.clear()")


def test_pixels_are_those_of_the_screen(page, files):
    open_timeline(page, files / "two.html")
    page.call("Emulation.setDeviceMetricsOverride", width=1440, height=900, deviceScaleFactor=2, mobile=False)
    page.evaluate(
        f"{FIGURE}.querySelector('[aria-label=\"zoom in\"]').click()"
    )  # emulation alone tells the page nothing
    page.until(f"(({{width, clientWidth}}) => width === 2 * clientWidth)({FIGURE}.querySelector('canvas'))")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_it_fits(page, files, width, scheme):
    for name in ("two", "hostile"):
        page.open(files / f"{name}.html", width=width, scheme=scheme)
        page.draw_all()
        assert page.evaluate("document.documentElement.scrollWidth") == width


def test_kernels_are_sorted_searched_and_sifted_by_class(page, files):
    page.open(files / "two.html")
    rows = "[...document.querySelectorAll('#table-trace-kernels tbody tr')].filter((r) => !r.hidden)"
    classes = f"[...new Set({rows}.map((r) => r.cells[1].textContent))]"
    assert page.evaluate(f"{rows}.length") == 30
    page.evaluate("""(() => {
      const choice = document.querySelector('#table-trace-kernels select');
      choice.value = 'memcpy'; choice.dispatchEvent(new Event('change'));
    })()""")
    assert page.evaluate(classes) == ["memcpy"]
    page.evaluate("""(() => {
      const choice = document.querySelector('#table-trace-kernels select');
      choice.value = 'compute'; choice.dispatchEvent(new Event('change'));
      const box = document.querySelector('#table-trace-kernels input');
      box.value = 'TRITON'; box.dispatchEvent(new Event('input'));
    })()""")
    assert page.evaluate(f"{rows}.length") == 24
    page.evaluate("document.querySelectorAll('#table-trace-kernels th button')[5].click()")
    means = page.evaluate(f"{rows}.map((r) => parseFloat(r.cells[5].textContent))")
    assert means == sorted(means, reverse=True)


def test_a_time_line_that_cannot_be_unpacked_says_so(page, files, tmp_path):
    html = (files / "two.html").read_text(encoding="utf-8")
    head, mark, rest = html.partition('id="slices-trace-timeline">')
    torn = base64.b64encode(b"\x1f\x8b torn").decode()
    path = tmp_path / "torn.html"
    path.write_text(f"{head}{mark}{torn}{rest[rest.index('<') :]}", encoding="utf-8")
    page.open(path)
    page.evaluate(f"{FIGURE}.scrollIntoView()")
    page.until(f"{FIGURE}.dataset.failed")
    assert "could not be drawn" in page.evaluate(f"{FIGURE}.querySelector('.tl').textContent")


def test_without_javascript_bars_and_tables_are_there(page, files):
    page.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        page.open(files / "two.html")
        bars = "[...document.querySelectorAll('#trace svg.bars')].map((bar) => bar.getBoundingClientRect().height)"
        assert page.evaluate(bars) == [48, 192]
        patterns = "[...document.querySelectorAll('#trace svg.bars rect[fill]')].map((r) => r.getAttribute('fill'))"
        used = set(page.evaluate(patterns))
        assert len(used) == 10  # five causes of idle in two drawings
        assert all(page.evaluate(f"Boolean(document.getElementById({name[5:-1]!r}))") for name in used)
        assert page.evaluate("document.querySelectorAll('#trace tbody tr').length") > 60
        assert "needs JavaScript" in page.evaluate(f"{FIGURE}.innerText")
    finally:
        page.call("Emulation.setScriptExecutionDisabled", value=False)
