"""Measured ceilings: starts the measurement, keeps its results in agprof's cache, finds those that fit this machine."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from agprof.errors import LaunchError
from agprof.launch import host
from agprof.launch.folder import write_json
from agprof.launch.plan import without_launchers
from agprof.model.ceilings import ALONE, CEILING_VERSION, MeasuredCeiling, read_ceiling
from agprof.store import layout

MODULE = "agprof.instruments.peak_bench"
MAX_FILE_BYTES = 2**20


def peaks_dir(environ: Mapping[str, str]) -> Path:
    """The folder of the results: one file per device, and per number of threads on a CPU."""
    return host.cache_dir(environ) / "peaks"


def measure(
    *,
    device: str,
    threads: int | None,
    seconds: float,
    quick: bool,
    environ: Mapping[str, str],
    python: str,
    say: Callable[[str], None],
) -> MeasuredCeiling:
    """Measure in a process of its own, which imports torch. `say` gets what is being done. Raises LaunchError."""
    env = without_launchers(environ)
    if threads is not None:
        env["OMP_NUM_THREADS"] = str(threads)
        env.pop("MKL_NUM_THREADS", None)
    argv = [python, "-P", "-m", MODULE, "--device", device, "--seconds", f"{seconds:g}", *(["--quick"] * quick)]
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        complaints: list[str] = []
        reader = threading.Thread(target=_collect, args=(process.stderr, complaints), daemon=True)
        reader.start()
        try:
            found = _follow(process.stdout, say)
        except BaseException:
            process.kill()
            raise
        code = process.wait()
        reader.join(timeout=5)
    if isinstance(found, MeasuredCeiling) and code == 0:
        return _named(found)
    why = found if isinstance(found, str) else complaints[-1] if complaints else f"it ended with exit code {code}"
    raise LaunchError(f"the measurement failed: {why}")


def _collect(stream: IO[str], lines: list[str]) -> None:
    lines.extend(line.strip() for line in stream if line.strip())


def _follow(lines: IO[str], say: Callable[[str], None]) -> MeasuredCeiling | str | None:
    """The result, or the measurement's own word why there is none."""
    found: MeasuredCeiling | str | None = None
    for line in lines:
        try:
            value = json.loads(line)
        except ValueError:
            continue  # a library that prints
        if not isinstance(value, dict):
            continue
        if "doing" in value:
            say(str(value["doing"]))
        if "error" in value:
            found = str(value["error"])
        if "result" in value:
            found = read_ceiling(value["result"])
    return found


def _named(ceiling: MeasuredCeiling) -> MeasuredCeiling:
    return ceiling if ceiling.device_type == "cuda" else ceiling.renamed(host.cpu_model() or "CPU")


def cpu_key() -> str:
    """Tells CPUs apart that may share a home directory: model, instruction set, cores that this process may use."""
    text = f"{host.cpu_model()}|{host.cpu_flags()}|{host.usable_cores()}"
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def keep(ceiling: MeasuredCeiling, environ: Mapping[str, str]) -> Path | None:
    """Write the result into the cache, over the one before; its file. Raises LaunchError.

    None when it had to share its cores and the one before did not: then that one stays.
    """
    path = peaks_dir(environ) / _file_name(ceiling)
    before = _read(path)
    if had_to_share(ceiling) and before is not None and not had_to_share(before):
        return None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, ceiling.to_dict())
    except OSError as error:
        raise LaunchError(
            f"{path} can't be written: {error.strerror or error}; set AGPROF_CACHE to another folder"
        ) from error
    return path


def _file_name(ceiling: MeasuredCeiling) -> str:
    name = re.sub(r"[^A-Za-z0-9]+", "-", ceiling.device_name).strip("-")[:80] or "device"
    if ceiling.device_type == "cuda":
        return f"cuda-{name}.json"
    return f"cpu-{name}-{cpu_key()}-{ceiling.threads}-threads.json"


def kept(environ: Mapping[str, str]) -> list[MeasuredCeiling]:
    """What the cache holds for this machine: its CPU by model, instruction set and cores; GPUs, where there are any.

    Which GPU a rank takes is its own choice, so those of all names are given. Files that can't be read count as none.
    """
    patterns = [f"cpu-*-{cpu_key()}-*-threads.json", *(["cuda-*.json"] if host.has_gpu() else [])]
    found = []
    for pattern in patterns:
        for file in sorted(peaks_dir(environ).glob(pattern)):
            ceiling = _read(file)
            if ceiling is not None:
                found.append(ceiling)
    return found


def had_to_share(ceiling: MeasuredCeiling) -> bool:
    """It did not get its cores for itself, and may be too low."""
    return ceiling.cpu_share is not None and ceiling.cpu_share < ALONE


def _read(file: Path) -> MeasuredCeiling | None:
    try:
        if file.is_file() and file.stat().st_size <= MAX_FILE_BYTES:
            return read_ceiling(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        pass
    return None


def copy_into(run_dir: Path, environ: Mapping[str, str] = os.environ) -> None:
    """Write the ceilings that fit this machine into the run folder; no file when there are none."""
    ceilings = kept(environ)
    if not ceilings:
        return
    value: dict[str, Any] = {"version": CEILING_VERSION, "ceilings": [ceiling.to_dict() for ceiling in ceilings]}
    try:
        write_json(run_dir / layout.PEAK, value)
    except OSError as error:
        print(f"note: {run_dir / layout.PEAK} can't be written: {error.strerror or error}", file=sys.stderr)
