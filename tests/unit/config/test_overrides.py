"""`--set dotted.key=value`."""

from pathlib import Path

import pytest

from agprof.config.load import parse_workload
from agprof.config.workload import Workload
from agprof.errors import ConfigError

HEAD = "name: x\nmodule: a.b\n"


def changed(*sets: str, text: str = HEAD) -> Workload:
    return parse_workload(text, Path("/nowhere"), sets).workload


def refused(*sets: str, text: str = HEAD) -> str:
    with pytest.raises(ConfigError) as caught:
        changed(*sets, text=text)
    return str(caught.value)


def test_a_value_is_read_as_one_yaml_scalar() -> None:
    assert changed("launch.ranks_per_node=2").launch.ranks_per_node == 2
    assert changed("profile.nvtx=false").profile.nvtx is False
    assert changed("profile.profile_step=null").profile.profile_step is None
    assert changed("monitor.period_s=0.5").monitor.period_s == 0.5
    assert changed("description=a: b # *c").description == "a: b # *c"
    assert changed('description="5"').description == "5"
    assert changed("description=").description == ""
    assert changed("name=5").name == "5"


def test_keys_below_args_and_env_are_the_users_own() -> None:
    workload = changed("args.data.root=/x", "args.lr=1e-4", "args.l=[1, 2]", "launch.env.FOO=")
    assert workload.arguments() == ["--data.root", "/x", "--lr", "1e-4", "--l", "1", "2"]
    assert workload.launch.env == {"FOO": ""}


def test_the_file_is_changed_and_the_last_one_wins() -> None:
    text = HEAD + "launch: {ranks_per_node: 2, launcher: deepspeed}\nargs: {a: 1, b: 2}\n"
    workload = changed("launch.ranks_per_node=3", "args.a=5", "launch.ranks_per_node=4", "args.b=null", text=text)
    assert (workload.launch.ranks_per_node, workload.launch.launcher) == (4, "deepspeed")
    assert workload.arguments() == ["--a", "5"]


def test_a_list_of_arguments_is_replaced_as_a_whole() -> None:
    text = HEAD + "args: [a]\n"
    assert changed("args=[b, 2]", text=text).arguments() == ["b", "2"]
    assert refused("args.x=3", text=text) == (
        "--set args.x=3: key 'args': is a list at <text>:3:7; set it as a whole: --set 'args=[...]'"
    )


def test_a_script_given_on_the_command_line_is_found_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.py").write_text("")
    assert changed("script=other.py", "module=null").script == str(tmp_path / "other.py")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("launch.rank_per_node=2", "key 'launch.rank_per_node': unknown key; did you mean 'launch.ranks_per_node'?"),
        ("launch.rnks=2", "key 'launch.rnks': unknown key; did you mean 'launch.ranks_per_node'?"),
        ("lunch.x=1", "key 'lunch': unknown key; did you mean 'launch'?"),
        ("launch.ranks_per_node=-1", "key 'launch.ranks_per_node': must be greater than 0, not -1"),
        ("launch.env.A=true", "key 'launch.env.A': must be text, and true is a boolean; "),
        ("x", "must be key=value with a dotted key, as in --set launch.ranks_per_node=2"),
        ("=3", "must be key=value with a dotted key, as in --set launch.ranks_per_node=2"),
        ("a..b=3", "must be key=value with a dotted key, as in --set launch.ranks_per_node=2"),
        ("name.x=3", "key 'name': is a single value, not a mapping"),
        ("args.x=[a", "a bracket begins here, and a `,` or its closing bracket is missing"),
        ("args.x=[!!python/name:os.system a]", "YAML tags are not allowed, here '!!python/name:os.system'"),
        ("script=train.py", "key 'script': `script` and `module` exclude each other"),
    ],
)
def test_a_wrong_option_is_named_as_the_origin(
    option: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("")
    said = refused(option)
    assert said.startswith(f"--set {option}: {message}")
    assert "\n" not in said


def test_an_endless_option_is_cut() -> None:
    assert len(refused("args.x=" + "[" * 100_000)) < 200
