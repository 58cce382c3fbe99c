"""A job on several nodes, with agents that are all on this machine: exit codes, who was first, lost nodes, files."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from agprof.errors import LaunchError
from agprof.launch import processes
from agprof.launch.node_plan import NodePlan
from agprof.launch.node_transport import AgentCommand, Transport, by_srun
from agprof.launch.nodes import execute_nodes
from agprof.launch.supervisor import Deadlines
from agprof.model.outcome import Outcome
from agprof.store.layout import launcher_log

# Starts one rank per argument, each in a session of its own, and ends as torchrun does.
LAUNCHER = """
import os, subprocess, sys, time
first = int(sys.argv[1])
ranks = [
    subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "RANK": str(first + n), "LOCAL_RANK": str(n)},
                     start_new_session=True)
    for n, code in enumerate(sys.argv[2:])
]
while any(rank.poll() is None for rank in ranks):
    if any(rank.poll() for rank in ranks):
        [rank.terminate() for rank in ranks if rank.poll() is None]
        [rank.wait(30) for rank in ranks]
        sys.exit(1)
    time.sleep(0.02)
sys.exit(max(rank.returncode for rank in ranks))
"""
# A rank that fails first waits until its agent (rank, launcher, guard, agent) holds a pidfd of it.
SEEN = """
import glob, os, time
def parent(pid): return int(open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[1])
agent = parent(parent(os.getppid()))
def seen():
    for path in glob.glob(f"/proc/{agent}/fdinfo/*"):
        try:
            if f"Pid:\\t{os.getpid()}\\n" in open(path).read():
                return True
        except OSError:
            pass
while not seen():
    time.sleep(0.01)
"""
HANG = "import os, time; open(f'{FOLDER}/up-' + os.environ['RANK'], 'w').close(); time.sleep(600)"
WAIT = "import os, time\nwhile not os.path.exists(f'{FOLDER}/up-0'): time.sleep(0.01)\n" + SEEN
STUBBORN = "import signal\nfor n in (2, 15): signal.signal(n, signal.SIG_IGN)\n" + HANG
QUICK = Deadlines(failure_s=0.3, interrupt_s=2.0, terminate_s=1.0)


def make_plans(folder: Path, *nodes: Sequence[str], lost_after_s: float = 20.0, **changes) -> list[NodePlan]:
    """One plan per node; a node is the code of its ranks. FOLDER stands for the run folder of node 0."""
    plans, first = [], 0
    world_size = sum(map(len, nodes))
    for number, codes in enumerate(nodes):
        ranks = [code.replace("{FOLDER}", str(folder)) for code in codes]
        values = {
            "number": number, "nodes": len(nodes), "host": f"host{number}", "address": "127.0.0.1", "interface": None,
            "launcher": "torchrun", "argv": (sys.executable, "-c", LAUNCHER, str(first), *ranks),
            "env": {"AGPROF_RUN_DIR": str(folder), "AGPROF_NODE": str(number)}, "cwd": folder, "run_dir": folder,
            "ranks": len(ranks), "first_rank": first, "world_size": world_size, "master_address": "127.0.0.1",
            "master_port": 1, "sampler_argv": None, "lost_after_s": lost_after_s,
        }  # fmt: skip
        plans.append(NodePlan(**{**values, **changes}))
        first += len(ranks)
    return plans


def here(plans: Sequence[NodePlan]) -> tuple[AgentCommand, ...]:
    """Agents as children of this process."""
    argv = (sys.executable, "-P", "-m", "agprof.launch.node_agent")
    return tuple(AgentCommand(nodes=(plan.number,), argv=(*argv, str(plan.number))) for plan in plans)


@pytest.fixture
def run_dir(tmp_path) -> Path:
    folder = tmp_path / "run"
    for name in ("ranks", "nodes"):
        (folder / name).mkdir(parents=True)
    return folder


@pytest.fixture(autouse=True)
def nothing_is_left_behind(tmp_path):
    before = set(processes.descendants(os.getpid()))
    yield
    deadline = time.monotonic() + 5
    while left := [pid for pid in processes.pids() if str(tmp_path) in " ".join(processes.environment(pid).values())]:
        assert time.monotonic() < deadline, f"left behind: {left}"
        time.sleep(0.05)
    assert set(processes.descendants(os.getpid())) <= before


def agents() -> list[int]:
    """Process ids of the agents that this process started."""
    return [pid for pid in processes.descendants(os.getpid()) if b"node_agent" in cmdline(pid)]


def cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


class Once:
    """An action of a test, done on the first tick at which its files are there."""

    def __init__(self, action, *files: Path) -> None:
        self._action, self._files = action, files
        self.done_at: float | None = None

    def __call__(self) -> None:
        if self.done_at is None and all(file.exists() for file in self._files):
            self.done_at = time.monotonic()
            self._action()


def test_a_job_that_ends_well(run_dir):
    ticks = []
    plans = make_plans(run_dir, ["print('one')", "pass"], ["print('two')"])
    outcome = execute_nodes(plans, here, run_dir, on_tick=lambda: ticks.append(1))
    assert (outcome.reason, outcome.exit_code, outcome.failures, outcome.notes) == ("finished", 0, (), ())
    assert [(node.number, node.host, node.reason, node.lost, node.files) for node in outcome.nodes] == [
        (0, "host0", "finished", None, "shared"),
        (1, "host1", "finished", None, "shared"),
    ]
    assert ticks
    assert "one" in launcher_log(run_dir, 0).read_text()
    assert "two" in launcher_log(run_dir, 1).read_text()
    assert Outcome.from_dict(json.loads((run_dir / "outcome.json").read_text())) == outcome
    assert not (run_dir / ".agents").exists()


def test_the_first_failed_rank_decides_and_the_job_ends_everywhere(run_dir):
    plans = make_plans(run_dir, [STUBBORN], [WAIT + "raise SystemExit(7)"])
    begin = time.monotonic()
    outcome = execute_nodes(plans, here, run_dir, deadlines=QUICK)
    assert (outcome.reason, outcome.exit_code) == ("failed", 7)
    assert (outcome.failures[0].rank, outcome.failures[0].exit_code, outcome.failures[0].stopped) == (1, 7, False)
    assert all(failure.stopped for failure in outcome.failures[1:])
    assert time.monotonic() - begin < 12


@pytest.mark.slow
def test_the_first_one_is_first_whatever_nodes_say_later(run_dir):
    # Node 0's rank fails later, with another code, while node 1's launcher still waits for its other rank.
    follower = "import time\nwhile not __import__('os').path.exists('{FOLDER}/gone'): time.sleep(0.01)\nexit(5)"
    cause = WAIT + "open('{FOLDER}/gone', 'w').close(); time.sleep(0.01); os.kill(os.getpid(), 9)"
    up = "open('{FOLDER}/up-0', 'w').close()\n"
    plans = make_plans(run_dir, [up + follower.replace("exit(5)", "time.sleep(0.5); exit(5)")], [cause, STUBBORN])
    outcome = execute_nodes(plans, here, run_dir, deadlines=QUICK)
    assert (outcome.reason, outcome.exit_code, outcome.signal) == ("killed", 137, "SIGKILL")
    assert [failure.rank for failure in outcome.failures][:2] == [1, 0]


def test_ctrl_c_reaches_every_node(run_dir):
    act = Once(lambda: os.kill(os.getpid(), signal.SIGINT), run_dir / "up-0", run_dir / "up-1")
    plans = make_plans(run_dir, [HANG], [HANG])
    outcome = execute_nodes(plans, here, run_dir, on_tick=act, deadlines=QUICK)
    assert (outcome.reason, outcome.exit_code, outcome.signal) == ("interrupted", 130, "SIGINT")
    assert time.monotonic() - act.done_at < 5


def test_a_second_ctrl_c_kills_at_once(run_dir):
    times = []

    def twice() -> None:
        if (run_dir / "up-0").exists() and (run_dir / "up-1").exists() and len(times) < 2:
            times.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)

    plans = make_plans(run_dir, [STUBBORN], [STUBBORN])
    outcome = execute_nodes(plans, here, run_dir, on_tick=twice)
    assert (outcome.reason, outcome.exit_code) == ("interrupted", 130)
    assert time.monotonic() - times[-1] < 5


def test_a_killed_agent_takes_its_job_with_it_and_ends_the_others(run_dir):
    def kill() -> None:
        (victim,) = [pid for pid in agents() if cmdline(pid).endswith(b"\x001\x00")]
        os.kill(victim, signal.SIGKILL)

    act = Once(kill, run_dir / "up-0", run_dir / "up-1")
    outcome = execute_nodes(make_plans(run_dir, [HANG], [STUBBORN]), here, run_dir, on_tick=act)
    assert (outcome.reason, outcome.exit_code) == ("node-lost", 6)
    assert outcome.notes[0] == "node 1 (host1, 127.0.0.1) was lost: its agent ended: it was killed by signal 9"
    assert outcome.nodes[1].lost == "its agent ended: it was killed by signal 9"
    assert outcome.nodes[0].lost is None
    assert time.monotonic() - act.done_at < 6


@pytest.mark.slow
def test_a_stopped_agent_is_lost_after_its_time(run_dir):
    stopped = []

    def stop() -> None:
        stopped.extend(pid for pid in agents() if cmdline(pid).endswith(b"\x001\x00"))
        os.kill(stopped[0], signal.SIGSTOP)

    act = Once(stop, run_dir / "up-0", run_dir / "up-1")
    outcome = execute_nodes(make_plans(run_dir, [HANG], [HANG], lost_after_s=2.0), here, run_dir, on_tick=act)
    assert (outcome.reason, outcome.exit_code) == ("node-lost", 6)
    assert outcome.notes[0].startswith("node 1 (host1, 127.0.0.1) was lost: nothing was heard for ")
    assert time.monotonic() - act.done_at < 20


def test_a_terminated_agent_ends_the_job_and_it_is_no_success(run_dir):
    act = Once(lambda: os.kill(agents()[0], signal.SIGTERM), run_dir / "up-0", run_dir / "up-1")
    outcome = execute_nodes(make_plans(run_dir, [HANG], [HANG]), here, run_dir, on_tick=act, deadlines=QUICK)
    assert (outcome.reason, outcome.exit_code) == ("interrupted", 143)


def test_a_killed_launcher_ends_the_job(run_dir):
    def kill() -> None:
        (rank,) = [pid for pid in processes.descendants(os.getpid()) if processes.environment(pid).get("RANK") == "1"]
        os.kill(int(processes.stat_fields(rank)[1]), signal.SIGKILL)

    act = Once(kill, run_dir / "up-0", run_dir / "up-1")
    outcome = execute_nodes(make_plans(run_dir, [HANG], [HANG]), here, run_dir, on_tick=act, deadlines=QUICK)
    assert (outcome.reason, outcome.exit_code, outcome.signal) == ("killed", 137, "SIGKILL")
    assert any("node 1 (host1, 127.0.0.1): the launcher was ended by SIGKILL" in note for note in outcome.notes)


def test_agprof_killed_leaves_nothing(run_dir):
    code = textwrap.dedent("""
        import sys; sys.path[:0] = [sys.argv[1]]
        from pathlib import Path
        import test_nodes
        run = Path(sys.argv[2])
        test_nodes.execute_nodes(test_nodes.make_plans(run, [test_nodes.HANG], [test_nodes.HANG]), test_nodes.here, run)
    """)
    with subprocess.Popen([sys.executable, "-c", code, str(Path(__file__).parent), str(run_dir)]) as agprof:
        deadline = time.monotonic() + 20
        while not ((run_dir / "up-0").exists() and (run_dir / "up-1").exists()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        agprof.kill()
    # nothing_is_left_behind looks for the ranks.


def test_a_node_that_cannot_be_reached_starts_nothing(run_dir):
    def broken(plans: Sequence[NodePlan]) -> tuple[AgentCommand, ...]:
        first, _ = here(plans)
        say = "echo 'ssh: Could not resolve hostname host1' >&2; exit 255"
        return first, AgentCommand(nodes=(1,), argv=("sh", "-c", say))

    with pytest.raises(LaunchError, match=r"node 1 \(host1, 127.0.0.1\) can't be reached: ssh: Could not resolve"):
        execute_nodes(make_plans(run_dir, [HANG], [HANG]), broken, run_dir)
    assert not (run_dir / "up-0").exists()


def test_an_address_that_is_not_node_0s_is_told(run_dir):
    plans = make_plans(run_dir, ["pass"], ["pass"], address="192.0.2.1")
    with pytest.raises(LaunchError, match=r"can't listen on 192.0.2.1.*is it its address"):
        execute_nodes(plans, here, run_dir)


def test_files_of_a_node_with_a_folder_of_its_own_are_brought(run_dir, tmp_path):
    write = (
        "import os; folder = os.environ['AGPROF_RUN_DIR']\n"
        "open(folder + '/ranks/rank-00001.0.agp', 'wb').write(os.urandom(1_000_000))\n"
        "os.makedirs(folder + '/traces/rank-00001'); open(folder + '/traces/rank-00001/x.parquet', 'w').write('t')\n"
        "open(folder + '/run.json', 'w').write('{}'); os.symlink('/etc/passwd', folder + '/ranks/passwd')\n"
        "raise SystemExit(3)"
    )
    (run_dir / "run.json").write_text("mine")
    plans = make_plans(run_dir, ["import time; time.sleep(600)"], [SEEN + write])
    plans[1] = plans[1].moved_to(tmp_path / "elsewhere" / "run")
    outcome = execute_nodes(plans, here, run_dir, deadlines=QUICK)
    assert (outcome.reason, outcome.exit_code) == ("failed", 3)
    assert [node.files for node in outcome.nodes] == ["shared", "partly"]
    assert (run_dir / "ranks" / "rank-00001.0.agp").stat().st_size == 1_000_000
    assert (run_dir / "traces" / "rank-00001" / "x.parquet").read_text() == "t"
    assert (run_dir / "run.json").read_text() == "mine"
    assert not (run_dir / "ranks" / "passwd").exists()
    assert launcher_log(run_dir, 1).exists()
    assert any("run.json: belongs to agprof itself" in note for note in outcome.notes)
    assert not (tmp_path / "elsewhere" / "run").exists()
    assert not list(run_dir.rglob(".*.part"))


def test_files_of_a_killed_node_never_come_and_that_is_said(run_dir, tmp_path):
    def kill() -> None:
        os.kill(next(pid for pid in agents() if cmdline(pid).endswith(b"\x001\x00")), signal.SIGKILL)

    plans = make_plans(run_dir, [HANG], [HANG])
    plans[1] = plans[1].moved_to(tmp_path / "elsewhere" / "run")
    act = Once(kill, run_dir / "up-0", run_dir / "up-1")
    outcome = execute_nodes(plans, here, run_dir, on_tick=act)
    assert [node.files for node in outcome.nodes] == ["shared", "missing"]
    assert any(f"they may lie there in {tmp_path}/elsewhere/run" in note for note in outcome.notes)


def test_one_srun_leads_to_all_agents(run_dir, tmp_path):
    # Stands for srun: a task per node, stdin to all of them, their lines in one stdout.
    fake = tmp_path / "srun"
    fake.write_text(
        f"#!{sys.executable}\n"
        + textwrap.dedent("""
            import os, subprocess, sys
            words = sys.argv[1:]
            count = int(words[words.index("--ntasks") + 1])
            command = words[next(at for at, word in enumerate(words) if word.startswith("/")) :]
            tasks = [subprocess.Popen(command, stdin=subprocess.PIPE, env={**os.environ, "SLURM_NODEID": str(n)})
                     for n in range(count)]
            for line in sys.stdin.buffer:
                for task in tasks:
                    task.stdin.write(line); task.stdin.flush()
            for task in tasks:
                task.stdin.close()
            sys.exit(max(task.wait() for task in tasks))
        """)
    )
    fake.chmod(0o755)
    transport: Transport = by_srun([str(fake)], sys.executable)
    assert len(transport(make_plans(run_dir, ["pass"], ["pass"]))) == 1
    outcome = execute_nodes(make_plans(run_dir, ["pass"], [SEEN + "exit(4)"]), transport, run_dir)
    assert (outcome.reason, outcome.exit_code) == ("failed", 4)
    assert [node.exit_code for node in outcome.nodes] == [0, 4]
