"""Which process below a command is a rank."""

import os
import sys

import pytest

from agprof.instruments.place import Place, is_helper, may_be_rank, place_of


@pytest.mark.parametrize(
    "command",
    [
        "python /venv/bin/torchrun --nproc-per-node 2 train.py",
        "python -m torch.distributed.run train.py",
        "python -um torch.distributed.launch train.py",
        "python -u -W ignore -m deepspeed.launcher.launch train.py",
        "python /venv/bin/accelerate launch train.py",
        "python -m accelerate.commands.launch train.py",
        "python /venv/lib/site-packages/torch/distributed/run.py train.py",
        "python /venv/bin/deepspeed train.py",
        "python -P -m agprof.launch.guard 5 -- python train.py",
    ],
)
def test_launchers_are_no_ranks(command):
    assert is_helper(command.split())


@pytest.mark.parametrize(
    "command",
    [
        "python train.py",
        "python -u -X importtime train.py torchrun",
        "python -m package.train",
        "python -m torch.distributed.runner",
        "python accelerate_loop.py",
        "python /home/me/deepspeed/train.py",
        "python /home/me/multiprocessing/train.py",
        "python -",
        "python",
    ],
)
def test_programs_are(command):
    assert not is_helper(command.split())


def test_pythons_own_children_are_helpers():
    assert is_helper(["python", "-c", "from multiprocessing.spawn import spawn_main; spawn_main()"])
    assert not is_helper(["python", "-c", "import train; train.main()"])


def test_places_of_launchers():
    assert place_of({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}) == Place(3, 4, 1)
    assert place_of({"HOROVOD_RANK": "1", "HOROVOD_SIZE": "2"}) == Place(1, 2, None)
    assert place_of({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}) == Place(0, 2, None)
    assert place_of({"RANK": ""}) is None
    assert place_of({}) is None


def test_children_of_the_only_rank_stay_unarmed_unless_it_was_a_launcher(monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python", "train.py"])
    assert may_be_rank({"AGPROF_FOREIGN": "open"})
    assert may_be_rank({"AGPROF_FOREIGN": str(os.getpid())}), "after an exec"
    assert not may_be_rank({"AGPROF_FOREIGN": "1"})
    assert not may_be_rank({"AGPROF_FOREIGN": "1", "RANK": "0", "WORLD_SIZE": "1"})
    assert may_be_rank({"AGPROF_FOREIGN": "1", "RANK": "1", "WORLD_SIZE": "2"})
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "torch.distributed.run", "train.py"])
    assert not may_be_rank({"AGPROF_FOREIGN": "open", "RANK": "0"})
