"""Python, torch, DeepSpeed, driver and GPUs of a node."""

from collections.abc import Iterator

from agprof.model.doctor_answers import Check, Status, Topic
from agprof.model.doctor_facts import NodeFacts, TorchFacts

OLDEST_PYTHON = (3, 11)
_SOFTWARE: Topic = "software"
_GPU: Topic = "GPU"


def version(text: str | None) -> tuple[int, ...]:
    """The leading numbers of a version, for comparing: `2.13.0+cpu` -> (2, 13, 0)."""
    numbers = []
    for part in (text or "").split("+")[0].split("."):
        digits = "".join(char for char in part if char.isdigit())
        if not part[:1].isdigit():
            break
        numbers.append(int(digits))
    return tuple(numbers)


def python(facts: NodeFacts) -> Iterator[Check]:
    """Python is new enough."""
    old = version(facts.python) < OLDEST_PYTHON
    yield Check(
        key="python",
        topic=_SOFTWARE,
        title="Python",
        status="problem" if old else "ok",
        found=f"{facts.python} at {facts.python_path}",
        advice="agprof needs Python 3.11 or newer: make the environment with one." if old else "",
    )


def agprof(facts: NodeFacts) -> Iterator[Check]:
    """Which agprof answers."""
    where = f"{facts.agprof} at {facts.agprof_path}"
    yield Check(key="agprof", topic=_SOFTWARE, title="agprof", status="ok", found=where)


def torch(facts: NodeFacts) -> Iterator[Check]:
    """torch imports, was built for this machine's GPUs, and has the backends that ranks talk through."""
    found = facts.torch
    if found is None:
        advice = "Install it where training is to run here; `agprof report` and `agprof monitor` do without."
        yield _torch("note", "not installed", advice)
        return
    if found.error is not None:
        advice = "Run `python -c 'import torch'` in this environment and mend what it says."
        yield _torch("problem", f"{facts.packages.get('torch')} does not import: {found.error}", advice)
        return
    built = f"built for CUDA {found.cuda}" if found.cuda else "built for CPUs"
    took = f", imported in {found.import_s:.1f} s" if found.import_s is not None else ""
    text = f"{found.version}, {built}{took}"
    if found.cuda is None and _driver(facts) is not None:
        advice = "This machine has an NVIDIA driver: install a torch that is built for CUDA."
        yield _torch("problem", text, advice)
    else:
        yield _torch("ok", text)
    yield from _backends(found)


def _torch(status: Status, found: str, advice: str = "") -> Check:
    return Check(key="torch", topic=_SOFTWARE, title="torch", status=status, found=found, advice=advice)


def _backends(found: TorchFacts) -> Iterator[Check]:
    nccl = f", NCCL {found.nccl}" if found.nccl else ""
    lacking = found.cuda is not None and "nccl" not in found.backends
    usable = bool(found.backends)
    yield Check(
        key="backends",
        topic=_SOFTWARE,
        title="collectives",
        status="problem" if lacking or not usable else "ok",
        found=(", ".join(found.backends) or "no backend of torch.distributed") + nccl,
        advice="Install a torch with torch.distributed, and on GPUs with NCCL." if lacking or not usable else "",
    )


def deepspeed(facts: NodeFacts) -> Iterator[Check]:
    """DeepSpeed, and its compiled ops."""
    installed = facts.packages.get("deepspeed")
    if installed is None:
        found = "not installed"
        yield Check(
            key="deepspeed", topic=_SOFTWARE, title="DeepSpeed", status="note", found=found,
            advice="Only jobs that use it need it.",
        )  # fmt: skip
        return
    missing = [op.name for op in facts.ops if not op.built]
    built = [op.name for op in facts.ops if op.built]
    status: Status = "ok"
    advice = ""
    if missing and facts.build_tools_missing:
        status = "warning"
        advice = f"Install {' and '.join(facts.build_tools_missing)}, then: python -m agprof.launch.ops"
    elif missing:
        status = "note"
        advice = "Build them once, instead of within the first job: python -m agprof.launch.ops"
    state = "; ".join(
        text
        for text in (
            f"ops built: {', '.join(built)}" if built else "",
            f"ops not built: {', '.join(missing)}" if missing else "",
        )
        if text
    )
    yield Check(
        key="deepspeed", topic=_SOFTWARE, title="DeepSpeed", status=status, found=f"{installed}; {state}", advice=advice
    )


def foreign_pynvml(facts: NodeFacts) -> Iterator[Check]:
    """The package `pynvml` up to version 11 puts a module of the same name before that of nvidia-ml-py."""
    installed = facts.packages.get("pynvml")
    if installed is not None and version(installed) < (12,):
        yield Check(
            key="pynvml",
            topic=_SOFTWARE,
            title="NVML binding",
            status="problem",
            found=f"package pynvml {installed} hides the module of nvidia-ml-py",
            advice="pip uninstall pynvml && pip install --force-reinstall nvidia-ml-py",
        )


def driver(facts: NodeFacts) -> Iterator[Check]:
    """The driver is loaded, and new enough for torch's CUDA."""
    told = _driver(facts)
    if told is None:
        wants = facts.torch is not None and facts.torch.cuda is not None
        yield Check(
            key="driver",
            topic=_GPU,
            title="NVIDIA driver",
            status="warning" if wants else "note",
            found="not loaded",
            advice="On a machine with a GPU: install or load the driver; in a container, start it with --gpus all."
            if wants
            else "Without a GPU there is nothing to do: ranks train on the CPU, GPU curves are left out.",
        )
        return
    blind = facts.torch is not None and facts.torch.cuda is not None and not facts.torch.gpus
    hidden = facts.cuda_visible_devices == ""
    yield Check(
        key="driver",
        topic=_GPU,
        title="NVIDIA driver",
        status="problem" if blind and not hidden else "ok",
        found=told + (f", but torch (CUDA {facts.torch.cuda}) sees no GPU" if blind and facts.torch else ""),
        advice="The driver may be older than torch's CUDA needs, or the devices are not passed into the container: "
        "compare `nvidia-smi` with torch.version.cuda."
        if blind and not hidden
        else "",
    )


def _driver(facts: NodeFacts) -> str | None:
    """By the kernel's word, or by NVML's: /proc may be hidden."""
    return facts.driver or (facts.sampler.driver if facts.sampler is not None else None)


def gpus(facts: NodeFacts) -> Iterator[Check]:
    """The GPUs that torch may use are those that the machine has, and torch has kernels for them."""
    seen = facts.sampler.gpus if facts.sampler is not None else ()
    usable = facts.torch.gpus if facts.torch is not None else ()
    if not seen and not usable:
        return
    names = sorted({gpu.name for gpu in usable or seen})
    text = f"{len(seen)} by NVML, {len(usable)} by torch: {', '.join(names)}"
    restricted = facts.cuda_visible_devices
    if restricted is not None:
        text += f"; CUDA_VISIBLE_DEVICES is {restricted!r}"
    status: Status = "ok"
    advice = ""
    built = facts.torch is not None and facts.torch.error is None and facts.torch.cuda is not None
    if built and len(usable) < len(seen) and restricted is None:
        status, advice = (
            "warning",
            "torch sees fewer GPUs than there are: look at MIG mode and the container's devices.",
        )
    unfit = _without_kernels(facts.torch)
    if unfit:
        status = "problem"
        advice = f"This torch has no kernels for {', '.join(unfit)}: install one that is built for it."
    yield Check(key="gpus", topic=_GPU, title="GPUs", status=status, found=text, advice=advice)


def _without_kernels(found: TorchFacts | None) -> list[str]:
    """GPUs whose architecture none of torch's kernels fits: same major version and at most its minor, or PTX below."""
    if found is None or not found.archs:
        return []
    unfit = []
    for gpu in found.gpus:
        own = version(gpu.capability)
        if len(own) < 2:
            continue
        binary = [_arch(arch) for arch in found.archs if arch.startswith("sm_")]
        portable = [_arch(arch) for arch in found.archs if arch.startswith("compute_")]
        if not any(arch[0] == own[0] and arch <= own[:2] for arch in binary if arch) and not any(
            arch <= own[:2] for arch in portable if arch
        ):
            unfit.append(f"{gpu.name} (compute capability {gpu.capability})")
    return sorted(set(unfit))


def _arch(name: str) -> tuple[int, int] | tuple[()]:
    """sm_90a -> (9, 0); () for what is no architecture."""
    digits = "".join(char for char in name.partition("_")[2] if char.isdigit())
    return (int(digits[:-1]), int(digits[-1])) if len(digits) >= 2 else ()
