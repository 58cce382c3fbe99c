import contextlib
import os
from pathlib import Path
from types import SimpleNamespace

import torch

from agprof.instruments import memory


def test_a_row_at_the_end_of_outermost_phases_and_steps(rig):
    memory.arm(rig.recorder, torch)
    outer = rig.recorder.open("phase", "optimizer")
    rig.recorder.close(rig.recorder.open("phase", "forward"))
    end = rig.recorder.close(outer)
    rig.recorder.end_micro_step()
    rig.recorder.end_step()
    rows = rig.finish()["memory"]
    assert [(row.at, row.step, row.micro_step) for row in rows] == [("optimizer.end", 0, 0), ("step.end", 0, 0)]
    assert rows[0].time_ns == end
    for row in rows:
        assert 10 * 2**20 < row.rss_bytes <= row.rss_peak_bytes * 1.2
        assert row.allocated_bytes is row.reserved_bytes is row.allocated_peak_bytes is None


def test_the_device_is_asked_only_after_the_training_started_it(rig):
    started = []
    counts = {
        "allocated_bytes": {"all": {"current": 1, "peak": 3}},
        "reserved_bytes": {"all": {"current": 2}},
    }
    fake = SimpleNamespace(
        cuda=SimpleNamespace(is_initialized=lambda: bool(started), current_device=lambda: 0),  # nothing else
        _C=SimpleNamespace(_cuda_memoryStats=lambda _device: counts),
    )
    memory.arm(rig.recorder, fake)
    rig.recorder.end_step()
    started.append(True)
    rig.recorder.end_step()
    before, after = rig.finish()["memory"]
    assert (before.allocated_bytes, before.reserved_bytes, before.allocated_peak_bytes) == (None, None, None)
    assert (after.allocated_bytes, after.reserved_bytes, after.allocated_peak_bytes) == (1, 2, 3)


def open_files():
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the one that lists the folder
            found[int(entry.name)] = str(entry.readlink())
    return found


def test_the_descriptor_is_closed_and_not_inherited(rig):
    before = open_files()
    memory.arm(rig.recorder, torch)
    (new,) = [fd for fd, name in open_files().items() if name.endswith("statm") and fd not in before]
    assert not os.get_inheritable(new)
    rig.finish()
    assert not [name for name in open_files().values() if name.endswith("statm")]


def test_without_proc_it_is_none_and_no_fault(rig, monkeypatch):
    def refuse(*_args):
        raise OSError

    monkeypatch.setattr(memory.os, "open", refuse)
    memory.arm(rig.recorder, torch)
    monkeypatch.undo()
    rig.recorder.end_step()
    tables = rig.finish()
    assert tables["memory"][0].rss_bytes is None
    assert "faults" not in tables
