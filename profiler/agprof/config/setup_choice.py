"""`--setup NAME`: a workload with one of its setups in force."""

from collections.abc import Sequence
from dataclasses import dataclass

from agprof.config.problems import nearest, shown
from agprof.config.setups import SetupSection
from agprof.config.workload import Workload
from agprof.errors import ConfigError

_LONGEST_NAME = 64
MOST_SETUPS = 16
"""As many sides as a comparison has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetupJob:
    """What is run of one setup."""

    name: str
    setup: SetupSection
    workload: Workload
    """With what the setup says of launcher, ranks and environment in it, and without `setups`."""


def choose_setups(workload: Workload, names: Sequence[str]) -> tuple[SetupJob, ...]:
    """The jobs of some setups, in their order. Raises ConfigError that names the nearest for one that is not there."""
    known = workload.setups
    for name in names:
        if name not in known:
            raise ConfigError(f"--setup {shown(name)}: the workload has no setup of that name; {_hint(name, known)}")
    twice = next((name for name in names if list(names).count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"--setup {shown(twice)} is given twice; for repeats give --repeats N")
    if len(names) > MOST_SETUPS:
        raise ConfigError(f"{len(names)} setups are given; at most {MOST_SETUPS} can be compared")
    return tuple(SetupJob(name=name, setup=known[name], workload=with_setup(workload, name)) for name in names)


def with_setup(workload: Workload, name: str) -> Workload:
    """The workload as this setup of it runs it. Its name carries the setup's."""
    setup = workload.setups[name]
    launch = workload.launch
    changes = {
        "launcher": setup.launcher or launch.launcher,
        "ranks_per_node": setup.ranks_per_node or launch.ranks_per_node,
        "env": {**launch.env, **setup.env},
    }
    named = f"{workload.name}-{name}"
    return workload.model_copy(
        update={
            "name": named if len(named) <= _LONGEST_NAME else f"{workload.name[: _LONGEST_NAME // 2]}-{name}"[:64],
            "launch": launch.model_copy(update=changes),
            "setups": {},
        }
    )


def _hint(name: str, known: dict[str, SetupSection]) -> str:
    if not known:
        return "it has no `setups:` (docs/setups.md)"
    close = nearest(name, known)
    return f"did you mean {shown(close)}?" if close is not None else f"it has {', '.join(known)}"
