"""A recorder over a real stream with a fake clock, and the promise that no test leaves a hook behind."""

import gc
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType, MethodType
from typing import Any

import pytest
import torch
from rank_streams import Tables, read
from torch.nn.modules import module as module_code
from torch.optim import optimizer as optimizer_code
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils.data import dataloader

from agprof.instruments import api, bootstrap
from agprof.instruments.import_hooks import ImportHooks
from agprof.instruments.recorder import Recorder
from agprof.model.settings import ENV_HOME, ENV_RUN_DIR, ENV_SETTINGS, InstrumentSettings
from agprof.store.writer import StreamWriter

PACKAGE = Path(bootstrap.__file__).resolve().parents[1]
BOOTSTRAP_PATH = PACKAGE / "instruments" / "bootstrap_path"


PATCHED_BY_DYNAMO = ("__init__", "__setstate__")
"""Of Module, at its first use and for good."""


class Clock:
    """Goes one nanosecond further with every look at it, and as far as it is told."""

    def __init__(self) -> None:
        self.now = 1000

    def __call__(self) -> int:
        self.now += 1
        return self.now


class Rig:
    """A recorder and what it wrote."""

    def __init__(self, recorder: Recorder, clock: Clock, path: Path) -> None:
        self.recorder = recorder
        self.clock = clock
        self._path = path

    def finish(self) -> Tables:
        """Disarm, close the stream and read it."""
        bootstrap.disarm(self.recorder, "clean")
        return read(self._path)


def patched_objects() -> list[dict[str, Any]]:
    return [
        dict(vars(owner))
        for owner in (
            torch.Tensor,
            torch.autograd,
            torch.autograd.profiler.profile,
            torch.nn.Module,
            torch.amp.GradScaler,
            dataloader.DataLoader,
            dataloader._BaseDataLoaderIter,
            torch.distributed,
            torch.distributed.distributed_c10d,
            torch.nn.parallel.distributed,
        )
    ] + [
        dict(module_code._global_forward_pre_hooks),
        dict(module_code._global_forward_hooks),
        dict(optimizer_code._global_optimizer_pre_hooks),
        dict(optimizer_code._global_optimizer_post_hooks),
        {"excepthook": sys.excepthook, "meta_path": list(sys.meta_path), "sink": api._sink},
    ]


PATCHED_BY_TORCH = ("__init__", "__setstate__", "excepthook")
"""By its compiler and by init_process_group, at their first use and for good."""


def changes(before: list[dict[Any, Any]], after: list[dict[Any, Any]]) -> list[Any]:
    """Names that differ. What torch itself added or set meanwhile (submodules, caches) is no change of ours."""
    found = []
    for old, new in zip(before, after, strict=True):
        for name, value in old.items():
            ours = callable(value) or name in ("meta_path", "sink")
            if ours and name not in PATCHED_BY_TORCH and new.get(name) is not value and new.get(name) != value:
                found.append(name)
        for name, value in new.items():
            code = value.__func__ if type(value) in (staticmethod, MethodType) else value
            made_by_us = type(code) is FunctionType and code.__globals__.get("__name__", "").startswith("agprof")
            if made_by_us and old.get(name) != value:
                found.append(name)
    return found


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    before = patched_objects()
    yield
    assert not changes(before, patched_objects())
    assert _get_current_dispatch_mode_stack() == []


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    path = tmp_path / "rank.agp"
    clock = Clock()
    recorder = Recorder(StreamWriter(path, {"kind": "rank"}), InstrumentSettings(nvtx=False), clock)
    yield Rig(recorder, clock, path)
    bootstrap.disarm(recorder, "clean")


@pytest.fixture
def arm(tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    """Arm a whole rank in this process, as the bootstrap does."""
    armed: list[Rig] = []
    runs = itertools.count()

    def make(level: str = "light") -> Rig:
        run = tmp_path / f"run{next(runs)}"
        (run / "ranks").mkdir(parents=True)
        hooks = ImportHooks()
        hooks.install()
        recorder = bootstrap.arm(torch, hooks, run, 0, InstrumentSettings(level=level))  # type: ignore[arg-type]
        clock = Clock()
        recorder.clock = clock
        armed.append(Rig(recorder, clock, run / "ranks" / "rank-00000.0.agp"))
        return armed[-1]

    yield make
    for one in armed:
        bootstrap.disarm(one.recorder, "clean")
    armed.clear()
    gc.collect()


class RankProcess:
    """Runs scripts as `agprof run` would start a rank."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run = folder / "run"
        (self.run / "ranks").mkdir(parents=True)

    def environment(self, *, rank: str | None = "0", level: str = "light", **more: str) -> dict[str, str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AGPROF_")}
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
            environment.pop(name, None)
        environment |= {
            "PYTHONPATH": os.pathsep.join([str(BOOTSTRAP_PATH), *more.pop("path", "").split(os.pathsep)]).rstrip(":"),
            "OMP_NUM_THREADS": "1",
            ENV_RUN_DIR: str(self.run),
            ENV_HOME: str(PACKAGE.parent),
            ENV_SETTINGS: InstrumentSettings(level=level).to_json(),  # type: ignore[arg-type]
        }
        if rank is not None:
            environment["RANK"] = rank
        return environment | more

    def stub_torch(self) -> None:
        """Put an empty module in torch's place, where the start of the real one would only take time."""
        (self.folder / "torch.py").write_text("__version__ = 'stub'")

    def start(
        self, script: str, *options: str, timeout_s: float = 60, stub_torch: bool = False, **environment: Any
    ) -> "Finished":
        if stub_torch:
            self.stub_torch()
        path = self.folder / "script.py"
        path.write_text(script)
        result = subprocess.run(
            [sys.executable, *options, str(path)],
            env=self.environment(**environment),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        return Finished(result.returncode, result.stdout, result.stderr, self.run / "ranks")


class Finished:
    """A rank that ended: its exit code, and what it printed before and after its output went to the run folder."""

    def __init__(self, code: int, stdout: str, stderr: str, folder: Path) -> None:
        self.code = code
        self.stdout = stdout
        self.stderr = stderr
        self._folder = folder

    @property
    def streams(self) -> list[Path]:
        return sorted(self._folder.glob("*.agp"))

    def tables(self, attempt: int = 0) -> Tables:
        return read(self._folder / f"rank-00000.{attempt}.agp")

    def log(self, name: str) -> str:
        return (self._folder / f"rank-00000.{name}.log").read_text()


@pytest.fixture
def rank_process(tmp_path: Path) -> RankProcess:
    return RankProcess(tmp_path)
