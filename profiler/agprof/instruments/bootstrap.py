"""Arms the instruments in a rank: called by sitecustomize at the interpreter's start, before any user code.

`start` only redirects the output and watches for imports; the recorder comes into being when torch has been imported.
"""

import atexit
import contextlib
import os
import platform
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from agprof.instruments.import_hooks import ImportHooks
from agprof.model.settings import ENV_NODE, ENV_RUN_DIR, ENV_SETTINGS, InstrumentSettings
from agprof.model.tables import SCHEMA_VERSION
from agprof.store import layout

MAX_ATTEMPTS = 1000


def start() -> None:
    """Prepare this rank. Raises nothing that the caller has to know: sitecustomize notes it and goes on."""
    settings = InstrumentSettings.from_json(os.environ.get(ENV_SETTINGS, "{}"))
    run = Path(os.environ[ENV_RUN_DIR])
    rank = int(os.environ["RANK"])
    if settings.capture_output:
        _redirect_output(run, rank)
    hooks = ImportHooks()
    if os.environ.get("AGPROF_NO_DS_OPS") == "1":
        hooks.when_imported("deepspeed.comm.torch", _without_shm_op)
    if settings.level != "off":
        hooks.when_imported("torch", lambda torch: _arm_safely(torch, hooks, run, rank, settings))
    hooks.install()


def _redirect_output(run: Path, rank: int) -> None:
    """Send stdout and stderr of this process, and of its children, to the rank's log files."""
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        log = os.open(layout.rank_log(run, rank, name), flags, 0o644)
        with contextlib.suppress(Exception):
            getattr(sys, name).flush()
        os.dup2(log, descriptor)
        os.close(log)
        # A file makes Python buffer by block, and a killed rank would take its last words with it.
        getattr(sys, name).reconfigure(line_buffering=True)


def _without_shm_op(module: ModuleType) -> None:
    from agprof.instruments.deepspeed_engine import neutralise_shm_op

    neutralise_shm_op(module)


def _arm_safely(torch: ModuleType, hooks: ImportHooks, run: Path, rank: int, settings: InstrumentSettings) -> None:
    try:
        arm(torch, hooks, run, rank, settings)
    except Exception as error:
        # Without a stream there is nowhere to note it but the rank's own log.
        print(f"agprof: this rank is not profiled: {type(error).__name__}: {error}", file=sys.stderr)


def header(rank: int) -> dict[str, Any]:
    """The first record of a rank's stream."""
    from agprof.model.version import __version__

    def number(name: str) -> int | None:
        text = os.environ.get(name, "")
        return int(text) if text.isdigit() else None

    return {
        "kind": "rank",
        "rank": rank,
        "local_rank": number("LOCAL_RANK"),
        "world_size": number("WORLD_SIZE"),
        "node": number(ENV_NODE) or 0,
        "host": platform.node(),
        "pid": os.getpid(),
        "schema_version": SCHEMA_VERSION,
        "agprof_version": __version__,
        "clock": {
            "realtime_ns": time.time_ns(),
            "monotonic_ns": time.monotonic_ns(),
            "boottime_ns": time.clock_gettime_ns(time.CLOCK_BOOTTIME),
        },
        "python": platform.python_version(),
        "argv": [Path(sys.argv[0]).name, *sys.argv[1:]] if getattr(sys, "argv", None) else [],
    }


def open_stream(run: Path, rank: int, settings: InstrumentSettings) -> Any:
    """The rank's stream: the first attempt number that is free. Raises OSError."""
    from agprof.store.writer import StreamWriter

    for attempt in range(MAX_ATTEMPTS):
        try:
            return StreamWriter(layout.rank_stream(run, rank, attempt), header(rank), settings.flush_period_s)
        except FileExistsError:
            continue
    raise OSError(f"{MAX_ATTEMPTS} attempts of rank {rank} are in {run} already")


def arm(torch: Any, hooks: ImportHooks, run: Path, rank: int, settings: InstrumentSettings) -> None:
    """Create the recorder and arm every instrument of the level. Raises OSError when the stream can't be created."""
    from agprof.instruments import api
    from agprof.instruments.recorder import Recorder

    recorder = Recorder(open_stream(run, rank, settings), settings)
    recorder.patches.on_undo(hooks.remove)
    atexit.register(disarm, recorder, "clean")
    os.register_at_fork(after_in_child=lambda: _go_inert(recorder))
    _watch_exceptions(recorder)
    _arm_instruments(recorder, torch, hooks)
    api.attach(recorder)
    recorder.writer.start()


def _go_inert(recorder: Any) -> None:
    """In a forked child (a DataLoader worker): the stream belongs to the parent."""
    from agprof.instruments import api

    recorder.enabled = False
    api.detach()


def _watch_exceptions(recorder: Any) -> None:
    previous = sys.excepthook

    def hook(kind: Any, error: Any, trace: Any) -> None:
        with contextlib.suppress(Exception):
            recorder.mark(f"uncaught {kind.__name__}")
            recorder.end_reason = f"exception {kind.__name__}"
        previous(kind, error, trace)

    recorder.patches.replace(sys, "excepthook", lambda _original: hook)


def _arm_instruments(recorder: Any, torch: Any, hooks: ImportHooks) -> None:
    """One entry per instrument; one that fails to arm is a fault and the others go on."""
    from agprof.instruments import comm, data, facts, flops, memory
    from agprof.instruments.deepspeed_engine import EnginePhases
    from agprof.instruments.forward import ForwardPhases
    from agprof.instruments.nvtx_ranges import NvtxRanges
    from agprof.instruments.training import TrainingLoop

    guard = recorder.guard
    loop = TrainingLoop(recorder, torch)
    roots: list[Any] = []

    def on_root(module: Any) -> None:
        if not roots:
            facts.record_device(recorder, torch)
            _start_device_timer(recorder, torch)
        facts.record_model(recorder, module, len(roots))
        roots.append(module)
        flops_instrument.on_root(module)

    def arm_nvtx() -> None:
        if recorder.settings.nvtx:
            ranges = NvtxRanges()
            recorder.nvtx = ranges if ranges.active else None

    flops_instrument = flops.FlopsInstrument(recorder, torch)
    guard("facts", facts.record_torch)(recorder, torch)
    guard("nvtx", arm_nvtx)()
    guard("training", loop.arm)()
    guard("forward", ForwardPhases(recorder, torch.nn.modules.module, on_root).arm)()
    hooks.when_imported("torch.utils.data.dataloader", guard("data", lambda module: data.arm(recorder, module)))
    hooks.when_imported("deepspeed.runtime.engine", guard("deepspeed", EnginePhases(recorder, loop).arm))
    if recorder.settings.level == "light":
        return
    guard("memory", memory.arm)(recorder, torch)
    guard("flops", flops_instrument.arm)()
    communication = comm.CommunicationInstrument(recorder, torch)
    hooks.when_imported("torch.distributed", guard("comm", communication.arm))
    hooks.when_imported("torch.nn.parallel.distributed", guard("comm", communication.arm_ddp))


def _start_device_timer(recorder: Any, torch: Any) -> None:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        from agprof.instruments.device import cuda_timer

        recorder.device = cuda_timer(torch, recorder.writer.rows("device_spans"), recorder.clock())


def disarm(recorder: Any, reason: str) -> None:
    """Undo every patch, write what is left and close the stream. Safe to call twice."""
    from agprof.instruments import api

    if not recorder.enabled:
        return
    for instrument, finish in recorder.on_finish:
        recorder.guard(instrument, finish)()
    recorder.enabled = False
    api.detach()
    for error in recorder.patches.undo():
        recorder.fault("patches", "undo", error)
    recorder.resolve_all()
    recorder.writer.close(getattr(recorder, "end_reason", None) or reason)
