"""`agprof run [WORKLOAD | -- COMMAND...]`: what the command line means, before anything starts."""

import pytest

from agprof.cli.main import main
from agprof.config.command import load_command, name_of_command
from agprof.config.load import parse_workload
from agprof.errors import ConfigError


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["run", *words])
    told = capsys.readouterr()
    return int(ended.value.code or 0), told.out, told.err


def test_everything_behind_the_dashes_is_the_command(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["sh", "-c", "echo $0", "--name", "its own", "--", "-x"]
    code, out, _ = run(capsys, "--dry-run", "--name", "ours", "--", *command)
    assert code == 0
    assert "command   sh -c 'echo $0' --name 'its own' -- -x" in out
    assert "agprof-runs/ours-TIME" in out
    assert "AGPROF_FOREIGN=open" in out
    assert "RANK=0" not in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "there is nothing to run"),
        (["--"], 2, "there is no command behind `--`"),
        (["anomalygpt", "--", "python", "x.py"], 2, "give a workload or a command, not both"),
        (["python", "x.py"], 2, "agprof run -- python x.py"),
        (["x.py"], 2, "agprof run -- python x.py"),
        (["--", "no-such-program-here"], 3, "command 'no-such-program-here' was not found: it is not on PATH"),
        (["--", "./nothing-here"], 3, "there is no such file"),
        (["--set", "args.lr=1", "--", "sh"], 2, "stands beside `command`"),
        (["--set", "launch.ranks_per_node=2", "--", "sh"], 2, "starts its ranks itself"),
    ],
)
def test_what_can_not_be_run_ends_with_one_message(capsys, tmp_path, monkeypatch, words, code, message):
    monkeypatch.chdir(tmp_path)
    ended, _, err = run(capsys, *words)
    assert ended == code
    assert message in err
    assert err.count("error: ") == 1
    assert list(tmp_path.glob("*/*")) == [], "nothing was started and no run is left"


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("torchrun --nproc-per-node 2 src/train.py --lr 1e-3", "train"),
        ("python -m torch.distributed.run -m package.train --x 1", "package.train"),
        ("./go.sh", "go.sh"),
        ("python -m größe", "gr-e"),
        ("python -", "python"),
    ],
)
def test_a_run_is_named_after_its_script(command, name):
    assert name_of_command(command.split()) == name


def test_words_reach_the_program_as_they_stand():
    words = ["prog", "1.10", "yes", "null", "", "a: b", "ä\U0001f600", "# no comment", "line\nline", "{x}"]
    assert load_command(words).workload.command == words


def test_control_characters_are_refused():
    with pytest.raises(ConfigError, match="control character"):
        load_command(["python", "\x1b[31m"])


def test_a_file_may_hold_a_command(tmp_path):
    loaded = parse_workload("name: x\ncommand: [torchrun, --nproc-per-node, 2, train.py]\n", tmp_path)
    assert loaded.workload.command == ["torchrun", "--nproc-per-node", "2", "train.py"]
    for text, message in (
        ("command: []", "its first word"),
        ("command: train", "a list"),
        ("command: [a]\nscript: b.py", "exclude each other"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_workload(f"name: x\n{text}\n", tmp_path)
