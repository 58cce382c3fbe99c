"""`nsys:` of a workload file."""

from pathlib import Path

import pytest

from agprof.config.dump import dump_workload
from agprof.config.load import parse_workload
from agprof.config.nsys import NsysSection
from agprof.errors import ConfigError

HEAD = "name: x\nmodule: a.b\n"


def section(*sets: str, text: str = "") -> NsysSection | None:
    return parse_workload(HEAD + text, Path("/nowhere"), sets).workload.nsys


def refused(*sets: str, text: str = "") -> str:
    with pytest.raises(ConfigError) as caught:
        section(*sets, text=text)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("nsys:\n", None),
        ("nsys: false\n", None),
        ("nsys: true\n", NsysSection()),
        ("nsys: {}\n", NsysSection()),
        ("nsys: {first_step: 10, steps: null}\n", NsysSection(first_step=10, steps=None)),
        ("nsys: {trace: [nvtx, mpi], ranks: [0, 3], args: [--gpu-metrics-device=all]}\n",
         NsysSection(trace=["nvtx", "mpi"], ranks=[0, 3], args=["--gpu-metrics-device=all"])),
    ],
)  # fmt: skip
def test_true_is_a_mapping_of_defaults(text: str, expected: NsysSection | None) -> None:
    assert section(text=text) == expected


def test_options_of_the_command_line_switch_it_on_and_change_it() -> None:
    assert section("nsys=true") == NsysSection()
    assert section("nsys.steps=5") == NsysSection(steps=5)
    assert section("nsys=true", "nsys.steps=5") == NsysSection(steps=5)
    assert section("nsys.steps=5", "nsys=true") == NsysSection(steps=5), "on already, with an option"
    assert section("nsys=true", text="nsys: {steps: 7}\n") == NsysSection(steps=7)
    assert section("nsys.ranks=[1]", text="nsys: true\n") == NsysSection(ranks=[1])
    assert section("nsys.ranks=[1]", text="nsys: false\n") == NsysSection(ranks=[1])
    assert section("nsys=false", text="nsys: {steps: 7}\n") is None


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["nsys=yes"], "key 'nsys': must be true, false or a mapping of options"),
        (["nsys=3"], "key 'nsys': must be true, false or a mapping of options"),
        (["nsys.step=3"], "key 'nsys.step': unknown key; did you mean 'nsys.steps'?"),
        (["nsys.steps=0"], "key 'nsys.steps': must be greater than 0, not 0"),
        (["nsys.first_step=-1"], "key 'nsys.first_step': must be at least 0, not -1"),
        (["nsys.timeout_s=0"], "key 'nsys.timeout_s': must be at least 0.1, not 0"),
        (["nsys.trace=[cuda]"], "key 'nsys.trace': must hold nvtx"),
        (["nsys.trace=[nvtx, 'a b']"], "key 'nsys.trace': holds words of `nsys profile --trace`"),
        (["nsys.trace=nvtx"], "key 'nsys.trace': must be a list, not the text 'nvtx'"),
        (["nsys.ranks=[]"], "key 'nsys.ranks': is empty"),
        (["nsys.args=[--output=x]"], "key 'nsys.args': holds --output, which agprof gives itself"),
        (["nsys.args=[-ofile]"], "key 'nsys.args': holds -ofile, which agprof gives itself"),
        (["nsys.args=[--sample=cpu]"], "key 'nsys.args': holds --sample"),
        (["nsys.args=[--delay, '3']"], "key 'nsys.args': holds options of `nsys profile`, each one word"),
        (["nsys.args=[program]"], "key 'nsys.args': holds options of `nsys profile`, each one word"),
        (["nsys=true", "profile.level=off"], "key 'nsys': needs the instruments"),
        (["nsys=true", "profile.nvtx=false"], "key 'nsys': needs `profile.nvtx: true`"),
        (["nsys=true", "kineto=true"], "exclude each other"),
        (["launch.env.AGPROF_NSYS_RUN=x"], "is set by the launcher or by agprof"),
    ],
)
def test_what_is_wrong_is_said_with_its_key(sets: list[str], message: str) -> None:
    assert message in refused(*sets)


def test_it_is_written_as_it_is_read() -> None:
    for text in ("nsys: true\n", "nsys: {steps: null, args: [--kill=none]}\n"):
        workload = parse_workload(HEAD + text, Path("/nowhere")).workload
        assert parse_workload(dump_workload(workload), Path("/nowhere")).workload == workload


def test_steps_that_are_never_reached_are_noted() -> None:
    def notes(*sets: str) -> str:
        return " ".join(parse_workload(HEAD, Path("/nowhere"), ["profile.profile_step=null", *sets]).notes)

    assert "nsys.first_step 5 is never reached in 5 steps" in notes("nsys=true", "profile.total_steps=5")
    assert notes("nsys=true", "profile.total_steps=6") == ""
    assert notes("nsys.steps=null", "profile.total_steps=3") == ""
