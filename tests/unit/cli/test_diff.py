"""`agprof diff` on run folders and on trace files."""

import json
import re
from pathlib import Path

import pytest

from agprof.cli.main import main
from agprof.model.trace_tables import GpuKind
from agprof.store.traces import TraceMeta, TraceWriter, write_meta


def write_run(run: Path, kernels: dict[str, int]) -> Path:
    writer = TraceWriter(run, 0)
    durations = list(kernels.values())
    starts = [sum(durations[:number]) for number in range(len(durations))]
    columns = {"start_ns": starts, "duration_ns": durations, "kind": [int(GpuKind.KERNEL)] * len(durations)}
    writer.append("gpu", {**columns, "name": [writer.name(name) for name in kernels]})
    writer.close()
    write_meta(run, 0, TraceMeta(format="kineto", source="test"))
    return run


@pytest.fixture
def runs(tmp_path: Path) -> tuple[str, str]:
    before = write_run(tmp_path / "before", {"gemm": 4_000_000, "old": 1_000_000, "kept": 7})
    after = write_run(tmp_path / "after", {"gemm": 1_000_000, "<script>[red]\x1b[31mnew": 2_000_000, "kept": 7})
    return str(before), str(after)


def agprof(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["diff", *argv])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_a_table_of_80_columns_with_the_largest_change_first(
    runs: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = agprof(capsys, *runs)
    assert code == 0
    assert "5.000 ms -> 3.000 ms (-2.000 ms, -40.0%)" in " ".join(out.split())
    lines = [line for line in out.splitlines() if not line.startswith(("A  ", "B  "))]
    assert max(map(len, lines)) <= 80
    rows = [line.split() for line in lines if re.match(r" *[+-]\d+\.\d{3} ", line)]
    assert [(row[0], row[-1]) for row in rows] == [
        ("-3.000", "gemm"), ("+2.000", "<script>[red]?[31mnew"), ("-1.000", "old"),
    ]  # fmt: skip
    assert "kept" not in out
    assert "\x1b" not in out


def test_json_holds_every_row_and_adds_up(runs: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = agprof(capsys, *runs, "--json")
    found = json.loads(out)
    assert code == 0
    assert {row["name"]: row["state"] for row in found["device"]} == {
        "gemm": "changed", "<script>[red]\x1b[31mnew": "appeared", "old": "vanished", "kept": "same",
    }  # fmt: skip
    assert sum(row["change_ns"] for row in found["device"]) == found["b"]["device_ns"] - found["a"]["device_ns"]


def test_top_limits_the_rows(runs: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = agprof(capsys, *runs, "--top", "1")
    assert "2 more changed; --top 3 shows all." in out
    _, out, _ = agprof(capsys, *runs, "--top", "1", "--json")
    assert [row["name"] for row in json.loads(out)["device"]] == ["gemm"]


def test_a_run_beside_itself_has_not_changed(runs: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = agprof(capsys, runs[0], runs[0])
    assert code == 0
    assert "5.000 ms on both sides; no name changed its count or time." in " ".join(out.split())
    assert "change ms" not in out


def test_trace_files_are_read_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, duration in (("a.json", 100), ("b.json", 150)):
        kernel = {"ph": "X", "cat": "kernel", "name": "k", "pid": 0, "tid": 7, "ts": 10, "dur": duration}
        kernel["args"] = {"device": 0, "stream": 7, "correlation": 1}
        (tmp_path / name).write_text(json.dumps({"schemaVersion": 1, "traceEvents": [kernel]}))
    code, out, _ = agprof(capsys, str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--json")
    assert code == 0
    assert [(row["name"], row["change_ns"]) for row in json.loads(out)["device"]] == [("k", 50_000)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.json"]


def test_a_runs_own_communication_kernels_are_known(runs: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    manifest = {"workload": {"kernels": {"communication": {"mine": "^gemm"}}}}
    (Path(runs[1]) / "run.json").write_text(json.dumps(manifest))
    code, out, _ = agprof(capsys, *runs, "--json")
    assert code == 0
    assert {row["name"]: row["kind"] for row in json.loads(out)["device"]}["gemm"] == "communication"


def test_a_run_without_traces_and_a_path_that_is_not_there_are_said(
    tmp_path: Path, runs: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "run.json").write_text("{}")
    code, _, err = agprof(capsys, runs[0], str(tmp_path / "empty"))
    assert (code, "holds no device traces" in err) == (4, True)
    code, _, err = agprof(capsys, str(tmp_path / "nowhere"), runs[0])
    assert (code, "is not there" in err) == (4, True)


def test_a_file_that_is_no_trace_is_said(
    tmp_path: Path, runs: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.json").write_text("no trace")
    code, _, err = agprof(capsys, runs[0], str(tmp_path / "x.json"))
    assert code == 5
    assert "x.json" in err
