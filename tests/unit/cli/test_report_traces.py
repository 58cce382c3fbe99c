"""`agprof report` on runs with device traces: kept answers, another tool's definitions, patterns of one's own."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from agprof.analysis import trace as analysis
from agprof.cli.main import main
from agprof.cli.report import write_report
from agprof.store import layout
from agprof.store.traces import TraceWriter, write_meta
from synthetic import build_run
from synthetic_trace import TraceBuilder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with the trace of one rank: two kernels, and a wait that HTA counts as busy."""
    folder = build_run(tmp_path / "run")
    build = TraceBuilder(base_ns=1_700_000_000_000_000_000)
    build.launch("gemm", 0, 10_000, 90_000, correlation=1).launch(
        "my_exchange", 150_000, 200_000, 50_000, correlation=2
    )
    trace = build.build()
    writer = TraceWriter(folder, 0)
    for name in ("gpu", "cpu", "names"):
        frame = trace.table(name)
        writer.append(name, {column: frame[column] for column in frame.columns})
    writer.close()
    write_meta(folder, 0, trace.meta)
    return folder


def _report(run: Path, **options: Any) -> dict[str, Any]:
    write_report(run, Console(), plain=True, **options)
    found: dict[str, Any] = json.loads((run / layout.REPORT_JSON).read_text())
    return found["trace"]  # type: ignore[no-any-return]


def test_a_second_report_computes_nothing_again(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _report(run)
    assert first["windows"][0]["idle_ns"] == 100_000

    def computed(*_: Any, **__: Any) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(analysis, "load_device", computed)
    assert _report(run) == first
    with pytest.raises(AssertionError, match="computed again"):
        (run / layout.TRACES / "rank-00000" / "trace.json").touch()
        _report(run)


def test_a_folder_that_cant_be_written_still_reports(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("agprof.store.trace_cache.keep_answer", refused)
    write_report(run, Console(), plain=True, out=tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / layout.REPORT_HTML).exists()


def test_htas_definitions(run: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["report", str(run), "--plain", "--compat", "hta"])
    assert ended.value.code == 0
    found = json.loads((run / layout.REPORT_JSON).read_text())["trace"]
    assert found["definitions"] == "hta"
    assert found["steps"] == []
    with pytest.raises(SystemExit) as ended:
        main(["report", str(run), "--compat", "tracelens"])
    assert ended.value.code == 2


def test_a_pattern_that_is_none_is_said(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads((run / layout.MANIFEST).read_text())
    manifest.setdefault("workload", {})["kernels"] = {"communication": {"mine": "^my_"}}
    (run / layout.MANIFEST).write_text(json.dumps(manifest))
    assert _report(run)["kernels"][1]["library"] == "mine"
    manifest["workload"]["kernels"]["communication"]["mine"] = "("
    (run / layout.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(SystemExit) as ended:
        main(["report", str(run), "--plain"])
    assert ended.value.code == 2
    assert "kernels.communication is no regular expression" in capsys.readouterr().err
