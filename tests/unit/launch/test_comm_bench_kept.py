"""Measured links: what is started on each node, what is followed, what is kept and copied into runs."""

import json
from pathlib import Path
from typing import Any

import pytest

from agprof.config.setup_choice import SetupJob
from agprof.config.setups import SetupSection
from agprof.config.workload import Workload
from agprof.errors import LaunchError
from agprof.launch import comm_bench as launch
from agprof.launch.node_plan import NodeAddress
from agprof.model.comm_ceiling import CommCeiling, CommCurve
from agprof.store import layout
from agprof.store.reader import read_run

CURVE = CommCurve(op="all_reduce", group_size=2, nodes=1, points=(), fit=None)
WISH = launch.Wish(backend="gloo", device="cpu", ops=("all_reduce",), most_bytes=4096, seconds=5, quick=True)


def ceiling(**changes: Any) -> CommCeiling:
    fields: dict[str, Any] = {
        "version": 1, "backend": "gloo", "device_type": "cpu", "device_name": "CPU", "ranks": 2, "nodes": 1,
        "setup": None, "link": launch.LOOPBACK, "measured_realtime_ns": 5, "torch_version": "2", "curves": (CURVE,),
    }  # fmt: skip
    return CommCeiling(**(fields | changes))


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"AGPROF_CACHE": str(tmp_path / "cache")}


def run_folder(path: Path) -> Path:
    (path / layout.RANKS).mkdir(parents=True)
    (path / layout.MANIFEST).write_text('{"schema_version": 1}')
    return path


def test_a_run_takes_along_what_was_measured(tmp_path: Path, environ: dict[str, str]) -> None:
    kept = [ceiling(), ceiling(link="emulated link, 1gbit", nodes=2, setup="two", measured_realtime_ns=9)]
    for each in kept:
        launch.keep(each, environ)
    run = run_folder(tmp_path / "run")
    launch.copy_into(run, environ)
    read = read_run(run)
    assert read.comm_ceilings == (kept[1], kept[0])  # the newest first
    assert read.problems == ()


def test_nothing_measured_writes_nothing(tmp_path: Path, environ: dict[str, str]) -> None:
    run = run_folder(tmp_path / "run")
    launch.copy_into(run, environ)
    assert not (run / layout.COMM).exists()
    assert read_run(run).comm_ceilings == ()


def test_a_new_measurement_replaces_its_own_operations_only(environ: dict[str, str]) -> None:
    gather = CommCurve(op="all_gather", group_size=2, nodes=1, points=(), fit=None)
    launch.keep(ceiling(curves=(CURVE, gather)), environ)
    launch.keep(ceiling(measured_realtime_ns=7), environ)
    (found,) = launch.kept(environ)
    assert [curve.op for curve in found.curves] == ["all_reduce", "all_gather"]
    assert found.measured_realtime_ns == 7


def test_other_links_ranks_and_backends_are_kept_apart() -> None:
    each = [ceiling(), ceiling(link="x"), ceiling(ranks=4), ceiling(nodes=2), ceiling(backend="mpi")]
    assert len({launch.file_name(one) for one in each}) == len(each)


def test_broken_files_count_as_none(tmp_path: Path, environ: dict[str, str]) -> None:
    path = launch.keep(ceiling(), environ)
    path.write_text("[" * 10**5)
    assert launch.kept(environ) == []
    run = run_folder(tmp_path / "run")
    (run / layout.COMM).write_text(json.dumps({"ceilings": [{"version": 1}, ceiling().to_dict(), 7]}))
    read = read_run(run)
    assert read.comm_ceilings == (ceiling(),)
    assert len(read.problems) == 2
    assert all("comm.json" in problem for problem in read.problems)


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LaunchError, match="AGPROF_CACHE"):
        launch.keep(ceiling(), {"AGPROF_CACHE": str(tmp_path / "file")})


def test_what_rank_0_says_is_followed_among_other_lines(tmp_path: Path) -> None:
    said: list[str] = []
    log = tmp_path / "log"
    lines = launch.Lines(log, said.append)
    lines.look()  # not there yet
    log.write_bytes(b'{"doing": "all_reduce of 1,024 bytes"}\nW0101 a warning\n{"resu')
    lines.look()
    assert said == ["all_reduce of 1,024 bytes ..."]
    assert lines.last == "W0101 a warning"
    with log.open("ab") as file:
        file.write(b'lt": [], "ranks": 2}\n[1]\n\xff\n{"note": "no time"}\n{"error": "no such backend"}\n')
    lines.look()
    assert lines.result == {"result": [], "ranks": 2}
    assert said[1:] == ["note: no time"]
    assert lines.error == "no such backend"


def test_the_measurement_is_a_job_of_the_setups_nodes(tmp_path: Path) -> None:
    nodes = [NodeAddress(host=f"n{k}", address=f"10.0.0.{k + 1}", ranks=2, interface="eth9") for k in range(3)]
    job = SetupJob(
        name="three",
        setup=SetupSection.model_validate({"hostfile": "hosts", "env": {"NCCL_SOCKET_IFNAME": "ib0"}}),
        workload=Workload.model_validate({"name": "w", "script": "train.py"}),
    )
    plans = launch.plan_bench(WISH, nodes, job, tmp_path, python="/py", port=1234)
    assert [plan.first_rank for plan in plans] == [0, 2, 4]
    assert {plan.world_size for plan in plans} == {6}
    for number, plan in enumerate(plans):
        assert plan.argv[:4] == ("/py", "-P", "-m", "torch.distributed.run")
        assert {f"--node-rank={number}", "--nnodes=3", "--nproc-per-node=2", "--master-addr=10.0.0.1"} <= {*plan.argv}
        assert plan.argv[plan.argv.index("--ops") + 1] == "all_reduce"
        assert plan.env["GLOO_SOCKET_IFNAME"] == "eth9"
        assert plan.env["NCCL_SOCKET_IFNAME"] == "ib0"  # the setup's own word
        assert plan.sampler_argv is None
