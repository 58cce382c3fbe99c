"""Where in the job's code something happens, said the same on every machine."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from agprof.instruments.places import Places

SOURCE = "import sys\ndef here():\n    return sys._getframe()\ndef call(f):\n    return f()\n"


@pytest.fixture
def frame_in(tmp_path, monkeypatch):
    """A frame of a function in a file at this path below a folder that is on the import path."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(path):
        file = tmp_path / path
        module = ModuleType("made")
        exec(compile(SOURCE, str(file), "exec"), vars(module))
        return module

    return make


def test_a_place_is_told_from_the_import_path(frame_in):
    assert Places().of(frame_in("job/train.py").here()) == ("job/train.py:3 here", None)


def test_an_installed_package_is_named(frame_in):
    frame = frame_in("venv/lib/site-packages/deepspeed/runtime/utils.py").here()
    assert Places().of(frame) == ("deepspeed/runtime/utils.py:3 here", "deepspeed")


def test_the_package_that_the_job_was_started_from_is_its_own_although_installed(frame_in, monkeypatch):
    frame = frame_in("venv/lib/site-packages/trainer/loop.py").here()
    assert Places().of(frame)[1] == "trainer"
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=SimpleNamespace(name="trainer.loop")))
    assert Places().of(frame) == ("trainer/loop.py:3 here", None)


def test_frames_of_torch_and_of_the_standard_library_are_passed_over(frame_in):
    job = frame_in("job/train.py")
    torch = frame_in("venv/lib/site-packages/torch/_tensor.py")
    assert Places().of(job.call(torch.here)) == ("job/train.py:5 call", None)


def test_what_ours_asks_for_itself_has_no_place(frame_in):
    ours = frame_in("lib/agprof/instruments/training.py")
    watch = frame_in("lib/agprof/instruments/op_watch.py")
    job = frame_in("job/train.py")
    assert Places().of(job.call(lambda: ours.call(watch.here))) is None
    assert Places().of(job.call(watch.here)) == ("job/train.py:5 call", None)


def test_a_thread_without_a_frame_of_the_job_has_an_empty_place(frame_in):
    assert Places().of(None) == ("", None)
