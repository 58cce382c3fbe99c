"""Nsight Systems itself reads what we write: the same ranges, counted by its own programs."""

import csv
import json
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from agprof.exporters import nsys_report
from agprof.exporters.lanes import FIRST_PID, processes
from agprof.launch.nsight import find_nsys, nsys_version
from agprof.launch.nsight_tools import base_report
from agprof.store.reader import Run, read_run
from runs_of_rows import MONOTONIC_NS, REALTIME_NS, run_of

pytestmark = pytest.mark.system("nsight-systems")

STEPS, RANKS = 5, 2
SECRET = "a-value-that-no-report-may-hold"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """A short AnomalyGPT on two ranks, with `traces: [nsys-rep]`."""
    out = tmp_path_factory.mktemp("runs")
    sets = {
        "traces": "[nsys-rep]",
        "args.steps": STEPS,
        "profile.total_steps": STEPS,
        "launch.ranks_per_node": RANKS,
    }
    words = [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
    done = subprocess.run(
        [sys.executable, "-m", "agprof", "run", "anomalygpt", "--plain", "--out", str(out), *words],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (folder,) = out.iterdir()
    return read_run(folder)


@pytest.fixture(scope="module")
def report(run) -> Path:
    return run.path / "exports" / f"{run.path.name}.nsys-rep"


def nsys(*words) -> str:
    program = find_nsys()
    assert program is not None
    done = subprocess.run([program, *map(str, words)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def test_the_json_export_of_nsight_holds_every_range_of_every_rank(run, report, tmp_path):
    nsys("export", "-q", "true", "-t", "json", "-f", "true", "-o", tmp_path / "x.json", report)
    found, marks, names, threads = Counter(), Counter(), {}, set()
    for line in (tmp_path / "x.json").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if (process := row.get("NvtxtMetaEvent", {}).get("Process")) is not None:
            names[int(process["GlobalProcessId"]) >> 24 & 0xFFFFFF] = process["Name"]
        if (thread := row.get("NvtxtMetaEvent", {}).get("Thread")) is not None:
            threads.add(thread["Name"])
        event = row.get("NvtxtEvent", {}).get("Nvtx")
        if event is None:
            continue
        pid = int(event["GlobalTid"]) >> 24 & 0xFFFFFF
        if event["Type"] == 70:
            start = int(event["Timestamp"])
            # An end that equals the start is left out of the JSON.
            found[pid, event["Text"], start, int(event.get("EndTimestamp", start))] += 1
        elif event["Type"] == 65:
            marks[pid] += 1
    wanted, wanted_marks = _of_run(run)
    assert found == wanted
    assert marks == wanted_marks
    assert {pid: name.split(" (")[0] for pid, name in names.items()} == {
        FIRST_PID + rank: f"rank {rank:02d}" for rank in range(RANKS)
    }
    assert {f"{lane}, rank {rank:02d}" for lane in ("steps", "communication") for rank in range(RANKS)} <= threads
    # Figures of the run that do not come from the exporter.
    for rank in range(RANKS):
        of_rank = Counter(name for (pid, name, _, _), n in found.items() for _ in range(n) if pid == FIRST_PID + rank)
        assert sum(of_rank[f"step {step}"] for step in range(STEPS)) == STEPS
        assert sum(of_rank.values()) == _rows(run, rank)


def test_nsys_stats_of_the_report_answers_with_our_domains(run, report):
    name = "nvtxpptrace" if (nsys_version(find_nsys()) or "") < "2023" else "nvtx_pushpop_trace"
    text = nsys("stats", "-q", "-f", "csv", "-r", name, report)
    rows = list(csv.DictReader(text[text.index("Start (ns)") :].splitlines()))
    found = Counter(int(row["PID"]) for row in rows)
    assert found == Counter({FIRST_PID + rank: _rows(run, rank) for rank in range(RANKS)})
    assert all(row["Name"].startswith("agprof:") for row in rows)
    per_name = Counter(row["Name"].removeprefix("agprof:") for row in rows)
    wanted, _ = _of_run(run)
    assert per_name == Counter(name for (_, name, _, _), n in wanted.items() for _ in range(n))


def test_the_payloads_are_the_bytes(run, report):
    with sqlite3.connect(report.with_suffix(".sqlite")) as database:
        (total,) = database.execute(
            "SELECT sum(e.int64Value) FROM NVTX_EVENTS e JOIN NVTX_EVENTS c ON c.category = e.category "
            "AND c.domainId = e.domainId AND c.globalTid >> 24 = e.globalTid >> 24 "
            "WHERE e.eventType = 59 AND c.eventType = 33 AND c.text = 'communication'"
        ).fetchone()
    assert total == run.tables["collectives"]["bytes"].sum() > 0


def test_the_base_report_holds_no_environment_but_its_own(tmp_path):
    """nsys takes down the environment of every process that it sees, and shows it in its exports."""
    with subprocess.Popen(["sleep", "60"], env={"AGPROF_TEST_SECRET": SECRET}) as other:
        try:
            base = base_report(find_nsys(), tmp_path, tmp_path / "cache")
        finally:
            other.kill()
    if not base.private:
        pytest.skip("no process namespaces here: such a report comes with a warning, and is not kept")
    nsys("export", "-q", "true", "-t", "json", "-f", "true", "-o", tmp_path / "x.json", base.file)
    text = (tmp_path / "x.json").read_text(encoding="utf-8", errors="replace")
    assert "/bin/true" in text
    assert SECRET not in text
    assert base_report(find_nsys(), tmp_path, tmp_path / "cache").file.parent == tmp_path / "cache"


def _rows(run: Run, rank: int) -> int:
    tables = ("steps", "spans", "device_spans", "collectives", "waits", "generations")
    return sum(run.tables[name].filter(run.tables[name]["rank"] == rank).height for name in tables)


def _of_run(run: Run) -> tuple[Counter, Counter]:
    """(pid, name, start, end) of every range and the marks per process, on the report's clock."""
    ranges, marks = Counter(), Counter()
    epoch = int((run.path / "exports" / f"{run.path.name}.nvtxt").read_text("utf-8").split("since ")[1].split(" ns")[0])
    for process in processes(run):
        marks[process.pid] = process.marks.height
        for lane in process.lanes:
            for name, start, end in lane.spans.select("name", "start_ns", "end_ns").iter_rows():
                ranges[process.pid, name, start - epoch, end - epoch] += 1
    return ranges, marks


SLEEPS_AND_SAYS_WHEN = """
import sys, time
begin = time.time_ns()
time.sleep(0.2)
open(sys.argv[1], "w").write(f"{begin} {time.time_ns()}")
"""


def test_our_spans_lie_on_the_time_line_of_a_report_that_nsys_captured(tmp_path):
    """A sleep that nsys saw and that we timed by the wall clock: one event of each, at one place."""
    nsys(
        *("profile", "-t", "osrt", "-s", "none", "--cpuctxsw=none", "-f", "true", "-o", tmp_path / "captured"),
        *(sys.executable, "-c", SLEEPS_AND_SAYS_WHEN, tmp_path / "when"),
    )
    begin, end = map(int, (tmp_path / "when").read_text(encoding="utf-8").split())
    shift = MONOTONIC_NS - REALTIME_NS
    span = {"rank": 0, "step": 0, "span": 0, "category": "range", "name": "the sleep", "thread": 1}
    run = run_of(tmp_path / "run", 1, {"spans": [span | {"start_ns": begin + shift, "end_ns": end + shift}]})
    (run.path / "nsys").mkdir(parents=True)
    (tmp_path / "captured.nsys-rep").rename(run.path / "nsys" / "rank-00000.nsys-rep")
    (tmp_path / "out").mkdir()
    said = []
    files = nsys_report.export(run, tmp_path / "out", said.append)
    report, database = files[-2:]
    assert (report.name, database.name) == ("rank-00000.nsys-rep", "rank-00000.sqlite")
    assert any("rank-00000.nsys-rep holds environment variables" in line for line in said)

    nsys("export", "-q", "true", "-t", "json", "-f", "true", "-o", tmp_path / "x.json", report)
    events = [json.loads(line) for line in (tmp_path / "x.json").read_text(encoding="utf-8").splitlines()]
    (ours,) = [event["NvtxtEvent"]["Nvtx"] for event in events if "NvtxtEvent" in event]
    with sqlite3.connect(database) as tables:
        sleeps = tables.execute("SELECT start, end FROM OSRT_API WHERE end - start > 200000000").fetchall()
        in_sqlite = tables.execute(
            "SELECT e.start, e.end FROM NVTX_EVENTS e JOIN NVTX_EVENTS d ON d.eventType = 75 "
            "AND d.text = 'run folder: agprof' WHERE e.eventType = 59 AND e.domainId = d.domainId"
        ).fetchall()
    assert in_sqlite == [(int(ours["Timestamp"]), int(ours["EndTimestamp"]))]
    nearest = min(sleeps, key=lambda sleep: abs(sleep[0] - in_sqlite[0][0]))
    # The sleep lies inside our span: a clock that is off by the analysis's start would be off by 100 ms and more.
    assert -100_000 < nearest[0] - in_sqlite[0][0] < 20_000_000
    assert -100_000 < in_sqlite[0][1] - nearest[1] < 20_000_000
