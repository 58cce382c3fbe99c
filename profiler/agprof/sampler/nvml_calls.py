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
        self.doubt = ""
        """The newest failure of an optional value that may pass. Whoever asks for such values clears it before."""
        self._failed = ""

    def __call__(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Raises what the binding raises."""
        try:
            function = getattr(self.module, name)
        except AttributeError:
            self._failed = name
            raise
        return self.run(name, function, *arguments, **options)

    def run(self, name: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call a function that is not the module's own, under this name."""
        self.call = (name, self._clock())
        try:
            return function(*arguments, **options)
        except Exception:
            self._failed = name
            raise
        finally:
            self.call = None

    def failure(self, name: str, code: int) -> Exception:
        """The exception for the code that a C function returned."""
        self._failed = name
        error: Exception = self.module.NVMLError(code)
        return error

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

    def explain(self, error: Exception) -> str:
        """The newest failure in words: which call, and why."""
        code = self.codes.of(error)
        return describe(error) if code is None else f"{self._failed}: {self.codes.meaning(code)}"

    def optional(self, name: str, *arguments: Any, **options: Any) -> Any:
        """The value, or None where it can't be had. Raises DeviceLostError and LibraryLostError."""
        try:
            return self(name, *arguments, **options)
        except Exception as error:
            if self.codes.of(error) == UNKNOWN or self.judge(error) == "retry":
                self.doubt = self.explain(error)
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
            raise LibraryLostError(self.explain(error)) from None
        if code in DEVICE_LOST or code == UNKNOWN:
            raise DeviceLostError(self.explain(error)) from None
        return "unsupported" if code in UNSUPPORTED else "retry"

    def judge_value(self, code: int) -> tuple[Verdict, str]:
        """What the return code of one value of a batch means, and in words. Raises as `judge` does."""
        name = self.codes.name(code)
        meaning = self.codes.meaning(name)
        if name in LIBRARY_LOST:
            raise LibraryLostError(meaning)
        if name in DEVICE_LOST:
            raise DeviceLostError(meaning)
        return ("unsupported" if name in UNSUPPORTED else "retry"), meaning


def text(value: Any) -> str | None:
    """A name from the driver: older bindings give bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
