"""The node's GPUs, through NVML: loading it, initialising it, and what happens when it or a GPU goes away.

A field that can't be read is None with a reason, and never 0. Where NVML goes away in mid-run (a container's cgroup was
reloaded, the driver was replaced, a GPU fell off the bus) rows of gaps are written and it is initialised again with a
back-off. What is read is in nvml_samples.py (tier fast), nvml_states.py and nvml_gpm.py (medium), nvml_health.py and
nvml_processes.py (slow); nvml_events.py has a thread of its own.
"""

import ctypes
import importlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agprof.sampler.nvml_calls import Nvml, text
from agprof.sampler.nvml_errors import DeviceLostError, LibraryLostError, NoNvmlError
from agprof.sampler.nvml_gpu import Gpu, Node
from agprof.sampler.nvml_processes import Pids, Processes
from agprof.sampler.states import Append, Backoff, States, describe

LIBRARY = "libnvidia-ml.so.1"


def load_nvml() -> Any:
    """The module of nvidia-ml-py. Raises NoNvmlError where there is no NVML or the module is a foreign one.

    A look-alike of the library may end the process here, or at its first call.
    """
    try:
        # Before the import: the binding is a large module, and most nodes without a GPU have no library.
        ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise NoNvmlError(f"{LIBRARY} does not load: {error}") from None
    try:
        module = importlib.import_module("pynvml")
    except Exception as error:
        raise NoNvmlError(f"module pynvml can't be imported: {describe(error)}") from None
    if not hasattr(module, "_nvmlGetFunctionPointer"):
        # Packages called pynvml up to version 11 put a module of the same name in front of the official one.
        raise NoNvmlError(
            f"module pynvml at {getattr(module, '__file__', '?')} is not that of nvidia-ml-py: "
            "uninstall the package pynvml and install nvidia-ml-py again"
        )
    return module


class Gpus:
    """All GPUs, as three parts: `fast`, `medium` and `slow`. One thread calls them, and another may look at `call`.

    `nvml` is the module, its stand-in, or None with `reason`.
    """

    def __init__(
        self,
        append: Append,
        states: States,
        nvml: Any,
        reason: str = "",
        *,
        pids: Pids = dict,
        clock: Callable[[], int] = time.monotonic_ns,
        root: Path = Path("/"),
    ) -> None:
        self._states = states
        self._nvml = None if nvml is None else Nvml(nvml, clock)
        self._reason = reason
        self._clock = clock
        self._node = Node(append=append, states=states, sysfs=root / "sys")
        self._processes = Processes(append, pids, root / "proc")
        self._gpus: list[Gpu] = []
        self._running = False
        self._backoff = Backoff()
        self.losses = 0
        """How often NVML as a whole was lost so far."""
        self.fast = Part(self, Gpu.sample_fast, Gpu.gap_fast)
        self.medium = Part(self, Gpu.sample_medium, Gpu.gap_medium)
        self.slow = Part(self, self._sample_slow, lambda gpu, now_ns: None, self._processes.write)

    @property
    def call(self) -> tuple[str, int] | None:
        """The NVML call that the GPU thread is in, and when it began (time.monotonic_ns); None between calls."""
        return None if self._nvml is None else self._nvml.call

    def run(self, now_ns: int, part: "Part") -> int:
        """Have a part read every GPU. Returns the ns that went into initialising, which are on no tier's budget."""
        nvml = self._nvml
        if nvml is None:
            self._states.set(now_ns, "gpu", "unsupported", self._reason)
            return 0
        begin_ns = self._clock()
        if not self._running and self._backoff.due(now_ns):
            self._initialise(now_ns, nvml)
        opening_ns = self._clock() - begin_ns
        if not self._running:
            for gpu in self._gpus:
                part.gap(gpu, now_ns)
            return opening_ns
        lost: list[str] = []
        for position, gpu in enumerate(self._gpus):
            try:
                opening_ns += gpu.open(now_ns)
                part.read(gpu, now_ns)
                gpu.found(now_ns)
            except DeviceLostError as error:
                gpu.lose(now_ns, str(error))
                lost.append(str(error))
                part.gap(gpu, now_ns)
            except LibraryLostError as error:
                for rest in self._gpus[position:]:
                    part.gap(rest, now_ns)
                self._lose(now_ns, nvml, str(error))
                return opening_ns
        if lost and len(lost) == len(self._gpus):
            # All at once is not the devices' fault.
            self._lose(now_ns, nvml, lost[0])
        return opening_ns

    def close(self) -> None:
        """Shut NVML down where it runs, unless another thread is stuck in a call of it."""
        nvml = self._nvml
        if nvml is not None and self._running and nvml.call is None:
            self._running = False
            self._shut_down(nvml)

    def _sample_slow(self, gpu: Gpu, now_ns: int) -> None:
        gpu.sample_slow(now_ns, self._processes)

    def _initialise(self, now_ns: int, nvml: Nvml) -> None:
        begun = False
        try:
            nvml("nvmlInit")
            begun = True
            self._node.driver = text(nvml.optional("nvmlSystemGetDriverVersion"))
            count = nvml("nvmlDeviceGetCount")
        except Exception as error:
            reason = nvml.explain(error)
            if begun:
                self._shut_down(nvml)
            self._backoff.failed(now_ns)
            self._states.set(now_ns, "gpu", "retry", f"NVML can't be initialised: {reason}")
            return
        self._gpus = [Gpu(nvml, self._node, index) for index in range(count)]
        self._running = True
        if count:
            self._states.set(now_ns, "gpu", "ok")
        else:
            self._states.set(now_ns, "gpu", "unsupported", "NVML is there, but it sees no GPU")

    def _lose(self, now_ns: int, nvml: Nvml, reason: str) -> None:
        self._running = False
        self.losses += 1
        self._shut_down(nvml)
        self._backoff.failed(now_ns)
        self._states.set(now_ns, "gpu", "retry", f"NVML was lost: {reason}")

    def _shut_down(self, nvml: Nvml) -> None:
        for gpu in self._gpus:
            gpu.close()
        try:
            nvml("nvmlShutdown")
        except Exception:  # it may be gone already, and there is nothing left to shut down then
            pass


class Part:
    """One tier's readings of all GPUs."""

    def __init__(
        self,
        gpus: Gpus,
        read: Callable[[Gpu, int], None],
        gap: Callable[[Gpu, int], None],
        end: Callable[[int], None] = lambda now_ns: None,
    ) -> None:
        self._gpus = gpus
        self.read = read
        self.gap = gap
        self._end = end

    def sample(self, now_ns: int) -> int:
        """Append rows. Returns the ns of it that keep a budget of their own."""
        excused_ns = self._gpus.run(now_ns, self)
        self._end(now_ns)
        return excused_ns
