"""What a launch needs of this machine is asked for before anything starts."""

from pathlib import Path

import pytest

from agprof.config.workload import Workload
from agprof.errors import LaunchError
from agprof.launch import ops
from agprof.launch.ops import OpsReady
from agprof.launch.plan import LaunchPlan
from agprof.launch.prepare import prepare


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    (tmp_path / "train.py").write_text("import deepspeed\n")
    monkeypatch.setenv("AGPROF_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)


def prepared(folder: Path, document: dict, **more) -> LaunchPlan:
    workload = Workload.model_validate({"name": "x", **document})
    return prepare(workload, run_dir=folder / "run", base_dir=folder, say=print, **more)


def test_a_missing_script_is_named(tmp_path):
    with pytest.raises(LaunchError, match=r"nothing\.py.*relative to the workload file"):
        prepared(tmp_path, {"script": "nothing.py"})


def test_binding_without_numactl_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LaunchError, match="numactl"):
        prepared(tmp_path, {"script": "train.py", "launch": {"launcher": "deepspeed", "bind_cores": True}})


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_a_launcher_that_is_not_installed_is_refused(tmp_path, monkeypatch, launcher):
    monkeypatch.setattr(ops, "is_installed", lambda _package: False)
    with pytest.raises(LaunchError, match="torch is not installed"):
        prepared(tmp_path, {"script": "train.py", "launch": {"launcher": launcher}})


def test_a_dry_run_builds_nothing_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(ops, "prepare_ops", lambda *_args, **_more: pytest.fail("built"))
    plan = prepared(tmp_path, {"script": "train.py"}, build_ops=False)
    assert Path(plan.env["TORCH_EXTENSIONS_DIR"]).is_relative_to(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("impossible", [True, False])
def test_ranks_are_told_when_ops_can_not_be_had(tmp_path, monkeypatch, impossible):
    ready = OpsReady(folder=tmp_path, built=(), missing=(), no_ds_ops=impossible, notes=())
    monkeypatch.setattr(ops, "prepare_ops", lambda *_args, **_more: ready)
    plan = prepared(tmp_path, {"script": "train.py"})
    assert ("AGPROF_NO_DS_OPS" in plan.env) is impossible


def test_the_port_of_the_file_is_taken(tmp_path):
    plan = prepared(tmp_path, {"script": "train.py", "launch": {"master_port": 29777}}, build_ops=False)
    assert plan.master_port == 29777
