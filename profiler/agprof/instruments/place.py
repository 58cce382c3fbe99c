"""Which process below a command is a rank, and which one. Light: every Python process below a command imports it.

A launcher tells a rank its place by RANK, an MPI or Horovod launcher by names of its own. A process that was told
nothing is the only rank of its job, provided that it trains: the first one below the command that imports torch and is
no launcher.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import NamedTuple

from agprof.model.settings import (
    ENV_FOREIGN,
    ENV_NSYS,
    ENV_NSYS_STARTED,
    ENV_PASS,
    ENV_RANK_PID,
    ENV_UNDER_NSYS,
    FOREIGN_OPEN,
    NsysRun,
)

# (rank, ranks in all, rank on its node)
_NAMES = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    ("HOROVOD_RANK", "HOROVOD_SIZE", "HOROVOD_LOCAL_RANK"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),
)
_LAUNCHER_PROGRAMS = frozenset(
    {"torchrun", "accelerate", "accelerate-launch", "deepspeed", "deepspeed.pt", "ds", "horovodrun"}
)
_LAUNCHER_MODULES = (
    "torch.distributed.run", "torch.distributed.launch", "torch.distributed.elastic", "torch.distributed.launcher",
    "accelerate.commands", "deepspeed.launcher", "horovod.runner", "agprof.launch", "agprof.sampler",
)  # fmt: skip
_VALUE_OPTIONS = frozenset({"-W", "-X", "--check-hash-based-pycs"})
_FLAGS = frozenset("bBdEhiIOPqsSuvVx")


class Place(NamedTuple):
    """A rank's place in its job."""

    rank: int
    world_size: int | None
    local_rank: int | None


def place_of(environ: Mapping[str, str]) -> Place | None:
    """As the environment tells it; None where it tells nothing."""
    for rank, world_size, local_rank in _NAMES:
        if environ.get(rank, "").isdigit():
            return Place(int(environ[rank]), _number(environ, world_size), _number(environ, local_rank))
    return None


def _number(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name, "")
    return int(text) if text.isdigit() else None


def is_helper(argv: Sequence[str]) -> bool:
    """Whether an interpreter started as `argv` is a launcher, or a helper of Python's own, and not a user's program."""
    words = list(argv[1:])
    while words and words[0].startswith("-") and words[0] not in {"-c", "-m", "-"}:
        option = words.pop(0)
        if option in _VALUE_OPTIONS and words:
            words.pop(0)
        elif option[-1] in "mc" and _FLAGS.issuperset(option[1:-1]):  # -um package
            words.insert(0, f"-{option[-1]}")
    if not words:
        return False
    if words[0] == "-c":
        return len(words) > 1 and "multiprocessing" in words[1]
    if words[0] == "-m":
        return len(words) > 1 and any(f"{words[1]}.".startswith(f"{name}.") for name in _LAUNCHER_MODULES)
    path = PurePath(words[0])
    if path.suffix != ".py":
        return path.name in _LAUNCHER_PROGRAMS
    dotted = f".{'.'.join(path.with_suffix('').parts)}."
    return any(f".{name}." in dotted for name in _LAUNCHER_MODULES)


def start_rank() -> None:
    """Arm this process: it is the rank that RANK says. Where ranks run under nsys it first becomes nsys' holder."""
    place = place_of(os.environ)
    _go_under_nsys(str(place.rank) if place is not None else _NO_PLACE)
    from agprof.instruments import bootstrap

    bootstrap.start()


def start_foreign() -> None:
    """Arm this process, below a command, if it is a rank; one without a place only when it imports torch."""
    environ = os.environ
    if not may_be_rank(environ):
        return
    if place_of(environ) is not None:
        environ[ENV_RANK_PID] = str(os.getpid())
        start_rank()
        return
    _go_under_nsys(_NO_PLACE)
    from agprof.instruments import bootstrap

    bootstrap.start_with_torch()


_NO_PLACE = "-"
_HOLDER = (
    "import os, sys; sys.path.append(os.environ['AGPROF_HOME']); from agprof.launch import nsys_rank; "
    "sys.exit(nsys_rank.main(sys.argv[1:]))"
)
"""What the process runs as the holder of nsys (`launch.nsys_rank`), which starts this program again below nsys."""


def _go_under_nsys(rank: str) -> None:
    """Become the holder of nsys, where this rank is to run under it and does not yet: then it does not return."""
    environ = os.environ
    if ENV_NSYS not in environ:
        return
    started = environ.pop(ENV_NSYS_STARTED, None)
    if started is not None:
        with open(started, "w", encoding="ascii") as file:  # noqa: PTH123
            file.write(f"{os.getpid()}\n")
    if ENV_UNDER_NSYS in environ:
        return
    try:
        if not NsysRun.from_json(environ[ENV_NSYS]).includes(0 if rank == _NO_PLACE else int(rank)):
            return
        environment = {**environ, ENV_PASS: "1"}
        environment.pop(ENV_RANK_PID, None)
        words = [sys.executable, "-P", "-c", _HOLDER, rank, *sys.orig_argv[1:]]
        os.execve(sys.executable, words, environment)
    except Exception as error:
        # The job matters more than its report.
        sys.stderr.write(f"agprof: this rank runs without nsys: {type(error).__name__}: {error}\n")


def may_be_rank(environ: Mapping[str, str]) -> bool:
    """Whether this process may be armed: no launcher, and no child of a rank. For processes below a command."""
    if is_helper(getattr(sys, "orig_argv", [])):
        return False
    holder = environ.get(ENV_FOREIGN, FOREIGN_OPEN)
    if holder in {FOREIGN_OPEN, str(os.getpid())}:
        return True
    # Below a process that was taken for the only rank: it was a launcher itself if it starts several ranks.
    place = place_of(environ)
    return place is not None and (place.world_size or 1) > 1 and ENV_RANK_PID not in environ
