"""Calls of modules as spans of category `module`, for NVTX and traces."""

from agprof.instruments.op_places import ModuleCall
from agprof.instruments.recorder import Recorder, Span

MAX_SPANS = 20_000
"""Calls that become spans: a module called for each token of a long loop must not fill the run folder."""


class ModuleSpans:
    """Of the calls in one outermost call."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._open: list[tuple[ModuleCall, Span]] = []
        self._count = 0

    def begin(self, call: ModuleCall, name: str) -> None:
        self._count += 1
        if self._count <= MAX_SPANS:
            self._open.append((call, self._recorder.open("module", name)))

    def end(self, call: ModuleCall) -> None:
        if self._open and self._open[-1][0] is call:
            self._recorder.close(self._open.pop()[1])

    def discard(self) -> None:
        while self._open:
            self._recorder.discard(self._open.pop()[1])
