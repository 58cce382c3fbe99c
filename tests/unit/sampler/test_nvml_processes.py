"""Who holds memory on a GPU, and when that can't be told."""

from pathlib import Path
from typing import Any

import pytest

from agprof.sampler.nvml_processes import HOST_NAMESPACE, NAME_LENGTH, program_name
from nvml_stand_in import GIB, Rig, StandIn

COMPUTE, GRAPHICS = "Compute_v3", "Graphics_v3"
OWNERS = {100: (0, "rank"), 101: (0, "child"), 200: (1, "rank")}


def root_with(path: Path, namespace: str | None, names: dict[int, str]) -> Path:
    folder = path / "proc/self/ns"
    folder.mkdir(parents=True)
    if namespace is not None:
        (folder / "pid").symlink_to(namespace)
    for pid, name in names.items():
        (path / f"proc/{pid}").mkdir()
        (path / f"proc/{pid}/cmdline").write_bytes(name.encode() + b"\0secret\0")
    return path


def found(nvml: StandIn, root: Path, owners: dict[int, Any] | None = None) -> list[tuple[Any, ...]]:
    rig = Rig(nvml, pids=lambda: OWNERS if owners is None else owners, root=root)
    return [tuple(row.values())[1:] for row in rig.sample("slow").get("gpu_processes", [])]


def test_ranks_children_and_others_on_the_host(tmp_path: Path) -> None:
    nvml = StandIn(gpus=2)
    nvml.processes[COMPUTE, 0] = [(100, 5 * GIB), (101, None), (999, GIB)]
    nvml.processes[GRAPHICS, 1] = [(7, 2**64 - 1)]
    root = root_with(tmp_path, HOST_NAMESPACE, {100: "/usr/bin/python3.11", 999: "blender"})
    assert found(nvml, root) == [
        (0, 100, "compute", 5 * GIB, "rank", 0, "python3.11"),
        (0, 101, "compute", None, "child", 0, None),
        (0, 999, "compute", GIB, "other", None, "blender"),
        (1, 7, "graphics", None, "other", None, None),
    ]


def test_a_process_of_both_kinds_has_one_row(tmp_path: Path) -> None:
    nvml = StandIn(gpus=2)
    nvml.processes[COMPUTE, 0] = nvml.processes[GRAPHICS, 0] = nvml.processes[GRAPHICS, 1] = [(9, GIB)]
    rows = found(nvml, root_with(tmp_path, HOST_NAMESPACE, {}))
    assert [row[:4] for row in rows] == [(0, 9, "compute", GIB), (1, 9, "graphics", GIB)]


@pytest.mark.parametrize("namespace", ["pid:[4026532000]", None])
def test_in_a_container_numbers_tell_nothing(namespace: str | None, tmp_path: Path) -> None:
    nvml = StandIn()
    # 101 is a child's number within the container; on the host it is anybody's.
    nvml.processes[COMPUTE, 0] = [(5000, GIB), (101, GIB)]
    root = root_with(tmp_path, namespace, {5000: "somebody", 101: "python"})
    assert found(nvml, root) == [
        (0, 5000, "compute", GIB, "not visible", None, None),
        (0, 101, "compute", GIB, "not visible", None, None),
    ]


def test_a_rank_of_ours_on_any_device_tells_that_the_numbers_are_ours(tmp_path: Path) -> None:
    nvml = StandIn(gpus=2)
    nvml.processes[COMPUTE, 0] = [(5000, GIB)]
    nvml.processes[COMPUTE, 1] = [(200, GIB)]
    assert [row[4:6] for row in found(nvml, root_with(tmp_path, "pid:[4026532000]", {}))] == [
        ("other", None),
        ("rank", 1),
    ]


def test_that_stays_so_when_the_rank_has_let_go_of_its_memory(tmp_path: Path) -> None:
    nvml = StandIn()
    nvml.processes[COMPUTE, 0] = [(100, GIB), (5000, GIB)]
    rig = Rig(nvml, pids=lambda: OWNERS, root=root_with(tmp_path, "pid:[4026532000]", {}))
    rig.sample("slow")
    nvml.processes[COMPUTE, 0] = [(5000, GIB)]
    assert [row["owner"] for row in rig.sample("slow")["gpu_processes"]] == ["other"]


def test_no_permission_gives_no_rows_and_a_reason(tmp_path: Path) -> None:
    nvml = StandIn()
    for call in ("Compute", "Graphics"):
        for version in (2, 3):
            nvml.faults[f"nvmlDeviceGet{call}RunningProcesses_v{version}", 0] = "NVML_ERROR_NO_PERMISSION"
    rig = Rig(nvml, root=root_with(tmp_path, HOST_NAMESPACE, {}))
    assert "gpu_processes" not in rig.sample("slow")
    assert rig.states() == [("gpu.0.processes.compute", "unsupported"), ("gpu.0.processes.graphics", "unsupported")]


def test_drivers_of_the_longer_struct_are_asked_by_version_2(tmp_path: Path) -> None:
    nvml = StandIn()
    nvml.symbols = {"nvmlDeviceGetConfComputeMemSizeInfo"}
    nvml.processes["Compute_v3", 0] = [(1, 1)]
    nvml.processes["Compute_v2", 0] = [(100, GIB)]
    assert [row[1] for row in found(nvml, root_with(tmp_path, HOST_NAMESPACE, {}))] == [100]
    assert not any(call.endswith("_v3") for call in nvml.calls)


def test_drivers_before_version_3_are_asked_by_version_2(tmp_path: Path) -> None:
    nvml = StandIn()
    nvml.symbols = set()
    for call in ("Compute", "Graphics"):
        nvml.faults[f"nvmlDeviceGet{call}RunningProcesses_v3", 0] = "NVML_ERROR_FUNCTION_NOT_FOUND"
    nvml.processes["Compute_v2", 0] = [(100, GIB)]
    assert [row[1] for row in found(nvml, root_with(tmp_path, HOST_NAMESPACE, {}))] == [100]


def test_processes_of_a_split_gpu_are_those_of_its_instances(tmp_path: Path) -> None:
    nvml = StandIn()
    nvml.mig, nvml.instances = 1, {1: "a"}
    nvml.processes[COMPUTE, 0] = [(100, GIB)]
    nvml.processes[COMPUTE, "0.1"] = [(100, GIB)]
    assert [row[:2] for row in found(nvml, root_with(tmp_path, HOST_NAMESPACE, {}))] == [(1001, 100)]


@pytest.mark.parametrize(
    ("cmdline", "comm", "name"),
    [
        (b"/opt/b/train.py\0--token=x\0", b"python\n", "train.py"),
        (b"train --token=/x/secret\0", b"python\n", "python"),
        (b"", b"kworker/0:1\n", "kworker/0:1"),
        (b"\x1b[31m\xff<script>\0", b"", "?[31m\ufffd<script>"),
        (b"x" * 5000, b"", "x" * NAME_LENGTH),
        (None, None, None),
    ],
)
def test_the_name_is_the_programs_alone(
    cmdline: bytes | None, comm: bytes | None, name: str | None, tmp_path: Path
) -> None:
    (tmp_path / "5").mkdir()
    for file, content in (("cmdline", cmdline), ("comm", comm)):
        if content is not None:
            (tmp_path / "5" / file).write_bytes(content)
    assert program_name(str(tmp_path), 5) == name
