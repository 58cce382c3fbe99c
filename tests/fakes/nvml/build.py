"""Compiles the fake NVML, and gives it to tests: as a folder for LD_LIBRARY_PATH, or as a binding in this process."""

import ctypes
import functools
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Literal
from unittest import mock

import pytest

SOURCES = Path(__file__).parent
LIBRARY = "libnvidia-ml.so.1"
FLAGS = ("-std=gnu11", "-shared", "-fPIC", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden")
_EXPORTED = re.compile(r"^(?:DEVICE_)?CALL\((nvml\w+)|^EXPORT .*\b(nvmlErrorString|agprof_fake_\w+)\(", re.MULTILINE)

# Calls that the drivers of these branches do not have.
R525 = ("nvmlDeviceGetTemperatureV", "nvmlDeviceGetCurrentClocksEventReasons",
        "nvmlDeviceGetSupportedClocksEventReasons", "nvmlDeviceGetNumaNodeId")  # fmt: skip
R470 = (*R525, "nvmlGpmSampleAlloc", "nvmlGpmSampleFree", "nvmlGpmSampleGet", "nvmlGpmMigSampleGet",
        "nvmlGpmMetricsGet", "nvmlGpmQueryDeviceSupport", "nvmlDeviceGetMemoryInfo_v2",
        "nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetGraphicsRunningProcesses_v3",
        "nvmlDeviceGetNumGpuCores")  # fmt: skip
R450 = (*R470, "nvmlDeviceGetArchitecture", "nvmlDeviceGetRemappedRows", "nvmlDeviceGetComputeRunningProcesses_v2",
        "nvmlDeviceGetGraphicsRunningProcesses_v2", "nvmlEventSetWait_v2")  # fmt: skip


class FakeNvml:
    """Builds of the fake, compiled once and kept under `cache` by the hash of what they are made of."""

    def __init__(self, compiler: str, cache: Path) -> None:
        self._compiler = compiler
        self._cache = cache

    def build(self, *, without: tuple[str, ...] = (), exits: Literal["", "init", "load"] = "") -> Path:
        """The folder that holds libnvidia-ml.so.1. `without`: symbols that are left out, as by an old driver."""
        return self._compile(LIBRARY, without, exits)

    @contextmanager
    def binding(
        self, scenario: Path, clock: Path, *, without: tuple[str, ...] = (), log: Path | None = None
    ) -> Iterator[ModuleType]:
        """nvidia-ml-py's module in this process, on the fake; a copy, so that nothing but its users sees the fake.

        The library has one state per process: one scenario at a time.
        """
        # Under another soname: what looks for libnvidia-ml.so.1 in this process must not find it.
        path = self._compile("libagprof-fake-nvml.so", without, "") / "libagprof-fake-nvml.so"
        module = _copy_of_binding(path)
        library = module.nvmlLib
        environment = {
            "AGPROF_FAKE_NVML": str(scenario),
            "AGPROF_FAKE_NVML_CLOCK": str(clock),
            "AGPROF_FAKE_NVML_LOG": "" if log is None else str(log),
        }
        with mock.patch.dict(os.environ, environment):
            library.agprof_fake_reset()
            try:
                yield module
            finally:
                library.agprof_fake_reset()

    def symbols(self) -> tuple[str, ...]:
        """What the fake exports when nothing is left out."""
        return _symbols()

    def _compile(self, name: str, without: tuple[str, ...], exits: str) -> Path:
        unknown = sorted(set(without) - set(_symbols()))
        assert not unknown, f"{unknown} are not symbols of the fake"
        flags = [*FLAGS, *([f"-DEXITS_AT_{exits.upper()}"] if exits else [])]
        exported = "".join(f" {symbol};" for symbol in _symbols() if symbol not in without)
        script = f"{{ global:{exported} local: *; }};\n"
        key = hashlib.sha256()
        for part in (self._compiler, name, *flags, script):
            key.update(part.encode() + b"\0")
        for source in sorted(SOURCES.glob("*.[ch]")):
            key.update(source.name.encode() + b"\0" + source.read_bytes())
        folder = self._cache / key.hexdigest()[:24]
        if not (folder / name).is_file():
            self._compile_into(folder, name, flags, script)
        return folder

    def _compile_into(self, folder: Path, name: str, flags: list[str], script: str) -> None:
        self._cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._cache) as temporary:
            (Path(temporary) / "symbols").write_text(script)
            sources = [str(source) for source in sorted(SOURCES.glob("*.c"))]
            linking = [f"-Wl,-soname,{name}", f"-Wl,--version-script={temporary}/symbols", "-lpthread", "-lm"]
            argv = [self._compiler, *flags, *sources, "-o", f"{temporary}/{name}", *linking]
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                pytest.fail(f"the fake NVML does not compile:\n{' '.join(argv)}\n{done.stderr}", pytrace=False)
            folder.mkdir(exist_ok=True)
            (Path(temporary) / name).replace(folder / name)  # other test processes see it whole or not at all


def _symbols() -> tuple[str, ...]:
    found = [
        match.group(1) or match.group(2)
        for source in sorted(SOURCES.glob("*.c"))
        for match in _EXPORTED.finditer(source.read_text())
    ]
    return tuple(sorted(found))


@functools.cache
def _copy_of_binding(library: Path) -> ModuleType:
    found = importlib.util.find_spec("pynvml")
    assert found is not None and found.origin is not None, "nvidia-ml-py is not installed"
    spec = importlib.util.spec_from_file_location("pynvml_on_the_fake", found.origin)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # The binding's own classes look their module up by name while it is executed.
    with mock.patch.dict("sys.modules", {"pynvml_on_the_fake": module}):
        spec.loader.exec_module(module)
    module.nvmlLib = ctypes.CDLL(str(library))  # type: ignore[attr-defined]
    return module


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "agprof-tests" / "fake-nvml"


@pytest.fixture(scope="session")
def fake_nvml(tmp_path_factory: pytest.TempPathFactory) -> FakeNvml:
    """Builds of the fake NVML. Skips where there is no C compiler."""
    compiler = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    if compiler is None:
        pytest.skip("no C compiler (cc, gcc or clang): the fake NVML can't be built; install the package gcc")
    cache = _cache_folder()
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError:
        cache = tmp_path_factory.mktemp("fake-nvml")
    return FakeNvml(compiler, cache)
