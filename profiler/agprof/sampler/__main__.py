"""Samples one node into a run folder: `python -m agprof.sampler --run-dir DIR --node 0`.

It ends when its stdin reaches the end of file (the launcher's pipe closed), on SIGTERM or SIGHUP, or when its parent is
gone; then it takes a last sample, closes its stream and exits with 0. SIGINT is left to the launcher, because Ctrl-C
in a terminal reaches every process of the job. Exit code 4: the run folder can't be written.
"""

import argparse
import os
import random
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from agprof.errors import StoreError
from agprof.model.tables import SCHEMA_VERSION
from agprof.model.version import __version__
from agprof.sampler.account import Account
from agprof.sampler.clock_pings import ClockClient, ClockServer, parse_address
from agprof.sampler.cores import Cores
from agprof.sampler.gpu_thread import GpuThread
from agprof.sampler.gpu_work import NvmlWork
from agprof.sampler.host import Host
from agprof.sampler.job_end import EndOfJob
from agprof.sampler.loop import Clock, Lane, TierName, tier
from agprof.sampler.network import Network
from agprof.sampler.processes import RankTrees
from agprof.sampler.states import SECOND_NS, Append, States, describe
from agprof.store import layout
from agprof.store.clocks import read_clocks
from agprof.store.packed_writer import PackedStreamWriter

SYNC_PERIOD_NS = 10 * SECOND_NS
FLUSH_PERIOD_S = 0.8
"""Rows are on their way to the disk less than a second after they were taken."""
MAX_ATTEMPTS = 100_000


def main(argv: list[str] | None = None) -> int:
    """Run until the job ends. Returns the exit code."""
    options = _parse(argv)
    end = EndOfJob()
    try:
        writer = open_stream(Path(options.run_dir).resolve(), options)
    except StoreError as error:
        print(f"agprof sampler: {error}", file=sys.stderr)
        return error.exit_code

    def give_up() -> None:
        writer.close("a reading hung")
        os._exit(0)

    end.watch(give_up)
    if not sample_until(end, writer, options):
        # A thread that hangs in a driver's library would be waited for by the library's own functions at exit; one that
        # hangs in a look-up of a name would write into a closed stream.
        os._exit(0)
    return 0


def sample_until(end: EndOfJob, writer: PackedStreamWriter, options: argparse.Namespace) -> bool:
    """Sample until the job ends and close the stream. False when a thread hangs."""
    clock = Clock()
    append, states = _appender(writer, options, clock)
    seed = random.Random(os.getpid() ^ time.time_ns())
    run = Path(options.run_dir).resolve()
    trees = RankTrees(run, options.node, append, states, root_pid=options.root_pid)
    host = Lane(
        name="host",
        tiers=(
            tier(
                "medium",
                options.period,
                {"host": Host(append, states), "network": Network(append, states), "processes": trees},
                seed,
            ),
            tier("slow", options.slow_period, {"cores": Cores(append, states)}, seed),
        ),
        append=append,
        states=states,
        flush=writer.flush,
        clock=clock,
    )
    gpus = GpuThread(lambda: NvmlWork(options, append, writer.flush, states, trees.pids, seed, clock), states, clock)
    account = Account(append, lambda: writer.lost_rows, lambda: {**host.costs_ns(), **gpus.costs_ns()}, clock)
    # What does not need the driver comes first, and is in the file before the driver is called.
    host.run_due()
    account.look()
    writer.flush()
    gpus.start()
    pings = _pings(options, append, states)
    if pings is not None:
        pings.start()
    writer.before_flush(_syncing(writer, clock))
    writer.start()
    while not end.wait(min(host.due_ns, gpus.look_ns)):
        host.run_due()
        gpus.look()
        account.look()
    if pings is not None:
        pings.begin_end()
    host.finish()
    ended = gpus.end()
    if pings is not None:
        ended = pings.end() and ended
    account.write(clock.monotonic_ns())
    writer.close(end.reason)
    return ended


def _pings(options: argparse.Namespace, append: Append, states: States) -> ClockClient | ClockServer | None:
    """What compares this node's clock with the others'; None on a node that is alone."""
    if options.clock_serve is not None:
        return ClockServer(options.clock_serve, options.node, append, states)
    if options.clock_server is not None:
        return ClockClient(options.clock_server, options.node, append, states)
    return None


def _syncing(writer: PackedStreamWriter, clock: Clock) -> Callable[[], None]:
    """A function for the flusher's thread, where a disk that takes seconds to sync holds up no sample."""
    due_ns = clock.monotonic_ns() + SYNC_PERIOD_NS

    def sync_when_due() -> None:
        nonlocal due_ns
        if clock.monotonic_ns() >= due_ns:
            due_ns = clock.monotonic_ns() + SYNC_PERIOD_NS
            writer.sync()

    return sync_when_due


def _appender(writer: PackedStreamWriter, options: argparse.Namespace, clock: Clock) -> tuple[Append, States]:
    """Where rows go: into the stream, and past Prometheus when that is asked for."""
    if options.prometheus_port is None:
        return writer.append, States(writer.append)
    from agprof.sampler.newest import Newest

    try:
        from agprof.sampler.prometheus import serve
    except ImportError as error:
        print(f"agprof sampler: prometheus can't be served: {error}", file=sys.stderr)
        states = States(writer.append)
        states.set(clock.monotonic_ns(), "prometheus", "unsupported", describe(error))
        return writer.append, states
    periods_s: dict[TierName, float] = {
        "fast": options.fast_period,
        "medium": options.period,
        "slow": options.slow_period,
    }
    newest = Newest(writer.append, periods_s)
    states = States(newest.append)
    serve(options.prometheus_host, options.prometheus_port, newest, states, clock.monotonic_ns)
    return newest.append, states


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="agprof.sampler", description="Sample this node into a run folder.")
    parser.add_argument("--run-dir", required=True, help="the run folder")
    parser.add_argument("--node", type=int, default=0, help="number of this node, from 0")
    parser.add_argument("--fast-period", type=float, default=0.2, help="seconds between samples of the GPUs")
    parser.add_argument("--period", type=float, default=1.0, help="seconds between samples of host and processes")
    parser.add_argument("--slow-period", type=float, default=5.0, help="seconds between samples of what changes slowly")
    parser.add_argument("--nvml", choices=("auto", "off"), default="auto", help="off: never touch the GPU's driver")
    parser.add_argument("--root-pid", type=int, help="sample the tree of this process, which is no rank, too")
    parser.add_argument("--prometheus-port", type=int, help="serve the newest values at this port, at /metrics")
    parser.add_argument("--prometheus-host", default="127.0.0.1", help="address that it listens on")
    clock = parser.add_mutually_exclusive_group()
    clock.add_argument("--clock-serve", metavar="HOST:PORT", help="tell the other nodes this node's clock there")
    clock.add_argument("--clock-server", metavar="HOST:PORT", help="where the reference node tells its clock")
    options = parser.parse_args(argv)
    for name in ("clock_serve", "clock_server"):
        if getattr(options, name) is not None:
            try:
                setattr(options, name, parse_address(getattr(options, name)))
            except ValueError as error:
                parser.error(f"--{name.replace('_', '-')} {error}")
    for name in ("fast_period", "period", "slow_period"):
        if not 0.05 <= getattr(options, name) <= 60:
            option = f"--{name.replace('_', '-')}"
            parser.error(f"{option} {getattr(options, name)}: must be 0.05 to 60 seconds")
    if options.node < 0:
        parser.error(f"--node {options.node}: must be 0 or more")
    if options.root_pid is not None and options.root_pid <= 0:
        parser.error(f"--root-pid {options.root_pid}: must be the number of a process")
    if options.prometheus_port is not None and not 1 <= options.prometheus_port <= 65535:
        parser.error(f"--prometheus-port {options.prometheus_port}: must be 1 to 65535")
    return options


def open_stream(run: Path, options: argparse.Namespace) -> PackedStreamWriter:
    """The stream of this node's next free attempt, with its header. Raises StoreError."""
    node = options.node
    header = {
        "kind": "node",
        "node": node,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "schema_version": SCHEMA_VERSION,
        "agprof_version": __version__,
        "clock": read_clocks(),
        "period_s": options.period,
        "fast_period_s": options.fast_period,
        "slow_period_s": options.slow_period,
    }
    try:
        (run / layout.NODES).mkdir(parents=True, exist_ok=True)
        for attempt in range(MAX_ATTEMPTS):
            try:
                return PackedStreamWriter(layout.node_stream(run, node, attempt), header, FLUSH_PERIOD_S)
            except FileExistsError:
                continue
    except OSError as error:
        raise StoreError(f"{run} can't be written: {error.strerror or error}") from error
    raise StoreError(f"{run / layout.NODES} holds {MAX_ATTEMPTS} streams of node {node}: use a new run folder")


if __name__ == "__main__":
    sys.exit(main())
