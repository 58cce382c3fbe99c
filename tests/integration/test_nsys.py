"""agprof run --nsys, for real: one report per rank, whose NVTX ranges are the run folder's spans."""

import json
import os
import sqlite3
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from agprof.launch.nsight import find_nsys
from agprof.store import layout
from agprof.store.reader import Run, read_run

pytestmark = pytest.mark.system("nsight-systems")

RANKS = 2
STEPS = 10
FIRST, LAST = 5, 7
"""What `nsys: true` captures."""
CLOSE_NS = 100_000
PREEMPTED_SHARE = 0.04
"""Most edges that may be further off. A range's border and its row are two readings within microseconds of each other,
always in the same order; a thread that loses its core in between finds up to milliseconds there. On a machine with five
times as many runnable threads as cores that was 1 % of the edges, and the kernel counted an involuntary switch of the
thread at every one of those that were looked at."""

COLLECTIVES = frozenset({"all_reduce", "all_gather", "reduce_scatter", "broadcast", "barrier", "reduce"})
PUSH_POP, START_END, MARK = 59, 60, 34
Ranges = Mapping[str, list[tuple[int, int]]]


@dataclass(frozen=True)
class Report:
    """What nsys says of one rank, on the clock of the run folder's tables."""

    ranges: Ranges
    capture: tuple[int, int]
    marks: list[tuple[int, str, int | None]]
    domains: set[str]


def run(out: Path, *words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "agprof", "run", "--plain", "--out", str(out), *words]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=env)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("nsys")
    sets = [f"launch.ranks_per_node={RANKS}", f"args.steps={STEPS}", f"profile.total_steps={STEPS}"]
    sets.append("profile.profile_step=null")  # which marks steps of its own as profiled
    done = run(out, "anomalygpt", "--nsys", *[word for item in sets for word in ("--set", item)])
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    (made,) = out.iterdir()
    return made


@pytest.fixture(scope="module")
def recorded(folder: Path) -> Run:
    return read_run(folder)


@pytest.fixture(scope="module")
def reports(folder: Path, recorded: Run) -> list[Report]:
    return [read_report(folder, recorded, rank) for rank in range(RANKS)]


def read_report(folder: Path, recorded: Run, rank: int) -> Report:
    database = folder / f"rank{rank}.sqlite"
    report = folder / layout.NSYS / f"{layout.rank_stem(rank)}.nsys-rep"
    nsys = find_nsys()
    assert nsys is not None
    subprocess.run([nsys, "export", "-q", "true", "-t", "sqlite", "-f", "true", "-o", database, report], check=True)
    with sqlite3.connect(database) as connection:
        (epoch_ns,) = connection.execute("select utcEpochNs from TARGET_INFO_SESSION_START_TIME").fetchone()
        rows = connection.execute(
            "select start, end, eventType, coalesce(text, (select value from StringIds where id = textId)), int64Value "
            "from NVTX_EVENTS order by start"
        ).fetchall()
    (stream,) = [stream for stream in recorded.streams if stream.scope == "rank" and stream.number == rank]
    clock = stream.header["clock"]
    shift_ns = epoch_ns - (clock["realtime_ns"] - clock["monotonic_ns"])
    ranges: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for start, end, kind, name, _payload in rows:
        if kind in (PUSH_POP, START_END):
            ranges[name].append((start + shift_ns, end + shift_ns))
    (capture,) = ranges.pop("agprof.capture")
    # What was open when the capture ended is given its end.
    whole = {name: [span for span in spans if span[1] != capture[1]] for name, spans in ranges.items()}
    return Report(
        ranges={name: spans for name, spans in whole.items() if spans},
        capture=capture,
        marks=[(start + shift_ns, name, payload) for start, _end, kind, name, payload in rows if kind == MARK],
        domains={name for _start, _end, kind, name, _payload in rows if kind == 75},
    )


def recorded_ranges(recorded: Run, rank: int, window: tuple[int, int]) -> Ranges:
    """What the run folder says of the same time, under the names of the NVTX ranges."""
    tables = {name: recorded.tables[name].filter(rank=rank) for name in ("steps", "spans", "collectives", "waits")}
    rows: list[tuple[str, int, int]] = []
    rows += [(f"step {step}", a, b) for step, a, b in tables["steps"].select("step", "start_ns", "end_ns").rows()]
    rows += tables["spans"].select("name", "start_ns", "end_ns").rows()
    rows += tables["collectives"].select("op", "start_ns", "issue_end_ns").rows()
    rows += [(f"wait {op}", a, b) for op, a, b in tables["waits"].select("op", "start_ns", "end_ns").rows()]
    found: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for name, start, end in rows:
        if window[0] <= start and end <= window[1]:
            found[name].append((start, end))
    return found


def test_there_is_one_report_per_rank_and_nothing_else_is_left(folder: Path) -> None:
    names = sorted(path.name for path in (folder / layout.NSYS).iterdir())
    assert names == [f"rank-{rank:05d}{end}" for rank in range(RANKS) for end in (".json", ".log", ".nsys-rep")]


def test_the_captured_steps_are_whole(reports: list[Report]) -> None:
    for report in reports:
        steps = sorted(name for name in report.ranges if name.startswith("step "))
        assert steps == [f"step {step}" for step in range(FIRST, LAST + 1)]
        assert report.domains == {"agprof"}


def test_every_range_of_the_capture_is_a_span_of_the_run_folder(recorded: Run, reports: list[Report]) -> None:
    """Steps, phases, ranges of the user, collectives and waits: the same names, as often."""
    for rank, report in enumerate(reports):
        ours = recorded_ranges(recorded, rank, report.capture)
        assert {name: len(spans) for name, spans in report.ranges.items()} == {n: len(s) for n, s in ours.items()}
        for name in ("forward", "backward", "optimizer", "data", "all_reduce", "all_gather"):
            assert len(ours[name]) >= LAST - FIRST + 1, name


def test_both_stand_at_the_same_time_to_100_microseconds(recorded: Run, reports: list[Report]) -> None:
    for rank, report in enumerate(reports):
        ours = recorded_ranges(recorded, rank, report.capture)
        later: list[int] = []
        """By how much the range's border stands after the row's."""
        for name, spans in report.ranges.items():
            operation = name.startswith("wait ") or name in COLLECTIVES
            for theirs, mine in zip(sorted(spans), sorted(ours[name]), strict=True):
                # What an operation is measured by lies within its range, that of the others before both borders.
                later.append((mine[0] - theirs[0]) if operation else (theirs[0] - mine[0]))
                later.append(theirs[1] - mine[1])
        assert len(later) > 150
        assert -CLOSE_NS < median(later) < CLOSE_NS, "a systematic difference"
        assert min(later) > -CLOSE_NS, "the wrong way round: no lost core explains it"
        far = [apart for apart in later if apart > CLOSE_NS]
        assert len(far) <= PREEMPTED_SHARE * len(later), sorted(far)


def test_the_first_word_of_a_report_is_its_rank(reports: list[Report]) -> None:
    for rank, report in enumerate(reports):
        first, *others = report.marks
        assert first[1:] == ("agprof.rank", rank)
        assert report.capture[0] < first[0] < min(start for spans in report.ranges.values() for start, _ in spans)
        clocks = [(time_ns, payload) for time_ns, name, payload in others if name == "agprof.monotonic_ns"]
        assert len(clocks) == 2, "at both ends of the capture"
        later = [time_ns - (payload or 0) for time_ns, payload in clocks]
        assert min(later) > -CLOSE_NS and min(map(abs, later)) < CLOSE_NS


def test_steps_are_measured_as_ever_and_the_cost_is_told(folder: Path, recorded: Run) -> None:
    rows = recorded.tables["facts"].filter(rank=0).select("key", "value").rows()
    facts = {key: json.loads(value) for key, value in rows}
    assert facts["nsys.steps"] == [FIRST, LAST]
    steps = recorded.tables["steps"].filter(rank=0)
    assert steps["step"].to_list() == list(range(STEPS))
    assert recorded.tables["faults"].rows() == []
    profiled = steps.filter(steps["profiled"])["step"].to_list()
    assert profiled == [FIRST - 1, LAST + 1], "the steps that the begin and the end of the capture fall into"
    notes = " ".join(json.loads((folder / layout.REPORT_JSON).read_text())["quality"]["notes"])
    assert "nsys held 2 ranks" in notes
    assert f"nsys captured steps {FIRST} to {LAST}" in notes


SCRIPT = """
import os, signal, torch, torch.distributed as dist
dist.init_process_group("gloo")
model = torch.nn.Linear(8, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(8):
    model(torch.ones(2, 8)).sum().backward()
    dist.all_reduce(model.weight.grad)
    optimizer.step()
    if step == 6 and dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("how", ["workload", "command"])
def test_a_killed_rank_is_named_and_its_signal_passed_on(tmp_path: Path, how: str) -> None:
    script = tmp_path / "job.py"
    script.write_text(SCRIPT)
    if how == "workload":
        (tmp_path / "job.yaml").write_text("name: job\nscript: job.py\nlaunch: {ranks_per_node: 2}\nnsys: true\n")
        done = run(tmp_path / "out", str(tmp_path / "job.yaml"))
        assert done.returncode == 137, done.stderr[-3000:]
    else:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
        done = run(tmp_path / "out", "--nsys", "--", *torchrun, str(script))
        assert done.returncode == 1, "torchrun's own"
    (folder,) = (tmp_path / "out").iterdir()
    outcome: dict[str, Any] = json.loads((folder / layout.OUTCOME).read_text())
    cause = outcome["failures"][0]
    assert (cause["rank"], cause["signal"]) == (1, "SIGKILL")
    assert "rank 1 killed by SIGKILL" in done.stderr
    assert (folder / layout.NSYS / "rank-00001.nsys-rep").stat().st_size > 0
    told = json.loads((folder / layout.NSYS / "rank-00001.json").read_text())
    assert cause["pid"] == told["pid"], "the rank's own process, and not nsys above it"
