"""What the GPU thread does: NVML loaded, its tiers, and the thread of events beside it."""

import argparse
from collections.abc import Callable
from random import Random

from agprof.model.tables import NVML_LOADING
from agprof.sampler.loop import Clock, Lane, tier
from agprof.sampler.nvml import Gpus, load_nvml
from agprof.sampler.nvml_errors import NoNvmlError
from agprof.sampler.nvml_events import GpuEvents
from agprof.sampler.nvml_processes import Pids
from agprof.sampler.states import Append, States


class NvmlWork:
    """The lane of the GPU tiers. Made on the GPU thread, for loading NVML may hang as any call of it."""

    def __init__(
        self,
        options: argparse.Namespace,
        append: Append,
        flush: Callable[[], None],
        states: States,
        pids: Pids,
        random: Random,
        clock: Clock,
    ) -> None:
        """Raises NoNvmlError."""
        if options.nvml == "off":
            raise NoNvmlError("switched off: monitor.nvml is off, or --nvml off was given")
        # A look-alike of the library may end the process: this is on the disk by then.
        states.set(clock.monotonic_ns(), "gpu", "retry", NVML_LOADING)
        flush()
        nvml = load_nvml()
        self._gpus = Gpus(append, states, nvml, pids=pids)
        self._events = GpuEvents(append, states, nvml, losses=lambda: self._gpus.losses)
        gpus = self._gpus
        self.lane = Lane(
            name="gpu",
            tiers=(
                tier("fast", options.fast_period, {"gpu.sampling": gpus.fast}, random),
                tier("medium", options.period, {"gpu.sampling.medium": gpus.medium}, random),
                tier("slow", options.slow_period, {"gpu.sampling.slow": gpus.slow}, random),
            ),
            append=append,
            states=states,
            flush=flush,
            clock=clock,
        )
        self._events.start()

    def call(self) -> tuple[str, int] | None:
        """The call of NVML that this thread is in, and since when; None between calls."""
        return self._gpus.call

    def close(self) -> None:
        """End the thread of events, then shut NVML down."""
        self._events.close()
        self._gpus.close()
