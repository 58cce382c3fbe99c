"""The traces' answers, kept beside them."""

import os
from pathlib import Path

import pytest

from agprof.analysis.trace import analyse_traces
from agprof.model.trace_answers import TraceAnswer
from agprof.store import trace_cache
from synthetic_trace import TraceBuilder


@pytest.fixture
def answer() -> TraceAnswer:
    found = analyse_traces({0: TraceBuilder().launch("k", 0, 10, 90, correlation=1).gpu("b", 120, 5).build()})
    assert found is not None
    return found


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "traces" / "rank-00000"
    folder.mkdir(parents=True)
    (folder / "gpu.0.0.parquet").write_bytes(b"rows")
    (folder / "trace.json").write_text("{}")
    return tmp_path


def test_what_is_kept_is_read_back(run: Path, answer: TraceAnswer) -> None:
    mark = trace_cache.fingerprint(run, ["0.1.0", []])
    assert trace_cache.read_answer(run, mark) is None
    trace_cache.keep_answer(run, mark, answer)
    assert trace_cache.read_answer(run, mark) == answer
    assert trace_cache.fingerprint(run, ["0.1.0", []]) == mark, "the kept answer is no part of its fingerprint"
    assert [file.name for file in (run / "traces").iterdir() if file.is_file()] == ["answer.msgpack"]


def test_anything_else_is_another_fingerprint(run: Path) -> None:
    file = run / "traces" / "rank-00000" / "gpu.0.0.parquet"
    state = file.stat()
    marks = [trace_cache.fingerprint(run, ["0.1.0", []]), trace_cache.fingerprint(run, ["0.1.1", []])]
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    marks.append(trace_cache.fingerprint(run, ["0.1.0", []]))
    file.write_bytes(b"more rows")
    marks.append(trace_cache.fingerprint(run, ["0.1.0", []]))
    (file.parent / "gpu.0.1.parquet").write_bytes(b"")
    marks.append(trace_cache.fingerprint(run, ["0.1.0", []]))
    assert len(set(marks)) == len(marks)


@pytest.mark.parametrize("size", [0, 1, 20, 200])
def test_a_damaged_file_is_no_answer(run: Path, answer: TraceAnswer, size: int) -> None:
    trace_cache.keep_answer(run, "mark", answer)
    file = run / "traces" / "answer.msgpack"
    file.write_bytes(file.read_bytes()[:size])
    assert trace_cache.read_answer(run, "mark") is None
    file.write_bytes(b"\xc1" * size)
    assert trace_cache.read_answer(run, "mark") is None


def test_a_full_disk_leaves_nothing_behind(run: Path, answer: TraceAnswer, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        trace_cache.keep_answer(run, "mark", answer)
    assert not list((run / "traces").glob("answer*"))
