"""Every way in which a workload file can be wrong gives one clear message, quickly, and nothing else."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agprof.config.load import load_workload, parse_workload
from agprof.config.source import MAX_BYTES, decode, read_source
from agprof.config.tree import MAX_DEPTH, MAX_VALUES
from agprof.errors import ConfigError

HEAD = "name: x\nscript: train.py\n"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("")
    return tmp_path


def refusal(content: str | bytes, *sets: str) -> str:
    """The message for a file `w.yaml` with this content."""
    data = content if isinstance(content, bytes) else content.encode()
    Path("w.yaml").write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        load_workload("w.yaml", sets)
    message = str(caught.value)
    for jargon in ("pydantic", "http", "Input should", "Traceback", "validation error", "2002"):
        assert jargon not in message
    return message


ONE_MESSAGE = {
    "unknown key": (
        HEAD + "launch:\n  rank_per_node: 2\n",
        "w.yaml:4:3: key 'launch.rank_per_node': unknown key; did you mean 'launch.ranks_per_node'?",
    ),
    "typo of a required key": (
        "name: x\nscrpt: train.py\n",
        "w.yaml:2:1: key 'scrpt': unknown key; did you mean 'script'?",
    ),
    "key of another section": (
        HEAD + "ranks_per_node: 3\n",
        "w.yaml:3:1: key 'ranks_per_node': unknown key; did you mean 'launch.ranks_per_node'?",
    ),
    "key like no other": (
        HEAD + "monitor: {zzz: 3}\n",
        "w.yaml:3:11: key 'monitor.zzz': unknown key; known keys here: "
        "enabled, fast_period_s, period_s, slow_period_s, nvml, prometheus",
    ),
    "wrong type": (
        HEAD + "launch: {ranks_per_node: two}\n",
        "w.yaml:3:26: key 'launch.ranks_per_node': must be a whole number, not the text 'two'",
    ),
    "number in quotes": (
        HEAD + 'launch: {master_port: "80"}\n',
        "w.yaml:3:23: key 'launch.master_port': must be a whole number, not the text '80'; write 80 without quotes",
    ),
    "text without quotes": (
        "name: 5\nscript: train.py\n",
        "w.yaml:1:7: key 'name': must be text, not 5; put it in quotes: \"5\"",
    ),
    "yes for true": (
        HEAD + "profile: {nvtx: yes}\n",
        "w.yaml:3:17: key 'profile.nvtx': must be true or false, not the text 'yes'; write true",
    ),
    "no such choice": (
        HEAD + "launch:\n  launcher: torchrn\n",
        "w.yaml:4:13: key 'launch.launcher': must be 'torchrun' or 'deepspeed', not the text 'torchrn'; "
        "did you mean 'torchrun'?",
    ),
    "duplicate key": (HEAD + "name: y\n", "w.yaml:3:1: key 'name': given twice, first at 1:1; remove one of the two"),
    "negative number": (
        HEAD + "launch:\n  ranks_per_node: -1\n",
        "w.yaml:4:19: key 'launch.ranks_per_node': must be greater than 0, not -1",
    ),
    "number too large": (
        HEAD + "launch: {master_port: 70000}\n",
        "w.yaml:3:23: key 'launch.master_port': must be at most 65535, not 70000",
    ),
    "section that is a number": (
        HEAD + "launch: 3\n",
        "w.yaml:3:9: key 'launch': must be a mapping of `key: value` lines, not 3",
    ),
    "not a number": (
        HEAD + "monitor: {period_s: .nan}\n",
        "w.yaml:3:21: key 'monitor.period_s': .nan is not a finite number; write \".nan\" in quotes to mean the text",
    ),
    "script and module": (
        HEAD + "module: a.b\n",
        "w.yaml:2:9: key 'script': `script` and `module` exclude each other; "
        "keep one of them (null switches the other off)",
    ),
    "neither script nor module": (
        "name: x\n",
        "w.yaml:1:1: key 'module': is required, or `script`: the program that the ranks run",
    ),
    "no name": ("script: train.py\n", "w.yaml:1:1: key 'name': is required; add `name: ...`"),
    "module that is a file": (
        "name: x\nmodule: train.py\n",
        "w.yaml:2:9: key 'module': must be a dotted module name such as package.train; give a file as `script`",
    ),
    "torchrun binds no cores": (
        HEAD + "launch: {bind_cores: true}\n",
        "w.yaml:3:22: key 'launch.bind_cores': needs `launch.launcher: deepspeed`; torchrun does not bind cores",
    ),
    "all steps are warm-up": (
        HEAD + "profile: {warmup_steps: 9, total_steps: 5}\n",
        "w.yaml:3:25: key 'profile.warmup_steps': leaves no step to measure: "
        "`profile.total_steps` is 5; make it smaller",
    ),
    "YAML tag": (
        HEAD + 'args: !!python/object/apply:os.system ["touch harmed"]\n',
        "w.yaml:3:7: key 'args': YAML tags are not allowed, here '!!python/object/apply:os.system'; "
        "write the plain value",
    ),
    "YAML tag at the root": (
        "!!python/object:os.x {}\n",
        "w.yaml:1:1: YAML tags are not allowed, here '!!python/object:os.x'; write the plain value",
    ),
    "empty": ("", "w.yaml:1:1: the file is empty; `agprof init NAME` writes one to begin with"),
    "blanks": ("  \n\n", "w.yaml:1:1: the file is empty; `agprof init NAME` writes one to begin with"),
    "comments": ("# nothing\n", "w.yaml:1:1: the file holds no value, only comments"),
    "binary": (
        b"\x7fELF\x02\x01\x01\x00\xff",
        "w.yaml:1:9: the file is not text: byte 0xff is not UTF-8; name a YAML file, saved as UTF-8",
    ),
    "NUL": (b"name: \x00", "w.yaml:1:7: the file is not text: it holds the control character '\\x00'; remove it"),
    "Latin-1": (
        "name: x\ndescription: é\n".encode("latin-1"),
        "w.yaml:2:14: the file is not text: byte 0xe9 is not UTF-8; name a YAML file, saved as UTF-8",
    ),
    "UTF-16": ("name: x\n".encode("utf-16"), "w.yaml:1:1: the file is UTF-16; save it as UTF-8"),
    "escape sequence in a key": (
        HEAD + '"\\e[31m": 3\n',
        "w.yaml:3:1: key '\\x1b[31m': holds the control character '\\x1b'; only tab and line feed may stand in a text",
    ),
    "NUL by escape": (
        HEAD + 'args: {a: "b\\0c"}\n',
        "w.yaml:3:11: key 'args.a': holds the control character '\\x00'; only tab and line feed may stand in a text",
    ),
    "lone surrogate": (
        HEAD + 'description: "\\ud800"\n',
        "w.yaml:3:14: key 'description': holds the control character '\\ud800'; "
        "only tab and line feed may stand in a text",
    ),
    "escape beyond Unicode": (
        'name: "\\UFFFFFFFF"\n',
        "w.yaml:1:10: an escape (`\\U...`) names no character; use single quotes to keep backslashes",
    ),
    "tab": (
        "name: x\nlaunch:\n\tranks_per_node: 2\n",
        "w.yaml:3:1: a tab stands where YAML allows spaces only; indent with spaces",
    ),
    "open quote": ('name: "x\n', "w.yaml:1:7: a quote begins here and is not closed"),
    "open bracket": ("name: [x\n", "w.yaml:1:7: a bracket begins here, and a `,` or its closing bracket is missing"),
    "two colons": (
        "name: x: y\n",
        "w.yaml:1:8: a `:` too many, wrong indentation, or no `:` in the line above; quote a text that holds `: `",
    ),
    "two documents": (
        HEAD + "---\nname: y\n",
        "w.yaml:3:1: a second document begins here; one file holds one workload",
    ),
    "list": ("- a\n", "w.yaml:1:1: a workload file is a mapping of `key: value` lines, beginning with `name:`"),
    "word": ("hello\n", "w.yaml:1:1: a workload file is a mapping of `key: value` lines, beginning with `name:`"),
    "key that is a list": (HEAD + "[a]: 3\n", "w.yaml:3:1: every key must be a word; here stands none"),
    "merge key": (
        HEAD + "launch:\n  <<: {ranks_per_node: 2}\n",
        "w.yaml:4:3: key 'launch.<<': merging with `<<` is not supported; write the keys out",
    ),
    "anchors bomb": (BOMB, f"w.yaml:5:4: aliases expand to more than {MAX_VALUES} values; write the values out"),
    "anchor in itself": (
        "name: &a [*a]\n",
        "w.yaml:1:7: an alias refers to a value that contains it; write the value out",
    ),
    "undefined alias": (
        "name: *x\n",
        "w.yaml:1:7: this alias (`*name`) has no anchor (`&name`) above it; quote a text that begins with *",
    ),
    "too deep": ("[" * 900_000, f"w.yaml:1:33: nested deeper than {MAX_DEPTH} levels; a workload file needs four"),
    "too deep in blocks": (
        "- " * 400_000,
        f"w.yaml:1:65: nested deeper than {MAX_DEPTH} levels; a workload file needs four",
    ),
    "too many values": (
        "a: [" + "x, " * 300_000 + "]",
        f"w.yaml:1:29996: more than {MAX_VALUES} values; a workload file holds settings, not data",
    ),
    "over 1 MB": ("#" * (MAX_BYTES + 1), "w.yaml: is larger than 1 MB; a workload file holds settings, not data"),
    "boolean in the environment": (
        HEAD + "launch: {env: {A: true}}\n",
        "w.yaml:3:19: key 'launch.env.A': must be text, and true is a boolean; "
        'write "true" or "1" in quotes, whichever the program expects',
    ),
    "variable without a value": (
        HEAD + "launch: {env: {A: }}\n",
        "w.yaml:3:18: key 'launch.env.A': has no value; write \"\" for an empty one, or leave it out",
    ),
    "the launcher's variable": (
        HEAD + "launch: {env: {MASTER_PORT: 80}}\n",
        "w.yaml:3:16: key 'launch.env.MASTER_PORT': is set by the launcher; use `launch.master_port`",
    ),
    "variable with a blank": (
        HEAD + 'launch: {env: {"A B": 80}}\n',
        "w.yaml:3:16: key 'launch.env.A B': is no name of an environment variable; use letters, digits and `_`",
    ),
    "argument with dashes": (
        HEAD + "args: {--lr: 1}\n",
        "w.yaml:3:8: key 'args.--lr': is written without the dashes: 'lr' becomes `--lr`",
    ),
    "argument that is a mapping": (
        HEAD + "args: {a: {b: 1}}\n",
        "w.yaml:3:11: key 'args.a': must be one value or a list, not a mapping; "
        "a name with dots is written `a.b: value`",
    ),
    "boolean among words": (
        HEAD + "args: [a, true]\n",
        "w.yaml:3:11: key 'args[1]': must be text or a number, not true; put a word in quotes",
    ),
}


@pytest.mark.parametrize("case", ONE_MESSAGE)
def test_one_clear_message(case: str) -> None:
    content, message = ONE_MESSAGE[case]
    began = time.process_time()
    assert refusal(content) == message
    assert time.process_time() - began < 5
    assert not Path("harmed").exists()


def test_a_missing_script_is_named_by_its_full_path(folder: Path) -> None:
    assert refusal("name: x\nscript: trian.py\n") == (
        f"w.yaml:2:9: key 'script': there is no file '{folder}/trian.py'; did you mean 'train.py'?"
    )
    assert refusal("name: x\nscript: .\n") == (
        f"w.yaml:2:9: key 'script': '{folder}' is a directory; name the Python file in it"
    )


def test_all_problems_are_reported_in_file_order() -> None:
    message = refusal(
        "nmae: x\nscript: nothing.py\nlaunch: {bind_cores: true, ranks_per_node: 0}\nprofile: {level: of}\nname: 3\n"
    )
    first, *lines = message.splitlines()
    assert first == "w.yaml has 6 problems:"
    assert [line.split(" key ")[1].split(":")[0] for line in lines] == [
        "'nmae'", "'script'", "'launch.bind_cores'", "'launch.ranks_per_node'", "'profile.level'", "'name'",
    ]  # fmt: skip


def test_ten_problems_are_shown_and_the_rest_counted() -> None:
    lines = refusal(HEAD + "".join(f"key{number}: 1\n" for number in range(15))).splitlines()
    assert lines[0] == "w.yaml has 15 problems:"
    assert len(lines) == 12
    assert lines[-1] == "  and 5 more"


def test_a_wrong_value_hides_no_wrong_combination_and_brings_no_false_one() -> None:
    assert "key 'launch.bind_cores'" in refusal(HEAD + "launch: {bind_cores: true}\nprofile: {level: 3}\n")
    assert "exclude" not in refusal("name: x\nscript: 3\nmodule: a\n")
    assert "is required" not in refusal("name: x\nscript: 3\n")


def test_long_values_are_cut() -> None:
    assert len(refusal(HEAD + f"launch: {{ranks_per_node: {'9' * 5000}}}\n")) < 300
    assert len(refusal(HEAD + f"? {'k' * 3000}\n: 3\n")) < 300


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("", "the workload's name is empty; name a YAML file or a bundled workload"),
        (".", ".: is a directory; name the workload file in it"),
        ("none.yaml", "none.yaml: no such file and no bundled workload of that name; "),
        ("dangling.yaml", "dangling.yaml: no such file; it is a link to a file that does not exist"),
        ("/dev/zero", "/dev/zero: is not a regular file; name a YAML file"),
        ("pipe.yaml", "pipe.yaml: is not a regular file; name a YAML file"),
        ("x" * 5000, "can't be looked up: File name too long"),
        ("loop.yaml", "Too many levels of symbolic links"),
        ("a\0b", "a\\x00b: no such file"),
    ],
)
def test_what_is_no_file(reference: str, message: str) -> None:
    Path("dangling.yaml").symlink_to("gone.yaml")
    Path("loop.yaml").symlink_to("loop.yaml")
    os.mkfifo("pipe.yaml")
    with pytest.raises(ConfigError) as caught:
        load_workload(reference)
    assert message in str(caught.value)


def test_an_unreadable_file() -> None:
    def refuse(path: Path, flags: int) -> int:
        raise PermissionError(13, "Permission denied", str(path))

    with pytest.raises(ConfigError) as caught:
        read_source(Path("w.yaml"), open_file=refuse)
    assert str(caught.value) == "w.yaml: the file can't be read: Permission denied; check its path and permissions"


def test_no_descriptor_is_left_open() -> None:
    Path("w.yaml").write_text(HEAD)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for reference in ("w.yaml", ".", "/dev/zero"):
        try:
            load_workload(reference)
        except ConfigError:
            pass
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_million_levels_do_not_end_the_process() -> None:
    Path("w.yaml").write_text("[" * 999_999)
    code = "from agprof.cli import main as m; from agprof.config.load import load_workload as l; l('w.yaml')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "ConfigError: w.yaml:1:33: nested deeper" in done.stderr


YAMLISH = st.text(alphabet="namescript:xd -\n\t[]{}&*!|>?#'\"%@`,0.5<~\\", max_size=120)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=200), YAMLISH.map(str.encode), YAMLISH.map(lambda text: (HEAD + text).encode())))
def test_any_bytes_load_or_are_refused(folder: Path, data: bytes) -> None:
    try:
        parse_workload(decode(data, "w.yaml"), folder)
    except ConfigError as error:
        assert str(error).isprintable() or "\n" in str(error)


VALUES = [
    "1",
    "-1",
    "0",
    "0.5",
    "1e400",
    "x",
    "true",
    "null",
    "[]",
    "[1]",
    "{}",
    "{a: 1}",
    '""',
    '"1"',
    "~",
    ".inf",
    "2001-01-01",
]
KEYS = ["name", "description", "module", "script", "args", "launch", "profile", "monitor"]
KEYS += ["launch.launcher", "launch.ranks_per_node", "launch.env", "launch.env.X", "launch.master_port"]
KEYS += ["launch.bind_cores", "profile.level", "profile.profile_step", "profile.warmup_steps", "profile.total_steps"]
KEYS += ["profile.nvtx", "profile.flight_recorder", "monitor.enabled", "monitor.period_s", "monitor.nvml", "args.x"]
KEYS += ["monitor.fast_period_s", "monitor.slow_period_s", "monitor.prometheus", "monitor.prometheus.port"]
KEYS += ["monitor.prometheus.host", "energy", "energy.currency", "energy.price_per_kwh", "energy.pue", "energy.source"]


@pytest.mark.parametrize("key", KEYS)
def test_a_message_for_any_value_of_any_key_is_plain(folder: Path, key: str) -> None:
    for value in VALUES:
        try:
            parse_workload(HEAD, folder, [f"{key}={value}"])
        except ConfigError as error:
            text = str(error)
            first, *several = text.splitlines()
            assert all(line.strip().startswith("--set") for line in several or [first])
            assert "Input" not in text
            assert "valid" not in text


def test_a_long_path_is_not_cut(folder: Path) -> None:
    deep = folder / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    assert f"'{deep}' is a directory" in refusal(f"name: x\nscript: {deep}\n")
    assert f"there is no file '{deep}/x.py'" in refusal(f"name: x\nscript: {deep}/x.py\n")
