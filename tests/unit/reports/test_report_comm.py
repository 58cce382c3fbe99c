"""Communication and stragglers in the page of a run: what is drawn of which answer, nothing of what is not there."""

from dataclasses import replace

import pytest
from test_report_render import Reader

from agprof_reports.charts.comm_matrix import matrix
from agprof_reports.charts.comm_parts import ceilings, sizes
from agprof_reports.charts.stragglers import own_time
from agprof_reports.page import build
from agprof_reports.run import LIMIT_BYTES, render
from sample_answers import HOSTILE, sample_answers
from sample_comm_answers import SLOW, comm_answers, hostile_comm, stragglers

PARTS = (
    "communication-overlap", "communication-sizes", "communication-groups", "communication-ceilings",
    "communication-arrivals",
)  # fmt: skip


def section(answers, key):
    return next(item for item in build(answers).sections if item.key == key)


def part(answers, key):
    return next(item for item in section(answers, key.partition("-")[0]).parts if item.key == key)


def test_parts_stand_in_their_order_each_with_a_sentence():
    parts = section(comm_answers(), "communication").parts
    assert tuple(item.key for item in parts) == PARTS
    assert all(item.sentence.endswith(".") for item in parts)


@pytest.mark.parametrize(
    ("field", "gone"),
    list(zip(("overlap", "sizes", "groups matrix", "ceilings", "arrivals"), PARTS, strict=True)),
)
def test_what_is_not_known_is_not_shown(field, gone):
    answers = comm_answers()
    empty = {name: None if name in ("overlap", "matrix") else () for name in field.split()}
    less = replace(answers, communication=replace(answers.communication, **empty))
    assert [item.key for item in section(less, "communication").parts] == [key for key in PARTS if key != gone]


def test_a_run_without_any_of_it_has_no_parts():
    answers = sample_answers()
    assert section(answers, "communication").parts == ()
    assert section(answers, "ranks").parts == ()
    assert [chart.key for chart in section(answers, "ranks").charts] == ["own-work"]


def test_exposed_and_overlapped_make_the_bar():
    (chart,) = part(comm_answers(), "communication-overlap").charts
    assert [trace["x"] for trace in chart.spec["data"]] == [[84.0], [12.0]]
    assert chart.bars[0].parts == (("communication", 84.0), ("overlapped", 12.0))


def test_cells_of_sizes_are_those_of_the_answer():
    bins = comm_answers().communication.sizes
    chart = sizes(bins)
    (trace,) = chart.spec["data"]
    assert sum(z for row in trace["z"] for z in row if z) == pytest.approx(sum(item.calls_per_step for item in bins))
    assert chart.spec["layout"]["xaxis"]["ticktext"] == ["4 B", "2 MiB", "4 MiB", "8 MiB"]
    volume = next(v for v in chart.spec["variants"] if v["label"] == "size, MiB")["data"]["z"][0]
    assert sum(z for row in volume for z in row if z) == pytest.approx(40.4, abs=0.01)


def test_the_matrix_outlines_its_nodes():
    found = comm_answers(8).communication.matrix
    chart = matrix(found, {rank: rank // 4 for rank in range(8)})
    boxes = [shape for shape in chart.spec["layout"]["shapes"] if shape["name"] == "node"]
    assert [(box["x0"], box["x1"]) for box in boxes] == [(-0.5, 3.5), (3.5, 7.5)]
    assert [note["text"] for note in chart.spec["layout"]["annotations"]] == ["node 0", "node 1"]
    assert chart.spec["data"][0]["z"][0][1] == pytest.approx(25.2)
    assert matrix(found, {}).spec["layout"]["shapes"] == []


def test_a_matrix_of_many_ranks_is_summed_and_loses_nothing():
    found = comm_answers(256).communication.matrix
    chart = matrix(found, {})
    cells = [z for row in chart.spec["data"][0]["z"] for z in row if z]
    assert len(chart.spec["data"][0]["z"]) <= 96
    unit = {"MiB": 2**20, "GiB": 2**30}[chart.title.split()[-3]]
    whole = sum(sum(row) for row in found.bytes_per_step)
    assert sum(cells) * unit == pytest.approx(whole, rel=0.01)
    assert "neighbouring ranks" in chart.note


def test_far_below_the_ceiling_is_said_with_a_mark_and_a_word():
    rows = comm_answers().communication.ceilings
    texts = ceilings(rows).spec["data"][0]["text"]
    assert [text.startswith("✕ ") and text.endswith("far below") for text in texts] == [False, True]
    (table,) = part(comm_answers(), "communication-ceilings").tables
    reached = [row[6] for row in table.rows]
    assert (reached[0].mark, reached[0].text) == ("bad", "32 % far below")
    assert (reached[1].mark, reached[1].text) == ("", "91 %")
    assert reached[2].text == "–"


def test_the_map_of_ranks_and_steps_is_binned_with_its_means():
    found = stragglers(64, 1_003)
    chart = own_time(found, {rank: rank // 8 for rank in range(64)})
    z = chart.spec["data"][0]["z"]
    assert (len(z), len(z[0])) == (64, 250)
    first = [value for value in found.own_time_ns[SLOW][:4] if value is not None]
    assert z[SLOW][0] == pytest.approx(sum(first) / len(first) / 1e6, rel=0.005)
    assert "mean of 4 steps" in chart.note
    assert len(chart.spec["layout"]["shapes"]) == 7
    assert min(z[SLOW]) > max(value for rank, row in enumerate(z) if rank != SLOW for value in row)


def test_what_is_not_known_of_a_step_is_a_hole():
    found = stragglers(4, 50)
    z = own_time(found, {}).spec["data"][0]["z"]
    assert z[1][4] is None
    nothing = replace(found, own_time_ns=tuple(tuple(None for _ in row) for row in found.own_time_ns))
    assert own_time(nothing, {}) is None


def test_more_ranks_than_rows_are_binned_too():
    chart = own_time(stragglers(1_024, 20), {})
    assert len(chart.spec["data"][0]["z"]) == 128
    assert "mean of 8 ranks" in chart.note


def test_the_section_names_the_straggler_with_cause_and_evidence():
    ranks = section(comm_answers(), "ranks")
    assert "Rank 3 keeps the others waiting" in ranks.sentence
    assert "own-work" not in [chart.key for chart in ranks.charts]
    (found,) = ranks.parts
    assert found.lines == (
        ("watch", "Rank 3 is slowest in 81 % of the steps: more than chance gives, p\u00a0<\u00a00.001."),
    )
    row = found.tables[0].rows[0]
    assert row[6].text == "CPU taken away"
    assert row[7] == "its CPU share is 61 % against 99 %"


def test_chance_is_called_chance():
    answers = comm_answers()
    even = replace(answers, stragglers=replace(answers.stragglers, persistent=False, p_value=0.4))
    assert section(even, "ranks").parts[0].lines[0][1].startswith("No rank is slowest more often than chance gives")


def test_hostile_names_stay_text_and_ids_are_unique():
    read = Reader(render(hostile_comm(HOSTILE)).decode())
    assert not {tag for tag, _ in read.tags} & {"img", "iframe"}
    ids = [attributes["id"] for _, attributes in read.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    assert {attributes["href"][1:] for tag, attributes in read.tags if tag == "a"} <= set(ids)


def test_sixty_four_ranks_and_a_thousand_steps_keep_the_bound():
    html = render(comm_answers(64, 1_000))
    assert len(html) <= LIMIT_BYTES == 3_000_000
    assert html == render(comm_answers(64, 1_000))
