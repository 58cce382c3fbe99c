"""A Kineto trace of a few steps, by torch's own profiler: written inside the rank, turned into tables after the run.

It begins and ends at the borders of optimizer steps. Those steps, and the one in which the file is written, count as
profiled on every rank, because the others wait for this one. The job's own profiler goes before: when it is prepared
ours ends at once and what it has is thrown away.
"""

from pathlib import Path
from typing import Any

from agprof.instruments.recorder import Recorder
from agprof.model.settings import KinetoSettings
from agprof.store import layout

INSTRUMENT = "kineto"


class KinetoCapture:
    """Warm-up steps, in which the profiler is prepared and records nothing that is kept; then the active ones."""

    def __init__(self, recorder: Recorder, torch: Any, run: Path, rank: int, settings: KinetoSettings) -> None:
        self._recorder = recorder
        self._torch = torch
        self._path = layout.kineto_file(run, rank)
        self._settings = settings
        self._captures_here = rank in settings.ranks
        self._profiler: Any = None
        self._recording = False
        self._step_range: Any = None
        self._preparing = False
        self._theirs = False
        """The job has prepared a profiler itself."""

    def arm(self) -> None:
        recorder, settings = self._recorder, self._settings
        recorder.on_step_end.append(recorder.guard(INSTRUMENT, self._step_ended, ends=True))
        if self._captures_here:
            recorder.on_finish.append((INSTRUMENT, self._finish))
            recorder.patches.on_undo(self._stop_quietly)
            give_way = recorder.guard(INSTRUMENT, self._give_way, ends=True)
            owner = self._torch.autograd.profiler.profile
            recorder.patches.replace(owner, "_prepare_trace", lambda original: _before(original, give_way))
        if settings.first_step == 0:
            recorder.profiled = True
            self._begin_safely()

    def _step_ended(self, ended: int) -> None:
        """Called at the border between `ended` and the step after it."""
        settings, upcoming = self._settings, ended + 1
        # The step after the last active one pays for writing the file.
        if settings.first_step <= upcoming <= settings.last_step + 1:
            self._recorder.profiled = True
        if not self._captures_here:
            return
        self._end_step_range()
        if upcoming == settings.first_step:
            self._begin_safely()
        if self._profiler is None:
            return
        if upcoming > settings.last_step:
            self._write()
        elif upcoming >= settings.first_step + settings.warmup:
            self._record(upcoming)

    def _begin_safely(self) -> None:
        if not self._captures_here:
            return
        if self._theirs or self._torch.autograd._profiler_enabled():
            self._recorder.fact("kineto.absent", "the job has a profiler of its own")
            return
        settings = self._settings
        profiler = self._torch.profiler.profile(
            record_shapes=settings.shapes, profile_memory=settings.memory, with_stack=settings.stacks,
            with_modules=settings.stacks,
        )  # fmt: skip
        self._preparing = True
        try:
            profiler.prepare_trace()
        finally:
            self._preparing = False
        self._profiler = profiler
        if settings.warmup == 0:
            self._record(settings.first_step)

    def _record(self, step: int) -> None:
        if not self._recording:
            self._profiler.start_trace()
            self._recording = True
        self._step_range = self._torch.profiler.record_function(f"ProfilerStep#{step}")
        self._step_range.__enter__()

    def _end_step_range(self) -> None:
        opened, self._step_range = self._step_range, None
        if opened is not None:
            opened.__exit__(None, None, None)

    def _write(self) -> None:
        """Stop, and write the file. Under a name of its own until it is whole."""
        profiler, self._profiler = self._profiler, None
        if not self._recording:
            self._recording = True
            profiler.start_trace()  # torch can't stop what was only prepared
        profiler.stop_trace()
        self._recording = False
        self._path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self._path.with_suffix(".unfinished")
        profiler.export_chrome_trace(str(unfinished))
        unfinished.rename(self._path)
        self._recorder.fact(
            "kineto.steps", [self._settings.first_step + self._settings.warmup, self._recorder.step - 1]
        )

    def _finish(self) -> None:
        """The job ends before the capture did: keep what there is."""
        self._end_step_range()
        if self._profiler is not None and self._recording:
            self._write()
        self._stop_quietly()

    def _give_way(self) -> None:
        """The job prepares a profiler; torch allows one at a time."""
        if self._preparing:
            return
        self._theirs = True
        if self._profiler is None:
            return
        self._recorder.fact("kineto.absent", f"the job began its own profiler in step {self._recorder.step}")
        self._stop_quietly()

    def _stop_quietly(self) -> None:
        self._end_step_range()
        profiler, self._profiler = self._profiler, None
        if profiler is None:
            return
        if not self._recording:
            profiler.start_trace()
        self._recording = False
        profiler.stop_trace()


def _before(original: Any, first: Any) -> Any:
    def prepare(self: Any) -> Any:
        first()
        return original(self)

    return prepare
