"""Horovod's timeline."""

from pathlib import Path

import pytest

from agprof.errors import TraceError
from agprof.importers.horovod import TensorPhase, read_timeline

# Recorded by Horovod 0.28.1 on 2 gloo ranks: the first all-reduce of one tensor and the beginning of the next one's,
# shortened to two tensors with shorter names. The closing bracket is missing, as in a job that never shut down.
RECORDED = """[
{"name": "process_name", "ph": "M", "pid": 0, "args": {"start_time_since_epoch_in_micros":1795259000206840}},
{"name": "process_sort_index", "ph": "M", "pid": 0, "args": {"sort_index": 0}},
{"name": "process_name", "ph": "M", "pid": 48, "args": {"name": "allreduce.lora_B.weight"}},
{"name": "process_sort_index", "ph": "M", "pid": 48, "args": {"sort_index": 48}},
{"ph": "B", "name": "NEGOTIATE_ALLREDUCE", "ts": 296772, "pid": 48},{"ph": "X", "name": "0", "ts": 296780, "pid": 48, \
"dur": 0},{"name": "process_name", "ph": "M", "pid": 49, "args": {"name": "allreduce.lora_A.weight"}},
{"name": "process_sort_index", "ph": "M", "pid": 49, "args": {"sort_index": 49}},
{"ph": "B", "name": "NEGOTIATE_ALLREDUCE", "ts": 297100, "pid": 49},{"ph": "X", "name": "1", "ts": 354590, "pid": 48, \
"dur": 0},{"ph": "E", "ts": 354600, "pid": 48},{"ph": "B", "name": "ALLREDUCE", "ts": 354620, "pid": 48},\
{"ph": "B", "name": "MEMCPY_IN_FUSION_BUFFER", "ts": 354735, "pid": 48},{"ph": "E", "ts": 354750, "pid": 48},\
{"ph": "B", "name": "GLOO_ALLREDUCE", "ts": 354754, "pid": 48},{"ph": "E", "ts": 364717, "pid": 48},\
{"ph": "E", "ts": 364799, "pid": 48, "args": {"dtype": "float32", "shape": "[192, 8]"}},\
{"ph": "B", "name": "NEGOTIATE_"""
ROWS = [
    ("NEGOTIATE_ALLREDUCE", 296_772_000, 57_828_000),
    ("ALLREDUCE", 354_620_000, 10_179_000),
    ("MEMCPY_IN_FUSION_BUFFER", 354_735_000, 15_000),
    ("GLOO_ALLREDUCE", 354_754_000, 9_963_000),
]


def timeline(folder: Path, text: str) -> Path:
    path = folder / "timeline.json"
    path.write_text(text)
    return path


@pytest.mark.parametrize("end", ["", "\n", "]\n", ",\n"])
def test_phases_of_a_recorded_timeline(tmp_path: Path, end: str) -> None:
    text = RECORDED if not end else RECORDED.removesuffix(',{"ph": "B", "name": "NEGOTIATE_') + end
    rows = read_timeline(timeline(tmp_path, text))
    # the second tensor's negotiation never ended: it has no duration and no row
    assert rows == [
        TensorPhase(tensor="allreduce.lora_B.weight", phase=phase, start_ns=start, duration_ns=duration)
        for phase, start, duration in ROWS
    ]


def test_inner_phases_lie_inside_outer_ones(tmp_path: Path) -> None:
    _, outer, *inner = read_timeline(timeline(tmp_path, RECORDED))
    for row in inner:
        assert outer.start_ns <= row.start_ns
        assert row.start_ns + row.duration_ns <= outer.start_ns + outer.duration_ns


@pytest.mark.parametrize("text", ["[", "[]", "[\n", '[{"ph": "E", "ts": 3, "pid": 1}'])
def test_nothing_ended(tmp_path: Path, text: str) -> None:
    assert read_timeline(timeline(tmp_path, text)) == []


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "is no timeline of Horovod"),
        ('{"traceEvents": []}', "is no timeline of Horovod"),
        ("[\n{}},\n{}\n", ":2: is no JSON"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, text: str, rule: str) -> None:
    with pytest.raises(TraceError, match=rule):
        read_timeline(timeline(tmp_path, text))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="can't be read: No such file"):
        read_timeline(tmp_path / "gone.json")
