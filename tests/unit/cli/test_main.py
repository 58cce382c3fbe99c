"""The command line as a whole: commands, help, errors, exit codes."""

import ast
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from agprof import __version__, cli, errors
from agprof.cli import main as main_module
from agprof.cli.main import COMMANDS, PYTHON_NAMES, main

FOLDER = Path(cli.__file__).parent
DOCS = Path(__file__).parents[3] / "docs"

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command line in this process: its exit code, stdout and stderr."""

    def call(*argv: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(argv)
        assert isinstance(caught.value.code, int)
        return caught.value.code, *capsys.readouterr()

    return call


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., object]], None]:
    """Adds a function as the command `try`."""

    def add(function: Callable[..., object]) -> None:
        monkeypatch.setitem(sys.modules, "agprof.cli.try", types.SimpleNamespace(**{"try": function}))
        monkeypatch.setattr(main_module, "COMMANDS", [*COMMANDS, "try"])

    return add


def test_commands_are_the_modules_that_hold_one() -> None:
    found = set()
    for file in FOLDER.glob("*.py"):
        body = ast.parse(file.read_text(encoding="utf-8")).body
        if file.stem != "main" and any(isinstance(node, ast.FunctionDef) and node.name == file.stem for node in body):
            found.add(file.stem)
    assert found == {PYTHON_NAMES.get(name, name) for name in COMMANDS}
    assert len(COMMANDS) == len(set(COMMANDS))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_a_page(name: str, run: Run) -> None:
    code, out, err = run(name, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: agprof {name}")
    assert len(out.split("Options:")[0].splitlines()) >= 3, "no docstring"
    title = (DOCS / f"{name}.md").read_text(encoding="utf-8").splitlines()[0]
    assert title.startswith("# ")
    assert name in title


@pytest.mark.parametrize("argv", [(), ("--help",), ("-h",)])
def test_the_list_of_commands(argv: tuple[str, ...], run: Run) -> None:
    code, out, err = run(*argv)
    assert (code, err) == (0, "")
    for name in COMMANDS:
        line = next(line for line in out.splitlines() if line.startswith(f"  {name} "))
        assert len(line.split()) > 1, "no help"
        assert not line.endswith("..."), "the first sentence of the docstring is cut: make it shorter"


def test_version(run: Run) -> None:
    assert run("--version") == (0, f"agprof {__version__}\n", "")


def test_listing_commands_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from agprof.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'polars', 'plotly', 'torch', 'numpy', 'pandas', 'jinja2', 'pydantic', 'yaml', 'rich', 'psutil'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == "[]\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("schem",), "error: No such command 'schem'. Did you mean 'schema'?\nsee: agprof --help\n"),
        (("init", "x", "--forc"), "error: No such option: --forc"),
        (("init",), "error: Missing argument"),
        (("schema", "x"), "error: Got unexpected extra argument"),
        (("--vers",), "error: No such option: --vers"),
        (("report", "x", "--compat", "kineto"), "error: Invalid value for '--compat': 'kineto' is not one of 'hta'."),
    ],
)
def test_a_wrong_command_line(argv: tuple[str, ...], message: str, run: Run) -> None:
    code, out, err = run(*argv)
    assert (code, out) == (2, "")
    assert err.startswith(message)
    nearest = {"--forc": "--force", "--vers": "--version"}.get(argv[-1], "")
    assert nearest in err
    assert "see: agprof" in err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError, 2),
        (errors.LaunchError, 3),
        (errors.StoreError, 4),
        (errors.TraceError, 5),
        (errors.AgprofError, 70),
    ],
)
def test_an_error_of_ours_is_one_message_and_its_code(
    error: type[errors.AgprofError], code: int, run: Run, command: Callable[[Callable[..., object]], None]
) -> None:
    def fail() -> None:
        raise error("value 3 of [bold]key[/bold]: too \x1b[31mlarge\nmake it smaller")

    command(fail)
    assert run("try") == (code, "", "error: value 3 of [bold]key[/bold]: too \\x1b[31mlarge\nmake it smaller\n")


def test_a_fault_of_ours_is_told_apart(run: Run, command: Callable[[Callable[..., object]], None]) -> None:
    def fail() -> None:
        raise KeyError("lost")

    command(fail)
    code, out, err = run("try")
    assert (code, out) == (70, "")
    assert err.startswith("Traceback")
    assert "agprof fault: KeyError: 'lost'\n" in err
    assert err.endswith("please report it with the text above.\n")


def test_an_interruption(run: Run, command: Callable[[Callable[..., object]], None]) -> None:
    def fail() -> None:
        raise KeyboardInterrupt

    command(fail)
    assert run("try")[0] == 130


def test_a_command_may_give_the_exit_code(run: Run, command: Callable[[Callable[..., object]], None]) -> None:
    command(lambda: 137)
    assert run("try") == (137, "", "")
    command(lambda: None)
    assert run("try") == (0, "", "")


def test_a_reader_that_goes_away_is_no_fault() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    code = "from agprof.cli.main import main; main(['schema'])"
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_the_exit_codes_are_documented() -> None:
    page = (DOCS / "exit-codes.md").read_text(encoding="utf-8")
    for code in (0, 2, 3, 4, 5, 70, 130, 141):
        assert f"| {code} |" in page


# The bad workload files of `tests/unit/config/test_bad_files.py`, seen from the shell: one message, exit code 2,
# nothing started and nothing left behind.

HEAD = "name: x\nscript: train.py\n"
BAD: dict[str, tuple[str | bytes, str]] = {
    "unknown key": (HEAD + "prfile: {}\n", "w.yaml:3:1: key 'prfile': unknown key; did you mean 'profile'?"),
    "typo": (HEAD + "launch: {launchr: torchrun}\n", "w.yaml:3:10: key 'launch.launchr': unknown key; did you mean"),
    "wrong type": (
        HEAD + "launch: {ranks_per_node: two}\n",
        "w.yaml:3:26: key 'launch.ranks_per_node': must be a whole",
    ),
    "duplicate key": (HEAD + "name: y\n", "w.yaml:3:1: key 'name': given twice, first at 1:1"),
    "negative number": (
        HEAD + "profile: {profile_step: -1}\n",
        "w.yaml:3:25: key 'profile.profile_step': must be at least 0",
    ),
    "missing script": ("name: x\nscript: gone.py\n", "w.yaml:2:9: key 'script': there is no file '/"),
    "YAML tag": (HEAD + "args: !!python/object:os.x {}\n", "w.yaml:3:7: key 'args': YAML tags are not allowed"),
    "empty": ("", "w.yaml:1:1: the file is empty"),
    "binary": (b"\x89PNG\r\n\x1a\n\0\0", "w.yaml:1:1: the file is not text"),
    "anchors bomb": (
        "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
        "w.yaml:4:4: aliases expand to more than 10000 values",
    ),
    "depth": ("[" * 999_999, "w.yaml:1:33: nested deeper than 32 levels"),
    "over 1 MB": ("#" * 1_000_001, "w.yaml: is larger than 1 MB"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("raise SystemExit('started')")
    return tmp_path


def refused(run: Run, folder: Path, message: str) -> None:
    before = sorted(folder.rglob("*"))
    code, out, err = run("run", "w.yaml")
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("case", BAD)
def test_a_bad_workload_file(case: str, run: Run, folder: Path) -> None:
    content, message = BAD[case]
    (folder / "w.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(run, folder, message)


def test_a_directory_for_a_workload_file(run: Run, folder: Path) -> None:
    (folder / "w.yaml").mkdir()
    refused(run, folder, "w.yaml: is a directory; name the workload file in it")


def test_an_unreadable_workload_file(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "w.yaml").write_text(HEAD)
    (folder / "w.yaml").chmod(0)
    if os.geteuid() == 0:
        # The superuser reads everything: let the call fail as it does for anybody else.
        from agprof.config import load, source

        def refuse(path: Path, flags: int) -> int:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(load, "read_source", lambda path: source.read_source(path, open_file=refuse))
    refused(run, folder, "w.yaml: the file can't be read: Permission denied; check its path and permissions")


def test_a_wrong_option_value(run: Run, folder: Path) -> None:
    (folder / "w.yaml").write_text(HEAD)
    code, out, err = run("run", "w.yaml", "--set", "launch.rank_per_node=2")
    assert (code, out) == (2, "")
    assert err.startswith("error: --set launch.rank_per_node=2: key 'launch.rank_per_node': unknown key; did you mean")
