"""Tells nsys what to capture: the steps of a rank that runs under it, and which rank it is.

nsys begins and ends a capture inside the call that tells it to: the calls took 0.07 and 0.75 s with 2022.4 on CPU. The
capture therefore begins within the step before the first and ends before the step after the last begins, and these two
steps count as profiled: the ones captured are measured as they are.
"""

import os
from typing import Any

from agprof.instruments.recorder import Recorder
from agprof.model.settings import ENV_UNDER_NSYS, UNDER_NSYS, NsysSettings

INSTRUMENT = "nsys"
CAPTURE_RANGE = "agprof.capture"
RANK_MARK = "agprof.rank"
CLOCK_MARK = "agprof.monotonic_ns"
"""Its payload is the time of the mark on the clock of the run folder's tables."""


def is_under_nsys() -> bool:
    return os.environ.get(ENV_UNDER_NSYS) == UNDER_NSYS


class NsysCapture:
    """One capture of a run of steps."""

    def __init__(self, recorder: Recorder, torch: Any, rank: int, settings: NsysSettings) -> None:
        self._recorder = recorder
        self._torch = torch
        self._rank = rank
        self._settings = settings
        self._token: Any = None
        self._capturing = False

    def arm(self) -> None:
        recorder, settings = self._recorder, self._settings
        recorder.fact("nsys.capture", settings.by)
        if recorder.nvtx is None:
            recorder.fact("nsys.absent", "nsys does not listen to NVTX in this rank")
            if settings.by != "cuda":
                return
        if settings.by == "whole":
            self._mark()
            return
        recorder.on_step_border.append(recorder.guard(INSTRUMENT, self._border, ends=True))
        recorder.on_step_end.append(recorder.guard(INSTRUMENT, self._step_after, ends=True))
        recorder.on_finish.append((INSTRUMENT, self._finish))
        if settings.first_step > 1:
            recorder.on_step_end.append(recorder.guard(INSTRUMENT, self._step_began, ends=True))
        elif settings.by == "nvtx":
            self._begin()
        else:
            # The driver must not be touched before the training does: the first step does it.
            recorder.on_phase_end.append(recorder.guard(INSTRUMENT, self._first_phase_ended))

    def _first_phase_ended(self, _phase: str, _now_ns: int) -> None:
        if not self._capturing and self._recorder.step == 0 and self._torch.cuda.is_initialized():
            self._begin()

    def _step_began(self, ended: int) -> None:
        """Within the step before the first that is captured."""
        if ended + 2 == self._settings.first_step:
            self._recorder.profiled = True
            self._begin()

    def _border(self, ended: int) -> None:
        """Between the last step that is captured and the one after it."""
        if ended == self._settings.last_step:
            self._end(ended)

    def _finish(self) -> None:
        """The job ends before the capture did: the step in progress is not whole."""
        self._end(self._recorder.step - 1)

    def _step_after(self, ended: int) -> None:
        """The step in progress began with the end of the capture."""
        if ended == self._settings.last_step:
            self._recorder.profiled = True

    def _begin(self) -> None:
        if self._settings.by == "cuda" and not self._torch.cuda.is_initialized():
            self._recorder.fact(
                "nsys.absent", "the training does not use the GPU, by which nsys was to be told its steps"
            )
            return
        begin_ns = self._recorder.clock()
        if self._settings.by == "cuda":
            self._torch.cuda.profiler.start()
        else:
            assert self._recorder.nvtx is not None
            self._token = self._recorder.nvtx.start(CAPTURE_RANGE)
        self._capturing = True
        end_ns = self._recorder.clock()
        self._mark()
        self._recorder.fact("nsys.begin_cost_ns", end_ns - begin_ns)

    def _mark(self) -> None:
        nvtx = self._recorder.nvtx
        if nvtx is not None:
            nvtx.mark(RANK_MARK, self._rank)
            nvtx.mark(CLOCK_MARK, self._recorder.clock())

    def _end(self, last_step: int) -> None:
        if not self._capturing:
            return
        self._capturing = False
        nvtx, token, self._token = self._recorder.nvtx, self._token, None
        if nvtx is not None:
            nvtx.mark(CLOCK_MARK, self._recorder.clock())
        begin_ns = self._recorder.clock()
        if self._settings.by == "cuda":
            self._torch.cuda.profiler.stop()
        elif nvtx is not None:
            nvtx.end(token)
        self._recorder.fact("nsys.end_cost_ns", self._recorder.clock() - begin_ns)
        self._recorder.fact("nsys.steps", [self._settings.first_step, last_step])
