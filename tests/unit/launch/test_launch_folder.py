"""The run folder: never overwritten, complete before the job begins, without secrets."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from agprof.config.workload import Workload
from agprof.errors import LaunchError
from agprof.launch.folder import create_run_folder, git_commit, package_versions, write_json, write_manifest
from agprof.launch.plan import plan_launch

NOON_NS = 1_795_262_400 * 10**9


def make_plan(workload: Workload, run_dir: Path):
    environ = {"PATH": "/usr/bin", "NCCL_DEBUG": "INFO", "SECRET_STUFF": "hidden-1", "HOME": "/home/user"}
    return plan_launch(
        workload, run_dir=run_dir, base_dir=run_dir, environ=environ, python="/v/bin/python", cores=2, master_port=1234,
        cwd=run_dir,
    )  # fmt: skip


def test_the_name_carries_the_time_in_utc(tmp_path):
    folder = create_run_folder(tmp_path / "a" / "b", "demo", realtime_ns=NOON_NS)
    assert folder.name == "demo-20261121T120000Z"
    assert (folder / "ranks").is_dir()
    assert (folder / "nodes").is_dir()


def test_runs_of_the_same_second_get_folders_of_their_own(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: create_run_folder(tmp_path, "demo", realtime_ns=NOON_NS), range(24)))
    assert len(set(folders)) == 24


def test_manifest_says_what_runs_and_hides_secrets(tmp_path):
    workload = Workload.model_validate(
        {"name": "demo", "script": "t.py", "args": {"hf_token": "hidden-2", "lr": 0.1},
         "launch": {"env": {"WANDB_API_KEY": "hidden-3", "MODE": "fast"}}}
    )  # fmt: skip
    folder = create_run_folder(tmp_path, "demo")
    write_manifest(folder, workload, make_plan(workload, folder), realtime_ns=NOON_NS)
    text = (folder / "run.json").read_text() + (folder / "workload.yaml").read_text()
    assert "hidden-" not in text
    manifest = json.loads((folder / "run.json").read_text())
    assert manifest["schema_version"] == 1
    assert manifest["created_realtime_ns"] == NOON_NS
    assert manifest["ranks"] == 1
    assert manifest["environment"]["NCCL_DEBUG"] == "INFO"
    assert "HOME" not in manifest["environment"]
    assert manifest["environment_changes"]["MODE"] == "fast"
    assert manifest["packages"]["torch"]
    assert manifest["host"]["cpu_count"] >= 1


def test_the_resolved_workload_can_be_read_back(tmp_path):
    workload = Workload.model_validate({"name": "demo", "script": "t.py", "args": {"n": 3, "on": True}})
    folder = create_run_folder(tmp_path, "demo")
    write_manifest(folder, workload, make_plan(workload, folder))
    document = yaml.safe_load((folder / "workload.yaml").read_text())
    assert Workload.model_validate(document) == workload


def test_a_file_in_the_way_is_a_clear_error(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(LaunchError, match=r"run folder.*--out"):
        create_run_folder(tmp_path / "out", "demo")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_a_clear_error(tmp_path):
    workload = Workload.model_validate({"name": "demo", "script": "t.py"})
    folder = create_run_folder(tmp_path, "demo")
    (folder / ".run.json.part").symlink_to("/dev/full")
    with pytest.raises(LaunchError, match=r"No space left on device.*--out"):
        write_manifest(folder, workload, make_plan(workload, folder))


def test_an_old_file_stays_whole_when_the_new_one_can_not_be_written(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}


def test_the_commit_is_read_from_loose_and_packed_references(tmp_path):
    git = tmp_path / ".git"
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    assert git_commit(tmp_path / "deep" / "er") is None
    (git / "packed-refs").write_text("# pack-refs\n" + "b" * 40 + " refs/heads/main\n")
    assert git_commit(tmp_path / "deep" / "er") == "b" * 40
    (git / "refs" / "heads" / "main").write_text("a" * 40 + "\n")
    assert git_commit(tmp_path) == "a" * 40


def test_a_package_that_is_not_there_has_no_version():
    assert package_versions(["no-such-package-at-all"]) == {"no-such-package-at-all": None}
