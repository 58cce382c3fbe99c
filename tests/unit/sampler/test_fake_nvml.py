"""The fake NVML itself: its layouts and symbols are those of nvidia-ml-py, and a scenario says what README.md says."""

import ctypes
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pynvml
import pytest

from fakes.nvml.build import LIBRARY, R450, R470, R525, FakeNvml
from nvml_scenario import H100, MIB, PROFILES, SECOND_NS, T4, Scenario, VirtualClock, inherited

# The fake's structs -> nvidia-ml-py's.
STRUCTS = {
    "nvmlPciInfo_t": pynvml.nvmlPciInfo_t,
    "nvmlMemory_t": pynvml.c_nvmlMemory_t,
    "nvmlMemory_v2_t": pynvml.c_nvmlMemory_v2_t,
    "nvmlUtilization_t": pynvml.c_nvmlUtilization_t,
    "nvmlProcessInfo_v2_t": pynvml.c_nvmlProcessInfo_v2_t,
    "nvmlValue_t": pynvml.c_nvmlValue_t,
    "nvmlFieldValue_t": pynvml.c_nvmlFieldValue_t,
    "nvmlTemperature_v1_t": pynvml.c_nvmlTemperature_v1_t,
    "nvmlEventData_t": pynvml.c_nvmlEventData_t,
    "metricInfo_t": pynvml.c_metricInfo_t,
    "nvmlGpmMetric_t": pynvml.c_nvmlGpmMetric_t,
    "nvmlGpmMetricsGet_t": pynvml.c_nvmlGpmMetricsGet_t,
    "nvmlGpmSupport_t": pynvml.c_nvmlGpmSupport_t,
    "nvmlDeviceAttributes_t": pynvml.c_nvmlDeviceAttributes,
}
# Older names that NVML's header has and the binding does not ask for.
ONLY_IN_HEADER = {
    "nvmlInit", "nvmlInit_v2", "nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetHandleByPciBusId",
    "nvmlEventSetWait",
}  # fmt: skip


class Session:
    """One scenario with its clock, opened: `nvml` is the binding, `gpus` the handles."""

    def __init__(self, nvml: ModuleType, clock: VirtualClock) -> None:
        self.nvml: Any = nvml
        self._clock = clock

    def at(self, time_s: float) -> Any:
        self._clock.set_ns(round(time_s * SECOND_NS))
        return self.nvml

    def start(self) -> list[Any]:
        self.nvml.nvmlInit()
        return [self.nvml.nvmlDeviceGetHandleByIndex(i) for i in range(self.nvml.nvmlDeviceGetCount())]

    def field(self, handle: Any, number: int, scope: int = 0) -> int:
        (value,) = self.nvml.nvmlDeviceGetFieldValues(handle, [(number, scope)])
        assert value.nvmlReturn == 0
        return int(value.value.ullVal)

    def code(self, call: Any, *arguments: Any) -> int:
        try:
            call(*arguments)
        except self.nvml.NVMLError as error:
            return int(error.value)
        return 0


class Opener:
    def __init__(self, fake: FakeNvml, folder: Path) -> None:
        self._fake, self._folder = fake, folder
        self._open: list[Any] = []

    def __call__(self, scenario: Scenario, *, without: tuple[str, ...] = (), log: Path | None = None) -> Session:
        clock = VirtualClock(self._folder / f"clock{len(self._open)}")
        binding = self._fake.binding(scenario.write(self._folder), clock.path, without=without, log=log)
        self._open.append(binding)
        return Session(binding.__enter__(), clock)

    def close(self) -> None:
        for binding in reversed(self._open):
            binding.__exit__(None, None, None)


@pytest.fixture
def opened(fake_nvml: FakeNvml, tmp_path: Path) -> Iterator[Opener]:
    opener = Opener(fake_nvml, tmp_path)
    yield opener
    opener.close()


# --- the binary interface


def in_a_process(code: str, *arguments: str) -> str:
    """What a program prints. Loading the library here would let this process's other tests find it by its soname."""
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True).stdout


def layout(fake_nvml: FakeNvml) -> list[tuple[str, str, int, int]]:
    code = (
        "import ctypes, sys\n"
        "library = ctypes.CDLL(sys.argv[1])\n"
        "buffer = ctypes.create_string_buffer(1 << 16)\n"
        "assert library.agprof_fake_layout(buffer, len(buffer)) == 1\n"
        "print(buffer.value.decode())"
    )
    out = in_a_process(code, str(fake_nvml.build() / LIBRARY))
    rows = [line.split() for line in out.splitlines() if line]
    return [(name, member, int(offset), int(size)) for name, member, offset, size in rows]


def test_every_struct_has_the_layout_of_the_binding(fake_nvml: FakeNvml) -> None:
    rows = layout(fake_nvml)
    assert {name for name, *_ in rows} == set(STRUCTS)
    for name, member, offset, size in rows:
        struct = STRUCTS[name]
        if member == "-":
            assert size == ctypes.sizeof(struct), name
        else:
            descriptor = getattr(struct, member)
            assert (offset, size) == (descriptor.offset, descriptor.size), f"{name}.{member}"


def test_version_words_are_those_of_the_binding() -> None:
    assert ctypes.sizeof(pynvml.c_nvmlMemory_v2_t) | 2 << 24 == pynvml.nvmlMemory_v2
    assert ctypes.sizeof(pynvml.c_nvmlTemperature_v1_t) | 1 << 24 == pynvml.nvmlTemperature_v1


def test_every_symbol_is_one_of_nvml(fake_nvml: FakeNvml) -> None:
    source = Path(pynvml.__file__).read_text()
    asked_for = set(re.findall(r'_nvmlGetFunctionPointer\("(\w+)"\)', source))
    exported = {symbol for symbol in fake_nvml.symbols() if not symbol.startswith("agprof_fake_")}
    assert exported - asked_for == ONLY_IN_HEADER


@pytest.mark.parametrize("without", [(), R525, R470, R450], ids=["today", "R525", "R470", "R450"])
def test_a_build_has_the_symbols_that_it_should(fake_nvml: FakeNvml, without: tuple[str, ...]) -> None:
    code = "import ctypes, sys; l = ctypes.CDLL(sys.argv[1]); print(*(s for s in sys.argv[2:] if hasattr(l, s)))"
    found = in_a_process(code, str(fake_nvml.build(without=without) / LIBRARY), *fake_nvml.symbols())
    assert set(found.split()) == set(fake_nvml.symbols()) - set(without)


def test_codes_are_those_of_the_binding() -> None:
    header = (Path(__file__).parents[2] / "fakes" / "nvml" / "abi.h").read_text()
    codes = re.findall(r"(NVML_(?:SUCCESS|ERROR_\w+)) = (\d+)", header)
    assert len(codes) > 20
    for name, value in codes:
        assert getattr(pynvml, name) == int(value), name


# --- values over time


def test_a_step_holds_and_a_line_goes_straight(opened: Opener) -> None:
    scenario = Scenario(H100)
    scenario.at(0, 0, power_instant_mw=100_000)
    scenario.ramp(10, 0, power_instant_mw=700_000)
    scenario.at(20, 0, power_instant_mw=50_000)
    session = opened(scenario)
    (gpu,) = session.start()
    expected = {0: 100_000, 2.5: 250_000, 10: 700_000, 19.999: 700_000, 20: 50_000, 1000: 50_000}
    for time_s, power_mw in expected.items():
        session.at(time_s)
        assert session.field(gpu, 186) == power_mw


def test_energy_is_the_integral_of_power(opened: Opener) -> None:
    scenario = Scenario(H100)
    scenario.at(0, 0, power_instant_mw=100_000)
    scenario.ramp(10, 0, power_instant_mw=700_000)
    scenario.at(20, 0, power_instant_mw=50_000)
    session = opened(scenario)
    (gpu,) = session.start()
    # mW over seconds: a trapezium, then two rectangles.
    for time_s, energy_mj in {5: 1_250_000, 10: 4_000_000, 20: 11_000_000, 24: 11_200_000}.items():
        nvml = session.at(time_s)
        assert nvml.nvmlDeviceGetTotalEnergyConsumption(gpu) == session.field(gpu, 83) == energy_mj


@pytest.mark.parametrize("bits", [32, 64])
def test_a_counter_wraps(opened: Opener, bits: int) -> None:
    scenario = Scenario(H100)
    scenario.wrap("*", "field_197", bits)
    scenario.at(0, 0, field_197=2**bits - 1_000)
    scenario.grow(0, 0, field_197=300)
    session = opened(scenario)
    (gpu,) = session.start()
    for time_s in (0, 1, 3, 4, 10):
        session.at(time_s)
        assert session.field(gpu, 197) == (2**bits - 1_000 + 300 * time_s) % 2**bits


def test_a_reset_begins_anew_and_a_period_holds_the_value(opened: Opener) -> None:
    scenario = Scenario(H100)
    scenario.at(0, 0, power_instant_mw=200_000)
    scenario.at(5, 0, energy_mj=0)
    scenario.integral(5, 0, energy_mj="power_instant_mw")
    scenario.period(0, "energy_mj", 0.1)
    session = opened(scenario)
    (gpu,) = session.start()
    for time_s, energy_mj in {4.99: 980_000, 5: 0, 5.05: 0, 5.1: 20_000, 6: 200_000}.items():
        session.at(time_s)
        assert session.field(gpu, 83) == energy_mj


def test_one_link_has_its_share_of_all(opened: Opener) -> None:
    scenario = Scenario(H100)
    scenario.grow(0, 0, field_138=1_800)
    session = opened(scenario)
    (gpu,) = session.start()
    nvml = session.at(10)
    assert session.field(gpu, 138, 0xFFFFFFFF) == 18_000
    assert session.field(gpu, 138, 3) == 1_000
    assert nvml.nvmlDeviceGetNvLinkState(gpu, 17) == 1
    assert session.code(nvml.nvmlDeviceGetNvLinkState, gpu, 18) == nvml.NVML_ERROR_INVALID_ARGUMENT


def test_gpm_is_the_mean_between_two_samples(opened: Opener) -> None:
    scenario = Scenario(H100)
    scenario.ramp(10, 0, gpm_5=100)
    session = opened(scenario)
    (gpu,) = session.start()
    nvml = session.nvml
    samples = []
    for time_s in (2, 6):
        session.at(time_s)
        samples.append(nvml.nvmlGpmSampleGet(gpu, nvml.nvmlGpmSampleAlloc()))
    get = nvml.c_nvmlGpmMetricsGet_t(version=1, numMetrics=2, sample1=samples[0], sample2=samples[1])
    get.metrics[0].metricId, get.metrics[1].metricId = 5, 900
    nvml.nvmlGpmMetricsGet(get)
    assert (get.metrics[0].nvmlReturn, get.metrics[0].value) == (0, 40.0)
    assert get.metrics[1].nvmlReturn == nvml.NVML_ERROR_NOT_SUPPORTED


# --- devices


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("gpus", [1, 8])
def test_profiles_are_told_as_they_are(opened: Opener, name: str, gpus: int) -> None:
    profile = PROFILES[name]
    session = opened(Scenario(profile, gpus=gpus))
    handles = session.start()
    nvml = session.nvml
    assert len(handles) == gpus
    for handle in handles:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
        assert nvml.nvmlDeviceGetName(handle) == profile.name
        assert memory.total == memory.used + memory.reserved + memory.free == profile.total_mib * MIB
        assert nvml.nvmlDeviceGetEnforcedPowerLimit(handle) == profile.power_limit_w * 1000
        assert nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM) == profile.sm_clock_mhz
        assert nvml.nvmlDeviceGetCudaComputeCapability(handle) == profile.capability
        assert bool(nvml.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice) is profile.gpm
        average, instant = nvml.nvmlDeviceGetFieldValues(handle, [185, 186])
        assert (average.nvmlReturn == 0) is profile.power_average
        assert instant.nvmlReturn == 0
        assert session.code(nvml.nvmlDeviceGetMigMode, handle) == (0 if profile.mig else nvml.NVML_ERROR_NOT_SUPPORTED)
    assert len({nvml.nvmlDeviceGetUUID(handle) for handle in handles}) == gpus
    assert len({nvml.nvmlDeviceGetPciInfo(handle).busId for handle in handles}) == gpus


def test_handles_by_uuid_and_bus_id_are_those_by_index(opened: Opener) -> None:
    session = opened(Scenario(T4, gpus=2))
    handles = session.start()
    nvml = session.nvml
    for index, handle in enumerate(handles):
        uuid, bus_id = nvml.nvmlDeviceGetUUID(handle), nvml.nvmlDeviceGetPciInfo(handle).busId
        assert nvml.nvmlDeviceGetIndex(nvml.nvmlDeviceGetHandleByUUID(uuid)) == index
        assert nvml.nvmlDeviceGetIndex(nvml.nvmlDeviceGetHandleByPciBusId(bus_id[4:])) == index
    assert session.code(nvml.nvmlDeviceGetHandleByUUID, b"GPU-none") == nvml.NVML_ERROR_NOT_FOUND


def test_a_field_that_is_left_out_is_not_supported(opened: Opener) -> None:
    session = opened(Scenario(H100, without=("utilization_percent", "power_instant_mw")))
    (gpu,) = session.start()
    nvml = session.nvml
    assert session.code(nvml.nvmlDeviceGetUtilizationRates, gpu) == nvml.NVML_ERROR_NOT_SUPPORTED
    assert nvml.nvmlDeviceGetFieldValues(gpu, [186])[0].nvmlReturn == nvml.NVML_ERROR_NOT_SUPPORTED


def test_processes_come_and_go(opened: Opener) -> None:
    scenario = Scenario(H100)
    scenario.process(0, 4711, 8 * MIB)
    scenario.process(0, 4712, None, from_s=1, until_s=2)
    scenario.process(0, 4713, 5, kind="graphics")
    session = opened(scenario)
    (gpu,) = session.start()
    found = {}
    for time_s in (0, 1, 2):
        nvml = session.at(time_s)
        processes = nvml.nvmlDeviceGetComputeRunningProcesses_v3(gpu)
        found[time_s] = {process.pid: process.usedGpuMemory for process in processes}
    assert found == {0: {4711: 8 * MIB}, 1: {4711: 8 * MIB, 4712: None}, 2: {4711: 8 * MIB}}
    assert [process.pid for process in nvml.nvmlDeviceGetGraphicsRunningProcesses_v3(gpu)] == [4713]


def test_mig_instances_are_devices_of_their_own(opened: Opener) -> None:
    scenario = Scenario(H100)
    key = scenario.mig(0, 1, 20_000, "NVIDIA H100 80GB HBM3 MIG 2g.20gb", gpu_instance=3)
    scenario.at(0, key, gpm_2=70, memory_used_bytes=9 * MIB)
    session = opened(scenario)
    (gpu,) = session.start()
    nvml = session.nvml
    assert nvml.nvmlDeviceGetMigMode(gpu) == [1, 1]
    assert session.code(nvml.nvmlDeviceGetMigDeviceHandleByIndex, gpu, 0) == nvml.NVML_ERROR_NOT_FOUND
    instance = nvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu, 1)
    assert nvml.nvmlDeviceGetUUID(instance).startswith("MIG-")
    assert nvml.nvmlDeviceGetMemoryInfo(instance, version=nvml.nvmlMemory_v2).used == 9 * MIB
    assert nvml.nvmlDeviceGetGpuInstanceId(instance) == 3
    assert nvml.nvmlDeviceGetIndex(nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(instance)) == 0
    assert session.code(nvml.nvmlDeviceGetUtilizationRates, gpu) == nvml.NVML_ERROR_NOT_SUPPORTED


# --- faults


def test_the_call_after_n_fails_once(opened: Opener, tmp_path: Path) -> None:
    scenario = Scenario(H100)
    scenario.fail("nvmlDeviceGetPowerUsage", "NVML_ERROR_TIMEOUT", after=2, times=1)
    session = opened(scenario, log=tmp_path / "log")
    (gpu,) = session.start()
    nvml = session.nvml
    assert [session.code(nvml.nvmlDeviceGetPowerUsage, gpu) for _ in range(4)] == [0, 0, nvml.NVML_ERROR_TIMEOUT, 0]
    logged = [line.split()[1:] for line in (tmp_path / "log").read_text().splitlines()]
    first = ["nvmlInitWithFlags", "nvmlDeviceGetCount_v2", "nvmlDeviceGetHandleByIndex_v2"]
    assert logged[:3] == [[name, "-", "0"] for name in first]
    assert [code for name, _, code in logged if name == "nvmlDeviceGetPowerUsage"] == ["0", "0", "10", "0"]


def test_one_value_of_a_batch_fails(opened: Opener) -> None:
    scenario = Scenario(H100)
    scenario.fail_field(186, "NVML_ERROR_NO_PERMISSION")
    session = opened(scenario)
    (gpu,) = session.start()
    instant, energy = session.nvml.nvmlDeviceGetFieldValues(gpu, [186, 83])
    assert (instant.nvmlReturn, energy.nvmlReturn) == (session.nvml.NVML_ERROR_NO_PERMISSION, 0)


def test_a_lost_gpu_takes_its_handle_and_not_the_others(opened: Opener) -> None:
    scenario = Scenario(H100, gpus=2)
    scenario.lost(1, from_s=5, until_s=9)
    session = opened(scenario)
    handles = session.start()
    nvml = session.at(5)
    assert [session.code(nvml.nvmlDeviceGetPowerUsage, h) for h in handles] == [0, nvml.NVML_ERROR_GPU_IS_LOST]
    assert session.code(nvml.nvmlDeviceGetHandleByIndex, 1) == nvml.NVML_ERROR_GPU_IS_LOST
    session.at(9)
    assert session.code(nvml.nvmlDeviceGetPowerUsage, handles[1]) == 0


def test_a_library_that_was_gone_wants_to_be_initialised_again(opened: Opener) -> None:
    scenario = Scenario(H100)
    scenario.gone(5, until_s=9)
    session = opened(scenario)
    (gpu,) = session.start()
    nvml = session.at(5)
    assert session.code(nvml.nvmlDeviceGetPowerUsage, gpu) == nvml.NVML_ERROR_UNKNOWN
    assert session.code(nvml.nvmlInit) == nvml.NVML_ERROR_UNKNOWN
    session.at(9)
    assert session.code(nvml.nvmlDeviceGetPowerUsage, gpu) == nvml.NVML_ERROR_UNINITIALIZED
    (again,) = session.start()
    assert session.code(nvml.nvmlDeviceGetPowerUsage, gpu) == nvml.NVML_ERROR_INVALID_ARGUMENT  # a handle of before
    assert session.code(nvml.nvmlDeviceGetPowerUsage, again) == 0


def test_events_come_once_and_only_to_who_asked(opened: Opener) -> None:
    scenario = Scenario(H100, gpus=2)
    scenario.event(3, 1, "xid", 79)
    scenario.event(3, 0, "ecc_double", 1)
    session = opened(scenario)
    handles = session.start()
    nvml = session.nvml
    events = nvml.nvmlEventSetCreate()
    for handle in handles:
        nvml.nvmlDeviceRegisterEvents(handle, nvml.nvmlEventTypeXidCriticalError, events)
    assert session.code(nvml.nvmlEventSetWait_v2, events, 1) == nvml.NVML_ERROR_TIMEOUT
    session.at(3)
    event = nvml.nvmlEventSetWait_v2(events, 1)
    assert (nvml.nvmlDeviceGetIndex(event.device), event.eventType, event.eventData) == (1, 8, 79)
    assert session.code(nvml.nvmlEventSetWait_v2, events, 1) == nvml.NVML_ERROR_TIMEOUT


def test_a_call_hangs_on_the_scenario_clock(opened: Opener) -> None:
    scenario = Scenario(H100)
    scenario.hang("nvmlDeviceGetPowerUsage", 60)
    session = opened(scenario)
    (gpu,) = session.start()
    thread = threading.Thread(target=session.nvml.nvmlDeviceGetPowerUsage, args=(gpu,), daemon=True)
    thread.start()
    thread.join(0.1)
    assert thread.is_alive()
    assert session.code(session.nvml.nvmlDeviceGetUtilizationRates, gpu) == 0  # others go on
    session.at(60)
    thread.join(5)
    assert not thread.is_alive()


@pytest.mark.parametrize("exits", ["init", "load"])
def test_a_look_alike_exits(fake_nvml: FakeNvml, tmp_path: Path, exits: Any) -> None:
    environment = inherited(Scenario(H100).environment(tmp_path, fake_nvml.build(exits=exits)))
    code = "import pynvml; pynvml.nvmlInit(); print('not reached')"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")


def test_without_a_virtual_clock_time_passes(fake_nvml: FakeNvml, tmp_path: Path) -> None:
    scenario = Scenario(H100)
    scenario.line(f"start_monotonic_ns {time.monotonic_ns() - 100 * SECOND_NS}")
    scenario.grow(0, 0, field_74=1)
    code = (
        "import pynvml as n; n.nvmlInit(); gpu = n.nvmlDeviceGetHandleByIndex(0); "
        "print(n.nvmlDeviceGetFieldValues(gpu, [74])[0].value.ullVal)"
    )
    environment = inherited(scenario.environment(tmp_path, fake_nvml.build()))
    out = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert 100 <= int(out) < 200


@pytest.mark.parametrize(
    "line",
    ["frobnicate 1", "at 0 0 power_usage_mw = many", "at 0 7 power_usage_mw = 1", "fail nvmlInit NVML_ERROR_NONSENSE",
     "fail nvmlInit NVML_ERROR_UNKNOWN whenever=1", "gpus 3"],
)  # fmt: skip
def test_a_line_that_is_not_understood_ends_the_process(fake_nvml: FakeNvml, tmp_path: Path, line: str) -> None:
    scenario = Scenario(H100)
    scenario.line(line)
    environment = inherited(scenario.environment(tmp_path, fake_nvml.build()))
    code = "import pynvml; pynvml.nvmlInit()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 99
    assert f"scenario.nvml:{len(scenario.lines())}:" in done.stderr
