"""What a good workload file loads to."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agprof.config import bundled
from agprof.config.bundled import bundled_workloads, find_bundled
from agprof.config.check import known_keys
from agprof.config.dump import dump_workload
from agprof.config.energy import EnergySection
from agprof.config.load import LoadedWorkload, load_workload, parse_workload
from agprof.config.monitor import MonitorSection, PrometheusSection
from agprof.config.names import RESERVED_ENV, arg_name_problem
from agprof.config.workload import LaunchSection, ProfileSection, Workload
from agprof.errors import ConfigError
from agprof.model import settings as instrument_settings

HEAD = "name: x\nmodule: a.b\n"


def load(text: str, *sets: str) -> LoadedWorkload:
    return parse_workload(text, Path("/nowhere"), sets)


def test_a_file_is_loaded_with_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train.py").write_text("")
    (tmp_path / "w.yaml").write_text("name: x\nscript: train.py\n")
    monkeypatch.chdir(tmp_path.parent)
    loaded = load_workload(f"{tmp_path.name}/w.yaml", ["name=y"])
    assert loaded.workload == Workload(name="y", script="train.py")
    assert loaded.path == Path(tmp_path.name) / "w.yaml"
    assert loaded.base_dir == tmp_path
    assert loaded.script_path == tmp_path / "train.py"
    assert loaded.text == "name: x\nscript: train.py\n"
    assert loaded.sets == ("name=y",)
    assert loaded.notes == ()


def test_windows_line_ends_and_a_byte_order_mark_are_no_matter(tmp_path: Path) -> None:
    (tmp_path / "w.yaml").write_bytes(b"\xef\xbb\xbfname: x\r\nmodule: a.b\r\n")
    assert load_workload(str(tmp_path / "w.yaml")).workload == Workload(name="x", module="a.b")


def test_environment_numbers_are_the_text_as_written() -> None:
    env = load(HEAD + 'launch: {env: {A: 1, B: 1.10, C: 007, D: no, E: "", F: 1e6}}\n').workload.launch.env
    assert env == {"A": "1", "B": "1.10", "C": "007", "D": "no", "E": "", "F": "1e6"}


def test_arguments_reach_the_program_as_written() -> None:
    text = (
        HEAD
        + "args: {lr: 1e-4, version: 1.10, code: 007, n: 8, fp16: true, no-aug: false, out: null, "
        + "mode: off, l: [1, 2.50]}\n"
    )
    assert load(text).workload.arguments() == [
        "--lr", "1e-4", "--version", "1.10", "--code", "007", "--n", "8", "--fp16", "--mode", "off", "--l", "1", "2.50",
    ]  # fmt: skip
    assert load(HEAD + "args: [run, --n, 3, 0x10]\n").workload.arguments() == ["run", "--n", "3", "0x10"]


def test_only_true_and_false_are_booleans() -> None:
    workload = load("name: no\nmodule: a.b\nprofile: {level: off, nvtx: False}\nmonitor: {nvml: off}\n").workload
    assert (workload.name, workload.profile.level, workload.profile.nvtx, workload.monitor.nvml) == (
        "no",
        "off",
        False,
        "off",
    )


def test_an_empty_section_is_one_left_out() -> None:
    assert load(HEAD + "launch:\nprofile:\nmonitor:\nargs:\n").workload == Workload(name="x", module="a.b")


def test_aliases_may_be_used_sparingly() -> None:
    assert load("name: &n x\nmodule: a.b\ndescription: *n\n").workload.description == "x"


def test_what_is_allowed_but_hardly_meant_is_noted() -> None:
    assert "never reached" in load(HEAD + "profile: {total_steps: 3}\n").notes[0]
    assert "nothing will be measured" in load(HEAD + "profile: {level: off}\nmonitor: {enabled: false}\n").notes[0]
    assert load(HEAD + "profile: {total_steps: 5}\n").notes == ()


def test_every_variable_of_the_instruments_is_reserved() -> None:
    ours = {value for name, value in vars(instrument_settings).items() if name.startswith("ENV_")}
    assert ours <= RESERVED_ENV


def test_known_keys_are_dotted() -> None:
    assert {"name", "args", "launch.env", "profile.level", "monitor.period_s"} <= set(known_keys())
    assert "launch" not in known_keys()


# Bundled workloads.


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with two bundled workloads, in place of the real one."""
    package = tmp_path / "lib" / "shelf_of_workloads"
    (package / "toy").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('listing workloads must not import them')")
    (package / "toy" / "tiny.yaml").write_text("name: toy\nmodule: shelf_of_workloads.toy\ndescription: a toy\n")
    (package / "toy" / "full.yaml").write_text("name: toy-full\nmodule: shelf_of_workloads.toy\n")
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setattr(bundled, "PACKAGE", package.name)
    monkeypatch.chdir(tmp_path)
    return package


def test_bundled_workloads_have_short_names(shelf: Path) -> None:
    assert [entry.name for entry in bundled_workloads()] == ["toy", "toy/full"]
    assert find_bundled("toy/tiny") == find_bundled("toy")
    assert load_workload("toy").workload.name == "toy"
    assert load_workload("toy/full").path == shelf / "toy" / "full.yaml"
    assert find_bundled("toys") is None


def test_a_misspelt_bundled_name_is_recognised(shelf: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean the bundled 'toy/full'"):
        load_workload("toy/ful")
    with pytest.raises(ConfigError, match="bundled workloads: toy, toy/full"):
        load_workload("qwertz")


def test_a_bundled_name_wins_over_a_file_and_says_so(shelf: Path) -> None:
    Path("toy").write_text("name: mine\nmodule: a\n")
    loaded = load_workload("toy")
    assert loaded.workload.name == "toy"
    assert "./toy" in loaded.notes[0]
    assert load_workload("./toy").workload.name == "mine"


def test_without_the_package_nothing_is_bundled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundled, "PACKAGE", "a_package_that_is_not_there")
    assert bundled_workloads() == []


def test_the_real_bundled_workloads_are_right_and_run_from_anywhere() -> None:
    for entry in bundled_workloads():
        workload = load_workload(entry.name).workload
        assert workload.description
        # A copy that `agprof init` writes elsewhere must still find its program.
        assert workload.module is not None


# There and back.

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("\n\t"), max_size=20)
FLOAT = st.floats(allow_nan=False, allow_infinity=False)
INT = st.integers(-(2**100), 2**100)
WORD = TEXT | st.sampled_from(
    ["no", "off", "1", "1.10", "1e5", "007", "~", "null", "true", ".inf", "<<", "=", "- a", "a: b", "2001-01-01"]
)
LIST = st.lists(WORD | INT | FLOAT, max_size=3)
ARG_NAME = TEXT.filter(lambda name: arg_name_problem(name) is None)
ENV_NAME = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True).filter(lambda name: name not in RESERVED_ENV)
COUNT = st.integers(1, 2**63 - 1)

WORKLOADS = st.builds(
    Workload,
    name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
    description=WORD,
    module=st.sampled_from(["a", "a.b", "no", "null", "_x.y1"]),
    args=LIST | st.dictionaries(ARG_NAME, WORD | INT | FLOAT | st.booleans() | st.none() | LIST, max_size=4),
    launch=st.builds(
        LaunchSection,
        launcher=st.just("deepspeed"),
        ranks_per_node=st.integers(1, 1024),
        env=st.dictionaries(ENV_NAME, WORD, max_size=3),
        master_port=st.none() | st.integers(1, 65535),
        bind_cores=st.booleans(),
    ),
    profile=st.builds(
        ProfileSection,
        level=st.sampled_from(["off", "light", "default"]),
        profile_step=st.none() | st.integers(0, 9),
        warmup_steps=st.none() | st.just(0),
        total_steps=st.none() | COUNT,
        nvtx=st.booleans(),
    ),
    monitor=st.builds(
        MonitorSection,
        enabled=st.booleans(),
        fast_period_s=st.floats(0.05, 60),
        period_s=st.floats(0.05, 60),
        nvml=st.sampled_from(["auto", "off"]),
        prometheus=st.none() | st.builds(PrometheusSection, port=st.integers(1, 65535)),
    ),
    energy=st.builds(
        EnergySection, price_per_kwh=st.none() | st.floats(0, 1e6), pue=st.none() | st.floats(1, 10), source=TEXT
    ),
)


@settings(max_examples=150, deadline=None)
@given(WORKLOADS)
def test_a_dumped_workload_loads_to_an_equal_one(workload: Workload) -> None:
    assert load(dump_workload(workload)).workload == workload


@pytest.mark.parametrize("value", [1e-08, 1e22, -3.5e-300, 0.1, 2.0])
def test_a_float_of_any_size_is_dumped_without_a_tag(value: float) -> None:
    text = dump_workload(Workload(name="x", module="x", args=[value]))
    assert "!!" not in text
    assert load(text).workload.args == [value]
