"""What the driver reports by itself: XIDs and memory errors."""

from typing import Any

from agprof.sampler.states import Append, States


class GpuEvents:
    """Appends rows of `gpu_events` from a thread of its own that waits for NVML's events.

    `nvml` is the module, its stand-in, or None.
    """

    def __init__(self, append: Append, states: States, nvml: Any) -> None:
        self._append = append
        self._states = states
        self._nvml = nvml

    def start(self) -> None:
        """Begin to wait in a daemon thread; nothing where there is no NVML."""

    def close(self) -> None:
        """End the thread; one that is stuck in the driver for more than 2 s is left behind."""
