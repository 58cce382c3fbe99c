"""What the terminal is told while a plan is made."""

import sys
import time
from typing import Self

QUIET_S = 2.0
"""Elsewhere than on a terminal, a line is written when the last one is so old."""


class Progress:
    """A spinner on a terminal's stderr; lines elsewhere, for what takes its time."""

    def __init__(self) -> None:
        from rich.console import Console

        console = Console(stderr=True, highlight=False)
        self._status = None if not console.is_terminal or console.is_dumb_terminal else console.status("planning")
        self._told_s = time.monotonic()

    def __enter__(self) -> Self:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *_failure: object) -> None:
        if self._status is not None:
            self._status.stop()

    def tell(self, what: str) -> None:
        from rich.markup import escape

        line = "".join(char if char.isprintable() else "?" for char in what[:160])
        if self._status is not None:
            self._status.update(escape(line))
        elif time.monotonic() - self._told_s >= QUIET_S:
            self._told_s = time.monotonic()
            print(f"plan: {line}", file=sys.stderr, flush=True)
