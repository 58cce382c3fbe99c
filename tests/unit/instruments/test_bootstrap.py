import os
import statistics
import subprocess
import sys
import time

import pytest
import torch
from rank_streams import faults

TRAIN = """
import random, sys
import torch
from torch.utils.data import DataLoader, TensorDataset

def main():
    torch.manual_seed(7)
    data = TensorDataset(torch.randn(24, 5), torch.randn(24, 1))
    model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for _ in range(2):
        for x, y in DataLoader(data, batch_size=4, shuffle=True, num_workers=1):
            loss = (model(x) - y).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item().hex())
    print(*losses, torch.rand(1).item().hex(), random.random() != 0, flush=True)

if __name__ == "__main__":
    main()
"""


def test_the_training_is_bit_identical_with_and_without(rank_process):
    plain = rank_process.start(TRAIN, rank=None)
    profiled = rank_process.start(TRAIN, level="default")
    assert plain.code == profiled.code == 0
    assert profiled.stdout == profiled.stderr == ""
    assert profiled.log("stdout") == plain.stdout
    losses = [float.fromhex(text) for text in plain.stdout.split()[:12]]
    tables = profiled.tables()
    assert [row.loss for row in tables["steps"]] == losses
    assert [row.samples for row in tables["steps"]] == [4] * 12
    assert not faults(tables)
    assert tables["end"][0].reason == "clean"
    assert len(profiled.streams) == 1
    names = {kind: {row.name for row in tables["spans"] if row.category == kind} for kind in ("phase", "module")}
    assert names == {"phase": {"data", "forward", "backward", "optimizer"}, "module": {"Sequential", "0", "1", "2"}}
    (header,) = tables["header"]
    assert (header.kind, header.rank, header.argv) == ("rank", 0, ["script.py"])


def test_armed_only_in_ranks_and_once_torch_is_imported(rank_process):
    no_torch = "import sys; print('torch' in sys.modules, 'msgspec' in sys.modules)"
    assert rank_process.start(no_torch, rank=None).stdout == "False False\n"
    finished = rank_process.start(no_torch)
    assert finished.code == 0
    assert finished.streams == []
    assert finished.log("stdout").startswith("False")


CHILDREN = """
import json, multiprocessing, os, subprocess, sys

def child(queue):
    import torch
    from agprof.instruments import api
    torch.ones(1, requires_grad=True).sum().backward()
    queue.put(api._sink is None)

if __name__ == "__main__":
    import torch
    code = "import torch, json; torch.ones(1, requires_grad=True).sum().backward(); print(json.dumps({'answer': 42}))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert json.loads(answer.stdout) == {"answer": 42} and not answer.stderr, answer
    for method in ("fork", "spawn"):
        context = multiprocessing.get_context(method)
        queue = context.Queue()
        process = context.Process(target=child, args=(queue,))
        process.start()
        assert queue.get(timeout=50)
        process.join()
        assert process.exitcode == 0
    child_id = os.fork()
    if child_id == 0:
        torch.ones(1, requires_grad=True).sum().backward()
        sys.exit(0)  # runs the exit handlers of a copy of this process
    assert os.waitpid(child_id, 0)[1] == 0
    torch.ones(1, requires_grad=True).sum().backward()
    inherited = [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
                 if os.path.exists(f"/proc/self/fd/{fd}") and int(fd) > 2 and os.get_inheritable(int(fd))]
    assert not [name for name in inherited if "agp" in name or "statm" in name], inherited
    print("done")
"""


def test_children_write_nothing_and_are_not_disturbed(rank_process):
    finished = rank_process.start(CHILDREN, level="default")
    assert finished.code == 0, finished.log("stderr")
    assert len(finished.streams) == 1
    tables = finished.tables()
    assert len(tables["micro_steps"]) == 1
    assert tables["end"][0].reason == "clean"


def test_after_an_exec_the_rank_goes_on_in_a_second_stream(rank_process):
    finished = rank_process.start(
        """
import os, sys, time
import torch, agprof
agprof.mark("here")
time.sleep(0.6)  # longer than the flush period: what is older survives
if "again" not in sys.argv:
    os.execv(sys.executable, [sys.executable, *sys.argv, "again"])
""",
        stub_torch=True,
    )
    assert finished.code == 0
    assert len(finished.streams) == 2
    assert len(finished.tables(0)["marks"]) == len(finished.tables(1)["marks"]) == 1
    assert finished.tables(0)["end"] == []
    assert finished.tables(1)["end"][0].reason == "clean"


@pytest.mark.parametrize(
    ("ending", "code", "reason"),
    [
        ("sys.exit(3)", 3, "clean"),
        ("raise KeyError('x')", 1, "exception KeyError"),
        ("sys.excepthook = lambda *_: print('mine'); raise KeyError('x')", 1, "clean"),
        ("sys.stdout.flush(); os._exit(5)", 5, None),
        ("os.kill(os.getpid(), signal.SIGTERM)", -15, None),
        ("os.kill(os.getpid(), signal.SIGKILL)", -9, None),
        ("signal.signal(15, lambda *_: sys.exit(9)); os.kill(os.getpid(), 15)", 9, "clean"),
    ],
)
def test_the_rank_ends_as_it_would(rank_process, ending, code, reason):
    finished = rank_process.start(
        f"""
import atexit, logging, os, signal, sys
atexit.register(lambda: print("first registered"))
hook = sys.excepthook
sys.excepthook = lambda *a: (print("users hook"), hook(*a))
import torch
from agprof.instruments import api
atexit.register(lambda: print("still armed:", api._sink is not None))
logging.warning("to the log")
print("out")
{ending}
""",
        stub_torch=True,
    )
    assert finished.code == code
    assert finished.stdout == finished.stderr == ""
    out = finished.log("stdout").splitlines()
    assert out[0] == "out"
    assert "to the log" in finished.log("stderr")
    if code in (0, 1, 3):
        assert out[-2:] == ["still armed: True", "first registered"]
    if reason == "exception KeyError":
        assert "users hook" in out
        assert "KeyError: 'x'" in finished.log("stderr")
    ends = finished.tables()["end"]
    assert (ends[0].reason if ends else None) == reason


def test_the_users_own_sitecustomize_runs_also_when_it_raises(rank_process):
    users = rank_process.folder / "users"
    users.mkdir()
    (users / "sitecustomize.py").write_text("import sys\nsys.users = True\nsys.path.append('/users/own')\n")
    script = "import sys; print(sys.users, '/users/own' in sys.path, 'bootstrap_path' in str(sys.path), end=' ')\n"
    script += "import sitecustomize; print(sitecustomize.__file__.endswith('users/sitecustomize.py'))"
    finished = rank_process.start(script, rank=None, path=str(users))
    assert (finished.stdout, finished.stderr) == ("True True False True\n", "")
    (users / "sitecustomize.py").write_text("raise ImportError('users own error')")
    for rank in (None, "0"):
        finished = rank_process.start("import torch; print('goes on')", rank=rank, path=str(users), stub_torch=True)
        assert finished.code == 0
    assert finished.log("stdout") == "goes on\n"
    assert "users own error" in finished.log("stderr")
    assert len(finished.streams) == 1


def test_a_bootstrap_that_fails_leaves_the_rank_alone(rank_process):
    finished = rank_process.start("print('runs')", AGPROF_SETTINGS="{not json")
    assert (finished.code, finished.stdout) == (0, "runs\n")
    assert finished.stderr.startswith("agprof: this rank is not profiled: ")
    assert finished.stderr.count("\n") == 1


def test_a_run_folder_that_can_not_be_written_leaves_the_rank_alone(rank_process):
    (rank_process.run / "ranks").rmdir()
    finished = rank_process.start("import torch; print('runs')", stub_torch=True)
    assert (finished.code, finished.stdout) == (0, "runs\n")
    assert "not profiled" in finished.stderr


def test_a_rank_without_standard_streams(rank_process):
    rank_process.stub_torch()
    path = rank_process.folder / "script.py"
    path.write_text("import torch; print('words')")
    command = f'exec "{sys.executable}" "{path}" <&- >&- 2>&-'
    subprocess.run(["sh", "-c", command], env=rank_process.environment(), check=True, timeout=60)
    assert (rank_process.run / "ranks" / "rank-00000.0.agp").exists()


def test_an_instrument_that_can_not_be_imported_is_a_fault_and_the_others_go_on(rank_process):
    finished = rank_process.start(
        """
import sys
sys.modules["agprof.instruments.memory"] = None
import torch
torch.ones(1, requires_grad=True).sum().backward()
""",
        level="default",
    )
    assert finished.code == 0
    tables = finished.tables()
    assert [row.instrument for row in faults(tables)] == ["memory"]
    assert len(tables["micro_steps"]) == 1


BROKEN = [
    ("recorder.Recorder", "open"),
    ("recorder.Recorder", "close"),
    ("recorder.Recorder", "end_micro_step"),
    ("recorder.Recorder", "end_step"),
    ("recorder.Recorder", "guess_counts"),
    ("recorder.Recorder", "note_forward"),
    ("recorder.Recorder", "resolve"),
    ("recorder.Recorder", "finish"),
    ("training.TrainingLoop", "arm"),
    ("training.TrainingLoop", "_do_begin_backward"),
    ("training.TrainingLoop", "_do_end_backward"),
    ("training.TrainingLoop", "_before_step"),
    ("training.TrainingLoop", "_after_step"),
    ("training.TrainingLoop", "stepped"),
    ("forward.ForwardPhases", "arm"),
    ("forward.ForwardPhases", "_do_enter"),
    ("forward.ForwardPhases", "_do_leave"),
    ("forward.ForwardPhases", "_announce"),
    ("forward.ForwardPhases", "_step_ended"),
    ("data", "arm"),
    ("data", "batch_counts"),
    ("facts", "record_torch"),
    ("facts", "record_device"),
    ("facts", "record_model"),
    ("memory", "arm"),
    ("memory.resource", "getrusage"),
]


def train():
    torch.manual_seed(5)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    losses = []
    for batch in torch.utils.data.DataLoader(torch.randn(20, 4), batch_size=4, shuffle=True):
        loss = model(batch).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(("owner", "name"), BROKEN)
def test_an_instrument_that_raises_changes_nothing_but_the_faults(arm, monkeypatch, owner, name):
    import importlib

    expected = train()
    module, _, kind = owner.partition(".")
    target = importlib.import_module(f"agprof.instruments.{module}")
    calls = []

    def broken(*_args, **_kwargs):
        calls.append(name)
        raise AssertionError("broken on purpose")

    monkeypatch.setattr(getattr(target, kind) if kind else target, name, broken)
    rig = arm("default")
    assert train() == expected
    tables = rig.finish()
    assert train() == expected
    assert calls
    found = [row for row in faults(tables) if "broken on purpose" in row.error]
    assert found
    assert max(row.count for row in found) <= 3


def test_a_loss_that_can_not_be_read_is_no_fault(arm, monkeypatch):
    from agprof.instruments import training

    monkeypatch.setattr(training, "read_loss", lambda *_args: 1 // 0)
    rig = arm()
    train()
    tables = rig.finish()
    assert [row.loss for row in tables["steps"]] == [None] * 5
    assert not faults(tables)


def test_start_up_of_a_process_that_is_no_rank_costs_little(rank_process):
    def milliseconds(path):
        environment = {**os.environ, "PYTHONPATH": path, "AGPROF_RUN_DIR": str(rank_process.run)}
        environment.pop("RANK", None)
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", "pass"], env=environment, check=True)
        return (time.perf_counter() - started) * 1e3

    with_it = rank_process.environment(rank=None)["PYTHONPATH"]
    milliseconds(with_it)
    differences = [milliseconds(with_it) - milliseconds("") for _ in range(15)]
    print(f"added start-up of a process that is no rank: {statistics.median(differences):.2f} ms")
    # What the tool scripts/overhead measures; here only that no heavy import slipped in.
    assert statistics.median(differences) < 15
    script = "import sys; print(sorted(m for m in sys.modules if m in ('importlib.util', 'agprof', 'pathlib', 'json')))"
    assert rank_process.start(script, "-S", rank=None).stdout == "[]\n"
