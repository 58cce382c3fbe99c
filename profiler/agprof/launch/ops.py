"""DeepSpeed's CPU ops, compiled once into agprof's cache: `python -m agprof.launch.ops` (scripts/ops).

DeepSpeed compiles them at first use, inside the training job, for half a minute and more each; and when such a build
is killed, it leaves a lock file on which every later run waits for ever.
"""

import argparse
import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from agprof.config.workload import Workload
from agprof.errors import AgprofError, LaunchError
from agprof.launch import host

Say = Callable[[str], None]

LOCK = "lock"
"""torch's name of a build's lock file. Its builder keeps it open as long as it builds."""
BUILT = ".agprof-built"
"""Written by us when an op was built and loaded; a library without it may be half a link."""
ANNOUNCE_S = 10.0
_POLL_S = 0.2
_LAST_LINES = 15


@dataclass(frozen=True, slots=True)
class Op:
    """One of DeepSpeed's compiled ops."""

    name: str
    """The folder and library that torch makes of it."""
    builder: str
    """Class in deepspeed.ops.op_builder.cpu."""


OPS: tuple[Op, ...] = (
    Op("deepspeed_shm_comm", "ShareMemCommBuilder"),
    Op("cpu_adam", "CPUAdamBuilder"),
    Op("fused_adam", "FusedAdamBuilder"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpsReady:
    """What `prepare_ops` found and did."""

    folder: Path
    built: tuple[str, ...]
    """Built now."""
    missing: tuple[str, ...]
    """Not there; DeepSpeed will try to build them itself, or must do without."""
    no_ds_ops: bool
    """Neither prebuilt nor buildable here: ranks must do without (AGPROF_NO_DS_OPS)."""
    notes: tuple[str, ...]


def wants_ops(workload: Workload, base_dir: Path) -> bool:
    """Whether the job is likely to use DeepSpeed: by its launcher, as a bundled one, or as the script's text says."""
    if workload.launch.launcher == "deepspeed":
        return True
    if workload.command is not None:
        return any(_mentions_deepspeed(word) for word in workload.command)
    if workload.module is not None:
        return workload.module.startswith("agprof_workloads.")
    try:
        return "deepspeed" in (base_dir / str(workload.script)).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def _mentions_deepspeed(word: str) -> bool:
    if "deepspeed" in word:
        return True
    try:
        return word.endswith(".py") and "deepspeed" in Path(word).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False


def prepare_ops(
    folder: Path,
    *,
    environ: Mapping[str, str],
    say: Say,
    python: str = sys.executable,
    ops: Sequence[Op] = OPS,
    build_command: Callable[[str, Op], list[str]] | None = None,
) -> OpsReady:
    """Have the ops built in `folder`, building what is missing. Cheap when all are there.

    Safe to call from several processes at once: one builds, the others wait for it and say so. Never raises for a
    failed build: the job may not need the op, and DeepSpeed's own message is better than ours when it does.
    """
    remove_stale_locks(folder, say=say)
    missing = [op for op in ops if not is_built(folder, op)]
    if not missing:
        return OpsReady(folder=folder, built=(), missing=(), no_ds_ops=not has_program("ninja", environ), notes=())
    names = ", ".join(op.name for op in missing)
    if host.has_gpu() and environ.get("DS_ACCELERATOR") != "cpu":
        # What DeepSpeed compiles for a GPU is its own affair: it asks the device for its architecture.
        left = tuple(op.name for op in missing)
        return OpsReady(folder=folder, built=(), missing=left, no_ds_ops=False, notes=())
    if not is_installed("deepspeed"):
        return OpsReady(
            folder=folder,
            built=(),
            missing=tuple(op.name for op in missing),
            no_ds_ops=False,
            notes=("DeepSpeed is not installed: no ops are built",),
        )
    lacking = missing_tools(environ)
    if lacking:
        note = f"{' and '.join(lacking)} not found: DeepSpeed's ops ({names}) are not built, and the job does without"
        return OpsReady(
            folder=folder, built=(), missing=tuple(op.name for op in missing), no_ds_ops=True, notes=(note,)
        )
    built: list[str] = []
    notes: list[str] = []
    begin = time.monotonic()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _only_builder(folder, say):
            remove_stale_locks(folder, say=say)
            for position, op in enumerate(missing, 1):
                if is_built(folder, op):  # by whom we waited for
                    continue
                command = (build_command or _build_command)(python, op)
                problem = _build(op, command, folder, environ, say, position=f"{position}/{len(missing)}")
                if problem is None:
                    built.append(op.name)
                else:
                    notes.append(problem)
    except OSError as error:
        notes.append(f"DeepSpeed's ops can't be cached in {folder}: {error.strerror or error}; set AGPROF_CACHE")
    if built:
        say(f"DeepSpeed ops: {len(built)} built in {time.monotonic() - begin:.0f} s, kept in {folder}")
    left = tuple(op.name for op in ops if not is_built(folder, op))
    return OpsReady(folder=folder, built=tuple(built), missing=left, no_ds_ops=OPS[0].name in left, notes=tuple(notes))


def is_built(folder: Path, op: Op) -> bool:
    target = folder / op.name
    return (target / f"{op.name}.so").is_file() and (target / BUILT).is_file() and not (target / LOCK).exists()


def is_installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def missing_tools(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Of the C++ compiler and ninja those that are not on this environment's PATH."""
    compiler = environ.get("CXX") or "c++"
    lacking = [] if has_program(compiler, environ) or has_program("g++", environ) else ["g++"]
    return tuple(lacking if has_program("ninja", environ) else [*lacking, "ninja"])


def has_program(program: str, environ: Mapping[str, str]) -> bool:
    return shutil.which(program, path=environ.get("PATH", os.defpath)) is not None


# ---------------------------------------------------------------------------------------------------------- stale locks


def remove_stale_locks(folder: Path, *, say: Say) -> tuple[str, ...]:
    """Remove the locks of builds that no longer live; the names of their ops.

    A living builder holds its lock file open. The build folders of other machines, on a shared disk, are told apart
    by the folder's key, except for equal machines: there a lock counts as stale after its folder rested an hour.
    """
    removed: list[str] = []
    locks = sorted(folder.glob(f"*/{LOCK}"))
    if not locks:
        return ()
    held = _open_files()
    for lock in locks:
        try:
            identity = _identity(lock.stat())
            if identity in held or _works_in(lock.parent):
                continue
            rest_s = time.time() - max(path.stat().st_mtime for path in lock.parent.iterdir())
            if _is_shared(folder) and rest_s < 3600:
                continue
            # Between our two looks its builder may have released it and the next one taken it.
            if _identity(lock.stat()) != identity or identity in _open_files():
                continue
            lock.unlink()
        except OSError:
            continue
        removed.append(lock.parent.name)
        say(f"DeepSpeed ops: removed the lock that a killed build of {lock.parent.name} left behind")
    return tuple(removed)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _open_files() -> set[tuple[int, int]]:
    """Device and inode of every regular file that a process of ours (or, for root, of anybody) has open."""
    found: set[tuple[int, int]] = set()
    for entry in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if str(entry.readlink()).endswith(f"/{LOCK}"):
                found.add(_identity(entry.stat()))
        except OSError:
            continue
    return found


def _works_in(folder: Path) -> bool:
    """Whether a process (ninja, the compiler) has its working directory in the build folder."""
    target = folder.resolve()
    for cwd in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if cwd.readlink() == target:
                return True
        except OSError:
            continue
    return False


def _is_shared(folder: Path) -> bool:
    """Whether the folder lies on a network file system, where other machines' processes can't be seen."""
    best, kind = "", ""
    try:
        mounts = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    path = str(folder.resolve())
    for line in mounts:
        _, point, type_ = line.split(" ")[:3]
        if (path == point or path.startswith(point.rstrip("/") + "/")) and len(point) >= len(best):
            best, kind = point, type_
    return kind.startswith(("nfs", "cifs", "smb", "lustre", "gpfs", "beegfs", "ceph", "afs", "9p", "fuse."))


@contextlib.contextmanager
def _only_builder(folder: Path, say: Say) -> Iterator[None]:
    """Hold the folder's lock. The kernel releases it when this process ends, however it ends."""
    with (folder / ".agprof-builder").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("DeepSpeed ops: another process is building them, waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


# ------------------------------------------------------------------------------------------------------------- building


def _build_command(python: str, op: Op) -> list[str]:
    program = f"from deepspeed.ops.op_builder.cpu import {op.builder} as b; b().load(verbose=False)"
    return [python, "-P", "-c", program]


def _wait_for_others(target: Path, say: Say) -> None:
    """Wait until nobody else builds in `target`: a job of another kind, or the compilers that a killed build left.

    torch would wait as well, but not notice when the lock's owner dies, and never build afterwards.
    """
    begin = announced = time.monotonic()
    while (target / LOCK).exists():
        if remove_stale_locks(target.parent, say=say):
            continue
        time.sleep(_POLL_S)
        now = time.monotonic()
        if now - announced >= ANNOUNCE_S:
            announced = now
            say(f"DeepSpeed ops: waiting for another build of {target.name}, {now - begin:.0f} s")


def _build(
    op: Op, command: list[str], folder: Path, environ: Mapping[str, str], say: Say, *, position: str
) -> str | None:
    """Build one op; None, or why it failed."""
    target = folder / op.name
    target.mkdir(parents=True, exist_ok=True)
    _wait_for_others(target, say)
    say(f"DeepSpeed ops: compiling {op.name} ({position}), once per machine; half a minute to two")
    begin = time.monotonic()
    log = target / "build.log"
    # The accelerator is named, or DeepSpeed would build for a GPU that is not asked for here.
    env = {**environ, "TORCH_EXTENSIONS_DIR": str(folder), "DS_ACCELERATOR": "cpu"}
    announced = begin
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=env, start_new_session=True
        )
        try:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=_POLL_S)
                now = time.monotonic()
                if now - announced >= ANNOUNCE_S:
                    announced = now
                    say(f"DeepSpeed ops: compiling {op.name} ({position}), {now - begin:.0f} s")
        finally:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, 9)
                process.wait()
                (target / LOCK).unlink(missing_ok=True)
    seconds = time.monotonic() - begin
    if process.returncode != 0 or not (target / f"{op.name}.so").is_file():
        tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:]
        return "\n  ".join([f"{op.name} could not be built ({seconds:.0f} s); the end of {log}:", *tail])
    (target / BUILT).touch()
    say(f"DeepSpeed ops: {op.name} built in {seconds:.0f} s")
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Build the ops for this machine and say where they are."""
    parser = argparse.ArgumentParser(prog="scripts/ops", description="Build DeepSpeed's CPU ops into agprof's cache.")
    parser.add_argument("--folder", type=Path, help="build there instead")
    options = parser.parse_args(argv)
    # The interpreter's own ninja first, as in a launch: ninja rebuilds what another version of it built.
    environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"}
    given = environ.get("TORCH_EXTENSIONS_DIR")
    folder = options.folder or (Path(given) if given else host.extensions_dir(environ))

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    try:
        ready = prepare_ops(folder, environ=environ, say=say)
    except AgprofError as error:
        say(f"agprof: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        say("DeepSpeed ops: stopped; what was built is kept")
        return 130
    for note in ready.notes:
        say(f"DeepSpeed ops: {note}")
    if not ready.missing:
        say(f"DeepSpeed ops: ready in {ready.folder}")
    elif not ready.no_ds_ops and ready.notes:
        return LaunchError.exit_code if is_installed("deepspeed") else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
