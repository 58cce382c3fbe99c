"""What the sampler costs: `scripts/overhead --sampler`. Its CPU time and memory, and nvitop's collector beside it.

Eight GPUs by the fake NVML of the tests (an H100's fields; a call of it takes about a microsecond, where a driver's may
take more) and eight rank trees of five processes each: a rank and four DataLoader workers, forks of a process that has
imported torch, so that their memory maps are those of real ranks. The sampler at its default tiers and nvitop's
ResourceMetricCollector, at its own interval of 1 s and at our fastest, 0.2 s, take turns before the same processes.
Read are a process's CPU clock over the turn, its start left out, and its highest resident set, its start included.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GPUS = 8
RANKS = 8
WORKERS = 4
WARM_UP_S = 4.0
GOAL_CPU_SHARE = 0.01
GOAL_RSS_MB = 40
HEADING = "## The sampler"

FARM = """
import json, os, sys, time
from pathlib import Path

run, ranks, workers = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
try:
    from torch.multiprocessing import _set_thread_name
except ImportError:
    _set_thread_name = lambda name: Path("/proc/self/comm").write_text(name)
from agprof.store import layout
from agprof.store.clocks import read_clocks
from agprof.store.writer import StreamWriter

def live(parent, busy_s, pause_s):
    while os.getppid() == parent:
        end = time.perf_counter() + busy_s
        while time.perf_counter() < end:
            pass
        time.sleep(pause_s)
    os._exit(0)

farm, pids = os.getpid(), []
for rank in range(ranks):
    pid = os.fork()
    if pid:
        pids.append(pid)
        continue
    me = os.getpid()
    clocks = read_clocks()
    StreamWriter(layout.rank_stream(run, rank), {"kind": "rank", "rank": rank, "pid": me, "node": 0, "clock": clocks})
    for _ in range(workers):
        if os.fork() == 0:
            _set_thread_name("pt_data_worker")
            live(me, 0.0005, 0.2)
    live(farm, 0.002, 0.1)
print(json.dumps(pids), flush=True)
sys.stdin.read()
"""

NVITOP = """
import json, sys
from nvitop import Device, HostProcess, ResourceMetricCollector

# It holds its roots weakly: kept here, or it forgets them and reads no process.
roots = [HostProcess(pid) for pid in json.loads(sys.argv[1])]
collector = ResourceMetricCollector(Device.all(), root_pids=json.loads(sys.argv[1]), interval=float(sys.argv[2]))
collector.start(tag="run")
sys.stdin.read()
print(json.dumps(sorted(collector.collect())))
"""


@dataclass(frozen=True, slots=True)
class Turn:
    """One measurement of one tool."""

    cpu_share: float
    """Of one core."""
    rss_mb: float
    note: str
    """What it has read meanwhile: a tool that reads nothing costs nothing."""
    load: float = 0.0
    """Load average of the machine at its end: what else runs there empties the caches between two samples."""


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool in one setting."""

    name: str
    every: str
    turn: Callable[[float], Turn]


@dataclass(frozen=True, slots=True)
class Line:
    """The turns of one tool, summed up."""

    name: str
    every: str
    cpu_share: float
    cpu_low: float
    cpu_high: float
    rss_mb: float
    note: str
    turns: int
    seconds: float
    loads: tuple[float, float] = (0.0, 0.0)
    """Lowest and highest of its turns."""

    def __str__(self) -> str:
        return (
            f"{self.name:16} {self.every:12} {self.cpu_share:6.2%} of a core "
            f"[{self.cpu_low:.2%}, {self.cpu_high:.2%}]  "
            f"{self.rss_mb:5.1f} MB  {self.turns} x {self.seconds:g} s  {self.note}"
        )


def measure(seconds: float, turns: int, nvitop: Path | None) -> list[Line]:
    """Let the tools take turns. `nvitop`: a folder where it is installed; None leaves it out."""
    with tempfile.TemporaryDirectory(prefix="agprof-overhead-") as name:
        folder = Path(name)
        run = folder / "run"
        (run / "ranks").mkdir(parents=True)
        with _ranks(run) as pids:
            environment = _fake_nvml(folder, pids)
            tools = [Tool("agprof.sampler", "0.2, 1, 5 s", lambda s: _sampler_turn(run, environment, s))]
            if nvitop is not None:
                for every_s in (1.0, 0.2):
                    path = f"{nvitop}:{environment.get('PYTHONPATH', '')}".rstrip(":")
                    there = environment | {"PYTHONPATH": path}
                    tools.append(Tool("nvitop collector", f"{every_s:g} s", _nvitop_turns(pids, every_s, there)))
            return _take_turns(tools, seconds, turns)


def _take_turns(tools: Sequence[Tool], seconds: float, turns: int) -> list[Line]:
    taken: dict[int, list[Turn]] = {number: [] for number in range(len(tools))}
    for _ in range(turns):
        for number, tool in enumerate(tools):
            taken[number].append(replace(tool.turn(seconds), load=os.getloadavg()[0]))
            last = taken[number][-1]
            figures = f"{last.cpu_share:.2%}, {last.rss_mb:.1f} MB, {last.note}, load {last.load:.1f}"
            print(f"  {tool.name} {tool.every}: {figures}", flush=True)
    lines = []
    for number, tool in enumerate(tools):
        shares = [turn.cpu_share for turn in taken[number]]
        lines.append(
            Line(
                name=tool.name,
                every=tool.every,
                cpu_share=statistics.median(shares),
                cpu_low=min(shares),
                cpu_high=max(shares),
                rss_mb=max(turn.rss_mb for turn in taken[number]),
                note=taken[number][-1].note,
                turns=turns,
                seconds=seconds,
                loads=(min(turn.load for turn in taken[number]), max(turn.load for turn in taken[number])),
            )
        )
        print(lines[-1], flush=True)
    return lines


@contextmanager
def _ranks(run: Path) -> Iterator[list[int]]:
    """The rank trees: the ranks' process ids."""
    argv = [sys.executable, "-c", FARM, str(run), str(RANKS), str(WORKERS)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "profiler")}
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as farm:
        assert farm.stdout is not None
        try:
            yield json.loads(farm.stdout.readline())
        finally:
            farm.kill()


def _fake_nvml(folder: Path, pids: Sequence[int]) -> dict[str, str]:
    """The environment in which NVML is the fake, with a rank on each GPU."""
    sys.path.insert(0, str(ROOT / "tests"))
    from fakes.nvml.build import FakeNvml  # type: ignore[import-not-found]
    from nvml_scenario import H100, Scenario  # type: ignore[import-not-found]

    compiler = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    if compiler is None:
        raise SystemExit("scripts/overhead --sampler compiles the tests' fake NVML: install gcc")
    scenario = Scenario(H100, gpus=GPUS)
    scenario.at(0, "*", power_instant_mw=650_000, utilization_percent=97, sm_clock_mhz=1755)
    scenario.at(0, "*", encoder_percent=0, decoder_percent=0, pcie_throughput_kib=10**6, compute_mode=0)
    scenario.grow(0, "*", field_138=20_000_000, field_139=20_000_000, field_197=10**9, field_198=10**9)
    for gpu, pid in enumerate(pids):
        scenario.process(gpu, pid, 60 * 2**30)
    found: dict[str, str] = scenario.environment(folder, FakeNvml(compiler, folder / "nvml").build())
    return os.environ | found | {"PYTHONPATH": str(ROOT / "profiler")}


def _sampler_turn(run: Path, environment: dict[str, str], seconds: float) -> Turn:
    argv = [sys.executable, "-m", "agprof.sampler", "--run-dir", str(run)]
    before = set((run / "nodes").glob("*"))
    with subprocess.Popen(argv, stdin=subprocess.PIPE, env=environment) as process:
        cpu_share, rss_mb = _watch(process, seconds)
        assert process.stdin is not None
        process.stdin.close()
        if process.wait(20) != 0:
            raise SystemExit(f"the sampler ended with {process.returncode}")
    (stream,) = set((run / "nodes").glob("*")) - before
    return Turn(cpu_share, rss_mb, _what_the_sampler_read(stream))


def _what_the_sampler_read(stream: Path) -> str:
    """Rows by table, and what a day of it takes on the disk. Raises SystemExit when it has not read what it should."""
    from agprof.store.frames import StreamFollower

    counts: dict[str, int] = {}
    times: list[int] = []
    for table, rows in StreamFollower(stream).poll():
        counts[table] = counts.get(table, 0) + len(rows)
        if table == "gpu_samples":
            times += [row[0] for row in rows]
        slowed = [row for row in rows if table == "sampler_state" and row[2] == "slowed" and row[1] != "process.pss"]
        if slowed:
            raise SystemExit(
                f"the sampler slowed itself down, so that its figures are not those of its tiers: {slowed}"
            )
    needed = ("host_samples", "process_samples", "core_samples", "gpu_samples", "gpu_states", "gpu_processes")
    missing = [table for table in needed if not counts.get(table)]
    if missing or len(times) < 2:
        raise SystemExit(f"the sampler wrote no rows of {missing or 'gpu_samples'}: its figures mean nothing")
    duration_s = (max(times) - min(times)) / 1e9
    per_day_mb = stream.stat().st_size / duration_s * 86400 / 1e6
    return f"{sum(counts.values()) / duration_s:.0f} rows/s, {per_day_mb:.0f} MB a day"


def _nvitop_turns(pids: Sequence[int], every_s: float, environment: dict[str, str]) -> Callable[[float], Turn]:
    def turn(seconds: float) -> Turn:
        argv = [sys.executable, "-c", NVITOP, json.dumps(list(pids)), str(every_s)]
        with subprocess.Popen(
            argv,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # What NVML does not support on these GPUs it explains at length.
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process:
            cpu_share, rss_mb = _watch(process, seconds)
            out, _ = process.communicate(timeout=60)
            metrics = json.loads(out)
        processes = {name.split("/")[1] for name in metrics if name.startswith("run/pid:")}
        gpus = {name.split("/")[1] for name in metrics if "gpu" in name.split("/")[1]}
        return Turn(cpu_share, rss_mb, f"{len(gpus)} GPUs, {len(processes)} processes")

    return turn


def _watch(process: "subprocess.Popen[bytes] | subprocess.Popen[str]", seconds: float) -> tuple[float, float]:
    """(share of one core over these seconds, highest resident set in MB) of a process that was just started."""
    time.sleep(WARM_UP_S)
    begin_ns, begin_cpu_ns = time.monotonic_ns(), _cpu_ns(process.pid)
    time.sleep(seconds)
    cpu_ns, passed_ns = _cpu_ns(process.pid) - begin_cpu_ns, time.monotonic_ns() - begin_ns
    status = Path(f"/proc/{process.pid}/status").read_text()
    peak_kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    return cpu_ns / passed_ns, peak_kib * 1024 / 2**20


def _cpu_ns(pid: int) -> int:
    """CPU time of all threads of another process, by its CPU clock (clock_getcpuclockid(3))."""
    return time.clock_gettime_ns((~pid << 3) | 2)


def install_nvitop(folder: Path) -> Path | None:
    """Install nvitop into a folder of its own; None when that does not work."""
    argv = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), "nvitop"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        print(f"nvitop is left out: it can't be installed: {done.stderr.strip()[-300:]}", flush=True)
        return None
    return folder


def section(lines: Sequence[Line], command: str) -> str:
    """The part of docs/overhead.md."""
    ours = lines[0]
    reached = ours.cpu_high < GOAL_CPU_SHARE and ours.rss_mb < GOAL_RSS_MB
    text = [
        HEADING,
        "",
        f"Measured by `{command}`: {GPUS} GPUs by the tests' fake NVML, {RANKS} rank trees of {WORKERS + 1} processes.",
        "A call of the fake takes about a microsecond; a driver's may take more. The tools took turns on "
        f"{len(os.sched_getaffinity(0))} cores with a load of {min(line.loads[0] for line in lines):.1f} to "
        f"{max(line.loads[1] for line in lines):.1f} by other work, which empties the caches between two samples.",
        f"Goal: less than {GOAL_CPU_SHARE:.0%} of one core and {GOAL_RSS_MB} MB. "
        f"{'Reached.' if reached else 'Not reached.'}",
        "",
        "| tool | every | CPU, of one core (median) | lowest to highest | peak RSS | turns | what it read |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    text += [
        f"| {line.name} | {line.every} | {line.cpu_share:.2%} | {line.cpu_low:.2%} – {line.cpu_high:.2%} "
        f"| {line.rss_mb:.1f} MB | {line.turns} x {line.seconds:g} s | {line.note} |"
        for line in lines
    ]
    if len(lines) > 1:
        text += [
            "",
            "nvitop is its `ResourceMetricCollector`, which keeps means and writes nothing; it reads the processes",
            f"on a GPU, {RANKS} here. The sampler reads all {RANKS * (WORKERS + 1)}, and writes each sample.",
        ]
    return "\n".join(text) + "\n"


def with_section(page: str, text: str) -> str:
    """The page with this section in place of the one that it has, or at its end."""
    begin = page.find(f"{HEADING}\n")
    if begin < 0:
        return f"{page.rstrip()}\n\n{text}"
    end = page.find("\n## ", begin)
    return page[:begin] + text + (page[end:] if end >= 0 else "")


def section_of(page: str) -> str:
    """This section of the page, '' when it has none."""
    begin = page.find(f"{HEADING}\n")
    end = page.find("\n## ", begin)
    return "" if begin < 0 else page[begin : end if end >= 0 else None].rstrip() + "\n"
