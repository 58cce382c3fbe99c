"""Keeps a node's sampler running while the job runs. Its failing is a note, never the job's end.

A thread of its own looks four times a second: a sampler that ended, that was stopped, or that writes nothing more is
ended for good and started again. The new one writes the node's next stream, so that what was measured before stays.
"""

import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from agprof.launch import processes
from agprof.model.settings import ENV_RUN_DIR
from agprof.store import layout

JITTER = 1.2
"""The longest time between two samples, in periods."""
GAPS_KEPT = 8
NOTED_RESTARTS = 5
"""Restarts with a sentence of their own; the others are counted."""
NVML_SUSPECTED = 2
"""Samplers in a row that ended as they began: from here on without NVML."""
WRONG_USAGE = 2
"""The sampler's exit code for a wrong option, which no second start would mend."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long the watch waits for what, in seconds."""

    look_s: float = 0.25
    """Between two looks."""
    quiet_periods: float = 3.0
    """A stream that has not grown for so many times its usual gap is a sampler that hangs."""
    start_s: float = 20.0
    """For a new sampler to write its first bytes: imports may come from a slow disk."""
    settled_s: float = 10.0
    """A sampler that lived for so long began well: failures in a row are counted anew."""
    backoff_s: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0)
    """Before each start after a failure; after one more failure in a row than there are values, nothing is started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Death:
    how: str
    """In words, behind `the sampler`."""
    code: int | None
    """Exit code as a shell gives it, when it is known."""
    may_be_nvml: bool
    since: float
    """When it was last known to be well."""


class SupervisedSampler:
    """The sampler of this node, from `start` to `end`."""

    def __init__(
        self,
        argv: Sequence[str] | None,
        run_dir: Path,
        *,
        cwd: Path,
        environ: Mapping[str, str] | None = None,
        period_s: float = 1.0,
        node: int = 0,
        patience: Patience | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`argv` None: there is no sampler. `period_s` is that of the tier that always writes."""
        self._argv = tuple(argv) if argv is not None else None
        self._run_dir = run_dir
        self._log = layout.sampler_log(run_dir, node)
        self._log_name = self._log.relative_to(run_dir)
        self._cwd = cwd
        self._environ = {**(os.environ if environ is None else environ), ENV_RUN_DIR: str(run_dir)}
        self._pattern = f"{layout.node_stem(node)}.*{layout.SUFFIX}"
        self._patience = patience or Patience()
        self._clock = clock
        self._usual_gap_s = JITTER * max(period_s, 1.0)  # rows may wait a second for their frame
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        self._notes: list[str] = []
        self._restarts = 0
        self._failures = 0
        self._suspicious = 0
        self._code: int | None = None
        self._begun: float = clock()
        self._alive_at = self._begun
        self._quiet_s: float = 0.0
        """Time since the stream grew last in which it slept, as far as the watch was there to see."""
        self._size = 0
        self._grew_at: float | None = None
        self._gaps: deque[float] = deque(maxlen=GAPS_KEPT)
        """The last times from one growth to the next."""
        self._stopped_looks = 0

    @property
    def notes(self) -> list[str]:
        """What there is to say of it, in sentences."""
        more = self._restarts - NOTED_RESTARTS
        counted = [f"the sampler was started again {more} more time{'s' * (more > 1)}"] if more > 0 else []
        return [*self._notes, *counted]

    def start(self) -> None:
        """Start it and its watch. Never raises."""
        if self._argv is None:
            return
        try:
            self._process = self._spawn()
        except OSError as error:
            self._notes.append(f"the sampler could not be started: {error}")
            return
        self._begin_watch()
        self._thread = threading.Thread(target=self._watch, name="agprof-sampler-watch", daemon=True)
        self._thread.start()

    def end(self, timeout_s: float) -> int | None:
        """End it by closing its stdin, by force when that takes too long. Its exit code (128 + n for a signal).

        None when there is none. A second call does nothing but give the code again.
        """
        self._ending.set()
        if self._thread is not None:
            # The watch may hang in a look at a dead file system; it starts nothing any more.
            self._thread.join(timeout=2.0)
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            self._code = self._end(process, timeout_s)
        return self._code

    # ---------------------------------------------------------------------------------------------------- the watch

    def _watch(self) -> None:
        looked = self._clock()
        while not self._ending.wait(self._patience.look_s):
            now = self._clock()
            # Time in which this thread itself did not run is nobody's fault.
            passed_s, looked = min(now - looked, 2 * self._patience.look_s), now
            death = self._look(now, passed_s)
            if death is None:
                if not self._stopped_looks:
                    self._alive_at = now
                if now - self._begun >= self._patience.settled_s:
                    self._failures = self._suspicious = 0
            elif not self._start_again(death):
                return

    def _begin_watch(self) -> None:
        """Forget what was seen of the sampler before."""
        self._begun = self._alive_at = self._clock()
        self._size = self._written()
        self._grew_at, self._quiet_s, self._stopped_looks = None, 0.0, 0
        self._gaps.clear()

    def _look(self, now: float, passed_s: float) -> _Death | None:
        process = self._process
        assert process is not None
        if (status := process.poll()) is not None:
            return _death_of(status, self._alive_at)
        state = _state(process.pid)
        # One look is not enough: somebody may have stopped it for a moment.
        self._stopped_looks = self._stopped_looks + 1 if state == "T" else 0
        if self._stopped_looks >= 2:
            return _Death(how="was stopped (SIGSTOP)", code=None, may_be_nvml=False, since=self._alive_at)
        if (size := self._written()) != self._size:
            if self._grew_at is not None:
                self._gaps.append(now - self._grew_at)
            self._size, self._grew_at, self._quiet_s = size, now, 0.0
        elif state not in ("R", "D"):
            # One that waits for a CPU or a disk would not be quicker if it were started again.
            self._quiet_s += passed_s
        if self._quiet_s <= self._allowed_s():
            return None
        if not _takes_writes(self._run_dir):
            self._quiet_s = 0.0  # a full disk is no fault of the sampler, which keeps its rows meanwhile
            return None
        since = self._begun if self._grew_at is None else self._grew_at
        return _Death(how=f"wrote nothing for {self._quiet_s:.1f} s", code=None, may_be_nvml=True, since=since)

    def _allowed_s(self) -> float:
        if self._grew_at is None:
            return self._patience.start_s
        # One that slowed down to keep its budget writes less often, by a factor of 2 at a time.
        return self._patience.quiet_periods * max(self._usual_gap_s, *self._gaps, 0.0)

    def _written(self) -> int:
        size = 0
        for file in (self._run_dir / layout.NODES).glob(self._pattern):
            with suppress(OSError):
                size += file.stat().st_size
        return size

    # ------------------------------------------------------------------------------------------------ starting again

    def _start_again(self, death: _Death) -> bool:
        """Whether there is something to watch on."""
        process = self._process
        assert process is not None
        _close_stdin(process)
        if process.poll() is None:
            process.kill()
            with suppress(subprocess.TimeoutExpired):  # one that hangs in the kernel dies when that lets it go
                process.wait(timeout=1.0)
        self._code = death.code if death.code is not None else 128 + signal.SIGKILL
        self._failures += 1
        self._suspicious = self._suspicious + 1 if death.may_be_nvml and self._is_young() else 0
        if death.code == WRONG_USAGE or self._failures > len(self._patience.backoff_s):
            return self._give_up(death)
        without_nvml = self._suspicious >= NVML_SUSPECTED and self._switch_nvml_off()
        if self._ending.wait(self._patience.backoff_s[self._failures - 1]):
            self._process = None
            self._notes.append(f"the sampler {death.how} as the job ended; see {self._log_name}")
            return False
        try:
            with self._lock:
                if self._ending.is_set():
                    return False
                self._process = self._spawn()
        except OSError as error:
            self._process = None
            self._notes.append(f"the sampler {death.how}, and could not be started again: {error}")
            return False
        self._note_restart(death, without_nvml)
        self._begin_watch()
        return True

    def _is_young(self) -> bool:
        return self._alive_at - self._begun < self._patience.settled_s

    def _note_restart(self, death: _Death, without_nvml: bool) -> None:
        self._restarts += 1
        if self._restarts > NOTED_RESTARTS and not without_nvml:
            return
        after_s = self._clock() - death.since
        note = f"the sampler {death.how} and was started again after {after_s:.1f} s: a gap in GPU and host curves"
        if without_nvml:
            note += "; it had ended twice as it began, and runs without NVML from here on: nothing is known of the GPUs"
        self._notes.append(note)

    def _give_up(self, death: _Death) -> bool:
        words = death.how
        if self._failures > 1:
            words = f"failed {self._failures} times in a row (the last time it {death.how})"
        self._notes.append(f"the sampler {words} and is not started again; see {self._log_name}")
        self._process = None
        return False

    def _switch_nvml_off(self) -> bool:
        argv = list(self._argv or ())
        if "--nvml" not in argv[:-1] or argv[argv.index("--nvml") + 1] == "off":
            return False
        argv[argv.index("--nvml") + 1] = "off"
        self._argv = tuple(argv)
        self._suspicious = 0
        return True

    # -------------------------------------------------------------------------------------------------- its process

    def _spawn(self) -> "subprocess.Popen[bytes]":
        assert self._argv is not None
        with self._log.open("ab") as log:
            return subprocess.Popen(
                self._argv,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self._environ,
                cwd=self._cwd,
                start_new_session=True,
            )

    def _end(self, process: "subprocess.Popen[bytes]", timeout_s: float) -> int:
        already = process.poll()
        _close_stdin(process)
        process.send_signal(signal.SIGCONT)  # whoever stopped it: it has rows to write
        told = False
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                process.wait(timeout=timeout_s)
                break
            except subprocess.TimeoutExpired:
                told = True
                self._notes.append(f"the sampler did not end by itself and was sent {number.name}")
                process.send_signal(number)
                timeout_s = max(timeout_s, 1.0)
        status = process.wait()
        if not told and status != 0:
            when = "as the job ended" if already is not None else "when it was to end"
            self._notes.append(f"the sampler {_death_of(status, 0.0).how} {when}; see {self._log_name}")
        return 128 - status if status < 0 else status


def _close_stdin(process: "subprocess.Popen[bytes]") -> None:
    if process.stdin is not None and not process.stdin.closed:
        with suppress(OSError):
            process.stdin.close()


def _death_of(status: int, since: float) -> _Death:
    """Of a process that ended by itself; `status` as `Popen.returncode`."""
    if status >= 0:
        return _Death(how=f"ended with exit code {status}", code=status, may_be_nvml=True, since=since)
    by_others = -status in (signal.SIGKILL, signal.SIGTERM)  # no fault of a library
    how = f"was killed ({processes.signal_name(-status)})"
    return _Death(how=how, code=128 - status, may_be_nvml=not by_others, since=since)


def _state(pid: int) -> str | None:
    """Of the process's main thread, as /proc/PID/stat has it: R runs, S sleeps, D waits for a disk, T is stopped."""
    fields = processes.stat_fields(pid)
    return fields[0] if fields is not None else None


def _takes_writes(folder: Path) -> bool:
    """Whether a file can be written there now."""
    probe = folder / f".probe-{os.getpid()}"
    try:
        probe.write_bytes(bytes(4096))
    except OSError:
        return False
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
    return True
