"""agprof import: options, messages, exit codes, and every real trace up to its report."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from agprof.cli import reading
from agprof.cli.import_ import parse_communication, parse_size
from agprof.cli.main import main
from agprof.errors import ConfigError
from agprof.launch import nsight
from agprof.store import layout
from agprof.store.reader import read_run

TRACE = {
    "schemaVersion": 1,
    "baseTimeNanoseconds": 1_700_000_000_000_000_000,
    "traceEvents": [
        {"ph": "X", "cat": "user_annotation", "name": "ProfilerStep#1", "pid": 1, "tid": 1, "ts": 0, "dur": 100.5},
        {"ph": "X", "cat": "kernel", "name": "<script>alert(1)</script>", "pid": 0, "tid": 7, "ts": 20, "dur": 30,
         "args": {"device": 0, "stream": 7}},
    ],
}  # fmt: skip

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `agprof import` in an empty folder: exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*argv: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(["import", *argv])
        assert isinstance(caught.value.code, int)
        return caught.value.code, *capsys.readouterr()

    return call


@pytest.fixture
def trace(tmp_path: Path) -> str:
    (tmp_path / "trace.json").write_text(json.dumps(TRACE))
    return "trace.json"


def test_the_run_folder_is_named_after_the_file_and_the_report_is_written(run: Run, trace: str, tmp_path: Path) -> None:
    code, out, err = run(trace)
    assert (code, err) == (0, "")
    (folder,) = (tmp_path / "agprof-runs").iterdir()
    assert folder.name.startswith("trace-2")
    lines = out.splitlines()
    assert lines[0] == "trace: imported from one Kineto trace, 1 step on 1 rank"
    assert lines[-1] == str(folder / layout.REPORT_HTML)
    assert (folder / layout.REPORT_HTML).stat().st_size > 1000
    assert json.loads((folder / layout.REPORT_JSON).read_text())["identity"]["status"] == "imported"


def test_the_folder_and_the_name_can_be_given(run: Run, trace: str, tmp_path: Path) -> None:
    assert run(trace, "--out", "deep/er", "--name", "tuesday", "--communication", "mine=^k")[0] == 0
    manifest = read_run(tmp_path / "deep" / "er").manifest
    assert manifest["name"] == "tuesday"
    assert manifest["workload"]["kernels"]["communication"] == {"mine": "^k"}
    code, _, err = run(trace, "--out", "deep/er")
    assert code == 4
    assert "exists already" in err


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        ((), 2, "Missing argument"),
        (("missing.json",), 5, "there is no such file"),
        (("trace.json", "--communication", "x"), 2, "write LIBRARY=REGEX"),
        (("trace.json", "--communication", "x=("), 2, "no regular expression"),
        (("trace.json", "--max-size", "much"), 2, "write it as 64GiB"),
        (("trace.json", "--name", "../x"), 2, "--name '../x': must be 1 to 64 letters"),
        (("trace.json", "--name", ""), 2, "--name '': must be 1 to 64 letters"),
        (("trace.json", "--out", "x" * 300), 4, "File name too long"),
        (("trace.json", "./trace.json"), 5, "is given twice"),
        (("folder", "folder/trace.json"), 5, "is given twice"),
        (("x.nsys-rep",), 5, "nsys export --type sqlite --output x.sqlite x.nsys-rep"),
    ],
)
def test_what_can_be_wrong(
    run: Run, trace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: tuple[str, ...], code: int, words: str
) -> None:
    monkeypatch.setattr(nsight, "find_nsys", lambda: None)
    (tmp_path / "x.nsys-rep").write_bytes(b"\x01container")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "trace.json").write_text(json.dumps(TRACE))
    before = set(tmp_path.rglob("*"))
    found, out, err = run(*argv)
    assert found == code, err
    assert words in err
    if code:
        assert out == ""
        assert set(tmp_path.rglob("*")) == before


def test_a_report_is_exported_by_the_nsys_that_is_here(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for nsys: checks the command that it is called with and copies an export."""
    import sqlite3

    with sqlite3.connect(tmp_path / "export.sqlite") as connection:
        connection.execute("CREATE TABLE NVTX_EVENTS (start, end, eventType, text, globalTid)")
        connection.execute("INSERT INTO NVTX_EVENTS VALUES (0, 50, 59, 'step 3', 4294967297)")
    nsys = tmp_path / "nsys"
    nsys.write_text(
        f'#!/bin/sh\n[ "$1 $2 $3 $4 $5 $6 $7" = "export -q true -t sqlite -f true" ] || exit 9\n'
        f'[ -z "$SECRET" ] || exit 8\ncp {tmp_path}/export.sqlite "$9"\n'
    )
    nsys.chmod(0o755)
    (tmp_path / "x.nsys-rep").write_bytes(b"\x01container")
    monkeypatch.setenv("SECRET", "1")
    monkeypatch.setattr(nsight, "find_nsys", lambda: nsys)
    code, out, err = run("x.nsys-rep", "--out", "made")
    assert (code, err) == (0, "")
    assert out.startswith("x: imported from one nsys trace, 1 step on 1 rank")
    nsys.write_text("#!/bin/sh\necho 'newer than this nsys' >&2\nexit 1\n")
    code, _, err = run("x.nsys-rep", "--out", "again")
    assert code == 5
    assert "nsys export failed: newer than this nsys" in err
    assert not (tmp_path / "again").exists()


def test_progress_is_told_of_what_takes_its_time(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.console import Console

    now = [0.0]
    monkeypatch.setattr(reading.time, "monotonic", lambda: now[0])
    with reading.Progress(Console(), plain=True) as progress:
        for now[0], share in ((1.0, 0.1), (1.9, 0.2), (2.1, 0.3), (2.2, 0.4), (4.5, 0.5)):
            progress.tell("a\x1b[31mb", share)
    assert capsys.readouterr().err == " 30% a?[31mb\n 50% a?[31mb\n"


@pytest.mark.parametrize("text", ["", "x", "5 furlongs", "0", "-1", "1e5", "9" * 30])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="is no size"):
        parse_size(text)


def test_a_library_twice() -> None:
    with pytest.raises(ConfigError, match="given twice"):
        parse_communication(["a=x", "a=y"])


TRACES = (
    "a100_nccl_args.json.gz", "alexnet_small.json.gz", "b200_eager_rank0of8_multimem.json.gz",
    "cpu_only_rank34.json.gz", "cuda_event_sync.json.gz", "cuda_event_sync_multi_stream.json.gz", "dlrm_8ranks_v100",
    "h100_qwen_0.5b.json.gz", "mi250_rocm62.json.gz", "no_gpu_rank.json.gz", "nsys_h100_2gpu_1s.sqlite.gz",
    "sampled_128rank_job", "simple_add.json.gz", "torch_compile_triton.json.gz", "triton_example.json.gz",
    "v100_ns_timestamps.json.gz", "v100_resnet50_old_categories.json.gz", "v100_train_rank1of2.json.gz",
)  # fmt: skip
RANKS = {"dlrm_8ranks_v100": [*range(8)], "sampled_128rank_job": [0, 1], "cpu_only_rank34.json.gz": [34],
         "v100_train_rank1of2.json.gz": [1], "nsys_h100_2gpu_1s.sqlite.gz": [0, 1]}  # fmt: skip
STEPS = {"a100_nccl_args.json.gz": 3, "cpu_only_rank34.json.gz": 5, "dlrm_8ranks_v100": 8, "no_gpu_rank.json.gz": 1,
         "sampled_128rank_job": 4, "v100_ns_timestamps.json.gz": 5, "v100_resnet50_old_categories.json.gz": 6,
         "v100_train_rank1of2.json.gz": 5}  # fmt: skip


def test_all_traces_are_here(traces_dir: Path) -> None:
    assert {path.name for path in traces_dir.iterdir()} - {"SOURCES.tsv", "reference.json"} == set(TRACES)


@pytest.mark.parametrize("name", TRACES)
def test_every_real_trace_up_to_its_report(run: Run, traces_dir: Path, tmp_path: Path, name: str) -> None:
    code, out, err = run(str(traces_dir / name), "--out", "made", "--plain")
    assert (code, err) == (0, ""), err
    assert "imported from" in out.splitlines()[0]
    made = read_run(tmp_path / "made")
    assert made.problems == ()
    assert sorted(made.traces) == RANKS.get(name, [0])
    if name in STEPS:
        assert made.tables["steps"].height == STEPS[name]
    assert "<html" in (tmp_path / "made" / layout.REPORT_HTML).read_text(encoding="utf-8")[:1000]
