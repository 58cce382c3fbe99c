"""What a rank prints between its first step and its last."""

import json
import os

import pytest

from agprof.instruments.output import Output


@pytest.fixture
def log(tmp_path):
    """Standard output and error in a file, as under `agprof run`."""
    saved = [os.dup(1), os.dup(2)]
    file = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    yield lambda text: os.write(1, text.encode("utf-8", "surrogateescape"))
    for descriptor, before in zip((1, 2), saved, strict=True):
        os.dup2(before, descriptor)
        os.close(before)


def facts(rig):
    tables = rig.finish()
    assert tables.get("faults", []) == []
    return {row.key: json.loads(row.value) for row in tables.get("facts", []) if row.key.startswith("output.")}


def test_lines_and_bytes_after_the_first_step_are_counted(rig, log, monkeypatch):
    monkeypatch.setattr("agprof.instruments.output.DESCRIPTORS", (1,))
    Output(rig.recorder).arm()
    log("loading\n" * 50)
    rig.recorder.end_step()
    for step in range(4):
        log(f"step {step}\nsample a\nsample b\n")
        rig.recorder.end_step()
    found = facts(rig)
    assert found["output.steps"] == 4
    assert found["output.lines"] == 12
    assert found["output.bytes"] == 4 * len("step 0\nsample a\nsample b\n")
    assert found["output.example"] == "sample a"


def test_a_megabyte_in_one_line_and_bytes_that_are_no_text(rig, log, monkeypatch):
    monkeypatch.setattr("agprof.instruments.output.DESCRIPTORS", (1,))
    Output(rig.recorder).arm()
    rig.recorder.end_step()
    log("\udcff<script>" + "x" * 3_000_000 + "\n")
    rig.recorder.end_step()
    found = facts(rig)
    assert found["output.bytes"] == 3_000_010
    assert len(found["output.example"]) <= 120


def test_output_that_is_no_file_is_not_measured(rig, monkeypatch):
    reader, writer = os.pipe()
    monkeypatch.setattr("agprof.instruments.output.DESCRIPTORS", (writer, 9999))
    Output(rig.recorder).arm()
    rig.recorder.end_step()
    rig.recorder.end_step()
    assert facts(rig) == {}
    os.close(reader)
    os.close(writer)


def test_a_run_of_one_step_says_nothing(rig, log):
    Output(rig.recorder).arm()
    rig.recorder.end_step()
    assert facts(rig) == {}
