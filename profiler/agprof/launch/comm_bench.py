"""Measured communication: starts the measurement on all ranks, here or on a setup's nodes, and keeps what it gave."""

import hashlib
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agprof.config.setup_choice import SetupJob
from agprof.config.setups import delay_ns, rate_bits_per_s
from agprof.errors import LaunchError
from agprof.launch import host
from agprof.launch.folder import write_json
from agprof.launch.interrupts import catching_signals
from agprof.launch.job import adopting_orphans, start_job
from agprof.launch.node_plan import INTERFACE_VARIABLES, NodeAddress, NodePlan
from agprof.launch.nodes import execute_nodes
from agprof.launch.peak import cpu_key
from agprof.launch.plan import LaunchPlan, without_launchers
from agprof.launch.site import open_site
from agprof.model.alpha_beta import fit_points
from agprof.model.comm_ceiling import COMM_CEILING_VERSION, CommCeiling, CommCurve, read_comm_ceiling, read_point
from agprof.store import layout

MODULE = "agprof.instruments.comm_bench"
LOOPBACK = "loopback"
MAX_FILE_BYTES = 2**20
MAX_KEPT = 200
"""Newest measurements that are copied into a run."""
_LOOK_S = 0.1
_MAX_LINE = 2**20
_SILENCE_S = 120.0
"""A measurement that says nothing for so long, and for as long as all of it was to take, hangs."""
_TORCHRUN = ("-P", "-m", "torch.distributed.run")
_ONCE = "--max-restarts=0"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is to be measured."""

    backend: str
    device: str
    """cpu | cuda"""
    ops: tuple[str, ...]
    most_bytes: int
    seconds: float
    quick: bool

    def argv(self) -> list[str]:
        """The module and its options, as torchrun takes them."""
        words = ["--backend", self.backend, "--device", self.device, "--ops", ",".join(self.ops)]
        words += ["--most-bytes", str(self.most_bytes), "--seconds", f"{self.seconds:g}"]
        return ["-m", MODULE, *words, *(["--quick"] * self.quick)]

    @property
    def silence_s(self) -> float:
        """After so long without a word it hangs: ranks that start on a busy machine take their time."""
        return _SILENCE_S + self.seconds


class Lines:
    """What rank 0 of the measurement said, followed in the launcher's log."""

    def __init__(self, log: Path, say: Say) -> None:
        self._log = log
        self._say = say
        self._rest = b""
        self._offset = 0
        self.result: dict[str, Any] | None = None
        self.error: str | None = None
        self.last = ""
        """The last line that is none of ours: a complaint, where it failed."""

    def look(self) -> bool:
        """Take what has come since; whether something has."""
        try:
            with self._log.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except OSError:
            return False
        self._offset += len(data)
        *lines, self._rest = (self._rest + data)[-_MAX_LINE:].split(b"\n")
        for line in lines:
            self._take(line)
        return bool(data)

    def _take(self, line: bytes) -> None:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            self.last = line.decode("utf-8", "replace").strip()[:300] or self.last
            return
        if not isinstance(value, dict):
            return
        if "doing" in value:
            self._say(f"{str(value['doing'])[:100]} ...")
        if "note" in value:
            self._say(f"note: {str(value['note'])[:200]}")
        if "error" in value:
            self.error = str(value["error"])[:300]
        if isinstance(value.get("result"), list):
            self.result = value


def measure_here(wish: Wish, ranks: int, *, environ: Mapping[str, str], python: str, say: Say) -> CommCeiling:
    """Measure between ranks of this machine. Raises LaunchError."""
    env = {**without_launchers(environ), "OMP_NUM_THREADS": "1"}
    argv = (python, *_TORCHRUN, _ONCE, "--standalone", f"--nproc-per-node={ranks}", *wish.argv())
    plan = LaunchPlan(
        launcher="torchrun", argv=argv, env=env, env_added={}, cwd=Path.cwd(), ranks=ranks, master_port=None,
        sampler_argv=None, sampler_period_s=1.0,
    )  # fmt: skip
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="agprof-comm-")))
        signals = stack.enter_context(catching_signals())
        stack.enter_context(adopting_orphans())
        job = start_job(plan, folder, stack)
        stack.callback(job.end_at_once)
        lines = Lines(layout.launcher_log(folder), say)
        heard_at = time.monotonic()
        while job.process.poll() is None:
            time.sleep(_LOOK_S)
            if lines.look():
                heard_at = time.monotonic()
            if signals.received:
                raise KeyboardInterrupt
            if time.monotonic() - heard_at > wish.silence_s:
                raise LaunchError(f"the measurement said nothing for {wish.silence_s:.0f} s and was ended")
        lines.look()
        code = job.process.returncode
    return _ceiling(lines, code, wish, nodes=1, setup=None, link=LOOPBACK)


def measure_on(job: SetupJob, base_dir: Path, wish: Wish, *, python: str, say: Say) -> CommCeiling:
    """Measure between the ranks of a setup's nodes. Raises LaunchError and ConfigError."""
    with ExitStack() as stack:
        site = stack.enter_context(open_site(job, base_dir))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="agprof-comm-")))
        plans = plan_bench(wish, site.nodes, job, folder, python=python, port=host.free_port())
        lines = Lines(layout.launcher_log(folder), say)

        def follow() -> None:
            lines.look()

        outcome = execute_nodes(plans, site.transport, folder, on_tick=follow)
        lines.look()
        if outcome.reason == "interrupted":
            raise KeyboardInterrupt
    emulate = job.setup.emulate
    rate = rate_bits_per_s(emulate.rate) if emulate is not None and emulate.rate is not None else None
    delay = delay_ns(emulate.delay) if emulate is not None and emulate.delay is not None else None
    return _ceiling(
        lines, outcome.exit_code, wish, nodes=len(plans), setup=job.name, link=site.link, rate=rate, delay=delay
    )


def plan_bench(
    wish: Wish, nodes: Sequence[NodeAddress], job: SetupJob, folder: Path, *, python: str, port: int
) -> tuple[NodePlan, ...]:
    """The measurement as the job of a setup's nodes. Pure."""
    plans = []
    first = 0
    for number, node in enumerate(nodes):
        env: dict[str, str | None] = {"OMP_NUM_THREADS": "1", **job.setup.env}
        if node.interface is not None:
            for name in INTERFACE_VARIABLES:
                env.setdefault(name, node.interface)
        options = [
            _ONCE, f"--nnodes={len(nodes)}", f"--node-rank={number}", f"--nproc-per-node={node.ranks}",
            "--rdzv-backend=static", f"--master-addr={nodes[0].address}", f"--master-port={port}",
            f"--local-addr={node.address}",
        ]  # fmt: skip
        plans.append(
            NodePlan(
                number=number,
                nodes=len(nodes),
                host=node.host,
                address=node.address,
                interface=node.interface,
                launcher="torchrun",
                argv=(python, *_TORCHRUN, *options, *wish.argv()),
                env=env,
                cwd=Path.cwd(),
                run_dir=folder,
                ranks=node.ranks,
                first_rank=first,
                world_size=sum(each.ranks for each in nodes),
                master_address=nodes[0].address,
                master_port=port,
                sampler_argv=None,
                lost_after_s=job.setup.lost_after_s,
            )
        )
        first += node.ranks
    return tuple(plans)


def _ceiling(
    lines: Lines,
    code: int | None,
    wish: Wish,
    *,
    nodes: int,
    setup: str | None,
    link: str,
    rate: int | None = None,
    delay: int | None = None,
) -> CommCeiling:
    found = lines.result
    if found is None or code != 0:
        why = lines.error or lines.last or f"it ended with exit code {code}"
        raise LaunchError(f"the measurement failed: {why}")
    curves = []
    for curve in found["result"]:
        points = tuple(read_point(point) for point in curve["points"])
        curves.append(
            CommCurve(
                op=curve["op"], group_size=curve["group_size"], nodes=nodes, points=points, fit=fit_points(points)
            )
        )
    if not curves:
        raise LaunchError(f"the measurement failed: {wish.backend} on {wish.device} did none of the operations")
    cuda = wish.device == "cuda"
    return CommCeiling(
        version=COMM_CEILING_VERSION,
        backend=wish.backend,
        device_type=wish.device,
        device_name=str(found["device"]) if cuda else host.cpu_model() or "CPU",
        ranks=int(found["ranks"]),
        nodes=nodes,
        setup=setup,
        link=link,
        measured_realtime_ns=time.time_ns(),
        torch_version=str(found["torch"]),
        curves=tuple(curves),
        rate_bits_per_s=rate,
        delay_ns=delay,
        quick=wish.quick,
    )


def gpu_count(environ: Mapping[str, str]) -> int:
    """GPUs that ranks of this machine may use, asked of the file system alone."""
    devices = [path for path in Path("/dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name)]
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    return len(devices) if visible is None else min(len(devices), len([word for word in visible.split(",") if word]))


def kept_dir(environ: Mapping[str, str]) -> Path:
    """The folder of the results: one file per backend, device, ranks, nodes and link."""
    return host.cache_dir(environ) / "comm"


def file_name(ceiling: CommCeiling) -> str:
    """Of a result: a measurement of the same kind takes the place of the one before."""
    link = hashlib.sha256(f"{ceiling.link}|{ceiling.device_name}".encode()).hexdigest()[:8]
    words = re.sub(r"[^A-Za-z0-9]+", "-", f"{ceiling.backend}-{ceiling.device_type}")[:40]
    return f"{words}-{ceiling.ranks}-ranks-{ceiling.nodes}-nodes-{link}-{cpu_key()}.json"


def keep(ceiling: CommCeiling, environ: Mapping[str, str]) -> Path:
    """Write the result into the cache. Operations that were not measured now stay as they were. Raises LaunchError."""
    path = kept_dir(environ) / file_name(ceiling)
    before = _read(path)
    value = ceiling.to_dict()
    if before is not None:
        now = {(curve.op, curve.group_size) for curve in ceiling.curves}
        stay = [curve for curve in before.to_dict()["curves"] if (curve["op"], curve["group_size"]) not in now]
        value["curves"] = [*value["curves"], *stay]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, value)
    except OSError as error:
        raise LaunchError(
            f"{path} can't be written: {error.strerror or error}; set AGPROF_CACHE to another folder"
        ) from error
    return path


def kept(environ: Mapping[str, str]) -> list[CommCeiling]:
    """What was measured from this machine, the newest first. Files that can't be read count as none."""
    files = sorted(kept_dir(environ).glob(f"*-{cpu_key()}.json"))
    found = [ceiling for file in files if (ceiling := _read(file)) is not None]
    return sorted(found, key=lambda ceiling: -ceiling.measured_realtime_ns)[:MAX_KEPT]


def _read(file: Path) -> CommCeiling | None:
    try:
        if file.is_file() and file.stat().st_size <= MAX_FILE_BYTES:
            return read_comm_ceiling(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        pass
    return None


def copy_into(run_dir: Path, environ: Mapping[str, str] = os.environ) -> None:
    """Write what was measured from this machine into the run folder; no file when nothing was."""
    ceilings = kept(environ)
    if not ceilings:
        return
    value = {"version": COMM_CEILING_VERSION, "ceilings": [ceiling.to_dict() for ceiling in ceilings]}
    try:
        write_json(run_dir / layout.COMM, value)
    except OSError as error:
        print(f"note: {run_dir / layout.COMM} can't be written: {error.strerror or error}", file=sys.stderr)
