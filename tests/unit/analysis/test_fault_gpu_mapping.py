"""F9: containers with the host's process numbers, no permissions, MIG, UUIDs or nothing in CUDA_VISIBLE_DEVICES.

What must hold in each: the right GPU, or unknown with the reason; never another one. Rows of the fault table that
test_fault_table.py lists; these need no sampler, only what one would have written.
"""

from typing import Any

import pytest

from agprof.analysis.gpu_mapping import map_gpus
from agprof.analysis.gpu_memory import NOT_VISIBLE, reconcile, tenants
from agprof.model.system_answers import GpuMapping, GpuMemory
from rows_of_gpus import gpu_row, uuid, view_of

GIB = 2**30
S = 1_000_000_000
FOUR = [gpu_row(number) for number in range(4)]
MIG = [
    gpu_row(0, mig_enabled=True),
    gpu_row(1),
    gpu_row(2, uuid=uuid(0x20, kind="MIG"), pci_bus_id=None, mig_parent=0, mig_enabled=None),
    gpu_row(3, uuid=uuid(0x30, kind="MIG"), pci_bus_id=None, mig_parent=0, mig_enabled=None),
]
OLD_MIG = [
    gpu_row(0, mig_enabled=True),
    gpu_row(1, uuid=f"MIG-{uuid(0)}/1/0", pci_bus_id=None, mig_parent=0),
    gpu_row(2, uuid=f"MIG-{uuid(0)}/2/0", pci_bus_id=None, mig_parent=0),
]


def mapped(rows: list[dict[str, Any]], **facts: Any) -> GpuMapping:
    told = {"device.type": "cuda", **{key.replace("__", "."): value for key, value in facts.items()}}
    (answer,) = map_gpus(view_of({"gpus": rows}, facts={0: told}))
    assert (answer.gpu is None) == (answer.reason is not None)
    return answer


@pytest.mark.parametrize(
    ("devices", "index", "gpu"),
    [
        (None, 2, 2),
        ("2,0", 0, 2),
        (" 3 , 1 ", 1, 1),
        ("0,2,-1,1", 1, 2),
        ("0,2,-1,1", 2, None),
        ("0,9,1", 0, 0),
        ("0,9,1", 1, None),
        ("1,1", 0, None),
        ("", 0, None),
        (" ", 0, None),
        ("-1", 0, None),
        ("NoDevFiles", 0, None),
        (uuid(3), 0, 3),
        (f"{uuid(3)},{uuid(1)}", 1, 1),
        (uuid(3).lower(), 0, 3),
        (uuid(3)[:12], 0, 3),
        ("GPU-0000", 0, None),
        (f"{uuid(1)},GPU-0000,{uuid(2)}", 0, 1),
        (f"{uuid(1)},GPU-0000,{uuid(2)}", 1, None),
        (f"{uuid(1)},2", 1, None),
        (f"2,{uuid(1)}", 0, None),
        ("GPU-ffffffff", 0, None),
        (uuid(1, kind="MIG"), 0, None),
        ("1gpu", 0, None),
    ],
)
def test_cuda_visible_devices(devices: str | None, index: int, gpu: int | None) -> None:
    answer = mapped(FOUR, device__index=index, cuda_visible_devices=devices, cuda_device_order="PCI_BUS_ID")
    assert answer.gpu == gpu, answer
    assert answer.by == (None if gpu is None else "CUDA_VISIBLE_DEVICES")


def test_nvmls_numbers_need_not_follow_the_bus() -> None:
    rows = [gpu_row(0, pci_bus_id="00000000:40:00.0"), gpu_row(1, pci_bus_id="00000000:20:00.0")]
    assert mapped(rows, device__index=0, cuda_visible_devices="0", cuda_device_order=None).gpu == 1


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"device__count": 2, "cuda_visible_devices": "0"}, "the rank sees 2 GPU"),
        ({"device__indices": [0, 1], "cuda_visible_devices": None}, "uses 2 GPUs"),
        ({"cuda_visible_devices": 7}, "is no text"),
        ({"cuda_visible_devices": "0", "cuda_mps": True}, "multi-process service"),
        ({"device__uuid": uuid(9)}, "none of those that NVML listed"),
        ({"device__pci_bus_id": "0000:99:00.0"}, "none of those that NVML listed"),
        ({"device__uuid": uuid(1), "device__pci_bus_id": "0000:12:00.0"}, "of different GPUs"),
        ({}, "not its CUDA_VISIBLE_DEVICES"),
    ],
)
def test_evidence_that_does_not_fit_is_no_evidence(facts: dict[str, Any], words: str) -> None:
    answer = mapped(FOUR, **{"device__index": 0, "cuda_device_order": "PCI_BUS_ID", **facts})
    assert answer.gpu is None
    assert words in (answer.reason or "")


def test_a_variable_that_changed_between_import_and_forward_is_not_trusted() -> None:
    pairs = [("cuda_visible_devices", "0"), ("cuda_device_order", None), ("device.type", "cuda"), ("device.index", 0)]
    unchanged = [*pairs, ("cuda_visible_devices", "0")]
    changed = [*pairs, ("cuda_visible_devices", "1")]
    (kept,) = map_gpus(view_of({"gpus": FOUR}, facts={0: unchanged}))
    (lost,) = map_gpus(view_of({"gpus": FOUR}, facts={0: changed}))
    assert kept.gpu == 0
    assert lost.gpu is None
    assert "changed while the rank ran" in (lost.reason or "")


def test_a_rank_that_was_restarted_on_another_gpu_has_none() -> None:
    pairs = [("device.type", "cuda"), ("device.uuid", uuid(1)), ("device.uuid", uuid(2))]
    (answer,) = map_gpus(view_of({"gpus": FOUR}, facts={0: pairs}))
    assert answer.gpu is None
    assert "restarted" in (answer.reason or "")


def test_two_containers_that_both_begin_at_number_0() -> None:
    told = {"device.type": "cuda", "device.index": 0, "device.count": 1}
    told |= {"cuda_visible_devices": None, "cuda_device_order": None}
    answers = map_gpus(view_of({"gpus": [gpu_row(0)]}, facts={0: told, 1: told}))
    assert [answer.gpu for answer in answers] == [None, None]
    assert "rank 1 too" in (answers[0].reason or "")
    (alone,) = map_gpus(view_of({"gpus": [gpu_row(0)]}, facts={0: told}))
    assert (alone.gpu, alone.by) == (0, "only GPU")


def test_ranks_that_share_a_gpu_are_known_by_its_uuid() -> None:
    told = {"device.type": "cuda", "device.uuid": uuid(1)}
    answers = map_gpus(view_of({"gpus": FOUR}, facts={0: told, 1: told}))
    assert [answer.gpu for answer in answers] == [1, 1]


# -- MIG -----------------------------------------------------------------------------------------------------------


def test_an_instance_by_its_own_uuid() -> None:
    answer = mapped(MIG, device__uuid=uuid(0x30).removeprefix("GPU-"), device__pci_bus_id="00000000:10:00.0")
    assert (answer.gpu, answer.by) == (3, "uuid")


def test_the_uuid_of_a_split_gpu_does_not_say_which_instance() -> None:
    answer = mapped(MIG, device__uuid=uuid(0))
    assert answer.gpu is None
    assert "split into MIG instances" in (answer.reason or "")
    assert mapped(MIG, device__pci_bus_id="00000000:10:00.0").gpu is None
    assert mapped(MIG, device__uuid=uuid(1)).gpu == 1


@pytest.mark.parametrize(
    ("rows", "devices", "gpu"),
    [
        (MIG, uuid(0x20, kind="MIG"), 2),
        (MIG, uuid(0x30, kind="MIG")[:12], 3),
        (MIG, "MIG-0000", None),
        (MIG, uuid(0), None),
        (MIG, uuid(1), 1),
        (MIG, "1", None),
        (MIG, None, None),
        (OLD_MIG, f"MIG-{uuid(0)}/2/0", 2),
        (OLD_MIG, f"MIG-{uuid(0)}", None),
        (OLD_MIG, f"MIG-{uuid(0)}/3/0", None),
        ([gpu_row(0, mig_enabled=True)], f"MIG-{uuid(0)}/1/0", None),
    ],
)
def test_cuda_visible_devices_with_mig(rows: list[dict[str, Any]], devices: str | None, gpu: int | None) -> None:
    answer = mapped(rows, device__index=0, cuda_visible_devices=devices, cuda_device_order="PCI_BUS_ID")
    assert answer.gpu == gpu, answer


# -- no permission -------------------------------------------------------------------------------------------------


def test_without_uuids_from_nvml_the_address_tells() -> None:
    rows = [gpu_row(number, uuid=None) for number in range(4)]
    answer = mapped(rows, device__uuid=uuid(2), device__pci_bus_id="0000:12:00.0")
    assert (answer.gpu, answer.by) == (2, "pci bus id")


def test_without_anything_from_nvml_nothing_is_said() -> None:
    rows = [gpu_row(number, uuid=None, pci_bus_id=None) for number in range(2)]
    answer = mapped(
        rows, device__uuid=uuid(1), device__index=0, cuda_visible_devices="1", cuda_device_order="PCI_BUS_ID"
    )
    assert answer.gpu is None
    assert mapped([], device__uuid=uuid(1)).reason == "NVML listed no GPU on node 0"


def test_a_rank_on_the_cpu_has_no_gpu() -> None:
    (answer,) = map_gpus(view_of({"gpus": FOUR}, facts={0: {"device.type": "cpu"}}))
    assert (answer.gpu, answer.reason) == (None, "the rank computes on the CPU")


# -- memory and tenants --------------------------------------------------------------------------------------------


def states(*used: int, gpu: int = 0) -> list[dict[str, Any]]:
    base = {"node": 0, "gpu": gpu, "memory_reserved_bytes": GIB // 2, "memory_total_bytes": 80 * GIB}
    return [{**base, "time_ns": number * S, "memory_used_bytes": value} for number, value in enumerate(used)]


def process(pid: int, used: int | None, owner: str, *, rank: int | None = None, at: int = 2) -> dict[str, Any]:
    return {
        "node": 0, "time_ns": at * S, "gpu": 0, "pid": pid, "kind": "compute", "used_bytes": used, "owner": owner,
        "rank": rank, "name": f"name {pid}",
    }  # fmt: skip


def allocator(reserved: int, at: int = 1) -> dict[str, Any]:
    return {
        "rank": 0, "step": 0, "micro_step": 0, "at": "forward.end", "time_ns": at * S, "reserved_bytes": reserved,
    }  # fmt: skip


def account(processes: list[dict[str, Any]], reserved: int = 30 * GIB) -> GpuMemory:
    rows = {
        "gpus": [gpu_row(0)],
        "gpu_states": states(GIB, 20 * GIB, 40 * GIB, 39 * GIB),
        "gpu_processes": processes,
        "memory": [allocator(reserved), allocator(2 * GIB, at=3)],
    }
    view = view_of(rows, facts={0: {"device.type": "cuda", "device.uuid": uuid(0)}})
    (answer,) = reconcile(view, map_gpus(view))
    figures = [figure for _, *pair in answer.ranks for figure in pair]
    parts = [figure.value or 0 for figure in (*figures, answer.others, answer.unexplained)]
    assert sum(parts) == answer.used.value == 40 * GIB
    return answer


def test_the_parts_of_a_gpus_memory() -> None:
    answer = account(
        [process(10, 31 * GIB, "rank", rank=0), process(11, GIB, "child", rank=0), process(12, 5 * GIB, "other")]
    )
    ((rank, own, beyond),) = answer.ranks
    assert (rank, own.value, beyond.value) == (0, 30 * GIB, 2 * GIB)
    assert (answer.others.value, answer.unexplained.value) == (5 * GIB, 3 * GIB)
    assert answer.sentence == (
        "GPU 0 held at most 40.0 GiB of 80.0 GiB: rank 0's allocator 30.0 GiB and 2.00 GiB beyond it, "
        "other processes 5.00 GiB, unexplained 3.00 GiB."
    )


def test_in_a_container_the_ranks_own_word_is_all_there_is() -> None:
    answer = account([process(93211, 32 * GIB, "not visible"), process(93212, 5 * GIB, "not visible")])
    ((_, own, beyond),) = answer.ranks
    assert (own.value, beyond.value, beyond.reason) == (30 * GIB, None, NOT_VISIBLE)
    assert (answer.others.value, answer.others.reason) == (None, NOT_VISIBLE)
    assert answer.unexplained.value == 10 * GIB


def test_no_permission_to_see_what_processes_hold() -> None:
    answer = account([process(10, None, "rank", rank=0), process(12, None, "other")])
    ((_, own, beyond),) = answer.ranks
    assert own.value == 30 * GIB
    assert beyond.reason == "NVML does not say what the process holds"
    assert answer.others.value is None
    assert answer.unexplained.value == 10 * GIB


def test_an_allocator_that_holds_more_than_nvml_saw_is_said_and_not_hidden() -> None:
    answer = account([process(10, 31 * GIB, "rank", rank=0)], reserved=41 * GIB)
    assert answer.ranks[0][2].value is None
    assert answer.unexplained.value == -GIB
    assert "read at different times" in answer.sentence


def test_processes_read_long_before_the_peak_say_nothing_of_it() -> None:
    answer = account([process(10, 31 * GIB, "rank", rank=0, at=-100)])
    assert answer.ranks[0][2].reason == "NVML listed no processes near that moment"


def test_other_tenants() -> None:
    rows = [process(12, 5 * GIB, "other", at=1), process(12, 6 * GIB, "other", at=4), process(10, GIB, "rank", rank=0)]
    (other, hidden) = tenants(view_of({"gpu_processes": [*rows, process(13, None, "not visible")]}))
    assert (other.pid, other.owner, other.peak_bytes.value, other.end_ns - other.start_ns) == (
        12,
        "other",
        6 * GIB,
        3 * S,
    )
    assert other.name == "name 12"
    assert (hidden.pid, hidden.owner, hidden.peak_bytes.value) == (13, "not visible", None)
    assert hidden.peak_bytes.reason == "NVML does not say what it holds"
