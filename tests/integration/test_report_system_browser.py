"""GPU, host and energy in a real Chromium: rows of GPUs, ribbons, gaps, hovers that name step and phase, zoom."""

import random
from dataclasses import replace
from itertools import pairwise

import pytest
from devtools import browser
from test_report_browser import CONTRAST, outside, place

from agprof_reports.run import write
from sample_answers import HOSTILE, sample_answers
from sample_energy_answers import hostile_energy, unpriced_energy
from sample_figures import MS
from sample_gpu_answers import gpu_answers
from sample_monitor_answers import monitor_answers
from sample_system_answers import cpu_system, gpu_system, hostile_system, mig_system, older_system

pytestmark = pytest.mark.system("chromium")

NAMES = ["eight", "one", "older", "mig", "sixty-four", "cores", "monitor", "monitor-cpu", "hostile"]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports")
    two = sample_answers()
    for name, answers in {
        "eight": gpu_answers(8),
        "one": gpu_answers(1),
        "older": replace(two, system=older_system(), energy=unpriced_energy()),
        "mig": replace(two, system=mig_system()),
        "sixty-four": replace(two, system=gpu_system(64, points=200)),
        "cores": replace(two, system=cpu_system(random.Random(3), 2, 20_000 * MS, cores=64)),
        "monitor": monitor_answers(8),
        "monitor-cpu": monitor_answers(0),
        "hostile": replace(two, system=hostile_system(HOSTILE), energy=hostile_energy(HOSTILE)),
    }.items():
        write(answers, folder / f"{name}.html")
    return folder


def opened(page, files, name, *charts, **window):
    """Open the report and draw these charts."""
    page.open(files / f"{name}.html", **window)
    for chart in charts:
        plot = f"document.querySelector('#chart-{chart} .plot')"
        page.evaluate(f"{plot}.scrollIntoView({{behavior: 'instant', block: 'center'}})")
        page.until(f"{plot}.dataset.drawn")


@pytest.mark.parametrize("name", NAMES)
def test_every_chart_is_drawn_without_a_word_on_the_console_or_a_request(page, files, name):
    path = files / f"{name}.html"
    page.open(path)
    page.draw_all()
    assert page.problems == []
    assert outside(page, path) == []
    assert page.evaluate("document.querySelectorAll('[data-failed]').length") == 0
    assert page.evaluate("[...document.querySelectorAll('.plot')].every((p) => p.querySelector('.main-svg'))")


def test_hostile_names_run_nothing(page, files):
    page.open(files / "hostile.html")
    page.draw_all()
    assert page.evaluate("document.title").startswith("anomalygpt-tiny")
    assert page.evaluate("document.querySelectorAll('main img, main iframe, #system svg a').length") == 0
    assert page.evaluate("document.querySelector('#table-gpus').textContent").count("</script><img src=x") >= 8


@pytest.mark.parametrize("name", ["eight", "monitor-cpu"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_it_fits_and_can_be_read(page, files, width, scheme, name):
    page.open(files / f"{name}.html", width=width, scheme=scheme)
    page.draw_all()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    contrast, where = page.evaluate(CONTRAST)
    assert contrast >= 4.5, where


NAMES_OF_ROWS = """
[...document.querySelectorAll('#chart-gpu-power text')].filter((text) => /^GPU [0-9]$/.test(text.textContent))
  .map((text) => text.getBoundingClientRect()).map(({top, bottom}) => [top, bottom]).sort((a, b) => a[0] - b[0])
"""


@pytest.mark.parametrize("width", [1440, 390])
def test_every_gpu_has_a_row_with_its_name_and_figure(page, files, width):
    opened(page, files, "eight", "gpu-power", width=width)
    words = page.evaluate("[...document.querySelectorAll('#chart-gpu-power text')].map((text) => text.textContent)")
    assert [f"GPU {gpu}" for gpu in range(8)] == sorted({word for word in words if word.startswith("GPU ")})
    assert sum(word.endswith("\u00a0W") for word in words) == 8
    heights = page.evaluate("""[...document.querySelectorAll('#chart-gpu-power .nsewdrag')]
      .map((row) => row.getBoundingClientRect().height)""")
    assert len(heights) == 8
    assert min(heights) >= 24
    places = page.evaluate(NAMES_OF_ROWS)
    assert len(places) == 8
    assert all(bottom <= top for (_, bottom), (top, _) in pairwise(places))
    ranges = page.evaluate("""(() => {
      const layout = document.querySelector('#chart-gpu-power .plot')._fullLayout;
      return Object.keys(layout).filter((key) => /^yaxis/.test(key)).map((key) => layout[key].range.join());
    })()""")
    assert len(ranges) == 8
    assert len(set(ranges)) == 1


def test_reasons_for_slow_clocks_are_a_ribbon_with_hatches_and_words(page, files):
    opened(page, files, "eight", "gpu-sm-clock")
    bars = page.evaluate("""[...document.querySelectorAll('#chart-gpu-sm-clock .bars .point path')]
      .map((bar) => getComputedStyle(bar).fill)""")
    assert len(bars) > 8 * 10
    assert all(fill.startswith("url") for fill in bars)
    legend = page.evaluate("document.querySelector('#chart-gpu-sm-clock .legend').textContent")
    for words in ("held down by power", "by heat", "by hardware", "by the application's clocks", "by sync boost"):
        assert words in legend
    line, ribbon = page.evaluate("""(() => {
      const top = (selector) => document.querySelector('#chart-gpu-sm-clock ' + selector).getBoundingClientRect();
      return [top('.xy .scatterlayer .js-line').bottom, top('.xy .bars .point path').top];
    })()""")
    assert ribbon >= line


def test_events_and_gaps_stand_over_the_curves_in_words(page, files):
    opened(page, files, "eight", "gpu-power")
    text = page.evaluate("document.querySelector('#chart-gpu-power .infolayer').textContent")
    assert "✕ XID 79" in text
    assert "not sampled" in text
    shapes = page.evaluate("document.querySelector('#chart-gpu-power .plot')._fullLayout.shapes.map((s) => s.name)")
    assert shapes.count("gap") == 1
    assert shapes.count("event") == 3
    lines = page.evaluate("document.querySelector('#system .lines').textContent")
    assert "Node 0 was not sampled from 12." in lines


def head_of(page, chart, share):
    x, y, width, height = place(page, f"#chart-{chart} .nsewdrag")
    page.mouse("mouseMoved", x + width * share - 1, y + height / 2)
    page.mouse("mouseMoved", x + width * share, y + height / 2)
    page.until(f"document.querySelector('#chart-{chart} .hoverlayer .legendtitletext')")
    return page.evaluate(f"document.querySelector('#chart-{chart} .hoverlayer').textContent")


@pytest.mark.parametrize("chart", ["gpu-power", "gpu-sm-clock", "system-2-host-cpu", "steps"])
def test_a_hover_names_the_step_and_phase_of_its_time(page, files, chart):
    answers = gpu_answers(8)
    opened(page, files, "eight", chart)
    text = head_of(page, chart, 0.5)
    at_ns = (
        page.evaluate(f"""(() => {{
      const axis = document.querySelector('#chart-{chart} .plot')._fullLayout.xaxis;
      return (axis.range[0] + axis.range[1]) / 2;
    }})()""")
        * 1e9
    )
    row = next(r for r in answers.time.steps if r.rank == 0 and r.start_ns <= at_ns < r.start_ns + r.duration_ns)
    line = answers.time.phase_line
    phases = zip(line.phase, line.start_ns, line.duration_ns, strict=True)
    near = {line.names[p] for p, a, d in phases if a - 3e7 <= at_ns < a + d + 3e7}  # a pixel is 20 ms
    assert f"s · rank 0: step {row.step}" in text
    assert any(name in text for name in (*near, "data wait"))
    assert page.problems == []


def test_a_hover_over_a_heat_map_names_step_and_phase_too(page, files):
    opened(page, files, "cores", "system-cores")
    x, y, width, height = place(page, "#chart-system-cores .nsewdrag")
    page.mouse("mouseMoved", x + width * 0.3 - 1, y + height / 2)
    page.mouse("mouseMoved", x + width * 0.3, y + height / 2)
    page.until("document.querySelector('#chart-system-cores .hoverlayer text')")
    text = page.evaluate("document.querySelector('#chart-system-cores .hoverlayer').textContent")
    assert text.startswith("core 3")
    assert " %rank 0: step " in text


def test_one_hover_tells_all_gpus(page, files):
    opened(page, files, "eight", "gpu-power")
    text = head_of(page, "gpu-power", 0.25)
    for gpu in range(8):
        assert f"GPU {gpu}" in text
    assert " W" in text


def test_a_hover_over_the_ribbon_tells_the_reason(page, files):
    opened(page, files, "eight", "gpu-sm-clock")
    text = head_of(page, "gpu-sm-clock", 0.87)
    answers = gpu_answers(8)
    axis = page.evaluate("document.querySelector('#chart-gpu-sm-clock .plot')._fullLayout.xaxis.range")
    at_ns = axis[1] * 0.87 * 1e9
    there = [span for span in answers.system.throttles if span.start_ns < at_ns < span.end_ns]
    assert {"thermal", "power"} == {span.kind for span in there}
    assert "GPU 3 held down : software thermal slowdown" in text
    for gpu in range(8):
        power = any(span.gpu == gpu and span.kind == "power" for span in there)
        assert (f"GPU {gpu} held down : software power cap" in text) == power


def test_a_program_without_steps_has_no_step_in_its_hovers(page, files):
    opened(page, files, "monitor", "gpu-power")
    text = head_of(page, "gpu-power", 0.25)
    assert "rank 0" not in text
    assert "GPU 0" in text


def test_zoom_of_a_gpu_chart_moves_steps_gpus_and_host(page, files):
    opened(page, files, "eight", "steps", "system-2-host-cpu", "gpu-sm-clock", "gpu-power")
    whole = page.evaluate("document.querySelector('#chart-steps .plot')._fullLayout.xaxis.range")
    x, y, width, height = place(page, "#chart-gpu-power .nsewdrag")
    page.mouse("mousePressed", x + width * 0.2, y + height / 2, "left")
    for share in (0.3, 0.4):
        page.mouse("mouseMoved", x + width * share, y + height / 2, "left")
    page.mouse("mouseReleased", x + width * 0.4, y + height / 2, "left")
    ranges = (
        "[...document.querySelectorAll('[data-axis=run] .plot[data-drawn]')]"
        ".map((p) => p._fullLayout.xaxis.range.map((v) => +v.toFixed(6)).join())"
    )
    page.until(f"new Set({ranges}).size === 1 && document.querySelector('.reset:not([hidden])')")
    low, high = page.evaluate("document.querySelector('#chart-steps .plot')._fullLayout.xaxis.range")
    assert low == pytest.approx(whole[1] * 0.2, rel=0.03)
    assert high == pytest.approx(whole[1] * 0.4, rel=0.03)
    page.evaluate("document.querySelector('.reset:not([hidden])').click()")
    page.until(f"new Set({ranges}).size === 1 && !document.querySelector('.reset:not([hidden])')")
    assert page.problems == []


def test_charts_over_the_run_stand_under_one_another(page, files):
    """The same moment has the same place in all of them."""
    opened(page, files, "eight", "steps", "memory-curves", "system-2-host-cpu", "gpu-sm-clock", "gpu-power")
    edges = page.evaluate("""[...document.querySelectorAll('[data-axis=run] .nsewdrag')]
      .map((area) => area.getBoundingClientRect())
      .map(({left, right}) => [Math.round(left), Math.round(right)].join())""")
    assert len(edges) >= 3 + 8 + 8
    assert len(set(edges)) == 1


def test_the_table_of_gpus_sorts_by_what_stands_before_the_whole(page, files):
    page.open(files / "eight.html")
    heads = "[...document.querySelectorAll('#table-gpus th .head')].map((head) => head.textContent)"
    column = page.evaluate(heads).index("memory peak")
    page.evaluate(f"document.querySelectorAll('#table-gpus th button')[{column}].click()")
    first = page.evaluate("document.querySelector('#table-gpus tbody tr').textContent")
    assert first.startswith("77")  # GPU 7, rank 7
    assert "69.0 GiB of 79.6 GiB" in first.replace("\u00a0", " ")


def test_a_monitored_program_has_no_section_of_a_training(page, files):
    page.open(files / "monitor.html")
    ids = page.evaluate("[...document.querySelectorAll('main > section')].map((s) => s.id)")
    assert ids == ["verdict", "kpis", "system", "energy", "configuration", "quality"]
    links = page.evaluate("[...document.querySelectorAll('nav.sections a')].map((a) => a.hash.slice(1))")
    assert links == ids
    assert "bound by" not in page.evaluate("document.getElementById('verdict').textContent")


def test_without_javascript_sentences_and_tables_are_there(page, files):
    page.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        page.open(files / "eight.html")
        text = page.evaluate("document.querySelector('#system').innerText")
        for words in (
            "8 GPUs, NVIDIA H100 80GB HBM3: a kernel runs",
            "was not sampled",
            "GPU has fallen off the bus",
            "python3 serve.py",
            "RAPL can be read by root only",
            "GPU-dead",
        ):
            assert words in text
        assert page.evaluate("document.querySelectorAll('#chart-gpu-memory-account svg.bars .tick').length") == 8
        assert "1.93" in page.evaluate("document.querySelector('#energy').innerText")
    finally:
        page.call("Emulation.setScriptExecutionDisabled", value=False)
