"""How much a rank prints per step: the growth of its log files, looked at when a step ends (two calls of fstat)."""

import os
import stat
from collections import Counter
from pathlib import Path

from agprof.instruments.recorder import Recorder

INSTRUMENT = "output"
DESCRIPTORS = (1, 2)
MAX_READ_BYTES = 1 << 20
MAX_EXAMPLE = 120
START = 6
"""Bytes by which lines of one kind are known."""


class Output:
    """Records `output.*`, between the end of the first step and that of the last."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._first: dict[int, int] = {}
        self._last: dict[int, int] = {}
        self._steps = -1
        """Steps between the first look and the last."""

    def arm(self) -> None:
        self._recorder.on_step_end.append(self._recorder.guard(INSTRUMENT, self._step_ended))
        self._recorder.on_finish.append((INSTRUMENT, self._finish))

    def _step_ended(self, _step: int) -> None:
        sizes = {descriptor: size for descriptor in DESCRIPTORS if (size := _size(descriptor)) is not None}
        self._last = sizes
        if self._steps < 0:
            self._first = sizes
        self._steps += 1

    def _finish(self) -> None:
        grown = {key: size - self._first[key] for key, size in self._last.items() if key in self._first}
        if self._steps < 1 or not grown:
            return
        fact = self._recorder.fact
        fact("output.steps", self._steps)
        fact("output.bytes", sum(max(0, size) for size in grown.values()))
        lines, starts = 0, Counter[bytes]()
        examples: dict[bytes, bytes] = {}
        for descriptor, size in grown.items():
            text = _read(descriptor, self._first[descriptor], size)
            if not text:
                continue
            lines += round(text.count(b"\n") * size / len(text))
            for line in text.splitlines():
                start = line[:START]
                starts[start] += 1
                examples.setdefault(start, line)
        fact("output.lines", lines)
        if starts:
            fact("output.example", examples[starts.most_common(1)[0][0]][:MAX_EXAMPLE].decode("utf-8", "replace"))


def _size(descriptor: int) -> int | None:
    """Of a regular file; None for a terminal or a pipe."""
    try:
        about = os.fstat(descriptor)
    except OSError:
        return None
    return about.st_size if stat.S_ISREG(about.st_mode) else None


def _read(descriptor: int, start: int, size: int) -> bytes:
    """The first of what was written. By the file's name: the descriptor itself may be open for writing only."""
    try:
        with Path(f"/proc/self/fd/{descriptor}").open("rb") as file:
            file.seek(start)
            return file.read(min(max(0, size), MAX_READ_BYTES))
    except OSError:
        return b""
