"""Each core of the host: how busy it was."""

from pathlib import Path

from agprof.sampler.cpu_times import CpuTimes, cores_of
from agprof.sampler.kernel_files import KernelFile
from agprof.sampler.states import Append, Probe, States, judge_system_error


class Cores:
    """Appends one row of `core_samples` per logical CPU and call. `root` is where /proc lies."""

    def __init__(self, append: Append, states: States, root: Path = Path("/")) -> None:
        self._append = append
        self._stat = KernelFile(root / "proc/stat")
        self._probe = Probe(states, "host.cores", judge_system_error)
        self._last_ns: int | None = None
        self._last: dict[int, CpuTimes] = {}

    def sample(self, now_ns: int) -> int:
        """Append the rows. Returns 0: no part of the time spent is on a budget of its own."""
        found = self._probe.read(now_ns, self._read)
        if found is None:
            self._last_ns, self._last = None, {}
            return 0
        period_ns = 0 if self._last_ns is None else now_ns - self._last_ns
        for core, times in found.items():
            last = self._last.get(core)
            shares = None if last is None else times.shares_since(last)
            self._append("core_samples", (now_ns, period_ns, core, None if shares is None else shares.busy))
        self._last_ns, self._last = now_ns, found
        return 0

    def _read(self) -> dict[int, CpuTimes]:
        return cores_of(self._stat.read())
