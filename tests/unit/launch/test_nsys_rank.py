"""The holder of nsys for one rank, with a stand-in for nsys: it ends as its rank ended, whatever nsys does."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from agprof.launch import nsys_rank
from agprof.launch.plan import BOOTSTRAP_PATH, SOURCE_ROOT
from agprof.model.settings import InstrumentSettings, NsysRun

FAKE = """#!{python}
import os, subprocess, sys, time
words = sys.argv[1:]
at = next(i for i, word in enumerate(words) if i and not word.startswith("-"))
options = dict(word[2:].partition("=")[::2] for word in words[1:at])
name, value = options["env-var"].split("=")
{before}
print("[1/1] [===50%  ]\\r[1/1] [===100%]", flush=True)
code = subprocess.call(words[at:], env={{**os.environ, name: value}}) if {start} else 0
if {write}:
    open(options["output"] + ".nsys-rep", "w").write("a report")
print("Generated:", flush=True)
{after}
sys.exit(128 - code if code < 0 else code)
"""


class Holder:
    """A rank's process as a launcher would start it, with AGPROF_NSYS_RUN in its environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run = folder / "run"
        (self.run / "ranks").mkdir(parents=True)

    @property
    def nsys(self) -> Path:
        return self.run / "nsys"

    def fake(self, *, before: str = "", after: str = "", start: bool = True, write: bool = True) -> None:
        path = self.folder / "nsys"
        path.write_text(FAKE.format(python=sys.executable, before=before, after=after, start=start, write=write))
        path.chmod(0o755)

    def start(
        self, script: str, *, timeout_s: float = 20, ranks: tuple[int, ...] | None = None, rank: str | None = "1"
    ) -> "subprocess.Popen[str]":
        (self.folder / "rank.py").write_text(script)
        run = NsysRun(arguments=(str(self.folder / "nsys"), "profile"), ranks=ranks, timeout_s=timeout_s)
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(BOOTSTRAP_PATH),
            "AGPROF_HOME": str(SOURCE_ROOT),
            "AGPROF_RUN_DIR": str(self.run),
            "AGPROF_SETTINGS": InstrumentSettings(level="light").to_json(),
            "AGPROF_NSYS_RUN": run.to_json(),
            **({"RANK": rank} if rank is not None else {"AGPROF_FOREIGN": "open"}),
        }
        return subprocess.Popen(
            [sys.executable, "-u", str(self.folder / "rank.py"), "an argument", "--two"],
            env=environment, cwd=self.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def ended(self, script: str, **options: Any) -> int:
        process = self.start(script, **options)
        process.communicate(timeout=60)
        return process.returncode

    def told(self, name: str = "rank-00001") -> dict[str, Any]:
        value: dict[str, Any] = json.loads((self.nsys / f"{name}.json").read_text())
        return value

    def log(self) -> str:
        return (self.run / "ranks" / "rank-00001.stdout.log").read_text()


@pytest.fixture
def holder(tmp_path: Path) -> Holder:
    made = Holder(tmp_path)
    made.fake()
    return made


SAY = "import os, sys\nprint(sys.argv[1:], sys.orig_argv[1], os.environ['AGPROF_UNDER_NSYS'], os.getpid())\n"


def test_the_rank_runs_as_it_was_started_and_its_report_gets_its_name(holder: Holder) -> None:
    assert holder.ended(SAY) == 0
    told = holder.told()
    assert holder.log() == f"['an argument', '--two'] -u rank {told['pid']}\n"
    assert sorted(path.name for path in holder.nsys.iterdir()) == [
        "rank-00001.json", "rank-00001.log", "rank-00001.nsys-rep",
    ]  # fmt: skip
    assert (told["rank"], told["report"], told["problem"]) == (1, "rank-00001.nsys-rep", None)
    assert told["started_ns"] < told["rank_started_ns"] < told["rank_ended_ns"] < told["ended_ns"]


def test_a_rank_that_is_started_again_never_writes_over_the_report_before(holder: Holder) -> None:
    assert holder.ended("") == holder.ended("") == 0
    assert (holder.nsys / "rank-00001.nsys-rep").exists() and (holder.nsys / "rank-00001.1.nsys-rep").exists()
    assert holder.told("rank-00001.1")["report"] == "rank-00001.1.nsys-rep"


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("import sys; sys.exit(7)", 7),
        ("raise ValueError", 1),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", -signal.SIGSEGV),
    ],
)
def test_the_holder_ends_as_its_rank(holder: Holder, script: str, code: int) -> None:
    assert holder.ended(script) in {code, 128 - code if code < 0 else code}
    assert holder.told()["report"]


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, path
        time.sleep(0.02)


def test_signals_reach_the_rank_and_the_report_is_written_all_the_same(holder: Holder) -> None:
    script = (
        "import signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(5))\n"
        "open('ready', 'w').write('y')\ntime.sleep(60)"
    )
    process = holder.start(script)
    wait_for(holder.folder / "ready")
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 5
    assert holder.told()["report"]


def test_a_hanging_nsys_is_ended(holder: Holder) -> None:
    holder.fake(after="time.sleep(600)")
    begin = time.monotonic()
    assert holder.ended("import sys; sys.exit(3)", timeout_s=0.5) == 3
    assert time.monotonic() - begin < 20
    assert holder.told()["report"] is None
    assert "had not ended 0.5 s after its rank and was killed" in holder.told()["problem"]
    assert not list(holder.nsys.glob("*.nsys-rep"))


def test_what_nsys_leaves_running_is_ended_with_it(holder: Holder) -> None:
    holder.fake(
        before="agent = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        "open('agent', 'w').write(str(agent.pid))",
        after="time.sleep(600)",
    )
    assert holder.ended("", timeout_s=0.5) == 0
    agent = int((holder.folder / "agent").read_text())
    assert not Path(f"/proc/{agent}/cmdline").exists() or not Path(f"/proc/{agent}/cmdline").read_bytes()


@pytest.mark.parametrize("how", ["an error", "missing"])
def test_where_nsys_does_not_start_the_rank_it_runs_without(holder: Holder, how: str) -> None:
    if how == "missing":
        (holder.folder / "nsys").unlink()
    else:
        holder.fake(before="sys.exit(\"unrecognised option '--bogus'\")")
    assert holder.ended(SAY + "sys.exit(4)") == 4
    assert " failed " in holder.log()
    assert "the rank ran without it" in holder.told()["problem"]
    if how == "an error":
        assert "unrecognised option '--bogus'" in holder.told()["problem"]


def test_a_capture_that_never_began_is_said(holder: Holder) -> None:
    holder.fake(write=False)
    assert holder.ended("") == 0
    assert "before the first step that was to be captured" in holder.told()["problem"]


def test_other_ranks_are_left_alone(holder: Holder) -> None:
    assert holder.ended("import os\nprint('AGPROF_UNDER_NSYS' in os.environ)", ranks=(0,)) == 0
    assert holder.log() == "False\n"
    assert not holder.nsys.exists()


def test_the_only_process_of_a_command_is_held_too_and_its_output_is_left_alone(holder: Holder) -> None:
    process = holder.start(SAY, rank=None)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "['an argument', '--two'] -u rank" in out
    assert holder.told("rank-00000")["report"] == "rank-00000.nsys-rep"


def test_a_process_of_a_command_that_nothing_was_captured_of_is_not_spoken_of(holder: Holder) -> None:
    holder.fake(write=False)
    process = holder.start("", rank=None)
    process.communicate(timeout=60)
    assert list(holder.nsys.iterdir()) == []


def test_children_of_a_rank_are_not_held(holder: Holder) -> None:
    script = "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'print(1)'], check=True)"
    assert holder.ended(script) == 0
    assert len(list(holder.nsys.glob("*.nsys-rep"))) == 1


def test_last_words_are_without_progress_bars(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("first\nsecond\n[1/1] [0%  ] x\r[1/1] [100%] x\nthird\n\nfourth")
    assert nsys_rank.last_words(log) == "second / third / fourth"
    assert nsys_rank.last_words(tmp_path / "none") == ""


@pytest.mark.parametrize(
    ("status", "nsys_code", "code"),
    [
        (None, 0, 0), (None, 7, 7), (None, 137, -signal.SIGKILL), (None, 139, -signal.SIGSEGV), (None, 255, 255),
        (0, 1, 0), (7 << 8, 0, 7), (signal.SIGKILL, 0, -signal.SIGKILL),
    ],
)  # fmt: skip
def test_where_the_kernel_does_not_tell_how_the_rank_ended_nsys_does(
    status: int | None, nsys_code: int, code: int
) -> None:
    script = f"import sys; from agprof.launch import nsys_rank; sys.exit(nsys_rank._end_as({status}, {nsys_code}))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == code
