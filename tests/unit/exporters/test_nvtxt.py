"""NVTXT: what goes in comes out, by a reader that is as strict as Nsight's importer."""

import re
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agprof.errors import TraceError
from agprof.exporters import nvtxt
from agprof.exporters.lanes import FIRST_PID
from agprof.store.reader import read_run
from nvtxt_grammar import NvtxtError, parse
from runs_of_rows import MONOTONIC_NS, REALTIME_NS, run_of
from synthetic import EPOCH_NS, HOSTILE_NAMES, build_run

NAMES = st.one_of(
    st.text(max_size=20),
    st.sampled_from(['a "quoted" \\', "\\", 'x\\"', "a,b # c", "@RangePop", "0xFF", *HOSTILE_NAMES]),
)


def silent(_: str) -> None:
    pass


@st.composite
def spans_of_ranks(draw):
    """Rows of spans and collectives that nest, follow and cross as they like."""
    rows = {"spans": [], "collectives": []}
    for number in range(draw(st.integers(0, 40))):
        start = MONOTONIC_NS + draw(st.integers(0, 1000))
        row = {"rank": draw(st.integers(0, 2)), "step": 0, "start_ns": start, "thread": draw(st.integers(1, 3))}
        end = start + draw(st.integers(0, 400))
        if draw(st.booleans()):
            row |= {"span": number, "category": "range", "name": draw(NAMES), "end_ns": end}
            rows["spans"].append(row)
        else:
            row |= {"op": draw(NAMES), "async_op": True, "issue_end_ns": start, "end_ns": end, "group": "g"}
            rows["collectives"].append(row)
    return rows


@given(spans_of_ranks())
@settings(max_examples=100, deadline=None)
def test_random_spans_come_back(rows):
    with TemporaryDirectory() as folder:
        run = run_of(Path(folder) / "r", 3, rows)
        written = nvtxt.write(run, Path(folder) / "r.nvtxt", silent)
        document = parse(Path(folder) / "r.nvtxt")
    shift = REALTIME_NS - MONOTONIC_NS - written.epoch_ns
    wanted = Counter(
        (
            FIRST_PID + row["rank"],
            row["start_ns"] + shift,
            row["end_ns"] + shift,
            nvtxt.text(row.get("name", row.get("op"))),
        )
        for row in [*rows["spans"], *rows["collectives"]]
    )
    assert Counter((r.pid, r.start, r.end, r.name) for r in document.ranges) == wanted
    assert written.ranges == {rank: sum(pid == FIRST_PID + rank for pid, *_ in wanted.elements()) for rank in range(3)}
    assert set(document.processes) == {FIRST_PID, FIRST_PID + 1, FIRST_PID + 2}


@given(NAMES)
def test_a_name_stays_readable_and_breaks_nothing(name):
    text = nvtxt.text(name)
    assert '"' not in text and not text.endswith("\\")
    assert not re.search("[\x00-\x1f\x7f-\x9f]", text)
    for word in re.findall("[A-Za-z0-9_:<>(), ]+", name[:1000]):
        assert word in text


def test_a_long_name_is_cut_and_says_so():
    assert nvtxt.text("x" * 2**20) == "x" * (nvtxt.MAX_NAME - 1) + "…"


def test_a_whole_run(tmp_path):
    run = read_run(build_run(tmp_path / "run", hostile=True, async_ops=True, generations=1))
    (file,) = nvtxt.export(run, tmp_path, silent)
    document = parse(file)
    tables = {name: frame.filter(frame["rank"] == 1) for name, frame in run.tables.items() if "rank" in frame.columns}
    counted = ("steps", "spans", "collectives", "waits", "generations")
    of_rank_1 = [r for r in document.ranges if r.pid == FIRST_PID + 1]
    assert len(of_rank_1) == sum(tables[name].height for name in counted)
    assert sum(mark.pid == FIRST_PID + 1 for mark in document.marks) == tables["marks"].height
    names = Counter(r.name for r in of_rank_1)
    reduces = tables["collectives"].filter(tables["collectives"]["op"] == "all_reduce")
    assert names["all_reduce 4.00 MiB"] == reduces.height > 0
    assert names["step 3"] == 1
    assert {r.colour for r in of_rank_1 if r.name == "forward"} == {0xFF56B4E9}
    lanes = {name for (pid, _), name in document.threads.items() if pid == FIRST_PID + 1}
    assert {f"{lane}, rank 01" for lane in ("steps", "phases and ranges", "communication", "waits", "marks")} <= lanes
    assert len(set(document.threads.values())) == len(document.threads), "Nsight would lose names"
    # The first step's begin, to the nanosecond, through the epoch that the title carries.
    epoch = int(re.search(r"since (\d+) ns", document.title)[1])
    assert epoch + min(r.start for r in document.ranges if r.name == "step 0") == EPOCH_NS


def test_the_process_is_named_by_rank_and_host(tmp_path):
    run = run_of(tmp_path / "r", 2, {"marks": [{"rank": 0, "time_ns": MONOTONIC_NS, "step": 0, "name": "x"}]})
    nvtxt.write(run, tmp_path / "r.nvtxt", silent)
    assert parse(tmp_path / "r.nvtxt").processes == {FIRST_PID: "rank 00 (host)", FIRST_PID + 1: "rank 01 (host)"}


def test_spans_that_end_too_early_are_left_out_and_counted(tmp_path):
    good = {"rank": 0, "step": 0, "start_ns": MONOTONIC_NS, "end_ns": MONOTONIC_NS + 5}
    run = run_of(tmp_path / "r", 1, {"steps": [good, good | {"end_ns": MONOTONIC_NS - 5}]})
    said = []
    nvtxt.export(run, tmp_path, said.append)
    assert len(parse(tmp_path / "r.nvtxt").ranges) == 1
    assert said == ["r.nvtxt: 1 spans that end before they begin are left out"]


def test_times_that_a_double_does_not_hold_are_an_error(tmp_path):
    step = {"rank": 0, "step": 0, "start_ns": MONOTONIC_NS, "end_ns": MONOTONIC_NS + 5}
    late = {"rank": 0, "step": 1, "start_ns": MONOTONIC_NS + 2**53, "end_ns": MONOTONIC_NS + 2**53 + 1}
    run = run_of(tmp_path / "r", 1, {"steps": [step, late]})
    with pytest.raises(TraceError, match="104 days"):
        nvtxt.export(run, tmp_path, silent)
    assert list(tmp_path.glob("*nvtxt*")) == [], "half a file was left"


def test_an_empty_run(tmp_path):
    nvtxt.export(run_of(tmp_path / "r", 1, {}), tmp_path, silent)
    assert parse(tmp_path / "r.nvtxt").ranges == []


@pytest.mark.parametrize(
    "line",
    [
        'RangePush, 5, 1, 1, "x", 0xFF000000',
        "RangePop, 5, 1, 1",
        'RangePush, 5, 1000000, 1, "a"b", 0xFF000000',
        'RangePush, 5, 1000000, 1, "a\\", 0xFF000000',
        'RangePush, -5, 1000000, 1, "a", 0xFF000000',
        'RangePush, 5, 1000000, 1, "a"',
        'RangePush, 9007199254740992, 1000000, 1, "a", 0xFF000000',
        'RangePush, 5, 1000000, 1, "never closed", 0xFF000000',
        "NameThread, 1, 1",
        "Color = Red",
    ],
)
def test_the_reader_is_strict(tmp_path, line):
    file = tmp_path / "x.nvtxt"
    nvtxt.write(run_of(tmp_path / "r", 1, {}), file, silent)
    good = file.read_text(encoding="utf-8") + 'NameOsThread, 1000000, 1, "x"\n'
    file.write_text(good, encoding="utf-8")
    parse(file)
    file.write_text(good + line + "\n", encoding="utf-8")
    with pytest.raises(NvtxtError):
        parse(file)
