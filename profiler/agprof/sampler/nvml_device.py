"""One GPU or MIG instance that is open: its handle, what it is, and the state of each of its fields."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from agprof.sampler.nvml_calls import Nvml
from agprof.sampler.nvml_errors import UNKNOWN
from agprof.sampler.nvml_fields import Field
from agprof.sampler.states import Append, Probe, State, States, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Nature:
    """What a device is, as far as it decides how it is read. None: not told."""

    architecture: int | None = None
    """NVML_DEVICE_ARCH_..."""
    capability: tuple[int, int] | None = None
    """CUDA compute capability."""
    pcie: tuple[int, int] | None = None
    """Generation and lanes of the link at most."""


@dataclass(slots=True)
class Device:
    """What the readers of one device share."""

    nvml: Nvml
    append: Append
    states: States
    index: int
    handle: Any
    nature: Nature = field(default_factory=Nature)
    parent: Any = None
    """Of a MIG instance: the handle of its GPU."""
    instance: int | None = None
    """Of a MIG instance: number of its GPU instance."""
    probes: dict[str, Probe] = field(default_factory=dict)
    said: dict[str, State] = field(default_factory=dict)
    """What `say` has said last."""

    def probe(self, now_ns: int, name: str, call: str, *arguments: Any, **options: Any) -> Any:
        """The value of an NVML call, or None with the reason in `sampler_state`.

        Raises DeviceLostError and LibraryLostError.
        """
        return self.read(now_ns, name, lambda: self.nvml(call, *arguments, **options))

    def read(self, now_ns: int, name: str, function: Callable[[], Any]) -> Any:
        """The same for a value that takes more than one call."""
        probe = self.probes.get(name)
        if probe is None:
            probe = self.probes[name] = Probe(self.states, f"gpu.{self.index}.{name}", self.judge, self.nvml.explain)
        return probe.read(now_ns, function)

    def say(self, now_ns: int, name: str, fields: Iterable[Field]) -> None:
        """The state of a value that comes from these fields of a batch: that of the one that fares best."""
        reason = ""
        state: State = "unsupported"
        for entry in fields:
            if entry.state == "ok":
                state, reason = "ok", ""
                break
            if entry.state == "retry" or not reason:
                state, reason = entry.state, entry.reason
        # Five times a second, for each of eight values of each GPU: mostly there is nothing new to say.
        if state != "ok" or self.said.get(name) != "ok":
            self.said[name] = state
            self.states.set(now_ns, f"gpu.{self.index}.{name}", state, reason)

    def judge(self, error: Exception) -> Verdict:
        """What an exception means for a value of this device. Raises DeviceLostError and LibraryLostError.

        "Unknown error" is what a container answers that has lost its device files, but single calls give it too: the
        device is lost when memory, which any driver tells, fails in that way as well.
        """
        nvml = self.nvml
        if nvml.codes.of(error) == UNKNOWN:
            try:
                nvml("nvmlDeviceGetMemoryInfo", self.handle, version=nvml.module.nvmlMemory_v2)
            except Exception as confirmation:
                nvml.judge(confirmation)
            return "retry"
        return nvml.judge(error)

    def note(self, now_ns: int, name: str, remark: str) -> None:
        """Say something about a value that is measured."""
        self.append("sampler_state", (now_ns, f"gpu.{self.index}.{name}", "ok", remark, None, None))
