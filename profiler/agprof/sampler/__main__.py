"""Samples one node into a run folder: `python -m agprof.sampler --run-dir DIR --node 0`.

It ends when its stdin reaches the end of file (the launcher's pipe closed), on SIGTERM or SIGHUP, or when its parent is
gone; then it takes a last sample, closes its stream and exits with 0. SIGINT is left to the launcher, because Ctrl-C
in a terminal reaches every process of the job. Exit code 4: the run folder can't be written.
"""

import argparse
import os
import random
import select
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from agprof.errors import StoreError
from agprof.model.tables import SCHEMA_VERSION
from agprof.model.version import __version__
from agprof.sampler.host import Host
from agprof.sampler.loop import Clock, Sampler, Schedule
from agprof.sampler.nvml import Gpus, NoNvmlError, load_nvml
from agprof.sampler.processes import RankTrees
from agprof.sampler.states import SECOND_NS, States
from agprof.store import layout
from agprof.store.clocks import read_clocks
from agprof.store.writer import StreamWriter

SYNC_PERIOD_NS = 10 * SECOND_NS
PARENT_CHECK_MS = 1000
MAX_ATTEMPTS = 100_000
STDIN = 0


def main(argv: list[str] | None = None) -> int:
    """Run until the job ends. Returns the exit code."""
    options = _parse(argv)
    run = Path(options.run_dir).resolve()
    end = EndOfJob()
    try:
        writer = open_stream(run, options.node, options.period)
    except StoreError as error:
        print(f"agprof sampler: {error}", file=sys.stderr)
        return error.exit_code
    states = States(writer.append)
    gpus = _gpus(writer, states, options.nvml)
    sampler = Sampler(
        append=writer.append,
        flush=writer.flush,
        lost_rows=lambda: writer.lost_rows,
        states=states,
        parts={
            "host": Host(writer.append, states),
            "processes": RankTrees(run, options.node, writer.append, states),
            "gpu.sampling": gpus,
        },
        schedule=Schedule(options.period, random.Random(os.getpid() ^ time.time_ns())),
        clock=Clock(),
    )
    sync_ns = time.monotonic_ns() + SYNC_PERIOD_NS
    sampler.tick()
    while not end.wait(sampler.due_ns):
        sampler.tick()
        if time.monotonic_ns() >= sync_ns:
            sync_ns = time.monotonic_ns() + SYNC_PERIOD_NS
            writer.sync()
    sampler.finish()
    gpus.close()
    writer.close(end.reason)
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="agprof.sampler", description="Sample this node into a run folder.")
    parser.add_argument("--run-dir", required=True, help="the run folder")
    parser.add_argument("--node", type=int, default=0, help="number of this node, from 0")
    parser.add_argument("--period", type=float, default=1.0, help="seconds between samples, 0.05 to 60")
    parser.add_argument("--nvml", choices=("auto", "off"), default="auto", help="off: never touch the GPU's driver")
    options = parser.parse_args(argv)
    if not 0.05 <= options.period <= 60:
        parser.error(f"--period {options.period}: must be 0.05 to 60 seconds")
    if options.node < 0:
        parser.error(f"--node {options.node}: must be 0 or more")
    return options


def open_stream(run: Path, node: int, period_s: float) -> StreamWriter:
    """The stream of this node's next free attempt, with its header. Raises StoreError."""
    header = {
        "kind": "node",
        "node": node,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "schema_version": SCHEMA_VERSION,
        "agprof_version": __version__,
        "clock": read_clocks(),
        "period_s": period_s,
    }
    try:
        (run / layout.NODES).mkdir(parents=True, exist_ok=True)
        for attempt in range(MAX_ATTEMPTS):
            try:
                return StreamWriter(layout.node_stream(run, node, attempt), header)
            except FileExistsError:
                continue
    except OSError as error:
        raise StoreError(f"{run} can't be written: {error.strerror or error}") from error
    raise StoreError(f"{run / layout.NODES} holds {MAX_ATTEMPTS} streams of node {node}: use a new run folder")


def _gpus(writer: StreamWriter, states: States, mode: str) -> Gpus:
    if mode == "off":
        return Gpus(writer.append, states, None, "switched off with --nvml off")
    try:
        return Gpus(writer.append, states, load_nvml())
    except NoNvmlError as error:
        return Gpus(writer.append, states, None, str(error))


class EndOfJob:
    """Waits for the next sample's time or for the end of the job, whichever comes first."""

    def __init__(self) -> None:
        self.reason = "clean"
        self._parent = os.getppid()
        self._signal: int | None = None
        self._wake, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        # The handlers only set a flag; the byte that the interpreter writes for each signal ends the wait.
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._note)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._poll = select.poll()
        self._poll.register(STDIN, select.POLLIN)
        self._poll.register(self._wake, select.POLLIN)

    def wait(self, due_ns: int) -> bool:
        """True when the job has ended; False at `due_ns`."""
        while not self._ended():
            left_ms = (due_ns - time.monotonic_ns()) / 1e6
            if left_ms <= 0:
                return False
            # A parent that was killed closes the pipe, unless another process inherited its end: look every second.
            events = self._poll.poll(min(left_ms, PARENT_CHECK_MS))
            for descriptor, _ in events:
                if descriptor == STDIN and not self._stdin_open():
                    return True
                if descriptor == self._wake:
                    self._drain()
        return True

    def _note(self, number: int, _frame: Any) -> None:
        self._signal = number

    def _ended(self) -> bool:
        if self._signal is not None:
            return True
        if os.getppid() != self._parent:
            self.reason = "parent gone"
            return True
        return False

    def _stdin_open(self) -> bool:
        try:
            return os.read(STDIN, 4096) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    def _drain(self) -> None:
        try:
            os.read(self._wake, 4096)
        except BlockingIOError:
            pass


if __name__ == "__main__":
    sys.exit(main())
