"""What the doctor says of a node and of a cluster, fact by fact."""

from dataclasses import replace
from typing import Any

import pytest

from agprof.analysis.doctor import judge, judge_cluster, judge_node
from agprof.analysis.doctor_software import version
from agprof.model.doctor_answers import Check, DoctorAnswer
from agprof.model.doctor_cluster import ClusterFacts, NodeReport, Reached, Skew
from agprof.model.doctor_facts import (
    ClockFacts,
    FieldSeen,
    GpuSeen,
    Interface,
    Limit,
    NodeFacts,
    NsysFacts,
    OpFacts,
    Permissions,
    Place,
    SamplerFacts,
    TorchFacts,
)

GIB = 2**30
H100 = GpuSeen(name="NVIDIA H100 80GB HBM3", capability="9.0", memory_bytes=80 * GIB)
TORCH = TorchFacts(
    version="2.13.0+cu130",
    cuda="13.0",
    nccl="2.28.3",
    archs=("sm_80", "sm_90"),
    gpus=(H100,) * 8,
    backends=("gloo", "nccl"),
    import_s=2.0,
)
SOUND = NodeFacts(
    host="node1",
    boot_id="a",
    user="trainer",
    kernel="6.1",
    machine="x86_64",
    python="3.11.7",
    python_path="/env/bin/python",
    agprof="0.1.0",
    agprof_path="/env/agprof",
    folder="/home/trainer",
    packages={"torch": "2.13.0", "deepspeed": "0.19.8", "pynvml": None, "numpy": "2.4.0"},
    torch=TORCH,
    sampler=SamplerFacts(
        gpus=(H100,) * 8,
        driver="580.1",
        fields=(FieldSeen(field="gpu.power_mw", state="ok"), FieldSeen(field="host.cpu_ratio", state="ok")),
    ),
    driver="580.1",
    ops=(OpFacts(name="cpu_adam", built=True),),
    nsys=NsysFacts(path="/opt/nsys", version="2026.1", importer="/opt/ImportNvtxt", importer_runs=True),
    permissions=Permissions(
        root=False, ptrace_scope=0, perf_event_paranoid=1, ptrace_capable=False, perf_capable=False,
        gpu_counters_admin_only=False,
    ),
    limits=(
        Limit(name="open files", soft=65536, hard=65536),
        Limit(name="locked memory", soft=None, hard=None),
        Limit(name="address space", soft=None, hard=None),
    ),
    places=(
        Place(what="runs", path="/data", total_bytes=900 * GIB, free_bytes=500 * GIB, kind="ext4", writable=True),
        Place(what="/dev/shm", path="/dev/shm", total_bytes=64 * GIB, free_bytes=60 * GIB, kind="tmpfs", writable=True),
    ),
    cpu="EPYC",
    cores=128,
    usable_cores=128,
    numa_nodes=2,
    numactl=True,
    memory_bytes=1024 * GIB,
    clock=ClockFacts(source="tsc", available=("tsc",), synchronized=True, max_error_s=0.001),
    interfaces=(
        Interface(name="lo", up=True, addresses=("127.0.0.1",)),
        Interface(name="eth0", up=True, addresses=("10.0.0.1",)),
    ),
    infiniband=("mlx5_0/1",),
)  # fmt: skip


def checks(facts: NodeFacts) -> dict[str, Check]:
    return {check.key: check for check in judge_node(facts).checks}


def test_a_sound_node_has_nothing_to_do() -> None:
    found = checks(SOUND)
    assert {check.status for check in found.values()} == {"ok"}
    assert not any(check.advice for check in found.values())
    assert len(found) >= 20


def torch(**changes: Any) -> dict[str, Any]:
    return {"torch": replace(TORCH, **changes)}


def allowed(**changes: Any) -> dict[str, Any]:
    return {"permissions": replace(SOUND.permissions, **changes)}


def shm(free: int) -> dict[str, Any]:
    return {"places": (Place(what="/dev/shm", path="/dev/shm", total_bytes=64 * GIB, free_bytes=free),)}


def runs(**changes: Any) -> dict[str, Any]:
    return {"places": (replace(SOUND.places[0], **changes),)}


NO_ECC = FieldSeen(field="gpu.ecc_corrected", state="unsupported", reason="no ECC")
NO_LIBRARY = SamplerFacts(
    fields=(FieldSeen(field="gpu", state="unsupported", reason="libnvidia-ml.so.1 does not load"),)
)

CASES: list[tuple[dict[str, Any], str, str, str]] = [
    # what is different, which line, its status, a word of the advice
    ({"python": "3.10.9"}, "python", "problem", "3.11"),
    ({"torch": None}, "torch", "note", "agprof monitor"),
    ({"torch": TorchFacts(error="ended with 1: libcudart.so: no such file")}, "torch", "problem", "import torch"),
    (torch(cuda=None, gpus=()), "torch", "problem", "built for CUDA"),
    (torch(backends=("gloo",)), "backends", "problem", "NCCL"),
    ({"packages": {**SOUND.packages, "deepspeed": None}}, "deepspeed", "note", "Only jobs"),
    ({"ops": (OpFacts(name="cpu_adam", built=False),)}, "deepspeed", "note", "agprof.launch.ops"),
    (
        {"ops": (OpFacts(name="cpu_adam", built=False),), "build_tools_missing": ("g++", "ninja")},
        "deepspeed", "warning", "g++ and ninja",
    ),
    ({"packages": {**SOUND.packages, "pynvml": "11.5.3"}}, "pynvml", "problem", "uninstall"),
    ({"driver": None, "sampler": NO_LIBRARY}, "driver", "warning", "--gpus all"),
    ({"driver": None, "sampler": NO_LIBRARY, **torch(cuda=None, gpus=())}, "driver", "note", "CPU"),
    (torch(gpus=()), "driver", "problem", "older"),
    (torch(gpus=(H100,) * 4), "gpus", "warning", "fewer"),
    (torch(archs=("sm_70", "sm_80")), "gpus", "problem", "compute capability 9.0"),
    ({"sampler": NO_LIBRARY}, "nvml-fields", "problem", "NVIDIA_DRIVER_CAPABILITIES"),
    ({"sampler": SamplerFacts(error="gave no answer within 20 s")}, "nvml-fields", "warning", "agprof.sampler.probe"),
    (
        {"sampler": SamplerFacts(gpus=(H100,) * 8, fields=(NO_ECC,))},
        "nvml-fields", "note", "leaves out",
    ),
    ({"nsys": NsysFacts()}, "nsys", "note", "--nsys"),
    ({"nsys": replace(SOUND.nsys, version=None)}, "nsys", "warning", "--version"),
    ({"nsys": replace(SOUND.nsys, importer=None)}, "nsys", "note", "ImportNvtxt"),
    ({"nsys": replace(SOUND.nsys, importer_runs=False)}, "nsys", "warning", "libraries"),
    (allowed(ptrace_scope=1), "ptrace", "note", "ptrace_scope=0"),
    (allowed(perf_event_paranoid=4), "perf", "note", "paranoid=2"),
    (allowed(gpu_counters_admin_only=True), "gpu-counters", "note", "NVreg"),
    ({"limits": (Limit(name="open files", soft=1024, hard=4096),)}, "open-files", "warning", "ulimit -n"),
    ({"limits": (Limit(name="locked memory", soft=65536, hard=65536),)}, "locked-memory", "problem", "memlock"),
    ({"limits": (Limit(name="address space", soft=GIB, hard=GIB),)}, "address-space", "warning", "Lift"),
    ({"usable_cores": 8}, "cores", "note", "quota"),
    ({"governor": "powersave"}, "cores", "note", "performance"),
    ({"memory_limit_bytes": 64 * GIB}, "memory", "note", "killed"),
    ({"numactl": False}, "numa", "note", "numactl"),
    ({"topology": "        GPU0 GPU1\nGPU0 X SYS\nGPU1 SYS X"}, "topology", "note", "sockets"),
    ({"clock": replace(SOUND.clock, source="hpet")}, "clock-source", "warning", "tsc"),
    ({"clock": replace(SOUND.clock, synchronized=False)}, "clock-sync", "note", "chrony"),
    ({"clock": replace(SOUND.clock, max_error_s=2.0)}, "clock-sync", "note", "chrony"),
    (shm(64 * 2**20), "shm", "problem", "--ipc=host"),
    (shm(512 * 2**20), "shm", "warning", "--shm-size"),
    (runs(free_bytes=GIB // 2), "place-runs", "problem", "room"),
    (runs(free_bytes=5 * GIB), "place-runs", "warning", "room"),
    (runs(writable=False), "place-runs", "problem", "--out"),
    (runs(kind="lustre"), "place-runs", "note", "network file system"),
    ({"environment": {"NCCL_SOCKET_IFNAME": "ib9"}}, "network", "problem", "NCCL_SOCKET_IFNAME=ib9"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "key", "status", "word"), CASES, ids=[f"{c[1]}-{i}" for i, c in enumerate(CASES)])
def test_each_fault_is_told_with_what_to_do(changes: dict[str, Any], key: str, status: str, word: str) -> None:
    check = checks(replace(SOUND, **changes))[key]
    assert check.status == status
    assert word.lower() in check.advice.lower()


@pytest.mark.parametrize(
    "changes",
    [
        torch(gpus=(H100,) * 4) | {"cuda_visible_devices": "0,1,2,3"},
        torch(gpus=()) | {"cuda_visible_devices": ""},
        torch(archs=("sm_80", "compute_80")),
        torch(archs=("sm_90a",)),
        {"limits": (Limit(name="locked memory", soft=65536, hard=65536),), "infiniband": ()},
        {"environment": {"NCCL_SOCKET_IFNAME": "^docker0,eth"}},
        allowed(ptrace_scope=2, ptrace_capable=True),
        allowed(gpu_counters_admin_only=True, root=True),
    ],
)
def test_what_is_meant_so_or_does_not_matter_is_no_fault(changes: dict[str, Any]) -> None:
    assert {check.status for check in checks(replace(SOUND, **changes)).values()} == {"ok"}


def test_facts_that_were_not_read_are_not_judged() -> None:
    found = checks(NodeFacts(host="x", python="3.12.0"))
    assert "memory" not in found
    assert "clock-source" not in found
    assert not [check for check in found.values() if check.status == "problem"]


def test_nvml_fields_are_counted_and_named_by_reason() -> None:
    fields = (
        FieldSeen(field="gpu.power_mw", state="ok"),
        FieldSeen(field="gpu.ecc_corrected", state="unsupported", reason="NVMLError_NotSupported: Not Supported"),
        FieldSeen(field="gpu.ecc_uncorrected", state="unsupported", reason="NVMLError_NotSupported: Not Supported"),
        FieldSeen(field="host.cpu_energy_uj", state="unsupported", reason="FileNotFoundError: no RAPL"),
    )
    found = checks(replace(SOUND, sampler=SamplerFacts(gpus=(H100,), fields=fields)))
    assert found["nvml-fields"].found.startswith("1 of 3 fields can be read; not ecc_corrected, ecc_uncorrected (")
    assert found["host-fields"].found == "0 of 1 fields can be read; not cpu_energy_uj (no RAPL)"


def node(name: str, slots: int = 8, offset_ns: int = 0, **changes: Any) -> NodeReport:
    facts = replace(SOUND, host=name, boot_id=name, **changes)
    return NodeReport(
        name=name,
        slots=slots,
        facts=facts,
        skew=Skew(offset_ns=offset_ns, uncertainty_ns=100_000),
        addresses=("10.0.0.9",),
    )


def silent(kind: str | None) -> NodeReport:
    return NodeReport(name="b", slots=1, facts=None, error="x", kind=kind)


NO_GPU: dict[str, Any] = {"torch": replace(TORCH, gpus=()), "cuda_visible_devices": ""}
DEAD_END = Reached(source="a", target="b", port=1, address=None, failures=("10.0.0.9: no answer within 5 s",))
DETOUR = Reached(source="a", target="b", port=1, address="10.1.0.2", failures=("172.17.0.1: refused",))


def cluster(*nodes: NodeReport, **changes: Any) -> DoctorAnswer:
    reached = (Reached(source="a", target="b", port=4000, address="10.0.0.9"),)
    sound: dict[str, Any] = {"reached": reached, "master_port": 29500, "master_port_error": None, "all_pairs": True}
    return judge_cluster(ClusterFacts(nodes=nodes, **{**sound, **changes}))


def test_equal_nodes_that_reach_one_another_are_well() -> None:
    answer = cluster(node("a"), node("b"))
    assert not answer.differences
    assert {check.status for check in answer.cluster} == {"ok"}
    assert answer.count("problem") == answer.count("warning") == answer.count("note") == 0


@pytest.mark.parametrize(
    ("nodes", "changes", "key", "status", "word"),
    [
        ([silent("key")], {}, "ssh-b", "problem", "ssh-copy-id"),
        ([silent("folder")], {}, "ssh-b", "problem", "same path"),
        ([silent(None)], {}, "ssh-b", "problem", "ssh b true"),
        ([node("b", slots=9)], {}, "slots-b", "problem", "slots=8"),
        ([node("b", slots=2)], {}, "slots-b", "note", "6 of its GPUs"),
        ([node("b", slots=200, **NO_GPU)], {}, "slots-b", "warning", "128"),
        ([node("b", offset_ns=50_000_000)], {}, "clocks", "warning", "chrony"),
        ([node("b", offset_ns=-3_000_000_000)], {}, "clocks", "problem", "chrony"),
        ([node("localhost")], {}, "localhost", "note", "--master_addr"),
        ([node("b")], {"master_port_error": "Address already in use"}, "master-port", "warning", "--master-port"),
        ([node("b")], {"reached": (DEAD_END,)}, "ports", "problem", "firewall"),
        ([node("b")], {"reached": (DETOUR,)}, "addresses", "warning", "10.1.0.2"),
    ],
)  # fmt: skip
def test_each_fault_of_a_cluster_is_told(
    nodes: list[NodeReport], changes: dict[str, Any], key: str, status: str, word: str
) -> None:
    found = {check.key: check for check in cluster(node("a"), *nodes, **changes).cluster}
    assert found[key].status == status
    assert word in found[key].advice


def test_two_lines_for_one_machine_are_seen() -> None:
    first = node("a")
    twin = replace(first, name="alias")
    assert "same-machine" in {check.key for check in cluster(first, twin).cluster}


def test_a_small_offset_within_its_uncertainty_is_no_fault() -> None:
    far = replace(node("b"), skew=Skew(offset_ns=40_000_000, uncertainty_ns=35_000_000))
    assert {check.key: check.status for check in cluster(node("a"), far).cluster}["clocks"] == "ok"


def test_what_differs_is_listed_with_the_nodes_that_have_it() -> None:
    odd = node("c", torch=replace(TORCH, version="2.12.0", nccl="2.27.1"), kernel="5.15")
    found = {difference.key: difference for difference in cluster(node("a"), node("b"), odd).differences}
    assert found["torch"].values == (("2.13.0+cu130", ("a", "b")), ("2.12.0", ("c",)))
    assert found["torch"].status == found["nccl"].status == "problem"
    assert found["kernel"].status == "note"
    assert set(found) == {"torch", "nccl", "kernel"}


def test_versions_compare_by_their_numbers() -> None:
    assert version("2.13.0+cpu") == (2, 13, 0)
    assert version("11.5") < version("12")
    assert version(None) == version("unknown") == ()


def test_one_machine_has_no_cluster() -> None:
    assert judge(SOUND).cluster == judge(SOUND).differences == ()
