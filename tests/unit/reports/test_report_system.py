"""GPU and host as data: which charts and tables there are, gaps, ribbons, events, hostile names, size."""

import random
from dataclasses import replace
from itertools import pairwise

import pytest

from agprof.model.figure import Curve
from agprof.model.system_answers import SystemAnswer
from agprof_reports.charts import throttle
from agprof_reports.data import Cell
from agprof_reports.page import build
from agprof_reports.run import LIMIT_BYTES, render
from agprof_reports.system import gpus_sentence
from sample_answers import HOSTILE, hostile_answers, sample_answers
from sample_energy_answers import energy_answer
from sample_figures import GIB, MS, figure, missing
from sample_gpu_answers import gpu_answers
from sample_system_answers import cpu_system, gpu_system, mig_system, older_system


def system_of(answers):
    return next(section for section in build(answers).sections if section.key == "system")


def with_system(system, ranks=2):
    return replace(sample_answers(ranks), system=system)


def part_of(section, key):
    return next((part for part in section.parts if part.key == key), None)


def charts_of(section):
    return {chart.key: chart for held in (section, *section.parts) for chart in held.charts}


def tables_of(section):
    held = [table for item in (section, *section.parts) for table in item.tables]
    return {table.key: table for table in held}


def column_of(table, label):
    index = [column.label for column in table.columns].index(label)
    return [row[index] for row in table.rows]


def text_of(cell):
    return (cell.text if isinstance(cell, Cell) else cell).replace("\u00a0", " ")


@pytest.fixture(scope="module")
def eight():
    return system_of(gpu_answers(8))


def test_parts_stand_in_order_and_each_opens_with_a_sentence(eight):
    assert [part.key for part in eight.parts] == [
        "system-gpus", "system-curves", "system-memory", "system-tenants", "system-events", "system-host",
        "system-not-measured",
    ]  # fmt: skip
    assert all(part.sentence.endswith(".") for part in eight.parts)
    assert eight.title == "GPU and host"


def test_every_gpu_is_a_row_with_its_figures(eight):
    table = tables_of(eight)["table-gpus"]
    assert column_of(table, "GPU") == [str(gpu) for gpu in range(8)]
    assert column_of(table, "ranks") == [str(gpu) for gpu in range(8)]
    assert text_of(column_of(table, "memory peak")[7]) == "69.0 GiB of 79.6 GiB"
    assert column_of(table, "memory peak")[7].value == 69 * GIB
    assert text_of(column_of(table, "power")[0]) == "641 W of 700 W"
    assert [cell.mark for cell in column_of(table, "held down by heat")] == ["", "", "", "watch", "", "", "", ""]
    assert [cell.mark for cell in column_of(table, "XIDs")] == ["", "", "", "", "", "bad", "", ""]
    assert "NVIDIA H100 80GB HBM3" in table.caption
    assert table.note == ""


def test_columns_that_no_gpu_has_are_told_with_their_reasons():
    table = tables_of(system_of(with_system(older_system(), 1)))["table-gpus"]
    labels = [column.label for column in table.columns]
    assert not {"SM activity", "tensor cores", "DRAM bandwidth", "NVLink", "ECC errors"} & set(labels)
    assert table.note == (
        "Not measured: SM activity, tensor cores, DRAM bandwidth (GPM needs Hopper or later); NVLink (no NVLink); "
        "ECC errors (this GPU has no ECC)."
    )


def test_a_figure_that_one_gpu_lacks_is_a_dash_with_its_reason():
    system = gpu_system(8)
    rows = (replace(system.gpus[0], power=missing("W", "NVML says GPU is lost")), *system.gpus[1:])
    cell = column_of(tables_of(system_of(with_system(replace(system, gpus=rows))))["table-gpus"], "power")[0]
    assert (cell.text, cell.value) == ("–", None)
    assert "NVML says GPU is lost" in cell.tip


def test_a_rank_whose_gpu_is_not_known_is_said_and_not_guessed(eight):
    part = part_of(eight, "system-gpus")
    assert part.lines == (("watch", "Which GPU rank 6 uses is not known, and not guessed."),)
    rows = tables_of(eight)["table-gpu-mapping"].rows
    assert rows[6][1] == Cell("–", mark="watch")
    assert rows[0][2] == "uuid"
    mig = part_of(system_of(with_system(mig_system(), 1)), "system-gpus")
    assert mig.lines[0][0] == "watch"
    assert "MIG-1c5" in mig.lines[0][1]
    assert ", MIG" in mig.tables[0].caption


def test_the_sentence_on_gpus_has_their_range_and_the_worst():
    assert gpus_sentence(gpu_system(8).gpus) == (
        "8 GPUs, NVIDIA H100 80GB HBM3: a kernel runs 86 % to 93 % of the time, at 620\u00a0W to 641\u00a0W of "
        "700\u00a0W; GPU 3's clocks are held down by heat 31 % of it; GPU 7's clocks are held down by power 29 % of it."
    )
    assert gpus_sentence(mig_system().gpus).startswith("One GPU, NVIDIA H100 80GB HBM3: at 641\u00a0W of 700\u00a0W")


@pytest.mark.parametrize("gpus", [2, 8, 16])
def test_several_gpus_are_rows_on_one_scale(gpus):
    chart = charts_of(system_of(gpu_answers(gpus)))["gpu-power"]
    layout = chart.spec["layout"]
    axes = [layout[key] for key in layout if key.startswith("yaxis")]
    assert len(axes) == gpus
    assert len({tuple(axis["range"]) for axis in axes}) == 1
    assert [axis["ticktext"] for axis in axes] == [[f"GPU {gpu}"] for gpu in range(gpus)]
    domains = [axis["domain"] for axis in axes]
    assert all(upper[0] >= lower[1] - 1e-4 for upper, lower in pairwise(domains))
    assert chart.height / gpus >= 30
    lines = [trace for trace in chart.spec["data"] if trace["type"] == "scatter"]
    limits = [trace for trace in lines if trace["line"].get("dash") == "dash"]
    assert (len(lines), len(limits)) == (2 * gpus, gpus)
    assert all(set(trace["y"]) - {None} == {700.0} for trace in limits)
    assert chart.axis == "run"


def test_one_gpu_has_plain_charts_and_its_limit_is_dashed():
    charts = charts_of(system_of(gpu_answers(1)))
    assert [key for key in charts if key.startswith("gpu-")] == [
        "gpu-activity", "gpu-memory", "gpu-power", "gpu-temperature", "gpu-sm-clock", "gpu-nvlink", "gpu-pcie",
        "gpu-memory-account",
    ]  # fmt: skip
    power = charts["gpu-power"].spec
    assert [trace["line"]["dash"] for trace in power["data"]] == ["solid", "dash"]
    assert {note["text"] for note in power["layout"]["annotations"]} == {"power", "limit"}
    activity = charts["gpu-activity"].spec
    assert activity["layout"]["yaxis"]["range"] == [0.0, 100.0]
    assert [trace["name"] for trace in activity["data"]] == ["any kernel", "SMs", "tensor", "DRAM"]


def test_more_gpus_than_rows_become_heat_maps_with_a_chart_of_reasons():
    charts = charts_of(system_of(with_system(gpu_system(40, points=100))))
    assert len(charts["gpu-power"].spec["data"][0]["z"]) == 40
    assert charts["gpu-power"].spec["data"][0]["type"] == "heatmap"
    reasons = charts["gpu-throttle"]
    assert {trace["name"] for trace in reasons.spec["data"]} >= {"held down by power", "by heat"}
    assert len(reasons.spec["layout"]["yaxis"]["ticktext"]) == 10


def test_a_quantity_that_was_not_read_has_no_chart():
    charts = charts_of(system_of(with_system(older_system(), 1)))
    assert "gpu-nvlink" not in charts
    assert [trace["name"] for trace in charts["gpu-activity"].spec["data"]] == ["any kernel"]


def test_reasons_are_a_ribbon_under_zero_with_colour_hatch_and_word(eight):
    chart = charts_of(eight)["gpu-sm-clock"]
    bars = [trace for trace in chart.spec["data"] if trace["type"] == "bar"]
    low = chart.spec["layout"]["yaxis"]["range"][0]
    for trace in bars:
        ends = {(base, base + height) for base, height in zip(trace["base"], trace["y"], strict=False) if height}
        assert all(low < base < top < 0 for base, top in ends)
        assert trace["marker"]["pattern"]["shape"]
        assert trace["marker"]["color"].startswith("$throttle-")
    assert {axis for trace in bars for axis in [trace["yaxis"]]} == {"y", *(f"y{i}" for i in range(2, 9))}
    assert dict(chart.legend)["throttle-thermal"] == "by heat"
    hatches = [hatch for _, _, hatch in throttle.KINDS.values()]
    assert len(set(hatches)) == len(hatches)


def test_very_many_short_stretches_are_drawn_as_one():
    span = gpu_system(8).throttles[0]
    run = (0.0, 100.0)
    flicker = [replace(span, start_ns=i * 20 * MS, end_ns=i * 20 * MS + 10 * MS) for i in range(5_000)]
    merged = throttle.merged(flicker, run)
    assert len(merged) == 1
    assert (merged[0].start_ns, merged[0].end_ns) == (flicker[0].start_ns, flicker[-1].end_ns)
    apart = [replace(span, start_ns=i * 200 * MS, end_ns=i * 200 * MS + (1 + i % 7) * 10 * MS) for i in range(500)]
    kept = throttle.merged(apart, run)
    assert len(kept) == 240
    assert min(item.end_ns - item.start_ns for item in kept) >= 40 * MS


def test_gaps_are_holes_in_the_curves_and_named(eight):
    chart = charts_of(eight)["gpu-power"]
    shapes = chart.spec["layout"]["shapes"]
    gap = next(shape for shape in shapes if shape.get("name") == "gap")
    for trace in chart.spec["data"]:
        inside = [y for x, y in zip(trace["x"], trace["y"], strict=True) if gap["x0"] + 1e-3 < x < gap["x1"] - 1e-3]
        assert inside
        assert set(inside) == {None}
        assert trace["connectgaps"] is False
    assert "not sampled" in [note["text"] for note in chart.spec["layout"]["annotations"]]
    holes = [shape for shape in shapes if shape.get("name") == "hole"]
    assert len(holes) == 8 + 1  # GPU 5 was lost for a while as well
    assert eight.lines[0][1].startswith("Node 0 was not sampled from 12.")
    host = charts_of(eight)["system-2-host-cpu"].spec["layout"]
    assert [shape["name"] for shape in host["shapes"] if "name" in shape] == ["gap"]


def test_an_event_stands_in_its_gpu_s_row_and_that_of_no_gpu_over_all(eight):
    layout = charts_of(eight)["gpu-power"].spec["layout"]
    rows = [shape["yref"] for shape in layout["shapes"] if shape.get("name") == "event"]
    assert rows == ["y6 domain", "y6 domain", "paper"]
    words = {note["text"] for note in layout["annotations"]}
    assert {"✕ XID 79", "✕ ecc single bit storm"} <= words
    table = tables_of(eight)["table-gpu-events"]
    assert column_of(table, "GPU") == ["5", "5", "–"]
    assert part_of(eight, "system-events").sentence.startswith("The driver reported 3 events, 2 of them XIDs;")


def test_the_step_of_an_event_is_the_one_that_it_falls_into():
    answers = gpu_answers(8)
    steps = column_of(tables_of(system_of(answers))["table-gpu-events"], "step")
    for event, step in zip(answers.system.events, steps, strict=True):
        row = next(row for row in answers.time.steps if row.rank == 0 and row.step == int(step))
        assert row.start_ns <= event.time_ns < row.start_ns + row.duration_ns


def test_memory_s_parts_add_up_to_what_is_in_use_and_the_tick_is_the_whole(eight):
    chart = charts_of(eight)["gpu-memory-account"]
    for bar, account in zip(chart.bars, gpu_system(8).memory, strict=True):
        parts = dict(bar.parts)
        used = sum(value for name, value in parts.items() if name != "reserved")
        assert used == pytest.approx(account.used.value / GIB)
        assert bar.marks[0].begin == pytest.approx(account.total.value / GIB)
    assert [name for name, _ in chart.legend] == ["context", "allocator", "tenant", "reserved", "unexplained"]
    part = part_of(eight, "system-memory")
    assert part.sentence.startswith("GPU 7 holds 69.0 of 79.6 GiB")
    assert part.lines == ()


def test_parts_that_say_more_than_is_in_use_are_outlined():
    account = gpu_system(1).memory[0]
    over = replace(account, unexplained=figure(-2.0 * GIB, "bytes", "modelled"))
    chart = charts_of(system_of(with_system(replace(gpu_system(1), memory=(over,)), 1)))["gpu-memory-account"]
    outline = next(mark for mark in chart.bars[0].marks if mark.begin != mark.end)
    assert outline.end - outline.begin == pytest.approx(2.0)


def test_cores_are_rows_when_there_are_more_than_four():
    at = with_system(cpu_system(random.Random(1), 2, 20_000 * MS, cores=8))
    chart = charts_of(system_of(at))["system-cores"]
    assert len(chart.spec["data"][0]["z"]) == 8
    assert chart.spec["data"][0]["zmax"] == 100.0
    four = with_system(cpu_system(random.Random(1), 2, 20_000 * MS, cores=4))
    assert "system-cores" not in charts_of(system_of(four))
    many = with_system(cpu_system(random.Random(1), 2, 20_000 * MS, cores=512))
    chart = charts_of(system_of(many))["system-cores"]
    assert len(chart.spec["data"][0]["z"]) == 128
    assert chart.note.startswith("Each row is the mean of 4 neighbouring cores of 512")
    assert chart.height < 640


def test_cores_of_several_nodes_are_told_apart():
    system = cpu_system(random.Random(1), 2, 20_000 * MS, cores=8)
    both = [replace(core, label=f"node {node} {core.label}", node=node) for node in (0, 1) for core in system.cores]
    chart = charts_of(system_of(with_system(replace(system, cores=tuple(both)))))["system-cores"]
    names = chart.spec["layout"]["yaxis"]["ticktext"]
    assert names[0] == "n0 core 0"
    assert names[-1] == "n1 core 7"


def test_a_machine_without_a_gpu_has_no_part_for_one():
    section = system_of(sample_answers())
    assert [part.key for part in section.parts] == ["system-not-measured"]
    assert section.charts
    reasons = column_of(tables_of(section)["table-not-measured"], "reason")
    assert reasons == ["no libnvidia-ml.so.1 on this machine"]


def test_pressures_and_directions_share_a_chart():
    at = tuple(range(0, 10**10, 10**9))
    curve = Curve(label="", unit="ratio", x_ns=at, y=tuple(0.1 * i for i in range(10)), node=0)
    labels = ("CPU pressure", "memory pressure", "IO pressure", "interface eth0 sent", "interface eth0 received")
    units = ("ratio",) * 3 + ("bytes/s",) * 2
    curves = tuple(replace(curve, label=label, unit=unit) for label, unit in zip(labels, units, strict=True))
    charts = system_of(with_system(SystemAnswer(sentence="One.", curves=curves, figures=()))).charts
    assert [chart.title for chart in charts] == ["pressure, %", "interface eth0, B/s"]
    assert len(charts[0].spec["data"]) == 3


def test_gpus_of_two_nodes_are_told_apart():
    system = gpu_system(2)
    second = [replace(curve, label=f"node 1 {curve.label}", node=1) for curve in system.curves if curve.gpu is not None]
    first = [replace(curve, label=f"node 0 {curve.label}") for curve in system.curves if curve.gpu is not None]
    rows = (*system.gpus, *(replace(row, node=1) for row in system.gpus))
    section = system_of(with_system(replace(system, curves=(*first, *second), gpus=rows)))
    layout = charts_of(section)["gpu-power"].spec["layout"]
    names = [layout[key]["ticktext"][0] for key in layout if key.startswith("yaxis")]
    assert names == ["n0 GPU 0", "n0 GPU 1", "n1 GPU 0", "n1 GPU 1"]
    assert column_of(tables_of(section)["table-gpus"], "node") == ["0", "0", "1", "1"]


@pytest.mark.parametrize("gpus", [1, 2])
def test_a_sample_between_two_gaps_is_a_point(gpus):
    at = tuple(range(0, 6 * 10**9, 10**9))
    y = (None, 500.0, None, 510.0, 520.0, None)
    curves = tuple(Curve(label=f"GPU {gpu} power", unit="W", x_ns=at, y=y, node=0, gpu=gpu) for gpu in range(gpus))
    system = SystemAnswer(sentence="One.", curves=curves, figures=())
    line = charts_of(system_of(with_system(system)))["gpu-power"].spec["data"][0]
    assert line["mode"] == "lines+markers"
    assert line["marker"]["size"] == [0, 4, 0, 0, 0, 0]
    assert "marker" not in charts_of(system_of(gpu_answers(gpus)))["gpu-power"].spec["data"][0]


def test_a_gap_is_a_stretch_between_values_however_many_samples_it_lacks():
    at = tuple(range(0, 8 * 10**9, 10**9))
    y = (None, 500.0, None, None, None, 510.0, 520.0, None)
    system = SystemAnswer(sentence="One.", curves=(Curve(label="host CPU", unit="ratio", x_ns=at, y=y),), figures=())
    found = charts_of(system_of(with_system(system)))
    (curves,) = [chart.table for chart in found.values()]
    assert column_of(curves, "points") == ["3"]
    assert column_of(curves, "gaps") == ["1"]


def test_decimation_is_said_and_its_points_have_no_median():
    system = gpu_system(2, points=100)
    section = system_of(with_system(system))
    assert ("", system.decimation) in section.lines
    labels = [column.label for column in charts_of(section)["gpu-power"].table.columns]
    assert labels == ["curve", "points", "gaps", "lowest", "highest"]
    whole = charts_of(system_of(gpu_answers(2)))["gpu-power"].table
    assert [column.label for column in whole.columns] == ["curve", "points", "gaps", "lowest", "median", "highest"]
    heat = charts_of(system_of(with_system(gpu_system(40, points=100))))["gpu-power"]
    assert heat.note.startswith("Each cell is the mean of the points that were kept")


def test_the_figure_at_a_row_s_right_is_that_of_the_table_and_not_of_the_drawn_points():
    system = gpu_system(8)
    charts = charts_of(system_of(gpu_answers(8)))

    def at_right(key):
        notes = charts[key].spec["layout"]["annotations"]
        return [note["text"].replace("\u00a0", " ") for note in notes if note.get("xshift") == 6]

    assert at_right("gpu-power") == [f"{row.power.value:.0f} W" for row in system.gpus]
    assert at_right("gpu-temperature")[3] == "84 °C"
    assert at_right("gpu-memory")[7] == "69.0 GiB"
    assert at_right("gpu-nvlink")[0] == "240 GB/s"
    assert "At the right its peak over the steady steps. Dashed: its total." in charts["gpu-memory"].note
    unread = replace(system.gpus[0], power=missing("W", "no steady step"))
    curves = tuple(curve for curve in system.curves if curve.label != "GPU 1 power")
    odd = replace(system, gpus=(unread, *system.gpus[1:]), curves=curves)
    charts = charts_of(system_of(with_system(odd)))
    assert at_right("gpu-power")[:2] == ["", "not measured"]


def test_hostile_names_stay_text_and_short_in_every_label():
    page = build(hostile_answers(HOSTILE))
    for section in page.sections:
        if section.key not in ("system", "energy"):
            continue
        for chart in (*section.charts, *(chart for part in section.parts for chart in part.charts)):
            assert "<img" not in str(chart.spec)
            assert "<a href" not in str(chart.spec)
            assert "%{x}" not in str([trace.get("hovertemplate") for trace in chart.spec["data"]]).replace("%{x:", "")


def test_names_of_a_megabyte_are_cut():
    page = build(hostile_answers("\u202e" + "x" * 1_000_000))
    for section in page.sections:
        if section.key != "system":
            continue
        for part in (section, *section.parts):
            assert all(len(chart.title) < 200 for chart in part.charts)
            for table in part.tables:
                assert max(len(text_of(cell)) for row in table.rows for cell in row) <= 600
                assert len(table.caption) < 200


@pytest.mark.slow
def test_the_largest_page_with_gpus_keeps_its_bound():
    answers = sample_answers(64, 1000)
    end_ns = max(row.start_ns + row.duration_ns for row in answers.time.steps)
    largest = replace(answers, system=gpu_system(16, end_ns, ranks=64, points=800), energy=energy_answer(16))
    assert len(render(largest)) <= LIMIT_BYTES


def test_answers_are_left_as_they_were():
    answers = gpu_answers(8)
    before = repr(answers)
    build(answers)
    assert repr(answers) == before
