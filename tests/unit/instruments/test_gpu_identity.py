"""What a rank tells of its GPU: from a stand-in of torch.cuda, since the facts are read and never computed."""

import tempfile
from pathlib import Path
from types import SimpleNamespace as Obj
from typing import Any

import pytest

from agprof.instruments import facts
from agprof.instruments.gpu_identity import LONGEST_LIST
from collected_rows import CollectedRows, collecting_recorder

UUID = "8932f937-d72c-4106-c12f-20bd9faed9f6"


def fake_torch(*, initialized: bool = True, **properties: Any) -> Any:
    def refuse(*_: Any) -> Any:
        raise AssertionError("the driver was touched before the training did")

    known = {"name": "NVIDIA H100", "total_memory": 80 * 2**30, **properties}
    cuda = Obj(
        is_initialized=lambda: initialized,
        current_device=(lambda: 3) if initialized else refuse,
        get_device_properties=(lambda index: Obj(**known, index=index)) if initialized else refuse,
        device_count=refuse,
    )
    backend = Obj(allow_tf32=True)
    return Obj(
        __version__="2",
        cuda=cuda,
        get_num_threads=lambda: 1,
        backends=Obj(cuda=Obj(matmul=backend), cudnn=backend),
        _C=Obj(_cuda_getDeviceCount=(lambda: 4) if initialized else refuse),
    )


def module_on(*devices: tuple[str, int | None]) -> Any:
    return Obj(parameters=lambda: iter(Obj(device=Obj(type=kind, index=index)) for kind, index in devices))


def told(torch: Any, module: Any) -> CollectedRows:
    recorder, rows = collecting_recorder()
    facts.record_torch(recorder, torch)
    facts.record_device(recorder, torch, module)
    return rows


def test_uuid_address_and_number_of_the_modules_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    address = {"pci_domain_id": 0, "pci_bus_id": 0x1B, "pci_device_id": 0}
    found = told(fake_torch(uuid=UUID, **address), module_on(("cuda", 1), ("cpu", None), ("cuda", 1))).facts()
    assert found["device.uuid"] == f'"{UUID}"'
    assert found["device.pci_bus_id"] == '"00000000:1B:00.0"'
    assert (found["device.index"], found["device.count"]) == ("1", "4")
    assert "device.indices" not in found
    assert (found["cuda_visible_devices"], found["cuda_device_order"]) == ('"4,5,6,7"', "null")


def test_parameters_on_several_devices_are_told_as_such() -> None:
    found = told(fake_torch(uuid=UUID), module_on(("cuda", 2), ("cuda", 0))).facts()
    assert (found["device.index"], found["device.indices"]) == ("0", "[0, 2]")


def test_without_parameters_on_a_gpu_it_is_the_current_device() -> None:
    found = told(fake_torch(), module_on(("cpu", None))).facts()
    assert found["device.index"] == "3"
    assert (found["device.uuid"], found["device.pci_bus_id"]) == ('""', "null")


def test_a_rank_without_cuda_does_not_touch_the_driver() -> None:
    found = told(fake_torch(initialized=False), module_on(("cpu", None))).facts()
    assert found["device.type"] == '"cpu"'
    assert "device.index" not in found


def test_a_change_of_the_variable_after_the_import_stays_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, rows = collecting_recorder()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    facts.record_torch(recorder, fake_torch())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    facts.record_device(recorder, fake_torch(), module_on(("cuda", 0)))
    values = [row["value"] for row in rows.table("facts") if row["key"] == "cuda_visible_devices"]
    assert values == ['"0"', '"1"']


def test_cudas_multi_process_service_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert "cuda_mps" not in told(fake_torch(), module_on(("cuda", 0))).facts()
    (tmp_path / "nvidia-mps").mkdir()
    assert told(fake_torch(), module_on(("cuda", 0))).facts()["cuda_mps"] == "true"
    (tmp_path / "nvidia-mps").rmdir()
    monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", "elsewhere")
    assert told(fake_torch(), module_on(("cuda", 0))).facts()["cuda_mps"] == "true"


def test_a_list_too_long_to_keep_is_left_out_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1," * LONGEST_LIST)
    assert "cuda_visible_devices" not in told(fake_torch(), module_on(("cuda", 0))).facts()
