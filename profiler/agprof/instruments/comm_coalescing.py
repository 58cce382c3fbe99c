"""torch's coalescing manager, which collects calls and issues them as one operation when it is left."""

from collections.abc import Callable
from typing import Any


class Coalescing:
    """torch's coalescing manager, with the operation that it issues at its end made into one row."""

    def __init__(
        self,
        inner: Any,
        clock: Callable[[], int],
        enter: Callable[[], None],
        leave: Callable[[Any, int, bool], None],
        failed: Callable[[str, Exception], None],
    ) -> None:
        """`enter()` when collecting begins; `leave(works, start_ns, completed)` when the operation was issued."""
        self._inner = inner
        self._clock = clock
        self._enter = enter
        self._leave = leave
        self._failed = failed
        self._manager: Any = None

    def __enter__(self) -> Any:
        self._manager = self._inner.__enter__()
        self._enter()
        return self._manager

    def __exit__(self, *exception: Any) -> Any:
        start = self._clock()
        completed = False
        try:
            result = self._inner.__exit__(*exception)
            completed = exception[0] is None
            return result
        finally:
            try:
                self._leave(getattr(self._manager, "works", None), start, completed)
            except Exception as error:
                self._failed("coalescing", error)
