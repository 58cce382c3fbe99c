"""The NVML module as the sampler uses it: each call is noted while it lasts, and its errors have a meaning."""

import time
from collections.abc import Callable
from typing import Any

from agprof.sampler.nvml_errors import (
    DEVICE_LOST,
    LIBRARY_LOST,
    UNKNOWN,
    UNSUPPORTED,
    Codes,
    DeviceLostError,
    LibraryLostError,
)
from agprof.sampler.states import Verdict, describe


class Nvml:
    """Calls functions of `module` by name. One thread uses it; another may look at `call`."""

    def __init__(self, module: Any, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self.module = module
        self.codes = Codes(module)
        self.call: tuple[str, int] | None = None
        """The call in progress and when it began; None between calls."""
        self._clock = clock

    def __call__(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Raises what the binding raises."""
        return self.run(name, getattr(self.module, name), *arguments, **options)

    def run(self, name: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call a function that is not the module's own, under this name."""
        self.call = (name, self._clock())
        try:
            return function(*arguments, **options)
        finally:
            self.call = None

    def now_ns(self) -> int:
        return self._clock()

    def pointer(self, name: str) -> Any:
        """The C function itself, which returns a code instead of raising. Raises where the driver has none."""
        return self.module._nvmlGetFunctionPointer(name)

    def has(self, name: str) -> bool:
        """Whether the driver's library exports this function."""
        try:
            return self.pointer(name) is not None
        except Exception:
            return False

    def optional(self, name: str, *arguments: Any, **options: Any) -> Any:
        """The value, or None where it can't be had. Raises DeviceLostError and LibraryLostError."""
        try:
            return self(name, *arguments, **options)
        except Exception as error:
            if self.codes.of(error) != UNKNOWN:
                self.judge(error)
            return None

    def either(self, new: str, old: str, *arguments: Any) -> Any:
        """The call of today's drivers, or the older one where the driver or the binding lacks it."""
        try:
            return self(new, *arguments)
        except Exception as error:
            if self.codes.of(error) not in UNSUPPORTED:
                raise
            return self(old, *arguments)

    def judge(self, error: Exception) -> Verdict:
        """What an exception means for the value. Raises DeviceLostError and LibraryLostError."""
        code = self.codes.of(error)
        if code in LIBRARY_LOST:
            raise LibraryLostError(describe(error)) from None
        if code in DEVICE_LOST or code == UNKNOWN:
            raise DeviceLostError(describe(error)) from None
        return "unsupported" if code in UNSUPPORTED else "retry"

    def judge_value(self, code: int) -> tuple[Verdict, str]:
        """What the return code of one value of a batch means, and its name. Raises as `judge` does."""
        name = self.codes.name(code)
        if name in LIBRARY_LOST:
            raise LibraryLostError(name)
        if name in DEVICE_LOST:
            raise DeviceLostError(name)
        return ("unsupported" if name in UNSUPPORTED else "retry"), name


def text(value: Any) -> str | None:
    """A name from the driver: older bindings give bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
