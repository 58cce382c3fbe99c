"""One GPU of the node with its MIG instances: opened, read by tiers, lost and opened again."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agprof.model.tables import GPU_SAMPLES, GPU_STATES, Table
from agprof.sampler.nvml_calls import Nvml
from agprof.sampler.nvml_device import Device
from agprof.sampler.nvml_errors import DeviceLostError
from agprof.sampler.nvml_gpm import Activity
from agprof.sampler.nvml_health import Health
from agprof.sampler.nvml_identity import describe_gpu, describe_mig, mig_index, mig_mode, nature
from agprof.sampler.nvml_processes import Processes
from agprof.sampler.nvml_samples import Samples
from agprof.sampler.nvml_states import SlowStates
from agprof.sampler.states import Append, Backoff, States

MOST_INSTANCES = 64


@dataclass(slots=True)
class Node:
    """What all GPUs of the node share."""

    append: Append
    states: States
    sysfs: Path
    driver: str | None = None
    _known: dict[int, tuple[Any, ...]] = field(default_factory=dict)

    def identify(self, row: tuple[Any, ...]) -> None:
        """Append a row of `gpus`, once and when it has changed."""
        if self._known.get(row[0]) != row:
            self._known[row[0]] = row
            self.append("gpus", row)


class _Slice:
    """What is read of a whole GPU and of a MIG instance alike."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.states = SlowStates(device)
        self.activity = Activity(device)


class Gpu:
    """One physical GPU. `open` is called before each reading, and `lose` or `found` after it."""

    def __init__(self, nvml: Nvml, node: Node, index: int) -> None:
        self.index = index
        self._nvml = nvml
        self._node = node
        self._backoff = Backoff()
        self._again = Backoff()
        self._doubt = ""
        """Why what the GPU is may not be all told: it is opened again then."""
        self._slices: list[_Slice] = []
        """The GPU itself, then its MIG instances; empty while it is lost."""
        self._samples: Samples | None = None
        self._health: Health | None = None

    def open(self, now_ns: int) -> int:
        """Make sure that the GPU is open. Returns the ns that it took. Raises DeviceLostError, LibraryLostError."""
        if not self._backoff.due(now_ns):
            raise DeviceLostError("waiting before the next try")
        if self._slices and not (self._doubt and self._again.due(now_ns)):
            return 0
        begin_ns = self._nvml.now_ns()
        self.close()
        self._nvml.doubt = ""
        self._open(now_ns)
        self._doubt = self._nvml.doubt
        self._node.states.set(now_ns, f"gpu.{self.index}.identity", "retry" if self._doubt else "ok", self._doubt)
        if self._doubt:
            self._again.failed(now_ns)
        else:
            self._again.succeeded()
        return self._nvml.now_ns() - begin_ns

    def found(self, now_ns: int) -> None:
        """Say that it was read."""
        self._backoff.succeeded()
        self._node.states.set(now_ns, f"gpu.{self.index}", "ok")

    def lose(self, now_ns: int, reason: str) -> None:
        """Forget the handle, and wait before the next try."""
        if self._backoff.due(now_ns):
            self.close()
            self._backoff.failed(now_ns)
            self._node.states.set(now_ns, f"gpu.{self.index}", "retry", reason)

    def close(self) -> None:
        """Give back what was allocated in the driver."""
        slices, self._slices = self._slices, []
        self._samples = self._health = None
        for part in slices:
            part.activity.close()

    def sample_fast(self, now_ns: int) -> None:
        """Append the row of `gpu_samples`. These three raise DeviceLostError and LibraryLostError."""
        assert self._samples is not None
        self._node.append("gpu_samples", (now_ns, self.index, *self._samples.read(now_ns)))

    def sample_medium(self, now_ns: int) -> None:
        """Append rows of `gpu_states` and `gpu_activity`."""
        # All are read before any is written: a GPU that is lost on the way has a row of gaps and no other.
        states = [(now_ns, part.device.index, *part.states.read(now_ns)) for part in self._slices]
        activities = [part.activity.read(now_ns) for part in self._slices]
        for state in states:
            self._node.append("gpu_states", state)
        for activity in activities:
            if activity is not None:
                self._node.append("gpu_activity", activity)

    def sample_slow(self, now_ns: int, processes: Processes) -> None:
        """Append the row of `gpu_health`, and collect processes."""
        assert self._health is not None
        self._node.append("gpu_health", (now_ns, self.index, *self._health.read(now_ns)))
        # A split GPU itself tells the processes of all its instances once more.
        for part in self._slices[1:] or self._slices:
            processes.collect(now_ns, part.device)

    def gap_fast(self, now_ns: int) -> None:
        self._node.append("gpu_samples", (now_ns, self.index, *_gap(GPU_SAMPLES)))

    def gap_medium(self, now_ns: int) -> None:
        self._node.append("gpu_states", (now_ns, self.index, *_gap(GPU_STATES)))

    def _open(self, now_ns: int) -> None:
        nvml, node = self._nvml, self._node
        try:
            handle = nvml("nvmlDeviceGetHandleByIndex", self.index)
        except Exception as error:
            reason = nvml.explain(error)
            nvml.judge(error)
            raise DeviceLostError(reason) from None
        kind = nature(nvml, handle)
        split = mig_mode(nvml, handle)
        row = describe_gpu(nvml, self.index, handle, kind, split, node.driver, node.sysfs)
        if not any(row[1:5]):
            raise DeviceLostError("it tells neither its name nor its number")
        node.identify(row)
        device = Device(nvml, node.append, node.states, self.index, handle, kind)
        instances = self._open_instances(now_ns, device) if split else []
        self._samples, self._health = Samples(device), Health(device)
        self._slices = [_Slice(device), *(_Slice(instance) for instance in instances)]

    def _open_instances(self, now_ns: int, gpu: Device) -> list[Device]:
        nvml, node = self._nvml, self._node
        instances = []
        refused = ""
        for slot in range(min(nvml.optional("nvmlDeviceGetMaxMigDeviceCount", gpu.handle) or 0, MOST_INSTANCES)):
            try:
                handle = nvml("nvmlDeviceGetMigDeviceHandleByIndex", gpu.handle, slot)
            except Exception as error:
                # An empty slot is "not found".
                if nvml.codes.of(error) != "NVML_ERROR_NOT_FOUND":
                    refused = nvml.explain(error)
                    nvml.judge(error)
                continue
            index = mig_index(self.index, slot)
            node.identify(describe_mig(nvml, index, handle, self.index, gpu.nature, node.driver))
            number = nvml.optional("nvmlDeviceGetGpuInstanceId", handle)
            instances.append(Device(nvml, node.append, node.states, index, handle, gpu.nature, gpu.handle, number))
        if refused:
            # The instances of others can't be seen from within a container.
            node.states.set(now_ns, f"gpu.{self.index}.mig", "unsupported", refused)
        return instances


def _gap(table: Table) -> tuple[None, ...]:
    """The columns behind `time_ns` and `gpu`."""
    return (None,) * (len(table.columns) - 2)
