"""Builds scenarios of the fake NVML (tests/fakes/nvml/README.md): GPUs as NVML tells them, and what happens to them.

>>> scenario = Scenario(T4)
>>> scenario.at(0, 0, power_instant_mw=30_000)
>>> scenario.lines()[-1]
'at 0 0 power_instant_mw = 30000'
"""

import mmap
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

MIB = 2**20
SECOND_NS = 1_000_000_000
Gpu = int | str
"""An index, "*" for every whole GPU, or "0.1" for MIG slot 1 of GPU 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A GPU as nvidia-smi shows it. `power_average`: whether the driver tells the average over 1 s (field 185).

    Sources: NVIDIA's data sheets of the products (power, links), the tables of supported clocks and the memory totals
    that `nvidia-smi -q` prints on them, `nvml.h` for numbers of architectures.
    """

    name: str
    architecture: int
    capability: tuple[int, int]
    total_mib: int
    reserved_mib: int
    power_limit_w: int
    power_limit_min_w: int
    sm_clock_mhz: int
    memory_clock_mhz: int
    nvlinks: int
    pcie_gen: int
    cores: int
    pci_device_id: int
    power_average: bool
    usage_is_average: bool
    gpm: bool
    row_remapping: bool
    memory_temperature: bool
    mig: bool


A100 = Profile(
    name="NVIDIA A100-SXM4-80GB", architecture=7, capability=(8, 0), total_mib=81920, reserved_mib=571,
    power_limit_w=400, power_limit_min_w=100, sm_clock_mhz=1410, memory_clock_mhz=1593, nvlinks=12, pcie_gen=4,
    cores=6912, pci_device_id=0x20B210DE, power_average=False, usage_is_average=False, gpm=False, row_remapping=True,
    memory_temperature=True, mig=True,
)  # fmt: skip
H100 = Profile(
    name="NVIDIA H100 80GB HBM3", architecture=9, capability=(9, 0), total_mib=81559, reserved_mib=551,
    power_limit_w=700, power_limit_min_w=200, sm_clock_mhz=1980, memory_clock_mhz=2619, nvlinks=18, pcie_gen=5,
    cores=16896, pci_device_id=0x233010DE, power_average=True, usage_is_average=True, gpm=True, row_remapping=True,
    memory_temperature=True, mig=True,
)  # fmt: skip
H200 = Profile(
    name="NVIDIA H200", architecture=9, capability=(9, 0), total_mib=143771, reserved_mib=602,
    power_limit_w=700, power_limit_min_w=200, sm_clock_mhz=1980, memory_clock_mhz=3201, nvlinks=18, pcie_gen=5,
    cores=16896, pci_device_id=0x233510DE, power_average=True, usage_is_average=True, gpm=True, row_remapping=True,
    memory_temperature=True, mig=True,
)  # fmt: skip
L40S = Profile(
    name="NVIDIA L40S", architecture=8, capability=(8, 9), total_mib=46068, reserved_mib=596,
    power_limit_w=350, power_limit_min_w=100, sm_clock_mhz=2520, memory_clock_mhz=9001, nvlinks=0, pcie_gen=4,
    cores=18176, pci_device_id=0x26B910DE, power_average=True, usage_is_average=True, gpm=False, row_remapping=True,
    memory_temperature=False, mig=False,
)  # fmt: skip
T4 = Profile(
    name="Tesla T4", architecture=6, capability=(7, 5), total_mib=15360, reserved_mib=450,
    power_limit_w=70, power_limit_min_w=60, sm_clock_mhz=1590, memory_clock_mhz=5001, nvlinks=0, pcie_gen=3,
    cores=2560, pci_device_id=0x1EB810DE, power_average=False, usage_is_average=False, gpm=False, row_remapping=False,
    memory_temperature=False, mig=False,
)  # fmt: skip
PROFILES: dict[str, Profile] = {"A100": A100, "H100": H100, "H200": H200, "L40S": L40S, "T4": T4}

BUS_IDS = ("1B", "43", "52", "61", "9D", "C3", "D1", "DF")
GPM_METRICS = {2: "sm", 3: "occupancy", 5: "tensor", 10: "dram", 11: "fp64", 12: "fp32", 13: "fp16"}


@dataclass
class Scenario:
    """Statements, in the order they are made. What a GPU of the profile has is given from the beginning on, idle.

    `without` names fields that are left out: NVML answers NOT_SUPPORTED then.
    """

    profile: Profile = H100
    gpus: int = 1
    without: tuple[str, ...] = ()
    driver: str = "570.124.06"
    _lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lines += [
            f"gpus {self.gpus}",
            f"text system driver_version {self.driver}",
            f"text system nvml_version 12.{self.driver}",
            "value system cuda_version 12080",
        ]
        for gpu in range(self.gpus):
            self.text(gpu, uuid=uuid_of(gpu), pci_bus_id=pci_bus_id_of(gpu), serial=f"165432100{gpu:04}")
        self.text("*", name=self.profile.name)
        self.at(0, "*", **{name: value for name, value in self._beginning().items() if name not in self.without})
        if "energy_mj" not in self.without:
            self.integral(0, "*", energy_mj="power_instant_mw")

    def at(self, time_s: float, gpu: Gpu, **fields: float) -> None:
        """From `time_s` on the fields have these values. `field_197` stands for field.197, `gpm_2` for gpm.2."""
        self._point(time_s, gpu, "=", fields)

    def ramp(self, time_s: float, gpu: Gpu, **fields: float) -> None:
        """The fields go in a straight line from the point before to these values at `time_s`."""
        self._point(time_s, gpu, "~", fields)

    def grow(self, time_s: float, gpu: Gpu, **per_s: float) -> None:
        """From `time_s` on the fields grow by so much per second."""
        self._point(time_s, gpu, "+", per_s)

    def integral(self, time_s: float, gpu: Gpu, **others: str) -> None:
        """From `time_s` on the fields grow by the integral over seconds of the field that is named."""
        for name, other in others.items():
            self.line(f"at {time_s} {gpu} {_field(name)} integral {_field(other)}")

    def fails(self, time_s: float, gpu: Gpu, *names: str, code: str = "NVML_ERROR_NOT_SUPPORTED") -> None:
        """From `time_s` on reading these fields fails."""
        for name in names:
            self.line(f"at {time_s} {gpu} {_field(name)} ! {code}")

    def text(self, gpu: Gpu, **fields: str) -> None:
        for name, text in fields.items():
            self.line(f"text {gpu} {name} {text}")

    def wrap(self, gpu: Gpu, name: str, bits: int) -> None:
        """The field is given modulo 2**bits."""
        self.line(f"wrap {gpu} {_field(name)} {bits}")

    def period(self, gpu: Gpu, name: str, period_s: float) -> None:
        """The field's value changes only every `period_s`."""
        self.line(f"period {gpu} {_field(name)} {period_s}")

    def type(self, name: str, type_name: Literal["u32", "u64", "i64", "i32", "u16", "f64", "ulong"]) -> None:
        """The valueType that nvmlDeviceGetFieldValues gives with the field."""
        self.line(f"type {_field(name)} {type_name}")

    def process(
        self,
        gpu: Gpu,
        pid: int,
        used_bytes: int | None,
        kind: Literal["compute", "graphics"] = "compute",
        from_s: float = 0,
        until_s: float | None = None,
    ) -> None:
        """A process on the GPU; None: NVML does not say how much it holds."""
        used = "unknown" if used_bytes is None else str(used_bytes)
        self.line(f"process {gpu} {pid} {kind} {used} {_window(from_s, until_s)}")

    def event(self, time_s: float, gpu: Gpu, kind: str | int, data: int) -> None:
        """`kind`: xid, ecc_double ..., or the bit itself."""
        self.line(f"event {time_s} {gpu} {kind} {data}")

    def mig(self, gpu: int, slot: int, total_mib: int, name: str, gpu_instance: int, compute_instance: int = 0) -> str:
        """A MIG instance with its memory; the GPU's `mig_mode` is switched on. Returns its key for the other calls."""
        key = f"{gpu}.{slot}"
        self.line(f"mig {gpu} {slot} gi={gpu_instance} ci={compute_instance}")
        self.text(key, name=name, uuid=f"MIG-{0xA000 + gpu * 16 + slot:08x}-0000-5000-8000-{slot:012x}")
        self.at(0, key, memory_total_bytes=total_mib * MIB, memory_reserved_bytes=0, memory_used_bytes=0)
        self.at(0, gpu, mig_mode=1)
        # NVML does not tell the utilisation of a GPU that is split.
        self.fails(0, gpu, "utilization_percent", "memory_utilization_percent")
        return key

    def fail(
        self,
        call: str,
        code: str,
        gpu: Gpu | None = None,
        from_s: float = 0,
        until_s: float | None = None,
        after: int = 0,
        times: int = -1,
    ) -> None:
        """`call` ("*": each) returns `code`; the first `after` calls pass, and at most `times` fail (-1: all)."""
        self.line(f"fail {call} {code} {_options(gpu, from_s, until_s, after, times)}")

    def fail_field(
        self, number: int, code: str, gpu: Gpu | None = None, from_s: float = 0, after: int = 0, times: int = -1
    ) -> None:
        """nvmlReturn of this one value of nvmlDeviceGetFieldValues."""
        self.line(f"fail_field {number} {code} {_options(gpu, from_s, None, after, times)}")

    def hang(
        self, call: str, seconds: float, gpu: Gpu | None = None, from_s: float = 0, after: int = 0, times: int = -1
    ) -> None:
        """`call` does not return for `seconds` of the scenario's clock."""
        self.line(f"hang {call} {seconds} {_options(gpu, from_s, None, after, times)}")

    def exit(self, call: str, status: int, after: int = 0) -> None:
        """The process exits inside `call`."""
        self.line(f"exit {call} {status} after={after}")

    def lost(self, gpu: int, from_s: float, until_s: float | None = None, code: str = "NVML_ERROR_GPU_IS_LOST") -> None:
        """Each call about this GPU returns `code`, the one for its handle too."""
        self.line(f"lost {gpu} {_window(from_s, until_s)} code={code}")

    def gone(self, from_s: float, until_s: float | None = None, code: str = "NVML_ERROR_UNKNOWN") -> None:
        """Each call returns `code`, nvmlInit too; from `until_s` on nvmlInit succeeds, and is needed."""
        self.line(f"gone {_window(from_s, until_s)} code={code}")

    def line(self, statement: str) -> None:
        self._lines.append(" ".join(statement.split()))

    def lines(self) -> list[str]:
        return list(self._lines)

    def write(self, folder: Path, name: str = "scenario.nvml") -> Path:
        path = folder / name
        path.write_text("\n".join(self._lines) + "\n")
        return path

    def environment(
        self, folder: Path, library: Path, clock: "VirtualClock | None" = None, log: Path | None = None
    ) -> dict[str, str]:
        """What a subprocess needs to find the fake in `library`, with this scenario written into `folder`."""
        found = {"AGPROF_FAKE_NVML": str(self.write(folder)), "LD_LIBRARY_PATH": str(library)}
        if clock is not None:
            found["AGPROF_FAKE_NVML_CLOCK"] = str(clock.path)
        if log is not None:
            found["AGPROF_FAKE_NVML_LOG"] = str(log)
        return found

    def _point(self, time_s: float, gpu: Gpu, operator: str, fields: dict[str, float]) -> None:
        for name, value in fields.items():
            self.line(f"at {time_s} {gpu} {_field(name)} {operator} {value}")

    def _beginning(self) -> dict[str, float]:
        profile = self.profile
        limit_mw = profile.power_limit_w * 1000
        idle_mw = limit_mw // 10
        fields: dict[str, float] = {
            "memory_total_bytes": profile.total_mib * MIB,
            "memory_reserved_bytes": profile.reserved_mib * MIB,
            "memory_used_bytes": 4 * MIB,
            "utilization_percent": 0,
            "memory_utilization_percent": 0,
            "power_usage_mw": idle_mw,
            "power_instant_mw": idle_mw,
            "power_limit_mw": limit_mw,
            "power_limit_default_mw": limit_mw,
            "power_limit_max_mw": limit_mw,
            "power_limit_min_mw": profile.power_limit_min_w * 1000,
            "graphics_clock_mhz": 345,
            "sm_clock_mhz": 345,
            "memory_clock_mhz": profile.memory_clock_mhz,
            "video_clock_mhz": 765,
            "max_graphics_clock_mhz": profile.sm_clock_mhz,
            "max_sm_clock_mhz": profile.sm_clock_mhz,
            "max_memory_clock_mhz": profile.memory_clock_mhz,
            "max_video_clock_mhz": profile.sm_clock_mhz,
            "event_reasons": 1,
            "supported_event_reasons": 0x1FF,
            "temperature_c": 34,
            "ecc_mode": 1,
            "ecc_corrected": 0,
            "ecc_uncorrected": 0,
            "ecc_aggregate_corrected": 0,
            "ecc_aggregate_uncorrected": 0,
            "architecture": profile.architecture,
            "compute_major": profile.capability[0],
            "compute_minor": profile.capability[1],
            "cores": profile.cores,
            "numa_node": 0,
            "persistence_mode": 1,
            "performance_state": 0,
            "pci_device_id": profile.pci_device_id,
            "pcie_gen": profile.pcie_gen,
            "pcie_width": 16,
            "pcie_gen_max": profile.pcie_gen,
            "pcie_width_max": 16,
            "energy_mj": 0,
            # Throttle time (ns) by reason, PCIe bytes.
            **{f"field_{number}": 0 for number in (74, 75, 76, 77, 78, 79, 80, 81, 197, 198, 269, 270, 271)},
        }
        if profile.power_average:
            fields["power_average_mw"] = idle_mw
        if profile.memory_temperature:
            fields["memory_temperature_c"] = 42
        if profile.row_remapping:
            fields |= {"remapped_corrected": 0, "remapped_uncorrected": 0, "remap_pending": 0, "remap_failed": 0}
        if profile.nvlinks:
            fields |= {"nvlinks": profile.nvlinks, "nvlinks_max": profile.nvlinks}
            fields |= {f"field_{number}": 0 for number in (138, 139, 140, 141)}  # KiB
        if profile.mig:
            fields["mig_mode"] = 0
        if profile.gpm:
            fields |= {f"gpm_{number}": 0 for number in (*GPM_METRICS, 20, 21)}  # percent, and PCIe in MiB/s
        return fields


class VirtualClock:
    """The scenario's time, set by the test. `set` is seen by the fake at once."""

    def __init__(self, path: Path, time_s: float = 0.0) -> None:
        self.path = path
        path.write_bytes(bytes(8))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 8)
        self.set_ns(round(time_s * SECOND_NS))

    def set_ns(self, time_ns: int) -> None:
        self._memory[:8] = struct.pack("=q", time_ns)


def uuid_of(gpu: int) -> str:
    return f"GPU-{0xC0FFEE00 + gpu:08x}-5d0c-4a3b-9e1f-{gpu:012x}"


def pci_bus_id_of(gpu: int) -> str:
    return f"00000000:{BUS_IDS[gpu]}:00.0"


def inherited(scenario_environment: dict[str, str]) -> dict[str, str]:
    """This process's environment with the fake's on top."""
    return {**os.environ, **scenario_environment}


def _field(name: str) -> str:
    """`field_138` -> `field.138`, `field_186_1` -> `field.186.1`, `gpm_2` -> `gpm.2`."""
    return name.replace("_", ".") if name.startswith(("field_", "gpm_")) else name


def _window(from_s: float, until_s: float | None) -> str:
    return f"from={from_s}" + ("" if until_s is None else f" until={until_s}")


def _options(gpu: Gpu | None, from_s: float, until_s: float | None, after: int, times: int) -> str:
    return f"{'' if gpu is None else f'gpu={gpu} '}{_window(from_s, until_s)} after={after} times={times}"
