"""Arms the instruments in a rank: called by sitecustomize at the interpreter's start, before any user code.

`start` only redirects the output and watches for imports; the recorder comes into being when torch has been imported.
"""

import atexit
import contextlib
import functools
import itertools
import os
import platform
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from agprof.instruments.import_hooks import ImportHooks
from agprof.instruments.place import Place, place_of
from agprof.model.settings import ENV_FOREIGN, ENV_NODE, ENV_RUN_DIR, ENV_SETTINGS, InstrumentSettings
from agprof.model.tables import SCHEMA_VERSION
from agprof.store import layout
from agprof.store.clocks import read_clocks

MAX_ATTEMPTS = 1000
MAX_DESCRIBED_ROOTS = 8
"""Root modules whose size is recorded: a loop that calls single layers has hundreds of roots."""


def start() -> None:
    """Prepare this rank. Raises nothing that the caller has to know: sitecustomize notes it and goes on."""
    settings = InstrumentSettings.from_json(os.environ.get(ENV_SETTINGS, "{}"))
    run = Path(os.environ[ENV_RUN_DIR])
    rank = own_place().rank
    if settings.capture_output:
        _redirect_output(run, rank)
    hooks = ImportHooks()
    if os.environ.get("AGPROF_NO_DS_OPS") == "1":
        hooks.when_imported("deepspeed.comm.torch", _without_shm_op)
    if settings.level != "off":
        hooks.when_imported("torch", lambda torch: _arm_safely(torch, hooks, run, rank, settings))
    hooks.install()


def start_with_torch() -> None:
    """Prepare a process without a place: the first below the command to import torch is the only rank."""
    hooks = ImportHooks()
    hooks.when_imported("torch", functools.partial(_claim, hooks))
    hooks.install()


def _claim(hooks: ImportHooks, torch: ModuleType) -> None:
    settings = InstrumentSettings.from_json(os.environ.get(ENV_SETTINGS, "{}"))
    run, rank = Path(os.environ[ENV_RUN_DIR]), own_place().rank
    os.environ[ENV_FOREIGN] = str(os.getpid())
    if settings.capture_output:
        _redirect_output(run, rank)
    if os.environ.get("AGPROF_NO_DS_OPS") == "1":
        hooks.when_imported("deepspeed.comm.torch", _without_shm_op)
    _arm_safely(torch, hooks, run, rank, settings)


def own_place() -> Place:
    """This process's place; alone where nobody told it one."""
    return place_of(os.environ) or Place(0, 1, None)


def _redirect_output(run: Path, rank: int) -> None:
    """Send stdout and stderr of this process, and of its children, to the rank's log files. Raises OSError."""
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        log = os.open(layout.rank_log(run, rank, name), flags, 0o644)
        with contextlib.suppress(Exception):
            stream.flush()
        if log != descriptor:
            os.dup2(log, descriptor)
            os.close(log)
        else:
            # The rank was started with this descriptor closed.
            os.set_inheritable(descriptor, True)
        if stream is not None:
            # A file makes Python buffer by block, and a killed rank would take its last words with it.
            with contextlib.suppress(Exception):
                stream.reconfigure(line_buffering=True)


def _without_shm_op(module: ModuleType) -> None:
    from agprof.instruments.deepspeed_engine import neutralise_shm_op

    neutralise_shm_op(module)


def _arm_safely(torch: ModuleType, hooks: ImportHooks, run: Path, rank: int, settings: InstrumentSettings) -> None:
    try:
        arm(torch, hooks, run, rank, settings)
    except Exception as error:
        # Without a stream there is nowhere to note it but the rank's own log.
        with contextlib.suppress(Exception):
            print(f"agprof: this rank is not profiled: {type(error).__name__}: {error}", file=sys.stderr)


def header(rank: int) -> dict[str, Any]:
    """The first record of a rank's stream."""
    from agprof.model.version import __version__

    place = own_place()
    # DeepSpeed's own way over ssh gives all nodes the same environment; its launcher tells the node as CROSS_RANK.
    node = os.environ.get(ENV_NODE) or os.environ.get("CROSS_RANK", "")
    return {
        "kind": "rank",
        "rank": rank,
        "local_rank": place.local_rank,
        "world_size": place.world_size,
        "node": int(node) if node.isdigit() else 0,
        "host": platform.node(),
        "pid": os.getpid(),
        "schema_version": SCHEMA_VERSION,
        "agprof_version": __version__,
        "clock": read_clocks(),
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


def arm(torch: Any, hooks: ImportHooks, run: Path, rank: int, settings: InstrumentSettings) -> Any:
    """Create the recorder and arm every instrument of the level. Raises OSError when the stream can't be created.

    Returns the recorder; `disarm` takes everything back.
    """
    from agprof.instruments import api
    from agprof.instruments.recorder import Recorder

    recorder = Recorder(open_stream(run, rank, settings), settings)
    hooks.on_error = functools.partial(recorder.fault, "import_hooks")
    recorder.patches.on_undo(hooks.remove)
    at_exit = functools.partial(disarm, recorder, "clean")
    atexit.register(at_exit)
    recorder.patches.on_undo(lambda: atexit.unregister(at_exit))
    # What is registered for forks stays for ever and must not keep the recorder.
    reference = weakref.ref(recorder)
    os.register_at_fork(after_in_child=lambda: _go_inert(reference()))
    recorder.guard("exceptions", _watch_exceptions)(recorder)
    _arm_instruments(recorder, torch, hooks)
    _arm_kineto(recorder, torch, run, rank)
    _arm_nsys(recorder, torch, rank)
    api.attach(recorder)
    recorder.writer.start()
    return recorder


def _go_inert(recorder: Any) -> None:
    """In a forked child (a DataLoader worker): the stream belongs to the parent."""
    from agprof.instruments import api

    if recorder is not None:
        recorder.enabled = False
        api.detach()
        for forget in recorder.on_fork:
            with contextlib.suppress(Exception):
                forget()


def _watch_exceptions(recorder: Any) -> None:
    def around_hook(previous: Any) -> Any:
        @functools.wraps(previous)
        def hook(kind: Any, error: Any, trace: Any) -> Any:
            with contextlib.suppress(Exception):
                # First of all: it sets memory free that the rest may need.
                recorder.failing(error, uncaught=True)
                recorder.end_reason = f"exception {kind.__name__}"
                recorder.mark(f"uncaught {kind.__name__}")
            return previous(kind, error, trace)

        return hook

    recorder.patches.replace(sys, "excepthook", around_hook)


def _arm_instruments(recorder: Any, torch: Any, hooks: ImportHooks) -> None:
    """One entry per instrument; one that fails to be imported or to arm is a fault and the others go on."""
    guard = recorder.guard
    at_root: list[Callable[[Any], Any]] = []
    step_parts: list[Any] = []

    def on_root(module: Any) -> None:
        for callback in list(at_root):
            callback(module)

    def arm_facts() -> None:
        from agprof.instruments import facts

        roots = itertools.count()

        def facts_of_root(module: Any) -> None:
            number = next(roots)
            if number == 0:
                facts.record_device(recorder, torch, module)
            if number < MAX_DESCRIBED_ROOTS:
                facts.record_model(recorder, module, number)
                facts.record_framework(recorder, module, number)

        facts.record_torch(recorder, torch)
        at_root.append(guard("facts", facts_of_root))

    def arm_nvtx() -> None:
        from agprof.instruments.nvtx_ranges import NvtxRanges

        ranges = NvtxRanges()
        if ranges.forced:
            recorder.fact("nvtx.forced", True)
        recorder.nvtx = ranges if ranges.active else None

    def arm_device() -> None:
        def start_timer(_root: Any) -> None:
            if recorder.device is None and torch.cuda.is_initialized():
                from agprof.instruments.device import cuda_timer

                at_root.remove(guarded)
                emit = recorder.writer.rows("device_spans")
                recorder.device = cuda_timer(torch, recorder.patches, emit, recorder.clock())

        guarded: Callable[[Any], Any] = guard("device", start_timer)
        at_root.append(guarded)

    def arm_training() -> None:
        from agprof.instruments.deepspeed_engine import EnginePhases
        from agprof.instruments.training import TrainingLoop

        loop = TrainingLoop(recorder, torch)
        loop.arm()
        engines = EnginePhases(recorder, loop)
        hooks.when_imported("deepspeed.runtime.engine", guard("deepspeed", engines.arm))
        hooks.when_imported("deepspeed.runtime.hybrid_engine", guard("deepspeed", engines.arm_hybrid))
        checkpointing = "deepspeed.runtime.activation_checkpointing.checkpointing"
        hooks.when_imported(checkpointing, guard("deepspeed", engines.arm_checkpointing))

    def arm_forward() -> None:
        from agprof.instruments.forward import ForwardPhases

        forward = ForwardPhases(recorder, torch, on_root)
        forward.arm()
        hooks.when_imported("torch._dynamo.eval_frame", guard("forward", forward.arm_compiled))

    def arm_data() -> None:
        from agprof.instruments import data

        hooks.when_imported("torch.utils.data.dataloader", guard("data", functools.partial(data.arm, recorder)))

    def arm_memory() -> None:
        from agprof.instruments import memory

        memory.arm(recorder, torch)

    def arm_oom() -> None:
        from agprof.instruments.memory_account import MemoryAccount
        from agprof.instruments.oom import OomWatch

        account = next((part for part in step_parts if isinstance(part, MemoryAccount)), None)
        watch = OomWatch(recorder, torch, (account or MemoryAccount(recorder, torch)).account_now)
        watch.arm()
        at_root.append(guard("oom", watch.on_root))

    def arm_optimizer_state() -> None:
        from agprof.instruments import optimizer_state

        optimizer_state.arm(recorder)

    def arm_profile_step() -> None:
        from agprof.instruments.profile_step import ProfileStep
        from agprof.instruments.step_parts import STEP_PARTS

        profile_step = ProfileStep(recorder, torch)
        for instrument, make in STEP_PARTS.items():
            part = guard(instrument, make)(recorder, torch, own_place().rank, step_parts)
            if part is not None:
                step_parts.append(part)
                profile_step.add(instrument, part)
        profile_step.arm()
        at_root.append(guard("profile step", profile_step.on_root))

    def arm_output() -> None:
        from agprof.instruments.output import Output

        Output(recorder).arm()

    def arm_comm() -> None:
        from agprof.instruments import comm

        communication = comm.CommunicationInstrument(recorder, torch)
        hooks.when_imported("torch.distributed", guard("comm", communication.arm))
        hooks.when_imported("torch.nn.parallel.distributed", guard("comm", communication.arm_ddp))
        functional = guard("comm", communication.arm_functional)
        hooks.when_imported("torch.distributed._functional_collectives", functional)

    def arm_rlhf() -> None:
        from agprof.instruments.rlhf import arm

        at_root.append(arm(recorder, torch, hooks))

    if recorder.settings.nvtx:
        guard("nvtx", arm_nvtx)()
    guard("facts", arm_facts)()
    guard("device", arm_device)()
    guard("training", arm_training)()
    guard("forward", arm_forward)()
    guard("data", arm_data)()
    if recorder.settings.level == "light":
        guard("oom", arm_oom)()
        return
    guard("memory", arm_memory)()
    guard("optimizer state", arm_optimizer_state)()
    guard("profile step", arm_profile_step)()
    guard("output", arm_output)()
    guard("oom", arm_oom)()
    guard("comm", arm_comm)()
    guard("rlhf", arm_rlhf)()


def _arm_kineto(recorder: Any, torch: Any, run: Path, rank: int) -> None:
    settings = recorder.settings.kineto
    if settings is None:
        return

    def arm_kineto() -> None:
        from agprof.instruments.kineto import KinetoCapture

        KinetoCapture(recorder, torch, run, rank, settings).arm()

    recorder.guard("kineto", arm_kineto)()


def _arm_nsys(recorder: Any, torch: Any, rank: int) -> None:
    settings = recorder.settings.nsys
    if settings is None:
        return

    def arm_nsys() -> None:
        from agprof.instruments import nsys

        if nsys.is_under_nsys():
            nsys.NsysCapture(recorder, torch, rank, settings).arm()

    recorder.guard("nsys", arm_nsys)()


def disarm(recorder: Any, reason: str) -> None:
    """Undo every patch, write what is left and close the stream. Safe to call twice."""
    from agprof.instruments import api

    if not recorder.enabled:
        return
    for instrument, finish in recorder.on_finish:
        recorder.guard(instrument, finish)()
    if recorder.device is not None and recorder.device.dropped:
        recorder.fact("device.dropped_spans", recorder.device.dropped)
    recorder.guard("recorder", recorder.finish)()
    recorder.enabled = False
    api.detach()
    for error in recorder.patches.undo():
        recorder.fault("patches", "undo", error)
    try:
        recorder.resolve_all()
    except Exception as error:
        recorder.fault("recorder", "resolve_all", error)
    recorder.writer.close(recorder.end_reason or reason)
