"""Which GPU a rank uses: the right one or unknown, over random nodes, against a CUDA runtime simulated here.

The simulation is written from CUDA's documented rules and shares no line with what it tests: it numbers devices, reads
CUDA_VISIBLE_DEVICES and hands out a device; the mapping then sees only what a rank would tell.
"""

import random
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agprof.analysis.gpu_mapping import map_gpus
from agprof.model.system_answers import GpuMapping
from rows_of_gpus import gpu_row, uuid, view_of

# -- a CUDA runtime ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Board:
    nvml: int
    uuid: str
    bus: int
    model: str
    speed: int
    instances: tuple[tuple[int, str], ...] = ()
    """MIG: (NVML row, UUID)."""


def cuda_numbers(boards: list[Board], order: str | None, chance: random.Random) -> list[Board]:
    """FASTEST_FIRST: the fastest first, among equals by address, the others in an order that nobody promises."""
    by_bus = sorted(boards, key=lambda board: board.bus)
    if order == "PCI_BUS_ID" or len({board.model for board in boards}) == 1:
        return by_bus
    fastest = max(by_bus, key=lambda board: board.speed)
    rest = [board for board in by_bus if board is not fastest]
    chance.shuffle(rest)
    return [fastest, *rest]


def cuda_sees(boards: list[Board], devices: str | None, order: str | None, chance: random.Random) -> list[int]:
    """NVML rows of what a process sees, in CUDA's numbers. A GPU in MIG mode shows one instance at most."""
    whole = {board.uuid.lower(): board.nvml for board in boards if not board.instances}
    parts = {name.lower(): row for board in boards for row, name in board.instances}
    numbered = [
        board.instances[0][0] if board.instances else board.nvml for board in cuda_numbers(boards, order, chance)
    ]
    if parts:
        numbered = numbered[:1] if devices is None else numbered
    if devices is None:
        return numbered
    result: list[int] = []
    for entry in devices.split(","):
        text = entry.strip().lower()
        if text.startswith("gpu-") or text.startswith("mig-"):
            names = whole if text.startswith("gpu-") else parts
            hits = [row for name, row in names.items() if name[: len(text)] == text]
            if len(hits) != 1:
                return result
            row = hits[0]
        elif text.isdigit() and int(text) < len(numbered):
            row = numbered[int(text)]
        else:
            return result
        if row in result:
            return []
        result.append(row)
    return result


# -- random nodes --------------------------------------------------------------------------------------------------

HEX = "0123456789abcdef"


@st.composite
def nodes(draw: st.DrawFn) -> list[Board]:
    count = draw(st.integers(1, 8))
    chance = draw(st.randoms(use_true_random=False))
    models = draw(st.sampled_from([("H100",), ("H100", "L40S"), ("A", "B", "C")]))
    buses = chance.sample(range(1, 200), count)
    in_nvml_order = draw(st.booleans())
    numbers = list(range(count))
    if in_nvml_order:
        buses.sort()
    start = "".join(chance.choice(HEX) for _ in range(4)) if draw(st.booleans()) else ""
    free = count
    boards = []
    for number in numbers:
        digits = (start + "".join(chance.choice(HEX) for _ in range(32)))[:32]
        name = f"GPU-{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
        model = chance.choice(models)
        instances = []
        if draw(st.integers(0, 5)) == 0:
            for _ in range(chance.randint(1, 3)):
                part = "".join(chance.choice(HEX) for _ in range(32))
                instances.append((free, f"MIG-{part[:8]}-{part[8:12]}-{part[12:16]}-{part[16:20]}-{part[20:]}"))
                free += 1
        boards.append(Board(number, name, buses[number], model, len(model), tuple(instances)))
    return boards


@st.composite
def visible_devices(draw: st.DrawFn, boards: list[Board]) -> str | None:
    names = [board.uuid for board in boards]
    parts = [name for board in boards for _, name in board.instances]
    prefix = st.tuples(st.sampled_from(names + parts), st.integers(5, 40)).map(lambda pair: pair[0][: pair[1]])
    entry = st.one_of(
        st.integers(-1, 9).map(str),
        st.sampled_from(names),
        prefix,
        st.sampled_from(["", " ", "x", "GPU-", "NoDevFiles", "0x1", "1gpu"]),
        st.integers(0, 8).map(lambda number: f" {number} "),
    )
    return draw(st.one_of(st.none(), st.just(""), st.lists(entry, min_size=1, max_size=6).map(",".join)))


def rows_of(boards: list[Board], hidden: set[str]) -> list[dict[str, Any]]:
    rows = []
    for board in boards:
        whole = {"uuid": board.uuid, "pci_bus_id": f"0000:{board.bus:02x}:00.0", "name": board.model}
        whole |= {"memory_total_bytes": 2**30 * len(board.model), "mig_enabled": bool(board.instances)}
        rows.append(gpu_row(board.nvml, **whole | dict.fromkeys(hidden & whole.keys())))
        for number, name in board.instances:
            part = {"uuid": name, "pci_bus_id": None, "mig_parent": board.nvml, "mig_enabled": None}
            rows.append(gpu_row(number, **part | dict.fromkeys(hidden & {"uuid"})))
    return rows


def told_by(boards: list[Board], seen: list[int], index: int, evidence: set[str]) -> dict[str, Any]:
    row = seen[index]
    board = next(b for b in boards if b.nvml == row or row in [number for number, _ in b.instances])
    name = board.uuid if board.nvml == row else dict(board.instances)[row]
    told: dict[str, Any] = {"device.type": "cuda", "device.index": index}
    if "uuid" in evidence:
        told["device.uuid"] = name.partition("-")[2]
    if "pci" in evidence:
        told["device.pci_bus_id"] = f"00000000:{board.bus:02X}:00.0"
    if "count" in evidence:
        told["device.count"] = len(seen)
    return told


EVIDENCE = st.sets(st.sampled_from(["uuid", "pci", "count"]))


@settings(deadline=None)
@given(st.data())
def test_never_a_wrong_gpu(data: st.DataObject) -> None:
    boards = data.draw(nodes())
    devices = data.draw(visible_devices(boards))
    order = data.draw(st.sampled_from([None, "FASTEST_FIRST", "PCI_BUS_ID"]))
    evidence = data.draw(EVIDENCE)
    hidden = data.draw(st.sets(st.sampled_from(["uuid", "pci_bus_id", "name"]), max_size=2))
    seen = cuda_sees(boards, devices, order, data.draw(st.randoms(use_true_random=False)))
    if not seen:
        return
    index = data.draw(st.integers(0, len(seen) - 1))
    facts = told_by(boards, seen, index, evidence)
    facts |= {"cuda_visible_devices": devices, "cuda_device_order": order}
    (answer,) = map_gpus(view_of({"gpus": rows_of(boards, hidden)}, facts={0: facts}))
    assert answer.gpu in (None, seen[index]), (answer, devices)
    assert (answer.gpu is None) == (answer.by is None) == (answer.reason is not None)
    if "uuid" in evidence and "uuid" not in hidden:
        assert (answer.gpu, answer.by) == (seen[index], "uuid")
    split = any(board.instances for board in boards)
    if "pci" in evidence and "pci_bus_id" not in hidden and not split and "uuid" not in evidence:
        assert (answer.gpu, answer.by) == (seen[index], "pci bus id")
    ordered = order == "PCI_BUS_ID" or ("name" not in hidden and len({board.model for board in boards}) == 1)
    plain = devices is None or devices.replace(",", "").replace(" ", "").replace("-", "").isdigit()
    if not evidence - {"count"} and not split and ordered and plain and "pci_bus_id" not in hidden:
        assert answer.gpu == seen[index], (answer, devices)


def test_unlike_gpus_in_cudas_own_order_are_not_guessed() -> None:
    rows = [gpu_row(0), gpu_row(1, name="NVIDIA L40S", memory_total_bytes=48 * 2**30)]
    answer = one(rows, {"device.index": 0, "cuda_visible_devices": "0", "cuda_device_order": None})
    assert answer.gpu is None
    assert "CUDA_DEVICE_ORDER" in (answer.reason or "")
    answer = one(rows, {"device.index": 0, "cuda_visible_devices": "1", "cuda_device_order": "PCI_BUS_ID"})
    assert (answer.gpu, answer.by) == (1, "CUDA_VISIBLE_DEVICES")


def one(rows: list[dict[str, Any]], facts: dict[str, Any]) -> GpuMapping:
    (answer,) = map_gpus(view_of({"gpus": rows}, facts={0: {"device.type": "cuda", **facts}}))
    return answer


@pytest.mark.parametrize(
    "told",
    [
        uuid(2),
        uuid(2).upper(),
        uuid(2).removeprefix("GPU-"),
        uuid(2).removeprefix("GPU-").upper(),
        uuid(2).removeprefix("GPU-").replace("-", ""),
    ],
)
def test_a_uuid_in_each_way_of_writing(told: str) -> None:
    answer = one([gpu_row(number) for number in range(4)], {"device.uuid": told})
    assert (answer.gpu, answer.by) == (2, "uuid")


@pytest.mark.parametrize("told", ["0000:12:00.0", "00000000:12:00.0", "12:00.0", "0000:12:00"])
def test_a_pci_address_in_each_way_of_writing(told: str) -> None:
    answer = one([gpu_row(number) for number in range(4)], {"device.pci_bus_id": told})
    assert (answer.gpu, answer.by) == (2, "pci bus id")


def test_the_same_bus_in_another_domain_is_another_gpu() -> None:
    rows = [gpu_row(0, pci_bus_id="00000000:12:00.0"), gpu_row(1, pci_bus_id="00000001:12:00.0")]
    assert one(rows, {"device.pci_bus_id": "00000001:12:00.0"}).gpu == 1
    assert one(rows, {"device.pci_bus_id": "00000002:12:00.0"}).gpu is None


def test_ranks_of_two_nodes_map_to_their_own_nodes() -> None:
    rows = [gpu_row(number, node=node) for node in (0, 1) for number in (0, 1)]
    facts = {rank: {"device.type": "cuda", "device.uuid": uuid(rank % 2, node=rank // 2)} for rank in range(4)}
    answers = map_gpus(view_of({"gpus": rows}, facts=facts, node_of={0: 0, 1: 0, 2: 1, 3: 1}))
    assert [(a.rank, a.node, a.gpu) for a in answers] == [(0, 0, 0), (1, 0, 1), (2, 1, 0), (3, 1, 1)]


def test_the_ranks_of_a_run_that_knows_nothing_are_listed_as_unknown() -> None:
    (answer,) = map_gpus(view_of({"gpus": [gpu_row(0)]}, facts={0: {"torch.version": "2"}}))
    assert answer.gpu is None
    assert "no forward pass" in (answer.reason or "")
