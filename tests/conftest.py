"""Markers, shared data, and a summary that says which tests were skipped for want of a system package, and which."""

import ctypes.util
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from fakes.nvml.build import fake_nvml  # noqa: F401

ROOT = Path(__file__).resolve().parents[1]
TRACES = Path(os.environ.get("AGPROF_TRACES") or ROOT.parent / "shared" / "traces")
"""Real GPU traces recorded elsewhere: data for tests, not part of the project."""


def _browser() -> bool:
    return any(shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome"))


def _nsys() -> bool:
    from agprof.launch.nsight import find_import_nvtxt, find_nsys

    return find_nsys() is not None and find_import_nvtxt() is not None


def _program(name: str) -> Callable[[], bool]:
    return lambda: shutil.which(name) is not None


# Debian package -> (is it there?, what its tests cover)
PACKAGES: dict[str, tuple[Callable[[], bool], str]] = {
    "chromium": (_browser, "the report in a browser"),
    "numactl": (_program("numactl"), "binding ranks to cores"),
    "g++": (_program("g++"), "compiling DeepSpeed's ops"),
    "pdsh": (_program("pdsh"), "DeepSpeed's own launcher over ssh"),
    "nsight-systems": (_nsys, "what Nsight Systems makes of our files; scripts/nsight unpacks it"),
}


@pytest.fixture(scope="session")
def traces_dir() -> Path:
    """The folder of real traces; where it is absent its tests are skipped, and say where to get it."""
    if not (TRACES / "SOURCES.tsv").is_file():
        pytest.skip(
            f"no traces in {TRACES}: put those that SOURCES.tsv names there (from HolisticTraceAnalysis, TraceLens, "
            "kineto, param, nsys-ai), or point AGPROF_TRACES to them"
        )
    return TRACES


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell ignores it for what it starts in the background, and the jobs of the tests would inherit that.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "system(package): needs a Debian package; skipped, and said so, without it")
    config.addinivalue_line("markers", "gpu: needs an NVIDIA GPU")
    config.addinivalue_line("markers", "slow: runs in CI only (environment CI=1), and says so elsewhere")


def _has_gpu() -> bool:
    return ctypes.util.find_library("cuda") is not None and shutil.which("nvidia-smi") is not None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    there: dict[str, bool] = {}
    gpu = None
    for item in items:
        for marker in item.iter_markers("system"):
            package = marker.args[0]
            if package not in PACKAGES:
                raise pytest.UsageError(f"{item.nodeid}: no package {package!r}; known: {', '.join(PACKAGES)}")
            if package not in there:
                there[package] = PACKAGES[package][0]()
            if not there[package]:
                item.add_marker(pytest.mark.skip(reason=f"needs the Debian package {package}"))
        if item.get_closest_marker("slow") and not os.environ.get("CI"):
            item.add_marker(pytest.mark.skip(reason="slow: runs in CI only; CI=1 in the environment runs it here"))
        if item.get_closest_marker("gpu"):
            gpu = _has_gpu() if gpu is None else gpu
            if not gpu:
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reasons = [str(report.longrepr[2]) for report in terminalreporter.stats.get("skipped", []) if report.longrepr]
    missing = [name for name, (check, _) in PACKAGES.items() if not check()]
    if not missing:
        return
    terminalreporter.section("missing system packages")
    for name in missing:
        count = sum(f"Debian package {name}" in reason for reason in reasons)
        terminalreporter.line(f"{name}: {count} tests skipped ({PACKAGES[name][1]}); .ci/run installs it")
