"""What agprof and its neighbours can measure on a node: NVML's fields, the host's, Nsight Systems, permissions."""

from collections.abc import Iterator, Sequence

from agprof.model.doctor_answers import Check, Status, Topic
from agprof.model.doctor_facts import FieldSeen, NodeFacts

_GPU: Topic = "GPU"
_INSTRUMENTS: Topic = "instruments"
PERF_FOR_USERS = 2
"""kernel.perf_event_paranoid up to which a user may sample the CPU use of his own processes."""


def _ratio(fields: Sequence[FieldSeen]) -> str:
    got = sum(field.state == "ok" for field in fields)
    text = f"{got} of {len(fields)} fields can be read"
    missing: dict[str, list[str]] = {}
    for field in fields:
        if field.state != "ok":
            missing.setdefault(_plain(field.reason) or field.state, []).append(
                field.field.partition(".")[2] or field.field
            )
    words = [f"{', '.join(names)} ({reason})" for reason, names in missing.items()]
    return text + (f"; not {'; not '.join(words)}" if words else "")


def _plain(reason: str) -> str:
    """A reason without the class of the exception that it came as: `FileNotFoundError: no RAPL`."""
    kind, colon, rest = reason.partition(": ")
    return rest if colon and kind.isidentifier() and kind.endswith("Error") else reason


def nvml_fields(facts: NodeFacts) -> Iterator[Check]:
    """What NVML gives here, field by field."""
    found = facts.sampler
    if found is None:
        return
    fields = [field for field in found.fields if field.field.startswith("gpu")]
    if found.error is not None:
        advice = "GPUs are not sampled; run `python -m agprof.sampler.probe` to see why. Training is not affected."
        yield _nvml("warning", f"the sampler {found.error}", advice)
        return
    lost = [field for field in fields if field.field == "gpu" and field.state != "ok"]
    if lost:
        status: Status = "note" if facts.driver is None else "problem"
        advice = (
            "Nothing to do on a machine without an NVIDIA GPU."
            if facts.driver is None
            else "The driver is loaded and its library is not usable: in a container, pass it in (--gpus all, "
            "NVIDIA_DRIVER_CAPABILITIES=utility,compute); after a driver update, reboot."
        )
        yield _nvml(status, f"not usable: {lost[0].reason}", advice)
    elif fields:
        some = any(field.state != "ok" for field in fields)
        advice = "The report leaves out what is not there, with this reason." if some else ""
        yield _nvml("note" if some else "ok", _ratio(fields), advice)


def _nvml(status: Status, found: str, advice: str) -> Check:
    return Check(key="nvml-fields", topic=_GPU, title="NVML", status=status, found=found, advice=advice)


def host_fields(facts: NodeFacts) -> Iterator[Check]:
    """What the sampler gets of host and processes."""
    fields = [field for field in facts.sampler.fields if not field.field.startswith("gpu")] if facts.sampler else []
    if fields:
        some = any(field.state != "ok" for field in fields)
        yield Check(
            key="host-fields",
            topic=_INSTRUMENTS,
            title="host sampling",
            status="note" if some else "ok",
            found=_ratio(fields),
            advice="The report leaves out what is not there, with this reason." if some else "",
        )


def nsys(facts: NodeFacts) -> Iterator[Check]:
    """Nsight Systems and its importer, for `agprof run --nsys` and `agprof export`."""
    found = facts.nsys
    get = "Needed for `agprof run --nsys` and for .nsys-rep exports only (docs/nsight.md says how to have it)."
    status: Status = "ok"
    advice = ""
    if found.path is None:
        status, text, advice = "note", "not found", get
    elif found.version is None:
        status, text, advice = "warning", f"{found.path} does not run", f"Run `{found.path} --version`. {get}"
    else:
        text = f"{found.version} at {found.path}"
        if found.importer is None:
            status, advice = "note", "Without ImportNvtxt beside it, ranges are not merged into reports."
            text += ", no importer"
        elif found.importer_runs is False:
            status, advice = "warning", f"Run `{found.importer}`: it lacks libraries."
            text += ", its importer does not start"
        else:
            text += ", importer usable"
    yield Check(key="nsys", topic=_INSTRUMENTS, title="Nsight Systems", status=status, found=text, advice=advice)


def looking_at_others(facts: NodeFacts) -> Iterator[Check]:
    """ptrace, for py-spy, gdb and `nsys attach`; agprof itself needs none."""
    allowed = facts.permissions
    scope = allowed.ptrace_scope
    text = "no Yama: same user is enough" if scope is None else f"kernel.yama.ptrace_scope is {scope}"
    limited = scope is not None and scope > 0 and allowed.ptrace_capable is not True
    if allowed.ptrace_capable:
        text += ", CAP_SYS_PTRACE is there"
    yield Check(
        key="ptrace",
        topic=_INSTRUMENTS,
        title="ptrace",
        status="note" if limited else "ok",
        found=text,
        advice="py-spy and gdb can't attach to a running rank: sysctl kernel.yama.ptrace_scope=0, or a container with "
        "--cap-add SYS_PTRACE. agprof does not need it."
        if limited
        else "",
    )


def cpu_counters(facts: NodeFacts) -> Iterator[Check]:
    """perf events, for CPU sampling by nsys and perf."""
    allowed = facts.permissions
    level = allowed.perf_event_paranoid
    if level is None:
        return
    enough = level <= PERF_FOR_USERS or allowed.perf_capable is True
    yield Check(
        key="perf",
        topic=_INSTRUMENTS,
        title="perf events",
        status="ok" if enough else "note",
        found=f"kernel.perf_event_paranoid is {level}" + (", CAP_PERFMON is there" if allowed.perf_capable else ""),
        advice=""
        if enough
        else f"nsys samples no CPU call stacks: sysctl kernel.perf_event_paranoid={PERF_FOR_USERS}.",
    )


def gpu_counters(facts: NodeFacts) -> Iterator[Check]:
    """The GPU's performance counters, for Nsight Compute and nsys --gpu-metrics; NVML's GPM needs no permission."""
    allowed = facts.permissions
    if allowed.gpu_counters_admin_only is None:
        return
    limited = allowed.gpu_counters_admin_only and not allowed.root
    yield Check(
        key="gpu-counters",
        topic=_GPU,
        title="GPU counters",
        status="note" if limited else "ok",
        found="for administrators only" if allowed.gpu_counters_admin_only else "for all users",
        advice="ncu and nsys --gpu-metrics-devices need NVreg_RestrictProfilingToAdminUsers=0 (ERR_NVGPUCTRPERM else)."
        if limited
        else "",
    )
