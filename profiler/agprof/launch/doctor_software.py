"""What `agprof doctor` reads of installed software. Whatever may hang or crash runs in a process of its own."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TypeVar

import msgspec

from agprof.launch import host
from agprof.launch.nsight import find_import_nvtxt, find_nsys, nsys_version
from agprof.launch.ops import OPS, is_built, missing_tools
from agprof.model.doctor_facts import NsysFacts, OpFacts, SamplerFacts, TorchFacts

T = TypeVar("T")

PACKAGES = (
    "torch", "deepspeed", "transformers", "accelerate", "peft", "horovod", "flash-attn", "numpy", "nvidia-ml-py",
    "pynvml", "psutil", "nvtx", "msgspec",
)  # fmt: skip
TORCH_TIMEOUT_S = 90.0
"""The first import from a network file system takes its time."""
SAMPLER_TIMEOUT_S = 20.0
TOPOLOGY_TIMEOUT_S = 20.0
_SHOWN_CHARS = 300

_TORCH = """
import json, time
begin = time.monotonic()
import torch, torch.distributed as dist
took = time.monotonic() - begin
gpus = []
if torch.version.cuda and torch.cuda.is_available():
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        gpus.append({"name": device.name, "capability": f"{device.major}.{device.minor}",
                     "uuid": str(getattr(device, "uuid", "")) or None, "memory_bytes": device.total_memory})
backends = []
if dist.is_available():
    asked = {"gloo": dist.is_gloo_available, "nccl": dist.is_nccl_available, "mpi": dist.is_mpi_available}
    backends = [name for name, available in asked.items() if available()]
nccl = ".".join(map(str, torch.cuda.nccl.version())) if "nccl" in backends else None
print(json.dumps({"version": str(torch.__version__), "cuda": torch.version.cuda, "nccl": nccl, "gpus": gpus,
                  "archs": torch.cuda.get_arch_list() if gpus else [], "backends": backends, "import_s": took}))
"""


def packages() -> dict[str, str | None]:
    """Version of each package that matters; None: not installed."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def torch_facts() -> TorchFacts | None:
    """What torch says of itself and the GPUs; None where it is not installed."""
    try:
        metadata.version("torch")
    except metadata.PackageNotFoundError:
        return None
    found = _ask([sys.executable, "-P", "-c", _TORCH], TORCH_TIMEOUT_S, TorchFacts)
    return TorchFacts(error=found) if isinstance(found, str) else found


def sampler_facts() -> SamplerFacts:
    """What the sampler gets on this node: it is run once, in the way that a job's is."""
    found = _ask([sys.executable, "-P", "-m", "agprof.sampler.probe"], SAMPLER_TIMEOUT_S, SamplerFacts)
    return SamplerFacts(error=found) if isinstance(found, str) else found


def _ask(argv: list[str], timeout_s: float, type_: type[T]) -> T | str:
    """What the process prints as its last line, or why there is nothing."""
    try:
        done = subprocess.run(argv, capture_output=True, timeout=timeout_s, stdin=subprocess.DEVNULL, check=False)
    except subprocess.TimeoutExpired:
        return f"gave no answer within {timeout_s:.0f} s"
    except OSError as error:
        return str(error)
    lines = done.stdout.splitlines()
    if done.returncode == 0 and lines:
        try:
            return msgspec.convert(json.loads(lines[-1]), type_)
        except (ValueError, msgspec.ValidationError) as error:
            return f"gave an answer that can't be read: {error}"
    said = done.stderr.decode("utf-8", "replace").strip().splitlines()
    last = said[-1][:_SHOWN_CHARS] if said else "it said nothing"
    return f"ended with {done.returncode}: {last}"


def ops(environ: Mapping[str, str]) -> tuple[tuple[OpFacts, ...], str | None, tuple[str, ...]]:
    """(DeepSpeed's ops, where they are kept, tools that building lacks); no ops without DeepSpeed."""
    try:
        metadata.version("deepspeed")
    except metadata.PackageNotFoundError:
        return (), None, ()
    folder = Path(environ.get("TORCH_EXTENSIONS_DIR") or host.extensions_dir(environ))
    found = tuple(OpFacts(name=op.name, built=is_built(folder, op)) for op in OPS)
    return found, str(folder), missing_tools(environ)


def nsys() -> NsysFacts:
    """Nsight Systems, its importer, and whether this one starts."""
    program = find_nsys()
    if program is None:
        return NsysFacts()
    importer = find_import_nvtxt()
    return NsysFacts(
        path=str(program),
        version=nsys_version(program),
        importer=None if importer is None else str(importer.program),
        importer_runs=None if importer is None else _starts([str(importer.program), "--help"], importer.environment()),
    )


def _starts(argv: list[str], environment: dict[str, str]) -> bool:
    """Whether a program finds its libraries: the loader's own code for `no` is 127."""
    try:
        done = subprocess.run(
            argv, check=False, capture_output=True, timeout=20, env=environment, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode != 127 and done.returncode >= 0


def topology() -> str | None:
    """`nvidia-smi topo -m`, as it stands; None where there is no such program or it fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, "topo", "-m"], capture_output=True, text=True, timeout=TOPOLOGY_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.rstrip()[:20_000] or None


def numactl() -> bool:
    return shutil.which("numactl", path=os.environ.get("PATH", os.defpath)) is not None
