"""`setups:` of a workload file."""

from pathlib import Path

import pytest

from agprof.config.dump import dump_workload
from agprof.config.load import parse_workload
from agprof.config.setups import EmulateSection, SetupSection, SlurmSection
from agprof.errors import ConfigError

HEAD = "name: x\nmodule: a.b\n"


def setups(text: str, *sets: str) -> dict[str, SetupSection]:
    return parse_workload(HEAD + text, Path("/nowhere"), sets).workload.setups


def refused(text: str, *sets: str, head: str = HEAD) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_workload(head + text, Path("/nowhere"), sets, name="w.yaml")
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("setups:\n", {}),
        ("setups:\n  one-node:\n", {"one-node": SetupSection()}),
        ("setups:\n  a: {}\n  b: {nodes: 1, ranks_per_node: 2}\n",
         {"a": SetupSection(), "b": SetupSection(nodes=1, ranks_per_node=2)}),
        ("setups: {a: {emulate: true}, b: {emulate: false}}\n",
         {"a": SetupSection(emulate=EmulateSection()), "b": SetupSection()}),
        ("setups: {a: {emulate: {nodes: 4, rate: 200mbit, delay: 2ms}}}\n",
         {"a": SetupSection(emulate=EmulateSection(nodes=4, rate="200mbit", delay="2ms"))}),
        ("setups: {a: {hostfile: hosts, env: {NCCL_DEBUG: INFO, OMP_NUM_THREADS: 4}, interface: eth1}}\n",
         {"a": SetupSection(hostfile="hosts", env={"NCCL_DEBUG": "INFO", "OMP_NUM_THREADS": "4"}, interface="eth1")}),
        ("setups: {a: {nodes: 2, slurm: {partition: gpu, options: [--exclusive]}}}\n",
         {"a": SetupSection(nodes=2, slurm=SlurmSection(partition="gpu", options=["--exclusive"]))}),
        ("launch: {launcher: deepspeed}\nsetups: {a: {hostfile: hosts, through: deepspeed}}\n",
         {"a": SetupSection(hostfile="hosts", through="deepspeed")}),
    ],
)  # fmt: skip
def test_each_name_has_a_section(text: str, expected: dict[str, SetupSection]) -> None:
    assert setups(text) == expected


def test_options_of_the_command_line_change_a_setup() -> None:
    text = "setups: {two: {emulate: true}, 'v1': {emulate: {rate: 1gbit}}}\n"
    changed = setups(text, "setups.two.emulate.rate=200mbit", "setups.two.env.A=1", "setups.v1.emulate=true")
    assert changed["two"] == SetupSection(emulate=EmulateSection(rate="200mbit"), env={"A": "1"})
    assert changed["v1"].emulate == EmulateSection(rate="1gbit"), "on already, with an option"
    assert setups("", "setups.new.ranks_per_node=3") == {"new": SetupSection(ranks_per_node=3)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("setups: [a]\n", "w.yaml:3:9: key 'setups': must be a mapping of `key: value` lines, not a list"),
        ("setups: {a: 3}\n", "w.yaml:3:13: key 'setups.a': must be a mapping of `key: value` lines, not 3"),
        ("setups: {a/b: {}}\n", "w.yaml:3:10: key 'setups.a/b': must be 1 to 64 letters, digits"),
        ("setups: {a: {node: 2}}\n", "w.yaml:3:14: key 'setups.a.node': unknown key; did you mean 'setups.a.nodes'?"),
        ("setups: {a: {nodes: two}}\n", "key 'setups.a.nodes': must be a whole number, not the text 'two'"),
        ("setups: {a: {nodes: 2}}\n", "key 'setups.a': nodes is 2: say where they are, by hostfile, slurm or emulate"),
        ("setups: {a: {hostfile: h, emulate: true}}\n", "key 'setups.a': hostfile and emulate exclude one another"),
        ("setups: {a: {nodes: 3, emulate: true}}\n", "key 'setups.a': nodes is 3 and emulate.nodes 2; leave nodes out"),
        ("setups: {a: {emulate: 3}}\n", "key 'setups.a.emulate': must be true, false or a mapping of options"),
        ("setups: {a: {emulate: {rate: 3}}}\n", "w.yaml:3:30: key 'setups.a.emulate.rate': must be text, not 3"),
        ("setups: {a: {emulate: {rate: 3 GB}}}\n", "'3 GB' is no rate; write it as 1gbit, 200mbit or 64kbit"),
        ("setups: {a: {emulate: {delay: soon}}}\n", "'soon' is no delay; write it as 1ms, 200us or 0.1s"),
        ("setups: {a: {emulate: {nodes: 1}}}\n", "key 'setups.a.emulate.nodes': must be at least 2, not 1"),
        ("setups: {a: {through: deepspeed}}\n", "key 'setups.a': through: deepspeed needs a hostfile"),
        ("setups: {a: {hostfile: h, through: deepspeed}}\n",
         "w.yaml:3:36: key 'setups.a.through': deepspeed needs `launcher: deepspeed`"),
        ("setups: {a: {launcher: torchrn}}\n", "did you mean 'torchrun'?"),
        ("launch: {launcher: deepspeed, bind_cores: true}\nsetups: {a: {launcher: torchrun}}\n",
         "key 'setups.a.launcher': torchrun does not bind cores"),
        ("setups: {a: {env: {MASTER_ADDR: x}}}\n", "key 'setups.a.env.MASTER_ADDR': is set by the launcher"),
        ("setups: {a: {env: {X: true}}}\n", "key 'setups.a.env.X': must be text, and true is a boolean"),
        ("setups: {a: {env: [X]}}\n", "key 'setups.a.env': must be a mapping of `NAME: value` lines"),
        ('setups: {a: {slurm: {partition: "a\\nb"}}}\n', "key 'setups.a.slurm.partition': must be one line of text"),
        ("setups: {a: {lost_after_s: 1}}\n", "key 'setups.a.lost_after_s': must be at least 2.0, not 1"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_place(text: str, message: str) -> None:
    assert message in refused(text)


def test_a_command_has_no_setups() -> None:
    message = refused("setups: {a: {}}\n", head="name: x\ncommand: [a]\n")
    assert "key 'setups': stand beside `command`, which starts its ranks itself" in message


def test_it_is_written_as_it_is_read() -> None:
    for text in (
        "setups:\n  one-node:\n  two: {ranks_per_node: 1, emulate: {rate: 1gbit, delay: 1ms}}\n",
        "setups: {a: {emulate: true}, b: {nodes: 2, slurm: {}}, c: {hostfile: h, env: {A: '1'}}}\n",
    ):
        workload = parse_workload(HEAD + text, Path("/nowhere")).workload
        assert parse_workload(dump_workload(workload), Path("/nowhere")).workload == workload
