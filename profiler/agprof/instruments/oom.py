"""Out of memory: what held it, written down before the error goes on its way.

The error is looked at where it leaves a phase (a training may catch it and try again) and where nobody caught it. It
stays as it is: the same object, the same traceback. No allocator is patched. What this needs of memory is little, and
some is kept back for it: address space only, that nobody touches.
"""

import contextlib
import mmap
import os
import resource
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agprof.instruments.oom_errors import OutOfMemory, read_error
from agprof.instruments.profile_step import unwrapped
from agprof.instruments.recorder import Recorder
from agprof.store.memory_limits import read_limit

INSTRUMENT = "oom"
FACT = "oom"
RESERVE_BYTES = 4 * 2**20
MAX_ACCOUNTS = 3
"""A loop that tries again with smaller batches meets many errors: of later ones, and of later ones of a step, there is
the fact alone."""
MAX_ROOTS = 8
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

Rows = list[tuple[Any, ...]]
Account = Callable[[], tuple[Rows, Rows]]
"""Rows of `memory_parts` and `allocations` for the moment, with at="oom"."""


class OomWatch:
    """Notices exceptions that mean out of memory."""

    def __init__(self, recorder: Recorder, torch: Any, account: Account) -> None:
        self._recorder = recorder
        self._torch = torch
        self._account = account
        self._roots: list[weakref.ref[Any]] = []
        self._reserve: mmap.mmap | None = None
        self._count = 0
        self._last: tuple[int, int, int, str] | None = None
        self._last_span = -1
        self._fact: dict[str, Any] = {}
        self._accounted: set[int] = set()

    def arm(self) -> None:
        self._reserve = mmap.mmap(-1, RESERVE_BYTES)
        self._recorder.on_failure.append(self._recorder.guard(INSTRUMENT, self.noticed))
        self._recorder.patches.on_undo(self._release)

    def on_root(self, module: Any) -> None:
        """A root module: names the modules in a traceback."""
        if len(self._roots) < MAX_ROOTS:
            self._roots.append(weakref.ref(unwrapped(module)))

    def noticed(self, error: BaseException, uncaught: bool, span: int) -> None:
        """An exception leaves a phase (`span`: innermost open span, -1 for none), or the process (`uncaught`)."""
        told = read_error(error, self._torch)
        if told is None:
            return
        self._release()
        if self._is_new(error, told, span):
            self._count += 1
            self._fact = self._describe(error, told)
            self._write(uncaught)
            step = self._recorder.step
            # One account per step: its rows are told from others by nothing else. The fact was first, for the account
            # may fail for want of memory.
            if len(self._accounted) < MAX_ACCOUNTS and step not in self._accounted:
                self._accounted.add(step)
                self._write_account()
        elif uncaught:
            self._write(uncaught)
        self._last_span = span
        if uncaught or self._count <= MAX_ACCOUNTS:
            self._recorder.writer.flush()
        if not uncaught:
            self._keep_back()

    def _write_account(self) -> None:
        for table, rows in zip(("memory_parts", "allocations"), self._account(), strict=True):
            for row in rows:
                self._recorder.writer.append(table, row)

    def _is_new(self, error: BaseException, told: OutOfMemory, span: int) -> bool:
        """Whether this error was not noticed before, in an inner phase.

        Its number may be that of one that is gone already. But an error climbs through spans that were open before it:
        a span with a higher number was opened since.
        """
        recorder = self._recorder
        now = (id(error), recorder.step, recorder.micro_step, told.text)
        before, self._last = self._last, now
        return now != before or span > self._last_span

    def _describe(self, error: BaseException, told: OutOfMemory) -> dict[str, Any]:
        recorder, limit = self._recorder, _limit(self._torch, told)
        return {
            "space": told.space,
            "type": told.type,
            "error": told.text,
            "wanted_bytes": told.wanted_bytes,
            "step": recorder.step,
            "micro_step": recorder.micro_step,
            "phase": recorder.phase(),
            "module": self._module_of(error),
            **limit,
            **_held(self._torch),
        }

    def _write(self, uncaught: bool) -> None:
        self._recorder.fact(FACT, {**self._fact, "count": self._count, "uncaught": uncaught})

    def _module_of(self, error: BaseException) -> str:
        """Path of the innermost module whose call the error went through; empty when it went through none."""
        module = innermost_module(error, self._torch.nn.Module)
        if module is None:
            return ""
        for reference in self._roots:
            root = reference()
            if root is not None:
                for path, inner in root.named_modules():
                    if inner is module:
                        return path or type(module).__name__
        return type(module).__name__

    def _keep_back(self) -> None:
        if self._reserve is None and self._recorder.enabled:
            with contextlib.suppress(OSError, MemoryError, ValueError):
                self._reserve = mmap.mmap(-1, RESERVE_BYTES)

    def _release(self) -> None:
        reserve, self._reserve = self._reserve, None
        if reserve is not None:
            reserve.close()


def innermost_module(error: BaseException, kind: type) -> Any:
    """The innermost `forward` in the error's traceback, its module.

    Only frames that have ended are looked at: asking a running one for its variables would keep their tensors alive
    until it ends, and a training that tries again needs the room.
    """
    running = set()
    frame = sys._getframe()
    while frame is not None:
        running.add(id(frame))
        frame = frame.f_back  # type: ignore[assignment]
    found = None
    trace = error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        if frame.f_code.co_name == "forward" and id(frame) not in running:
            owner = frame.f_locals.get("self")
            if isinstance(owner, kind):
                found = owner
        trace = trace.tb_next
    return found


def _limit(torch: Any, told: OutOfMemory) -> dict[str, Any]:
    """limit_bytes and what sets it."""
    try:
        if told.space == "device":
            if not torch.cuda.is_initialized():
                return {}
            free, total = torch.cuda.mem_get_info()
            return {"limit_bytes": int(total), "limit": "device", "free_bytes": int(free)}
        soft, _hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = read_limit()
        if soft != resource.RLIM_INFINITY and (limit is None or soft < limit.bytes):
            return {"limit_bytes": soft, "limit": "rlimit"}
        return {"limit_bytes": limit.bytes, "limit": limit.kind} if limit is not None else {}
    except Exception:
        return {}  # a device in error can't be asked, and a host without memory can't be read


def _held(torch: Any) -> dict[str, Any]:
    """What this process holds, on the device and on the host."""
    held: dict[str, Any] = {}
    with contextlib.suppress(Exception):
        with Path("/proc/self/statm").open("rb") as file:
            virtual, resident = file.read(64).split(b" ", 2)[:2]
        held |= {"virtual_bytes": int(virtual) * _PAGE_BYTES, "rss_bytes": int(resident) * _PAGE_BYTES}
    with contextlib.suppress(Exception):
        if torch.cuda.is_initialized():
            stats = torch._C._cuda_memoryStats(torch.cuda.current_device())
            held["allocated_bytes"] = int(stats["allocated_bytes"]["all"]["current"])
            held["reserved_bytes"] = int(stats["reserved_bytes"]["all"]["current"])
    return held
