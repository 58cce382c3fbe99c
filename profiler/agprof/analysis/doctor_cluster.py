"""The nodes of a hostfile together: ssh, folders, ports, slots, clocks, and what is not the same everywhere."""

from collections.abc import Callable, Iterator

from agprof.analysis.doctor_software import version
from agprof.model.doctor_answers import Check, Difference, Status
from agprof.model.doctor_cluster import ClusterFacts, NodeReport, Reached
from agprof.model.doctor_facts import NodeFacts, TorchFacts
from agprof.model.format import format_value

SHOWN = 8
"""Nodes and pairs named in one line; the rest is counted."""
LARGE_SKEW_NS = 1_000_000_000
NOTABLE_SKEW_NS = 10_000_000

_WHAT_TO_DO = {
    "name": "The name is not known here: mend the hostfile, /etc/hosts or ~/.ssh/config.",
    "refused": "No sshd listens there: start it, or give its port (Port in ~/.ssh/config, or --ssh 'ssh -p 2222').",
    "timeout": "The node is down, or a firewall drops the packets: ping it, and open the port of sshd.",
    "key": "ssh asks for a password: put the public key of this user into ~/.ssh/authorized_keys there (ssh-copy-id).",
    "host key": "The node's host key is not known, or changed: run `ssh NODE` once by hand, or ssh-keyscan.",
    "folder": "The launcher changes into the same folder on each node: share it, or make a copy at the same path.",
    "python": "The launcher runs the same Python on each node: install the environment there at the same path.",
    "agprof": "Install agprof in the node's environment.",
}
_KEEP_TIME = "Run chrony or systemd-timesyncd on each node; logs and traces can't be lined up else."
_LAST_RESORT = "Run the same by hand to see more: ssh NODE true"


def judge_together(facts: ClusterFacts) -> tuple[Check, ...]:
    """What concerns the nodes as a cluster."""
    checks = [*_sessions(facts), *_names(facts), *_same_machine(facts), *_slots(facts), *_ports(facts), *_clocks(facts)]
    return tuple(checks)


def _sessions(facts: ClusterFacts) -> Iterator[Check]:
    good = [node for node in facts.nodes if node.facts is not None]
    if good:
        yield Check(
            key="ssh",
            topic="cluster",
            title="ssh",
            status="ok",
            found=f"{len(good)} of {len(facts.nodes)} nodes answer, without a password, with this folder and Python",
        )
    for node in facts.nodes:
        if node.facts is None:
            yield Check(
                key=f"ssh-{node.name}",
                topic="cluster",
                title=f"ssh {node.name}",
                status="problem",
                found=node.error or "no answer",
                advice=_WHAT_TO_DO.get(node.kind or "", _LAST_RESORT).replace("NODE", node.name),
            )


def _names(facts: ClusterFacts) -> Iterator[Check]:
    local = [node.name for node in facts.nodes if node.name.rpartition("@")[2] in ("localhost", "127.0.0.1", "::1")]
    if len(facts.nodes) > 1 and local:
        addresses = next(node.addresses for node in facts.nodes if node.name == local[0])
        others = [address for address in addresses if not address.startswith(("127.", "::1"))]
        hint = f" (it has {', '.join(others[:3])})" if others else ""
        yield Check(
            key="localhost",
            topic="cluster",
            title="name",
            status="note",
            found=f"{local[0]} is another machine to each node{hint}",
            advice="Give the launcher --master_addr with an address that all nodes reach.",
        )


def _same_machine(facts: ClusterFacts) -> Iterator[Check]:
    machines: dict[tuple[str, str], list[str]] = {}
    for node in facts.nodes:
        if node.facts is not None and node.facts.boot_id is not None:
            machines.setdefault((node.facts.boot_id, node.facts.host), []).append(node.name)
    for (_, host), names in machines.items():
        if len(names) > 1:
            yield Check(
                key="same-machine",
                topic="cluster",
                title="machine",
                status="warning",
                found=f"{' and '.join(names[:SHOWN])} are the same machine, {host}",
                advice="Their ranks would share its GPUs: keep one of the lines, with the slots added up.",
            )


def _slots(facts: ClusterFacts) -> Iterator[Check]:
    for node in facts.nodes:
        if node.facts is None:
            continue
        usable = _gpus(node.facts)
        status: Status = "ok"
        advice = ""
        if usable == 0:
            status, advice = "note", "No GPU: its ranks train on the CPU, one thread each at best."
            cores = node.facts.usable_cores
            if cores is not None and node.slots > cores:
                status, advice = "warning", f"More ranks than the {cores} usable cores: give at most slots={cores}."
        elif node.slots > usable:
            status, advice = "problem", f"More ranks than GPUs: ranks would share one; give slots={usable}."
        elif node.slots < usable:
            status, advice = "note", f"{usable - node.slots} of its GPUs stay idle: slots={usable} would use all."
        yield Check(
            key=f"slots-{node.name}",
            topic="cluster",
            title=f"slots {node.name}",
            status=status,
            found=f"slots={node.slots}, {usable} GPU{'s' * (usable != 1)} usable",
            advice=advice,
        )


def _gpus(facts: NodeFacts) -> int:
    if facts.torch is not None and facts.torch.error is None:
        return len(facts.torch.gpus)
    return len(facts.sampler.gpus) if facts.sampler is not None else 0


def _ports(facts: ClusterFacts) -> Iterator[Check]:
    first = facts.nodes[0].name
    if facts.master_port_error is not None:
        yield Check(
            key="master-port",
            topic="cluster",
            title="master port",
            status="warning",
            found=f"{first} can't listen on port {facts.master_port}: {facts.master_port_error}",
            advice="Somebody else's job may run there: choose another with --master-port, and in the launcher.",
        )
    if not facts.reached:
        return
    failed = [reached for reached in facts.reached if reached.address is None]
    which = "every node to every other" if facts.all_pairs else "every node to the first and to the next"
    if not failed:
        master = f", and to the master's port {facts.master_port}" if facts.master_port_error is None else ""
        found = f"{len(facts.reached)} connections came about: {which}{master}"
        yield Check(key="ports", topic="cluster", title="ports", status="ok", found=found)
        yield from _detours(facts)
        return
    yield Check(
        key="ports",
        topic="cluster",
        title="ports",
        status="problem",
        found=f"{len(failed)} of {len(facts.reached)} connections failed ({which}): {_shown(failed)}",
        advice="NCCL and gloo talk over any free port, the launcher over the master's: switch the firewall off between "
        "the nodes, or open these ranges; `no answer` means dropped packets, `refused` a filter that says so.",
    )


def _detours(facts: ClusterFacts) -> Iterator[Check]:
    """Addresses that lead nowhere on nodes that have others: NCCL and gloo may choose just these."""
    detours = {(one.target, failure.partition(": ")[0]): one for one in facts.reached for failure in one.failures}
    if detours:
        words = [
            f"{address} of {target}, from {one.source}" for (target, address), one in list(detours.items())[:SHOWN]
        ]
        used = sorted({one.address for one in detours.values() if one.address is not None})
        yield Check(
            key="addresses",
            topic="cluster",
            title="addresses",
            status="warning",
            found=f"not reached: {'; '.join(words)}",
            advice=f"Name the interface that is reached ({', '.join(used[:3])}): NCCL_SOCKET_IFNAME, "
            "GLOO_SOCKET_IFNAME, and --master_addr for the launcher.",
        )


def _shown(failed: list[Reached]) -> str:
    words = [f"{one.source} to {one.target}, port {one.port}: {', '.join(one.failures)}" for one in failed[:SHOWN]]
    return "; ".join(words) + (f"; and {len(failed) - SHOWN} more" if len(failed) > SHOWN else "")


def _clocks(facts: ClusterFacts) -> Iterator[Check]:
    skews = [(node.name, node.skew) for node in facts.nodes if node.skew is not None]
    if len(skews) < 2:
        return
    # All against the same clock here, so two nodes differ by at most the difference of their offsets.
    high = max(skews, key=lambda item: item[1].offset_ns)
    low = min(skews, key=lambda item: item[1].offset_ns)
    apart = high[1].offset_ns - low[1].offset_ns
    unsure = high[1].uncertainty_ns + low[1].uncertainty_ns
    status: Status = "ok"
    if apart - unsure > LARGE_SKEW_NS:
        status = "problem"
    elif apart - unsure > NOTABLE_SKEW_NS:
        status = "warning"
    yield Check(
        key="clocks",
        topic="clock",
        title="clocks",
        status=status,
        found=f"at most {format_value(apart, 'ns')} ± {format_value(unsure, 'ns')} apart"
        + (f" ({high[0]} before {low[0]})" if status != "ok" else ""),
        advice=""
        if status == "ok"
        else "Run chrony or systemd-timesyncd on each node; logs and traces can't be lined up else.",
    )


_Read = Callable[[NodeFacts], str | None]


def _package(name: str) -> _Read:
    return lambda facts: facts.packages.get(name) or "not installed"


def _limit(name: str) -> _Read:
    def read(facts: NodeFacts) -> str | None:
        found = next((limit for limit in facts.limits if limit.name == name), None)
        return None if found is None else "unlimited" if found.soft is None else f"{found.soft:,}"

    return read


_SAME_VERSION = "Install the same version on all nodes: other ones fail in the middle of a job, or differ in numbers."


def _torch(read: Callable[[TorchFacts], str | None]) -> _Read:
    return lambda facts: None if facts.torch is None or facts.torch.error else read(facts.torch) or "none"


def _socket_names(facts: NodeFacts) -> str:
    return ", ".join(facts.environment.get(f"{name}_SOCKET_IFNAME", "unset") for name in ("NCCL", "GLOO"))


def _gpu_names(facts: NodeFacts) -> str | None:
    seen = facts.sampler.gpus if facts.sampler is not None else ()
    names = [gpu.name for gpu in seen] or [gpu.name for gpu in (facts.torch.gpus if facts.torch else ())]
    return ", ".join(f"{names.count(name)} x {name}" for name in sorted(set(names))) or "none"


_COMPARED: tuple[tuple[str, str, Status, _Read, str], ...] = (
    ("torch", "torch", "problem", _torch(lambda torch: torch.version), _SAME_VERSION),
    ("cuda", "CUDA of torch", "problem", _torch(lambda torch: torch.cuda), _SAME_VERSION),
    ("nccl", "NCCL", "problem", _torch(lambda torch: torch.nccl), _SAME_VERSION),
    ("deepspeed", "DeepSpeed", "problem", _package("deepspeed"), _SAME_VERSION),
    ("python", "Python", "warning", lambda facts: facts.python, _SAME_VERSION),
    ("agprof", "agprof", "warning", lambda facts: facts.agprof, _SAME_VERSION),
    *((name, name, "warning", _package(name), _SAME_VERSION) for name in ("transformers", "accelerate", "peft")),
    ("numpy", "numpy", "warning", _package("numpy"), _SAME_VERSION),
    ("driver", "NVIDIA driver", "warning", lambda facts: facts.driver or "none", "Use one driver on all nodes."),
    (
        "gpus", "GPUs", "warning", _gpu_names,
        "A job runs at the pace of its slowest GPU: use nodes of one kind, or expect stragglers.",
    ),
    ("cores", "usable cores", "note", lambda facts: str(facts.usable_cores), "Some have less CPU for their loaders."),
    ("nsys", "Nsight Systems", "note", lambda facts: facts.nsys.version or "none", "Their reports may not merge."),
    ("kernel", "Linux", "note", lambda facts: facts.kernel, ""),
    ("machine", "architecture", "problem", lambda facts: facts.machine, "One environment can't run on both."),
    ("user", "user", "note", lambda facts: facts.user, "Files of the run belong to different users."),
    ("open-files", "open files", "note", _limit("open files"), "Set the same limit on all nodes."),
    ("locked-memory", "locked memory", "warning", _limit("locked memory"), "Set the same limit on all nodes."),
    (
        "ifname", "NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME", "note", _socket_names,
        "ssh gives another environment than your shell: DeepSpeed passes NCCL_* on, .deepspeed_env others.",
    ),
)  # fmt: skip


def differences(facts: ClusterFacts) -> tuple[Difference, ...]:
    """What two nodes that could be asked have differently."""
    nodes = [node for node in facts.nodes if node.facts is not None]
    found = []
    for key, title, status, read, advice in _COMPARED:
        values = _values(nodes, read)
        if len(values) > 1:
            found.append(Difference(key=key, title=title, status=status, values=values, advice=advice))
    return tuple(found)


def _values(nodes: list[NodeReport], read: _Read) -> tuple[tuple[str, tuple[str, ...]], ...]:
    having: dict[str, list[str]] = {}
    for node in nodes:
        value = read(node.facts) if node.facts is not None else None
        if value is not None:
            having.setdefault(value, []).append(node.name)
    ordered = sorted(having.items(), key=lambda item: (-len(item[1]), version(item[0]), item[0]))
    return tuple((value, tuple(names)) for value, names in ordered)
