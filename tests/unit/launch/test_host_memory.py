"""The kernel on host memory, its limits and kills: from files of cgroup v1 and v2 as they look in real life."""

import os
import sys
from pathlib import Path

import pytest

from agprof.launch import host_memory
from agprof.model.outcome import HostMemory, Outcome
from agprof.store.memory_limits import Kills, Limit, cgroup, read_kills, read_limit

GIB = 2**30
V1_MEMBERSHIP = "9:name=systemd:/\n5:cpu,cpuacct:/\n4:memory:/jobs/one\n0::/\n"
V1_NO_LIMIT = "9223372036854771712\n"


def written(root: Path, **files: str) -> Path:
    """Files by their paths; `__` stands for a slash and `_dot_` for a dot."""
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def machine(root: Path, *, oom_kill: int = 0) -> Path:
    return written(
        root,
        proc__meminfo="MemTotal:       24684096 kB\nMemFree: 1 kB\n",
        proc__vmstat=f"nr_free_pages 5\noom_kill {oom_kill}\n",
    )


def v1(root: Path, *, limit: str = f"{8 * GIB}\n", above: str = V1_NO_LIMIT, kills: int = 0) -> Path:
    machine(root)
    return written(
        root,
        proc__self__cgroup=V1_MEMBERSHIP,
        sys__fs__cgroup__memory__memory_dot_limit_in_bytes=V1_NO_LIMIT,
        sys__fs__cgroup__memory__jobs__memory_dot_limit_in_bytes=above,
        sys__fs__cgroup__memory__jobs__one__memory_dot_limit_in_bytes=limit,
        sys__fs__cgroup__memory__jobs__one__memory_dot_oom_control=(
            f"oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n"
        ),
    )


def v2(root: Path, *, limit: str = f"{8 * GIB}\n", above: str = "max\n", kills: int = 0) -> Path:
    machine(root)
    return written(
        root,
        proc__self__cgroup="0::/user.slice/job.scope\n",
        sys__fs__cgroup__cgroup_dot_controllers="cpu memory\n",
        **{
            "sys__fs__cgroup__user_dot_slice__memory_dot_max": above,
            "sys__fs__cgroup__user_dot_slice__job_dot_scope__memory_dot_max": limit,
            "sys__fs__cgroup__user_dot_slice__job_dot_scope__memory_dot_events": (
                f"low 0\nhigh 0\nmax 12\noom {kills}\noom_kill {kills}\noom_group_kill 0\n"
            ),
        },
    )


@pytest.mark.parametrize("version", [v1, v2])
def test_the_lowest_limit_on_the_way_up_counts(tmp_path: Path, version: "type[object]") -> None:
    assert read_limit(version(tmp_path / "a")) == Limit(8 * GIB, "cgroup")
    assert read_limit(version(tmp_path / "b", above=f"{4 * GIB}\n")) == Limit(4 * GIB, "cgroup")
    # a limit above what the machine has is none
    assert read_limit(version(tmp_path / "c", limit=f"{800 * GIB}\n")) == Limit(24684096 * 1024, "host")


@pytest.mark.parametrize(("version", "none"), [(v1, V1_NO_LIMIT), (v2, "max\n")])
def test_without_a_limit_it_is_the_machine(tmp_path: Path, version: "type[object]", none: str) -> None:
    assert read_limit(version(tmp_path, limit=none)) == Limit(24684096 * 1024, "host")


@pytest.mark.parametrize("version", [v1, v2])
def test_a_counter_that_rose(tmp_path: Path, version: "type[object]") -> None:
    before = read_kills(version(tmp_path, kills=3))
    assert before == Kills(in_cgroup=3, on_host=0)
    assert host_memory.since(before, tmp_path) == HostMemory(
        limit_bytes=8 * GIB, limit="cgroup", cgroup_kills=0, host_kills=0
    )
    version(tmp_path, kills=5)
    machine(tmp_path, oom_kill=9)
    after = host_memory.since(before, tmp_path)
    assert (after.cgroup_kills, after.host_kills) == (2, 9)
    assert host_memory.notes(after) == [
        "the kernel killed 2 processes of the job's cgroup for want of memory during the run (limit 8.00 GiB)"
    ]


def test_nothing_is_said_without_a_counter_or_a_rise(tmp_path: Path) -> None:
    nothing = host_memory.since(read_kills(tmp_path), tmp_path)
    assert nothing == HostMemory(limit_bytes=None, limit=None, cgroup_kills=None, host_kills=None)
    assert host_memory.notes(nothing) == []
    # the job was moved to a cgroup that counts anew
    assert host_memory.since(Kills(7, 7), v1(tmp_path, kills=2)).cgroup_kills is None


def test_in_a_container_the_mount_is_the_cgroup(tmp_path: Path) -> None:
    """The path is that of the host, and is not there; `/../..` is where a cgroup namespace ends."""
    machine(tmp_path)
    written(
        tmp_path,
        sys__fs__cgroup__cgroup_dot_controllers="memory\n",
        sys__fs__cgroup__memory_dot_max=f"{2 * GIB}\n",
        sys__fs__cgroup__memory_dot_events="oom_kill 1\n",
    )
    mount = tmp_path / "sys/fs/cgroup"
    for path in ("/docker/0123", "/../../docker/0123", "/"):
        written(tmp_path, proc__self__cgroup=f"0::{path}\n")
        assert cgroup(tmp_path) == (mount, mount)
        assert read_limit(tmp_path) == Limit(2 * GIB, "cgroup")
        assert read_kills(tmp_path).in_cgroup == 1


@pytest.mark.parametrize("text", ["", "oom_kill\n", "oom_kill many\n", "oom_kill -1\n", "\udcff", "x" * 100_000])
def test_files_that_say_nothing(tmp_path: Path, text: str) -> None:
    v2(tmp_path)
    (tmp_path / "sys/fs/cgroup/user.slice/job.scope/memory.events").write_bytes(text.encode("utf-8", "surrogateescape"))
    (tmp_path / "proc/vmstat").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert read_kills(tmp_path) == Kills(None, None)


def test_this_machine_can_be_asked() -> None:
    limit = read_limit()
    assert limit is not None
    assert limit.bytes > 2**28
    assert host_memory.since(read_kills()).cgroup_kills in (0, None)


def test_an_outcome_keeps_it() -> None:
    memory = HostMemory(limit_bytes=5, limit="cgroup", cgroup_kills=1, host_kills=None)
    outcome = Outcome(
        exit_code=137, reason="killed", started_realtime_ns=1, ended_realtime_ns=2, failures=(), memory=memory
    )
    assert Outcome.from_dict(outcome.to_dict()) == outcome
    old = outcome.to_dict()
    del old["memory"]
    assert Outcome.from_dict(old).memory is None


def test_a_rank_that_is_killed_while_the_counter_rises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way from a launcher to outcome.json: the counter is a file of this test, the kill is real."""
    from agprof.analysis.oom_evidence import killed
    from agprof.analysis.view import prepare
    from agprof.launch.execute import execute
    from agprof.launch.plan import LaunchPlan
    from agprof.store import layout, memory_limits
    from agprof.store.reader import read_run

    root, run = tmp_path / "root", tmp_path / "run"
    (run / layout.RANKS).mkdir(parents=True)
    v2(root, kills=3)
    monkeypatch.setattr(memory_limits, "ROOT", root)
    events = root / "sys/fs/cgroup/user.slice/job.scope/memory.events"
    # The rank is killed when the supervisor has had time to find it, as the kernel does: without a word.
    rank = (
        "import os, pathlib, time; time.sleep(1.5); "
        f"pathlib.Path({str(events)!r}).write_text('oom 4\\noom_kill 4\\n'); os.kill(os.getpid(), 9)"
    )
    launcher = (
        "import os, subprocess, sys; "
        "rank = {**os.environ, 'RANK': '0', 'LOCAL_RANK': '0'}; "
        "p = subprocess.Popen([sys.executable, '-c', sys.argv[1]], env=rank); "
        "sys.exit(1 if p.wait() else 0)"
    )
    plan = LaunchPlan(
        launcher="torchrun",
        argv=(sys.executable, "-c", launcher, rank),
        env={**os.environ, "AGPROF_RUN_DIR": str(run)},
        env_added={},
        cwd=run,
        ranks=1,
        master_port=1,
        sampler_argv=None,
    )
    outcome = execute(plan, run)
    assert outcome.memory == HostMemory(limit_bytes=8 * GIB, limit="cgroup", cgroup_kills=1, host_kills=0)
    assert "the kernel killed a process of the job's cgroup for want of memory during the run (limit 8.00 GiB)" in (
        outcome.notes
    )
    (run / layout.MANIFEST).write_text("{}")
    found = killed(prepare(read_run(run)))
    assert found is not None
    assert (found.rank, found.certainty, found.limit_bytes) == (0, "known", 8 * GIB)
