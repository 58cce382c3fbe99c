"""Many values of one GPU by one call of nvmlDeviceGetFieldValues.

Each value has a return code of its own: a field that this device or driver does not have leaves the batch for good, one
that failed is left out for 1 s, then 2, 4 ... 60 s. The array of the call is built once for each set of fields and is
read in one piece: with the binding's own function, which builds it at each call, a batch of 15 fields takes 25 us more,
a tenth of a percent of a core for eight GPUs five times a second.
"""

import ctypes
import struct
from collections.abc import Callable, Sequence
from typing import Any, Literal

from agprof.sampler.nvml_calls import Nvml
from agprof.sampler.states import Backoff, Verdict

CALL = "nvmlDeviceGetFieldValues"
SUCCESS = 0
ALL_LINKS = 2**32 - 1
"""As scope of an NVLink field: the sum over all links."""
_VALUES = struct.Struct("=24xiIQ")
"""c_nvmlFieldValue_t: type of the value, return code, the value's eight bytes; before them field, scope and times."""
MOST_ARRAYS = 8
"""Kept for as many sets of fields: those that are due together change little."""
_DOUBLE = 0
_UNSIGNED = {kind: (bits, (1 << bits) - 1) for kind, bits in {1: 32, 2: 64, 3: 64, 6: 16}.items()}
"""NVML_VALUE_TYPE -> width of the value, and all ones (an unsigned long has 64 bits on Linux)."""
_SIGNED = {4: 64, 5: 32}


class Field:
    """One value of a batch. After `Fields.read`, `value` is what was read this time, or None."""

    __slots__ = ("_backoff", "bits", "due_ns", "number", "period_ns", "reason", "scope", "state", "value")

    def __init__(self, number: int, scope: int = 0, period_ns: int = 0) -> None:
        """`period_ns`: ask for it no more often than that."""
        self.number = number
        self.scope = scope
        self.period_ns = period_ns
        self.value: int | None = None
        self.bits = 64
        """Width of the value's type, at which a counter runs round."""
        self.state: Literal["ok", "retry", "unsupported"] = "ok"
        self.reason = ""
        self.due_ns = 0
        self._backoff = Backoff()

    def take(self, now_ns: int, kind: int, raw: int) -> None:
        """The value as NVML gave it: its type, and the eight bytes of its union."""
        known = _UNSIGNED.get(kind)
        if known is None:
            self._take_other(now_ns, kind, raw)
            return
        self.bits, ones = known
        value = raw & ones
        if value == ones:
            # NVML's word for a value that is not available.
            self.fail(now_ns, "retry", "the driver gives no value")
        else:
            self._succeed(now_ns, value)

    def _take_other(self, now_ns: int, kind: int, raw: int) -> None:
        if kind == _DOUBLE:
            self.bits = 64
            number = struct.unpack("=d", struct.pack("=Q", raw))[0]
            if abs(number) < 2**63:
                self._succeed(now_ns, round(number))
            else:
                self.fail(now_ns, "retry", "the driver gives no value")
        elif kind in _SIGNED:
            self.bits = _SIGNED[kind]
            value = raw & ((1 << self.bits) - 1)
            self._succeed(now_ns, value - (1 << self.bits) if value >> (self.bits - 1) else value)
        else:
            self.fail(now_ns, "unsupported", f"value of the unknown type {kind}")

    def _succeed(self, now_ns: int, value: int) -> None:
        self.value = value
        if self.state != "ok":
            self.state, self.reason = "ok", ""
            self._backoff.succeeded()
        self.due_ns = now_ns + self.period_ns

    def fail(self, now_ns: int, state: Literal["retry", "unsupported"], reason: str) -> None:
        self.value, self.state, self.reason = None, state, reason
        self._backoff.failed(now_ns)
        self.due_ns = self._backoff.due_ns


class Fields:
    """The fields of one device that are read together."""

    def __init__(self, nvml: Nvml, handle: Any, fields: Sequence[Field], judge: Callable[[Exception], Verdict]) -> None:
        self._nvml = nvml
        self._handle = handle
        self._judge = judge
        self._fields = list(fields)
        self._arrays: dict[tuple[Field, ...], tuple[Any, bytes]] = {}
        self._array: Any = None

    def add(self, fields: Sequence[Field]) -> None:
        """Read these too from the next time on."""
        self._fields += fields

    def read(self, now_ns: int) -> None:
        """Read all that is due, in one call. Raises DeviceLostError and LibraryLostError."""
        asked = []
        for field in self._fields:
            field.value = None
            if field.due_ns <= now_ns and field.state != "unsupported":
                asked.append(field)
        if not asked:
            return
        try:
            code = self._call(asked)
            if code != SUCCESS:
                raise self._nvml.failure(CALL, code)
        except Exception as error:
            reason = self._nvml.explain(error)
            verdict = self._judge(error)
            for field in asked:
                field.fail(now_ns, verdict, reason)
            return
        for field, (kind, code, raw) in zip(asked, _VALUES.iter_unpack(self._array), strict=True):
            known = _UNSIGNED.get(kind)
            if code == SUCCESS and known is not None and field.state == "ok" and (value := raw & known[1]) != known[1]:
                # As `take` does it, without a call: this is the case of a dozen fields of each GPU five times a second.
                field.value, field.bits, field.due_ns = value, known[0], now_ns + field.period_ns
            elif code == SUCCESS:
                field.take(now_ns, kind, raw)
            else:
                verdict, meaning = self._nvml.judge_value(code)
                field.fail(now_ns, verdict, f"field {field.number}: {meaning}")

    def _call(self, asked: list[Field]) -> int:
        nvml = self._nvml
        function = nvml.pointer(CALL)
        key = tuple(asked)
        if key not in self._arrays:
            if len(self._arrays) >= MOST_ARRAYS:
                self._arrays.clear()
            self._arrays[key] = self._build(asked)
        self._array, blank = self._arrays[key]
        ctypes.memmove(self._array, blank, len(blank))
        return int(nvml.run(CALL, function, self._handle, ctypes.c_int32(len(asked)), ctypes.byref(self._array)))

    def _build(self, asked: list[Field]) -> tuple[Any, bytes]:
        """An array for these fields, and its content before each call."""
        module = self._nvml.module
        array = (module.c_nvmlFieldValue_t * len(asked))()
        for entry, field in zip(array, asked, strict=True):
            entry.fieldId, entry.scopeId = field.number, field.scope
            # A value that the driver passes over has failed; it is neither 0 nor the one before.
            entry.nvmlReturn = module.NVML_ERROR_UNKNOWN
        return array, bytes(array)
