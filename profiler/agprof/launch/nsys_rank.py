"""The process that holds nsys for one rank. It is the process that the launcher started as the rank.

    python -c ... RANK WORDS...       (`instruments.place` becomes it; WORDS are the rank's own command, behind python)

It starts `nsys profile ... python words`, passes signals on to the rank, notes the rank's end as it was, gives nsys
its time to write the report, and ends as the rank ended: with its exit code, or by its signal. A hanging nsys is ended.
Where nsys does not start the rank at all, this process becomes the rank itself. Standard library only.
"""

import json
import os
import re
import resource
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from agprof.launch import processes
from agprof.model.settings import (
    ENV_NSYS,
    ENV_NSYS_STARTED,
    ENV_RUN_DIR,
    ENV_UNDER_NSYS,
    NSYS_FAILED,
    NSYS_HOLDER,
    UNDER_NSYS,
    NsysRun,
)
from agprof.store import layout

_POLL_S = 0.01
START_TIMEOUT_S = 60.0
"""From the start of nsys to that of the rank: 0.2 s as a rule. Then the rank runs without nsys."""
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT)
_ENDING = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
_MAX_NAMES = 1000


@dataclass(slots=True)
class Held:
    """What is known of the rank below nsys. Times are monotonic."""

    is_rank: bool
    """A launcher gave it a place; else it may turn out to be no rank."""
    started_ns: int = field(default_factory=time.monotonic_ns)
    pid: int | None = None
    pidfd: int | None = None
    rank_started_ns: int | None = None
    rank_ended_ns: int | None = None
    status: int | None = None
    """Wait status of the rank; None when it could not be seen."""
    problem: str | None = None


NO_PLACE = "-"
"""Stands for the rank of a process that no launcher gave a place: it is rank 0, if it trains at all."""


def main(argv: list[str]) -> int:
    """Hold nsys for a rank. Returns the rank's exit code, or ends by the signal that ended it."""
    place, *words = argv
    files = _Files(Path(os.environ[ENV_RUN_DIR]) / layout.NSYS, 0 if place == NO_PLACE else int(place))
    settings = NsysRun.from_json(os.environ[ENV_NSYS])
    held = Held(is_rank=place != NO_PLACE)
    nsys = _start(settings, words, files, alone=held.is_rank)
    if nsys is None:
        _run_without_nsys(words, files, held, "nsys could not be started")
    signals = _Signals()
    _wait_for_rank(held, nsys, files, signals)
    if held.pid is None and not signals.told_to_end:
        code = nsys.poll()
        why = f"ended with {code} before the rank began" if code is not None else "did not start the rank in a minute"
        processes.end_descendants(os.getpid())
        _run_without_nsys(words, files, held, f"nsys {why}")
    _wait_for_end(held, signals)
    code = _wait_for_nsys(held, nsys, settings.timeout_s)
    files.keep(held, code)
    return _end_as(held.status, code)


class _Signals:
    """Passes signals on to the rank, once its process id is known; remembers those that came before."""

    def __init__(self) -> None:
        self.told_to_end = False
        self._target: int | None = None
        self._over = False
        self._early: list[int] = []
        for number in _PASSED_ON:
            signal.signal(number, self._receive)

    def aim(self, pid: int) -> None:
        self._target = pid
        for number in self._early:
            processes.send([pid], number)
        self._early.clear()

    def rank_has_ended(self) -> None:
        """From here on its process id may be another's."""
        self._over = True

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        self.told_to_end = self.told_to_end or number in _ENDING
        if self._over:
            return
        if self._target is None:
            self._early.append(number)
        else:
            processes.send([self._target], number)


def _start(settings: NsysRun, words: list[str], files: "_Files", *, alone: bool) -> "subprocess.Popen[bytes] | None":
    """`alone`: the rank writes to a log of its own from its first line, and what is printed here is nsys' own."""
    # What nsys leaves running (its agent) becomes a child of this process and can be ended.
    processes.set_child_subreaper(True)
    os.environ[ENV_UNDER_NSYS] = NSYS_HOLDER
    os.environ[ENV_NSYS_STARTED] = str(files.started)
    output_option = f"--output={str(files.stem).replace('%', '%%')}"
    own = [f"--env-var={ENV_UNDER_NSYS}={UNDER_NSYS}", "--force-overwrite=true", output_option]
    output: Any = None
    try:
        files.folder.mkdir(exist_ok=True)
        output = files.log.open("ab") if alone else None
        return subprocess.Popen(
            [*settings.arguments, *own, sys.executable, *words],
            stdout=output,
            stderr=output,
            # A launcher signals its ranks' groups: the rank alone is to get that, from here.
            start_new_session=True,
            preexec_fn=lambda: processes.set_parent_death_signal(signal.SIGTERM),  # noqa: PLW1509
        )
    except OSError as error:
        print(f"agprof: {settings.arguments[0]}: {error}", file=sys.stderr)
        return None
    finally:
        if output is not None:
            output.close()


def _wait_for_rank(held: Held, nsys: "subprocess.Popen[bytes]", files: "_Files", signals: _Signals) -> None:
    """Until the rank's bootstrap has left its process id, or nsys has ended."""
    while True:
        ended = nsys.poll() is not None
        text = files.started.read_text(encoding="ascii") if files.started.exists() else ""
        if text.endswith("\n"):
            held.rank_started_ns = time.monotonic_ns()
            held.pid = int(text)
            with suppress(OSError):
                held.pidfd = os.pidfd_open(held.pid)
            signals.aim(held.pid)
            return
        if ended or time.monotonic_ns() - held.started_ns > START_TIMEOUT_S * 1e9:
            return
        if signals.told_to_end:
            processes.end_descendants(os.getpid(), grace_s=2.0)
        time.sleep(_POLL_S)


def _wait_for_end(held: Held, signals: _Signals) -> None:
    """Until the rank has ended, also when nsys has ended before."""
    if held.pid is None:
        return
    poll = select.poll()
    if held.pidfd is not None:
        poll.register(held.pidfd, select.POLLIN)
    while processes.is_running(held.pid):
        poll.poll(500 if held.pidfd is not None else 50)
    held.status = processes.zombie_status(held.pid)
    if held.status is None and held.pidfd is not None:
        held.status = processes.pidfd_status(held.pidfd)
    held.rank_ended_ns = time.monotonic_ns()
    signals.rank_has_ended()


def _wait_for_nsys(held: Held, nsys: "subprocess.Popen[bytes]", timeout_s: float) -> int:
    """The exit code of nsys, as a shell gives it; nsys and its agent are ended when they take too long."""
    try:
        code = nsys.wait(timeout_s)
    except subprocess.TimeoutExpired:
        held.problem = f"nsys had not ended {timeout_s:g} s after its rank and was killed; its report is lost"
        if held.status is None:
            held.problem += ", and so is the rank's exit code (Linux before 6.15): it counts as failed"
        processes.end_descendants(os.getpid())
        with suppress(subprocess.TimeoutExpired):
            nsys.wait(5)
        return 1
    return 128 - code if code < 0 else code


class _Files:
    """Files of one holder: hidden ones while it is at work, then `rank-00000.nsys-rep`, `.log` and `.json`."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.folder = folder
        self.rank = rank
        self.stem = folder / f".{layout.rank_stem(rank)}.{os.getpid()}"
        self.log = self.stem.with_name(f"{self.stem.name}.log")
        self.started = self.stem.with_name(f"{self.stem.name}.started")
        """Where the rank's bootstrap writes its process id."""

    def keep(self, held: Held, code: int) -> None:
        """Name what is of use, and remove the rest."""
        made = self.stem.with_name(f"{self.stem.name}.nsys-rep")
        whole = made.exists() and held.problem is None
        if held.problem is None and not whole and held.is_rank:
            held.problem = f"nsys left no report: {self._why_none()}"
        # A process that was told no place may be no rank at all, and then there is nothing to say.
        if whole or held.problem is not None:
            report = self._name(made, ".nsys-rep") if whole else None
            self._tell(held, report, self._name(self.log, ".log") if self.log.exists() else None, code)
        for left in (self.log, self.started, made):
            left.unlink(missing_ok=True)

    def _why_none(self) -> str:
        words = last_words(self.log)
        if words == "Generated:":  # and no file named
            return "the rank ended before the first step that was to be captured (`nsys.first_step`)"
        return words or "it said nothing"

    def tell_failure(self, held: Held) -> None:
        self._tell(held, None, None, None)
        for left in (self.log, self.started):
            left.unlink(missing_ok=True)

    def _name(self, path: Path, suffix: str) -> Path | None:
        """Give the file its name: the rank's, with a number behind it when the rank was started again."""
        for attempt in range(_MAX_NAMES):
            number = f".{attempt}" if attempt else ""
            target = self.folder / f"{layout.rank_stem(self.rank)}{number}{suffix}"
            if not target.exists():
                return path.rename(target)
        return None

    def _tell(self, held: Held, report: Path | None, log: Path | None, code: int | None) -> None:
        row = {
            "rank": self.rank,
            "pid": held.pid,
            "report": report.name if report is not None else None,
            "log": log.name if log is not None else None,
            "nsys_exit_code": code,
            "started_ns": held.started_ns,
            "rank_started_ns": held.rank_started_ns,
            "rank_ended_ns": held.rank_ended_ns,
            "ended_ns": time.monotonic_ns(),
            "problem": held.problem,
        }
        unfinished = self.stem.with_name(f"{self.stem.name}.json")
        unfinished.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
        self._name(unfinished, ".json")


def _run_without_nsys(words: list[str], files: _Files, held: Held, why: str) -> NoReturn:
    """Become the rank itself: the job matters more than its report."""
    said = last_words(files.log)
    held.problem = f"{why}, and the rank ran without it{f': {said}' if said else ''}"
    with suppress(OSError):
        files.tell_failure(held)
    os.environ[ENV_UNDER_NSYS] = NSYS_FAILED
    os.environ.pop(ENV_NSYS_STARTED, None)
    for number in _PASSED_ON:
        signal.signal(number, signal.SIG_DFL)
    processes.set_child_subreaper(False)
    os.execv(sys.executable, [sys.executable, *words])


def last_words(log: Path, lines: int = 3) -> str:
    """The last lines that nsys printed, without its progress bars."""
    try:
        text = log.read_bytes()[-8192:].decode("utf-8", "replace")
    except OSError:
        return ""
    kept = [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip() and not re.match(r"\[\d+/\d+\]", line)]
    return " / ".join(kept[-lines:])[-500:]


def _end_as(status: int | None, code: int) -> int:
    """End as the rank did. Without a status of it (Linux before 6.15), nsys' own exit code is the rank's."""
    if status is not None:
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        code = os.WEXITSTATUS(status)
    else:
        number = code - 128 if code > 128 and code - 128 in set(signal.Signals) else 0  # as a shell says it
    if number:
        _die_by(number)
    return code


def _die_by(number: int) -> NoReturn:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the rank has dumped its core, if it was to
    with suppress(OSError, ValueError):
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    time.sleep(1)
    os._exit(128 + number)
