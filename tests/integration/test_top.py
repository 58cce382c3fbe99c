"""`agprof top` in a pseudo-terminal beside a real job: what the screen shows, and how it leaves the terminal."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyte
import pytest

from agprof.store import layout

AGPROF = str(Path(sys.executable).with_name("agprof"))
ENTER, LEAVE, SHOW_CURSOR = b"\x1b[?1049h", b"\x1b[?1049l", b"\x1b[?25h"

JOB = """
import time, torch
model = torch.nn.Linear(64, 64)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(100_000):
    loss = model(torch.randn(8, 64)).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    time.sleep(0.02)
"""


@dataclass
class Terminal:
    """A program in a pseudo-terminal of a given size."""

    argv: list[str]
    columns: int
    lines: int
    output: bytes = b""
    screen: pyte.Screen = field(init=False)

    def __post_init__(self) -> None:
        self.screen = pyte.Screen(self.columns, self.lines)
        self._stream = pyte.ByteStream(self.screen)
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", self.lines, self.columns, 0, 0))
        self.before = termios.tcgetattr(slave)
        environment = {
            name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")
        }
        self.process = subprocess.Popen(
            self.argv,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={**environment, "TERM": "xterm-256color"},
            # Ctrl-C reaches whom the terminal belongs to.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509
        )
        self.master, self.slave = master, slave

    def read(self, seconds: float) -> None:
        """Take in what is printed."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if select.select([self.master], [], [], min(left, 0.1))[0]:
                data = os.read(self.master, 65536)
                self.output += data
                # pyte has one screen only: what is on the second one is looked at.
                if LEAVE not in data:
                    self._stream.feed(data)

    def until(self, what: Callable[[str], bool], seconds: float = 60) -> str:
        """The screen's text once it is as wanted."""
        deadline = time.monotonic() + seconds
        while not what(text := "\n".join(self.screen.display)):
            assert self.process.poll() is None, self.output[-2000:]
            assert time.monotonic() < deadline, text
            self.read(0.2)
        return text

    def end(self) -> int:
        """The exit code."""
        deadline = time.monotonic() + 20
        while self.process.poll() is None:
            assert time.monotonic() < deadline, "it does not end"
            self.read(0.1)
        self.read(0.3)
        return self.process.returncode

    def is_clean(self) -> bool:
        """The first screen is back, the cursor is seen, keys are echoed."""
        back = self.output.rfind(LEAVE) > self.output.rfind(ENTER) >= 0 and self.output.rfind(SHOW_CURSOR) > 0
        assert termios.tcgetattr(self.slave) == self.before
        return back

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of runs of a real job that goes on until the tests have seen it."""
    folder = tmp_path_factory.mktemp("top")
    (folder / "job.py").write_text(JOB)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [AGPROF, "run", "--out", str(folder / "runs"), "--name", "watched", "--", sys.executable, "job.py"],
            cwd=folder,
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        deadline = time.monotonic() + 90
        while not list(folder.glob(f"runs/*/{layout.RANKS}/*{layout.SUFFIX}")):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield folder / "runs"
        process.send_signal(signal.SIGINT)
        process.wait(60)


@pytest.mark.parametrize(
    ("columns", "lines", "leave", "code"),
    [
        (80, 24, "Ctrl-C", 0),
        (200, 50, "SIGTERM", 143),
        (80, 24, "q", 0),
        (200, 50, "Ctrl-C", 0),
        (80, 24, "SIGTERM", 143),
    ],
)
def test_a_running_job_is_shown_and_the_terminal_left_clean(
    job: Path, columns: int, lines: int, leave: str, code: int
) -> None:
    terminal = Terminal([AGPROF, "top", "--out", str(job), "--interval", "0.3"], columns, lines)
    try:
        text = terminal.until(
            lambda text: "running" in text and "steps/s" in text and "CPU" in text and "d data" in text
        )
        first = text.splitlines()[0]
        assert first.startswith("agprof top · watched-")
        assert "rank" in text
        assert ("workers" in text) == (columns >= 100)
        shown = int(first.split("step ")[1].split()[0])
        terminal.until(lambda text: int(text.splitlines()[0].split("step ")[1].split()[0]) > shown)
        if leave == "SIGTERM":
            terminal.process.send_signal(signal.SIGTERM)
        else:
            os.write(terminal.master, b"\x03" if leave == "Ctrl-C" else b"q")
        assert terminal.end() == code
        assert terminal.is_clean()
        assert b"Traceback" not in terminal.output
    finally:
        terminal.close()


def test_one_frame_is_plain_text(job: Path) -> None:
    run = next(job.iterdir())
    done = subprocess.run([AGPROF, "top", str(run), "--once"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"agprof top · {run.name} · running")
    assert "\x1b" not in done.stdout
    assert done.stderr == ""


def test_without_a_job_this_machine_is_shown(tmp_path: Path) -> None:
    terminal = Terminal([AGPROF, "top", "--out", str(tmp_path / "none")], 80, 24)
    try:
        terminal.until(lambda text: "this machine" in text and "memory" in text)
        os.write(terminal.master, b"q")
        assert terminal.end() == 0
        assert terminal.is_clean()
    finally:
        terminal.close()


def test_what_is_no_run_folder_is_one_message(tmp_path: Path) -> None:
    done = subprocess.run([AGPROF, "top", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert "is not a run folder" in done.stderr
