"""Which jobs `--setup` means."""

from pathlib import Path

import pytest

from agprof.config.load import load_workload, parse_workload
from agprof.config.setup_choice import choose_setups
from agprof.config.workload import Workload
from agprof.errors import ConfigError

TEXT = """
name: job
module: a.b
launch: {launcher: deepspeed, ranks_per_node: 4, env: {A: "1", B: "1"}}
setups:
  one-node:
  two-nodes: {launcher: torchrun, ranks_per_node: 2, emulate: true, env: {B: "2"}}
"""


def workload(text: str = TEXT) -> Workload:
    return parse_workload(text, Path("/nowhere")).workload


def test_a_setup_changes_launcher_ranks_and_environment_alone() -> None:
    one, two = choose_setups(workload(), ["one-node", "two-nodes"])
    assert one.workload.launch == workload().launch, "what is left out is that of launch:"
    assert (two.workload.launch.launcher, two.workload.launch.ranks_per_node) == ("torchrun", 2)
    assert two.workload.launch.env == {"A": "1", "B": "2"}
    for job in (one, two):
        assert job.workload.name == f"job-{job.name}"
        assert job.workload.setups == {}, "a run is of one setup"
        same = {"name": "x", "launch": one.workload.launch}
        assert job.workload.model_copy(update=same) == workload().model_copy(update={**same, "setups": {}})


def test_names_stay_within_their_limit() -> None:
    long = workload(TEXT.replace("name: job", f"name: {'x' * 64}").replace("one-node", "y" * 64))
    (job,) = choose_setups(long, ["y" * 64])
    again = parse_workload(f"name: {job.workload.name}\nmodule: a.b\n", Path("/nowhere"))
    assert again.workload.name == job.workload.name


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["two-node"], "--setup 'two-node': the workload has no setup of that name; did you mean 'two-nodes'?"),
        (["zzz"], "--setup 'zzz': the workload has no setup of that name; it has one-node, two-nodes"),
        (["one-node", "one-node"], "--setup 'one-node' is given twice; for repeats give --repeats N"),
    ],
)
def test_a_setup_that_is_not_there(names: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        choose_setups(workload(), names)
    assert str(caught.value) == message


def test_a_workload_without_setups() -> None:
    with pytest.raises(ConfigError, match=r"it has no `setups:` \(docs/setups.md\)"):
        choose_setups(workload("name: x\nmodule: a.b\n"), ["one"])


@pytest.mark.parametrize("name", ["gpt2", "anomalygpt"])
def test_the_bundled_setups_do_the_same_work_with_as_many_ranks(name: str) -> None:
    one, two = choose_setups(load_workload(name).workload, ["one-node", "two-nodes"])
    emulate = two.setup.emulate
    assert emulate is not None
    assert one.workload.launch.ranks_per_node == emulate.nodes * two.workload.launch.ranks_per_node == 2
    assert one.workload.args == two.workload.args
    assert one.workload.launch.env == two.workload.launch.env
