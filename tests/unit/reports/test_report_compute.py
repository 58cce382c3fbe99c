"""The section on compute as data: ways side by side, utilisation that is never invented, trees, the roofline."""

import json
import math
from dataclasses import replace

import pytest

from agprof.model.compute_answers import Ceiling
from agprof_reports import compute, compute_tables
from agprof_reports.charts.roofline import placed, roofs_of
from agprof_reports.data import Most
from sample_answers import HOSTILE
from sample_compute_answers import (
    cpu_compute,
    h100_compute,
    hostile_compute,
    lora_compute,
    many_modules,
    no_compute,
    rlhf_compute,
    unknown_device_compute,
)
from sample_figures import missing

ALL = (cpu_compute, h100_compute, lora_compute, unknown_device_compute, rlhf_compute, many_modules)


def parts_of(answer):
    return {part.key: part for part in compute.section(answer, Most().modules).parts}


def charts_of(answer):
    return {chart.key: chart for part in parts_of(answer).values() for chart in part.charts}


def column(table, label):
    at = [item.label for item in table.columns].index(label)
    return [row[at] if isinstance(row[at], str) else row[at].text for row in table.rows]


@pytest.mark.parametrize("make", ALL)
def test_samples_add_up(make):
    """Else a picture of them would prove nothing."""
    answer = make()
    roots = [row for row in answer.modules if row.parent is None]
    counted = answer.ways[0]
    assert math.fsum(row.forward_flops for row in roots) == pytest.approx(counted.forward.value)
    assert math.fsum(row.backward_flops for row in roots) == pytest.approx(counted.backward.value)
    assert math.fsum(row.recomputed_flops for row in roots) == pytest.approx(counted.recomputed.value)
    assert math.fsum(row.flops_share for row in roots) == pytest.approx(1)
    assert math.fsum(row.time_share for row in roots) == pytest.approx(1)
    assert math.fsum(row.flops for row in answer.operations) == pytest.approx(answer.executed_flops_per_step.value)
    assert counted.total.value == pytest.approx(answer.flops_per_step.value)


@pytest.mark.parametrize("make", ALL)
def test_every_part_opens_with_a_sentence(make):
    parts = parts_of(make())
    assert list(parts) == [
        "compute-flops", "compute-utilisation", "compute-operations", "compute-modules", "compute-roofline",
    ]  # fmt: skip
    assert all(part.sentence.endswith(".") for part in parts.values())


def test_ways_are_drawn_as_multiples_of_what_was_counted_over_the_same_scope():
    answer = lora_compute()
    chart = charts_of(answer)["flops-ways"]
    totals = {bar.label: sum(value for name, value in bar.parts if name != "recomputed") for bar in chart.bars}
    assert totals["counted, step"] == pytest.approx(1)
    assert totals["DeepSpeed, micro-step"] == pytest.approx(1.45, abs=0.005)
    assert totals["DeepSpeed, micro-step"] == pytest.approx(answer.ways[2].ratio_to_counted)
    notes = [note["text"] for note in chart.spec["layout"]["annotations"]]
    assert notes[2] == "1.45 ×"
    assert column(chart.table, "used") == ["for FLOP/s and MFU", "", ""]
    assert column(chart.table, "of counted") == ["1.00", "1.00", "1.45"]
    assert "DeepSpeed's profiler says 1.45 times what was counted" in parts_of(answer)["compute-flops"].sentence


def test_recomputation_stands_beside_the_total_and_not_in_it():
    answer = h100_compute()
    chart = charts_of(answer)["flops-ways"]
    assert chart.legend[-1] == ("recomputed", "recomputed, not in the total")
    counted = dict(chart.bars[0].parts)
    assert counted["forward"] + counted["backward"] == pytest.approx(1)
    assert counted["recomputed"] == pytest.approx(answer.ways[0].recomputed.value / answer.ways[0].total.value)
    assert "backward being 2.000 times forward" in parts_of(answer)["compute-flops"].sentence


def test_a_way_that_gave_no_figure_is_in_the_table_with_its_reason_and_not_drawn():
    answer = lora_compute()
    gone = replace(
        answer.ways[2],
        total=replace(answer.ways[2].total, value=None, reason="its profiler did not run"),
        ratio_to_counted=None,
    )
    chart = charts_of(replace(answer, ways=(*answer.ways[:2], gone)))["flops-ways"]
    assert len(chart.bars) == 2
    cell = chart.table.rows[2][5]
    assert (cell.text, cell.tip) == ("–", "not measured: its profiler did not run")


def test_utilisation_is_given_of_data_sheet_and_of_what_was_achieved_with_its_convention_and_source():
    answer = h100_compute()
    utilisation, ceilings = parts_of(answer)["compute-utilisation"].tables
    assert column(utilisation, "of the data sheet") == ["27.4", "26.6", "35.6", "36.3"]
    assert column(utilisation, "of what was achieved") == ["34.1", "33.1", "44.3", "45.3"]
    assert all(column(utilisation, "convention"))
    assert "132 SM x 4096 x 1.83 GHz" in column(ceilings, "from")[0]
    assert column(ceilings, "kind") == ["data sheet", "measured"]


def test_tokens_without_padding_are_a_card_or_a_line_that_says_why_not():
    answer = cpu_compute()
    known = compute.section(answer, 400)
    assert [card.key for card in known.cards][-2:] == ["tokens", "tokens_unpadded"]
    gone = replace(answer, tokens_per_second_without_padding=missing("tokens/s", "no attention mask was seen"))
    unknown = compute.section(gone, 400)
    assert unknown.cards[-1].key == "tokens"
    assert ("", "Tokens without padding are not known: no attention mask was seen.") in unknown.lines


def test_an_unknown_device_gives_no_mfu_and_a_hint():
    part = parts_of(unknown_device_compute())["compute-utilisation"]
    assert part.tables == ()
    assert part.sentence.startswith("No MFU and no HFU are given")
    assert part.lines == (("watch", unknown_device_compute().peak_hint),)
    assert "Frobnicator 9000" in part.lines[0][1]


def test_what_was_not_counted_is_said_once_and_nothing_is_drawn():
    section = compute.section(no_compute(), 400)
    assert section.sentence == "Nothing was counted: the profile step was not reached."
    assert (section.parts, section.cards, section.charts, section.lines) == ((), (), (), ())


@pytest.mark.parametrize("make", ALL)
def test_boxes_of_the_icicle_add_up_to_what_was_executed_whatever_their_size_shows(make):
    answer = make()
    spec = charts_of(answer)["modules"].spec
    data = spec["data"][0]
    lengths = {len(data[key]) for key in ("ids", "parents", "labels", "values", "customdata")}
    assert lengths == {len(data["marker"]["colors"])}
    assert set(data["parents"]) - {""} <= set(data["ids"])
    assert sum(data["values"]) == pytest.approx(answer.executed_flops_per_step.value, rel=0.001)
    times = spec["variants"][1]["data"]["values"][0]
    assert sum(times) == pytest.approx(
        sum(row.forward_ns + row.backward_ns + row.recomputed_ns for row in answer.modules if row.parent is None),
        rel=0.001,
    )
    for variant in spec["variants"]:
        assert {len(values[0]) for key, values in variant["data"].items() if key != "marker.cmax"} == lengths


def test_models_of_one_run_stay_apart_though_their_paths_are_the_same():
    answer = rlhf_compute()
    data = charts_of(answer)["modules"].spec["data"][0]
    assert len(data["ids"]) == len(answer.modules) + 1
    below = [name for name, parent in zip(data["labels"], data["parents"], strict=True) if parent == "all"]
    assert below == ["0: Model", "1: Model", "2: Model", "3: Model"]
    by_id = dict(zip(data["ids"], data["values"], strict=True))
    parents = dict(zip(data["ids"], data["parents"], strict=True))

    def under(root):
        inside = {root}
        for ident in data["ids"]:
            if parents[ident] in inside:
                inside.add(ident)
        return sum(by_id[ident] for ident in inside)

    roots = [ident for ident in data["ids"] if parents[ident] == "all"]
    actor, reference = under(roots[0]), under(roots[1])
    assert actor == pytest.approx(3 * reference, rel=0.02)


def test_the_table_of_modules_has_recomputation_only_where_there_is_some():
    plain = charts_of(cpu_compute())["modules"].table
    again = charts_of(h100_compute())["modules"].table
    labels = {column.label for column in again.columns}
    assert {"recomputed", "again", "in recomputation"} <= labels
    assert not {"recomputed", "again", "in recomputation"} & {column.label for column in plain.columns}
    assert {"device time", "of the ceiling", "FLOP per byte", "forward", "backward", "calls"} <= labels
    assert "model" in {column.label for column in charts_of(rlhf_compute())["modules"].table.columns}


def test_of_many_modules_the_largest_stay_and_it_is_said():
    answer = many_modules()
    table = compute_tables.modules(answer.modules, 150)
    assert len(table.rows) == 150
    assert table.note == f"The 150 largest of {len(answer.modules):,} modules; report.json has all."
    shown = {row[0].strip("\u00a0") for row in table.rows}
    assert "(whole model)" in shown
    chart = charts_of(answer)["modules"]
    assert chart.note == f"Drawn: the 1,000 largest of {len(answer.modules):,} modules."


def test_the_icicle_opens_where_the_tree_first_parts():
    answer = many_modules()
    data = charts_of(answer)["modules"].spec["data"][0]
    assert data["labels"][data["ids"].index(data["level"])] == "layers"


def test_no_point_stands_above_its_roof_unless_it_was_measured_there():
    answer = h100_compute()
    roofs = {roof.kind: roof for roof in roofs_of(answer.ceilings, answer.dtype)}
    for point in answer.roofline:
        assert roofs["measured"].at(point.intensity) == pytest.approx(point.roof_flops_per_second)
        assert point.flops_per_second <= point.roof_flops_per_second


def test_roofs_are_solid_when_measured_and_dashed_by_the_data_sheet():
    spec = charts_of(h100_compute())["roofline"].spec
    lines = {trace["name"]: trace for trace in spec["data"] if trace["mode"] == "lines"}
    assert {name: line["line"]["dash"] for name, line in lines.items()} == {"measured": "solid", "data sheet": "dash"}
    assert lines["data sheet"]["x"][1] == pytest.approx(989.4 / 3.35, rel=0.001)
    assert lines["data sheet"]["y"][1:] == pytest.approx([989.4, 989.4], rel=0.001)
    assert spec["layout"]["xaxis"]["type"] == spec["layout"]["yaxis"]["type"] == "log"


def test_points_are_apart_by_pass_and_their_areas_are_times():
    answer = h100_compute()
    spec = charts_of(answer)["roofline"].spec
    points = {trace["name"]: trace for trace in spec["data"] if trace["mode"] == "markers"}
    assert {name: trace["marker"]["color"] for name, trace in points.items()} == {
        "forward": "$forward",
        "backward": "$backward",
    }
    assert points["forward"]["marker"]["symbol"] != points["backward"]["marker"]["symbol"]
    for name, trace in points.items():
        own = [point for point in placed(answer.roofline) if point.in_pass == name]
        assert trace["x"] == pytest.approx([point.intensity for point in own], rel=0.001)
        times = [point.duration_ns for point in own]
        assert trace["marker"]["size"] == sorted(trace["marker"]["size"], reverse=True)
        assert times == sorted(times, reverse=True)


def test_points_above_the_roof_are_not_hidden():
    answer = cpu_compute()
    assert "above the roof" not in charts_of(answer)["roofline"].note
    fast = replace(answer.roofline[0], flops_per_second=2 * answer.roofline[0].roof_flops_per_second)
    assert "1 point stands above the roof" in charts_of(replace(answer, roofline=(fast,)))["roofline"].note


def test_a_ceiling_of_another_element_type_is_not_taken_when_the_own_is_known():
    half = Ceiling(kind="datasheet", dtype="float16", flops_per_second=1.0, bytes_per_second=3.0, source="")
    own = Ceiling(kind="datasheet", dtype="float32", flops_per_second=2.0, bytes_per_second=None, source="")
    (roof,) = roofs_of((half, own), "float32")
    assert (roof.flops_per_second, roof.bytes_per_second) == (2.0, 3.0)


def test_without_a_ceiling_the_roofline_has_points_and_no_roof_and_says_so():
    part = parts_of(unknown_device_compute())["compute-roofline"]
    (chart,) = part.charts
    assert all(trace["mode"] == "markers" for trace in chart.spec["data"])
    assert "no ceiling is known" in chart.note
    assert part.sentence.startswith("Where the roof stands is not known")


def test_groups_without_a_time_are_told_and_stay_in_the_table():
    answer = cpu_compute()
    first = replace(answer.roofline[0], duration_ns=None, flops_per_second=None)
    chart = charts_of(replace(answer, roofline=(first, *answer.roofline[1:])))["roofline"]
    drawn = sum(len(trace["x"]) for trace in chart.spec["data"] if trace["mode"] == "markers")
    assert drawn == len(answer.roofline) - 1
    assert f"not drawn: 1 of {len(answer.roofline)} groups" in chart.note
    assert len(chart.table.rows) == len(answer.roofline)


def test_figures_that_are_not_finite_do_not_reach_the_charts():
    answer = cpu_compute()
    nan = float("nan")
    odd = replace(
        answer,
        roofline=tuple(replace(point, intensity=nan) for point in answer.roofline),
        modules=tuple(replace(row, forward_flops=nan, of_ceiling=nan, time_share=nan) for row in answer.modules),
        operations=tuple(replace(row, flops=nan, flops_share=nan) for row in answer.operations),
    )
    for chart in charts_of(odd).values():
        assert "NaN" not in json.dumps(chart.spec)


def test_names_reach_plotly_escaped():
    for chart in charts_of(hostile_compute(HOSTILE)).values():
        assert "<img" not in json.dumps(chart.spec)


def test_answers_are_left_as_they_were():
    answer = h100_compute()
    before = repr(answer)
    compute.section(answer, 400)
    assert repr(answer) == before
