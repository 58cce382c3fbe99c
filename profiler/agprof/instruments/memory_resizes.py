"""Storages that are freed and filled again in place."""

from collections.abc import Callable
from typing import Any


class Resizes:
    """Tells of UntypedStorage.resize_, by which ZeRO-3 and FSDP free and refill; it passes through no dispatch."""

    def __init__(self, kind: Any, tell: Callable[[Any, int], None]) -> None:
        original = kind.resize_

        def resize_(storage: Any, size: int) -> Any:
            result = original(storage, size)
            try:
                tell(storage, storage.nbytes())
            except Exception:
                return result  # an account that is a little wrong; the training must not know
            return result

        self._kind = kind
        self._own = vars(kind).get("resize_")
        self._replacement = resize_
        kind.resize_ = resize_

    def remove(self) -> None:
        if vars(self._kind).get("resize_") is not self._replacement:
            return  # somebody patched over us
        if self._own is None:
            del self._kind.resize_
        else:
            self._kind.resize_ = self._own
