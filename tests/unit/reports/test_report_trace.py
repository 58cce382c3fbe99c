"""The section on device traces as data: parts that add up, names that stay whole, slices that come back as given."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agprof.model.trace_answers import CriticalSegment, KernelRow, TraceLane, TraceTimeline
from agprof_reports import page, run, tables, trace, trace_tables
from agprof_reports.charts import trace_timeline
from agprof_reports.charts.communication import collectives
from agprof_reports.charts.trace_time import PARTS, STEP_BARS, device_steps, device_time, parts_of
from sample_answers import sample_answers
from sample_trace_answers import (
    CAUSES,
    KINDS,
    breakdown,
    hostile_trace,
    sample_timeline,
    sample_trace,
    with_hostile_trace,
    with_trace,
    without_device,
)


def parts_by_key(answer):
    return {part.key: part for part in trace.section(answer).parts}


def numbers(data):
    """Unsigned LEB128 numbers, read back."""
    value, shift = 0, 0
    for byte in data:
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            yield value
            value, shift = 0, 0
    assert shift == 0


def unpacked(slices):
    """Lane by lane: label, slices (begin, duration, name, kind), numbers of marked slices. As timeline.js does it."""
    head, stream = slices.head, numbers(slices.columns)
    lanes = []
    for lane in head["lanes"]:
        count, at, begins = lane["count"], 0, []
        for _ in range(count):
            at += next(stream)
            begins.append(at)
        durations = [next(stream) for _ in range(count)]
        pairs = [head["pairs"][next(stream)] for _ in range(count)]
        marks, at = [], 0
        for _ in range(lane["marks"]):
            at += next(stream)
            marks.append(at)
        named = [(head["names"][name], head["kinds"][kind]["word"]) for name, kind in pairs]
        rows = [(b, d, *words) for b, d, words in zip(begins, durations, named, strict=True)]
        lanes.append((lane["label"], rows, marks))
    assert next(stream, None) is None
    return lanes


def test_the_section_stands_after_compute_and_only_where_there_is_a_trace():
    keys = [section.key for section in page.build(with_trace()).sections]
    assert keys[keys.index("compute") + 1] == "trace"
    assert "trace" not in [section.key for section in page.build(sample_answers()).sections]


def test_a_finding_may_point_to_it_only_when_it_is_there():
    answers = with_trace()
    finding = replace(answers.findings[0], section="trace")
    assert page.build(replace(answers, findings=(finding,))).findings[0].section_title == "Device trace"
    assert page.build(replace(answers, findings=(finding,), trace=None)).findings[0].section == ""


def test_every_part_opens_with_a_sentence():
    for part in trace.section(sample_trace()).parts:
        assert part.sentence.endswith("."), part.key


@pytest.mark.parametrize("ranks", [1, 2, 64])
def test_the_parts_of_a_bar_add_up_to_the_window(ranks):
    answer = sample_trace(ranks)
    chart = device_time(answer.windows)
    assert len(chart.bars) == ranks
    for bar, row in zip(chart.bars, answer.windows, strict=True):
        assert sum(value for _, value in bar.parts) * 1e6 == pytest.approx(row.window_ns, rel=1e-12)
        assert sum(parts_of(row).values()) == row.window_ns
    drawn = [sum(trace["x"][i] for trace in chart.spec["data"]) for i in range(ranks)]
    assert drawn == pytest.approx([row.window_ns / 1e6 for row in answer.windows], rel=1e-2)


def test_every_cause_of_idle_has_a_colour_and_a_word():
    row = breakdown(random.Random(1), 0, 0)
    assert set(row.idle_by_cause_ns) == set(CAUSES)
    assert {*parts_of(row), "other"} == set(PARTS)  # other is that of HTA


def test_parts_that_no_rank_has_take_no_room_in_the_legend():
    row = replace(sample_trace(1).windows[0], exposed_memset_ns=0)
    assert "memset" not in [name for name, _ in device_time((row,)).legend]


def test_many_steps_are_drawn_by_their_longest_rank_and_listed_at_even_distances():
    rng = random.Random(2)
    rows = tuple(breakdown(rng, rank, step, 1000 + 10 * rank) for step in range(20) for rank in range(4))
    chart = device_steps(rows)
    assert [bar.label for bar in chart.bars] == [f"step {step}" for step in range(20)]
    assert chart.note == "Drawn: of each step its longest rank, 20 of 80 rows."
    many = tuple(breakdown(rng, 0, step) for step in range(2000))
    chart = device_steps(many)
    assert len(chart.bars) == STEP_BARS
    assert len(chart.table.rows) == trace_tables.BREAKDOWN_ROWS
    assert chart.table.note.startswith(f"{trace_tables.BREAKDOWN_ROWS} of 2,000 rows")


def test_kernels_keep_their_order_their_class_and_can_be_sifted_by_it():
    answer = sample_trace()
    table = parts_by_key(answer)["trace-kernels"].tables[0]
    assert [row[0] for row in table.rows] == [kernel.name for kernel in answer.kernels]
    assert table.columns[table.filter_column].label == "class"
    assert {row[table.filter_column] for row in table.rows} == {
        "compute", "communication, nccl", "memcpy", "memset"
    }  # fmt: skip


def test_names_of_many_kernels_fit_the_page_and_the_first_stay_whole():
    row = sample_trace().kernels[0]
    rows = [replace(row, name=f"{i:04d}" + "k" * 3000) for i in range(2000)]
    table = trace_tables.kernels("table", "Kernels", rows)
    assert len(table.rows) == trace_tables.KERNEL_ROWS
    assert table.note == "The 500 of 2,000 names with the most time; report.json has all."
    assert table.rows[0][0] == rows[0].name
    assert len(table.rows[-1][0]) == trace_tables.SHORT_NAME
    assert sum(len(line[0]) for line in table.rows) < 1.5 * trace_tables.NAMES_BYTES


def test_unmatched_collectives_show_a_dash_and_not_zero():
    rows = trace_tables.collectives(sample_trace().collectives).rows
    labels = [column.label for column in trace_tables.collectives(sample_trace().collectives).columns]
    unknown = dict(zip(labels, rows[1], strict=True))
    for label in ("size of a call", "transfer", "wait", "algorithm bandwidth", "bus bandwidth", "group"):
        assert unknown[label] in ("–", unknown[label]) and str(getattr(unknown[label], "text", unknown[label])) == "–"


def test_callers_and_devices_are_told_apart_where_both_communicate():
    def lines(answers):
        return [line for s in page.build(answers).sections if s.key == "communication" for _, line in s.lines]

    assert any("Device trace" in line for line in lines(with_trace()))
    assert not any("Device trace" in line for line in lines(sample_answers()))
    assert not any(
        "Device trace" in line for line in lines(replace(with_trace(), trace=without_device(sample_trace())))
    )


def test_a_group_of_unknown_size_has_a_dash():
    answers = sample_answers()
    row = replace(answers.communication.rows[0], group="unknown", group_size=0)
    table = tables.collectives([row])
    cell = table.rows[0][[column.label for column in table.columns].index("ranks")]
    assert str(getattr(cell, "text", cell)) == "–"
    chart = collectives(replace(answers.communication, rows=(row,)))
    assert all("unknown group, issued" in text for trace_ in chart.spec["data"] for text in trace_["customdata"])


def test_no_straggler_is_named_where_none_is():
    answer = sample_trace()
    rows = tuple(replace(row, is_straggler=False) for row in answer.stragglers)
    part = parts_by_key(replace(answer, stragglers=rows, stragglers_sentence="No rank holds up the others."))
    assert part["trace-stragglers"].sentence == "No rank holds up the others."
    assert [row[-1] for row in part["trace-stragglers"].tables[0].rows] == ["no", "no"]


def test_a_trace_without_a_device_says_so_and_shows_no_zeros():
    answer = without_device(sample_trace())
    section = trace.section(answer)
    assert section.sentence == "No trace holds an activity of a device, so there is no device time to divide."
    assert [part.key for part in section.parts] == ["trace-quality"]


def test_a_device_without_communication_says_so():
    answer = replace(sample_trace(1), collectives=(), communication_sentence="", unclassified=())
    part = parts_by_key(answer)["trace-communication"]
    assert (part.sentence, part.tables) == ("No communication kernel is in the traces.", ())


def test_the_definitions_of_hta_are_told():
    lines = trace.section(replace(sample_trace(), definitions="hta")).lines
    assert "HolisticTraceAnalysis" in lines[0][1]
    assert trace.section(sample_trace()).lines == ()


def test_notes_on_quality_are_told_once_with_their_ranks():
    answer = sample_trace(3)
    assert parts_by_key(answer)["trace-quality"].lines == (
        ("watch", "Ranks 1 and 2: no distributedInfo: the rank is from the file's name"),
    )


def test_slices_come_back_as_they_were():
    timeline = sample_timeline(500)
    lanes = unpacked(trace_timeline.slices(timeline, None))
    assert [label for label, _, _ in lanes] == [lane.label for lane in timeline.lanes]
    for (_, rows, marks), lane in zip(lanes, timeline.lanes, strict=True):
        expected = zip(lane.start_ns, lane.duration_ns, lane.name, lane.kind, strict=True)
        words = {kind: trace_timeline.KINDS[KINDS[kind]] for kind in set(lane.kind)}
        assert rows == [(s, d, timeline.names[n], words[k]) for s, d, n, k in expected]
        assert marks == []


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 2**53), st.integers(0, 2**45), st.integers(0, 3), st.integers(0, 9))),
        max_size=4,
    )
)
def test_any_slices_come_back_sorted_and_complete(lanes):
    timeline = TraceTimeline(
        rank=0,
        step=None,
        start_ns=5,
        window_ns=2**53,
        names=("a", "b", "<script>", ""),
        kinds=KINDS,
        lanes=tuple(
            TraceLane(
                label="stream",
                group="device",
                depth=0,
                start_ns=tuple(row[0] for row in rows),
                duration_ns=tuple(row[1] for row in rows),
                name=tuple(row[2] for row in rows),
                kind=tuple(row[3] for row in rows),
            )
            for rows in lanes
        ),
    )
    found = unpacked(trace_timeline.slices(timeline, None))
    assert [[row[:2] for row in rows] for _, rows, _ in found] == [sorted(row[:2] for row in rows) for rows in lanes]
    flat = sorted((b, d, timeline.names[n], trace_timeline.KINDS[KINDS[k]]) for rows in lanes for b, d, n, k in rows)
    assert sorted(row for _, rows, _ in found for row in rows) == flat


def segment(name, start_ns, duration_ns, *, on_device=True, category="kernel", lane=None):
    return CriticalSegment(
        category=category, name=name, start_ns=start_ns, duration_ns=duration_ns, on_device=on_device, lane=lane
    )


def path_over(*segments):
    answer = sample_trace()
    return replace(answer.critical_path, segments=segments, start_ns=1000, total_ns=100)


def timeline_of(*lanes):
    return replace(sample_timeline(60), names=("k", "op"), lanes=lanes, start_ns=1000, window_ns=100)


def lane_of(label, group, *rows):
    start, duration, name = zip(*rows, strict=True)
    return TraceLane(
        label=label, group=group, depth=0, start_ns=start, duration_ns=duration, name=name, kind=(0,) * len(rows)
    )


def test_the_critical_path_marks_the_slices_it_goes_through_and_no_others():
    timeline = timeline_of(
        lane_of("stream 7", "device", (0, 10, 0), (10, 10, 0), (50, 20, 0)),
        lane_of("stream 8", "device", (0, 10, 0), (50, 20, 0)),
        lane_of("thread 1", "host", (0, 5, 1), (20, 30, 1), (52, 5, 0)),
    )
    path = path_over(
        segment("k", 1010, 10, lane=7),
        segment("op", 1025, 5, on_device=False, category="operator", lane=1),  # a piece inside a slice
        segment("k", 1045, 5, category="launch latency", lane=7),  # lies before its kernel
        segment("k", 1050, 20, lane=7),
    )
    slices = trace_timeline.slices(timeline, path)
    lanes = unpacked(slices)
    assert [marks for _, _, marks in lanes] == [[1, 2], [], [1], []]
    label, rows, _ = lanes[-1]
    assert label == "critical path"
    assert rows == [
        (10, 10, "k", "kernel"), (25, 5, "op", "operator"), (45, 5, "k", "launch latency"), (50, 20, "k", "kernel")
    ]  # fmt: skip
    assert slices.note.endswith("Outlined: what the critical path goes through.")


def test_the_path_of_another_rank_is_not_drawn():
    timeline = sample_timeline(100)
    path = replace(sample_trace().critical_path, rank=1)
    slices = trace_timeline.slices(timeline, path)
    assert len(slices.head["lanes"]) == len(timeline.lanes)
    assert "The critical path is that of rank 1, which this window does not show." in slices.note


def test_pieces_of_the_path_outside_the_window_are_cut():
    timeline = timeline_of(lane_of("stream 7", "device", (0, 10, 0)))
    path = path_over(segment("k", 990, 20), segment("k", 1095, 20), segment("k", 2000, 5))
    assert [row[:2] for row in unpacked(trace_timeline.slices(timeline, path))[-1][1]] == [(0, 10), (95, 5)]


def test_of_too_many_slices_the_longest_stay_and_it_is_said():
    timeline = sample_timeline(2_000)
    slices = trace_timeline.slices(timeline, None, most=300)
    kept = [row[1] for _, rows, _ in unpacked(slices) for row in rows]
    left_out = sorted((ns for lane in timeline.lanes for ns in lane.duration_ns), reverse=True)[len(kept) :]
    assert 0 < len(kept) <= 300
    assert min(kept) >= max(left_out)
    assert f"Drawn: the {len(kept)} longest of 2,000 slices" in slices.note


def test_long_and_hostile_names_reach_the_time_line_cut_and_cleaned():
    head = trace_timeline.slices(hostile_trace("\x00\u202e" + "x" * 1_000_000).timeline, None).head
    assert max(len(name) for name in head["names"]) == trace_timeline.NAME_LIMIT
    assert not set("\x00\u202e") & set("".join(head["names"]))


@pytest.mark.parametrize(("ranks", "slices", "steps"), [(2, 100_000, 4), (64, 120_000, 20)])
def test_the_page_keeps_its_bound(ranks, slices, steps):
    html = run.render(with_trace(ranks, slices, steps))
    assert len(html) <= run.LIMIT_BYTES


def test_the_largest_run_keeps_the_bound_with_fewer_slices():
    answers = replace(sample_answers(64, 1000), trace=sample_trace(64, 100_000, 20))
    html = run.render(answers)
    assert len(html) <= run.LIMIT_BYTES
    assert "longest of 100,000 slices" in html.decode()


def test_names_of_a_megabyte_do_not_grow_the_page():
    assert len(run.render(with_hostile_trace("x" * 1_000_000))) <= run.LIMIT_BYTES


def test_the_same_answers_give_the_same_bytes():
    assert run.render(with_trace()) == run.render(with_trace())


def test_answers_are_left_as_they_were():
    answer = sample_trace()
    before = repr(answer)
    trace.section(answer)
    assert repr(answer) == before


def test_a_kernel_row_of_every_class_is_shown():
    kinds = [("compute", None), ("communication", None), ("memcpy", None), ("memset", None)]
    rows = [
        KernelRow(
            name=kind, kind=kind, library=library, count=1, sum_ns=1, mean_ns=1.0, min_ns=1, max_ns=1, share=1, ranks=1
        )
        for kind, library in kinds
    ]
    assert [row[1] for row in trace_tables.kernels("table", "Kernels", rows).rows] == [kind for kind, _ in kinds]


def imported(answers):
    """As a trace alone gives it: nothing of agprof's own ran."""
    blank = lambda kpis: tuple(  # noqa: E731
        replace(kpi, figure=replace(kpi.figure, value=None, low=None, high=None, reason="no optimizer step was seen"))
        for kpi in kpis
    )
    step_time = blank(answers.kpis[:1])[0].figure
    return replace(
        answers,
        identity=replace(answers.identity, status="imported", status_sentence="imported from one Kineto trace"),
        kpis=blank(answers.kpis),
        time=replace(answers.time, step_time=step_time),
        system=replace(answers.system, figures=blank(answers.system.figures), curves=()),
        ranks=tuple(replace(row, ended="imported", steps=0, last_step=0) for row in answers.ranks),
    )


def test_an_import_has_sentences_in_place_of_dashes_and_zeros():
    built = page.build(imported(replace(sample_answers(1, 0), trace=sample_trace(1))))
    assert built.status_mark == ""
    assert built.kpis == ()
    assert built.kpis_sentence == (
        "No figure of a step: no optimizer step was seen. The device trace has figures of its own."
    )
    sections = {section.key: section for section in built.sections}
    assert sections["system"].cards == ()
    assert sections["ranks"].sentence == "1 rank, known from its trace alone."
    table = sections["ranks"].tables[0]
    row = dict(zip((column.label for column in table.columns), table.rows[0], strict=True))
    assert (row["ended"].text, row["ended"].mark) == ("imported", "")
    assert (row["last step"], row["instruments' faults"]) == ("–", "–")
    run.render(imported(replace(sample_answers(1, 0), trace=without_device(sample_trace(1)))))


def test_steps_that_are_the_whole_windows_are_not_drawn_twice():
    answer = sample_trace(2, steps=1)
    part = parts_by_key(answer)["trace-time"]
    assert [chart.key for chart in part.charts] == ["trace-ranks"]
    assert part.lines == (("", "Each rank's window is one profiler step."),)


def test_many_operators_leave_room_for_modules_and_phases():
    groups = sample_trace().groups
    ops = [replace(groups[0], name=f"op {i}") for i in range(500)]
    table = trace_tables.groups((*ops, *groups))
    kinds = [row[0] for row in table.rows]
    assert (kinds.count("op"), kinds.count("module"), kinds.count("phase")) == (trace_tables.GROUP_ROWS, 2, 3)
    assert table.note == "At most 150 of each kind, 155 of 508; report.json has all."


def test_what_has_no_known_cause_is_not_named_as_the_largest():
    answer = sample_trace()
    lost = replace(answer.groups[0], name="launch not in the trace", share=0.9, sum_ns=10**12)
    part = parts_by_key(replace(answer, groups=(lost, *answer.groups)))["trace-groups"]
    assert part.sentence.startswith("Most device time comes from operator `aten::mm` (55\u00a0%); module")


@pytest.mark.parametrize(
    ("bound_by", "colour", "word"),
    [
        ("compute", "compute", "compute"),
        ("copies", "memcpy", "copies"),
        ("launch", "idle-launch", "the host's launches"),
        ("kernel wait", "idle-kernel-wait", "waits on the device"),
        ("synchronisation", "idle-synchronisation", "synchronisation"),
    ],
)
def test_a_verdict_on_the_device_has_a_colour_and_a_word(bound_by, colour, word):
    answers = with_trace()
    built = page.build(replace(answers, verdict=replace(answers.verdict, bound_by=bound_by)))
    assert (built.bound_by, built.bound_word) == (colour, word)


def test_the_verdict_on_an_import_stands_over_the_devices_time():
    built = page.build(imported(with_trace()))
    steps = with_trace().trace.steps
    mean_ms = sum(row.window_ns for row in steps) / len(steps) / 1e6
    assert sum(value for _, value in built.step_bar.parts) == pytest.approx(mean_ms)
    assert built.step_bar_title == "The mean step of the devices, divided into what they do"
    assert [name for name, _ in built.step_bar_legend] == [name for name, _ in built.step_bar.parts]
    assert [name for name, _ in page.build(with_trace()).step_bar.parts][:2] == ["data", "forward"]


def test_savings_of_a_trace_without_steps_count_for_a_window():
    answers = imported(replace(sample_answers(1, 0), trace=sample_trace(1)))
    assert page.build(replace(answers, time=replace(answers.time, steady_steps=0))).per == "a window"
    assert page.build(with_trace()).per == "a step"


def test_a_window_of_no_length_can_be_drawn():
    timeline = replace(timeline_of(lane_of("stream 7", "device", (0, 0, 0))), window_ns=0)
    assert trace_timeline.slices(timeline, None).head["window"] == 1
