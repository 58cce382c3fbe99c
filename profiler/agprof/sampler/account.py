"""What the sampler says about itself: its CPU time and memory, what each tier took of it, rows that were lost."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from agprof.sampler.loop import Clock
from agprof.sampler.states import SECOND_NS, Append

PERIOD_NS = 10 * SECOND_NS


@dataclass(slots=True)
class Account:
    """Appends a row `self` every 10 s."""

    append: Append
    lost_rows: Callable[[], int]
    costs_ns: Callable[[], Mapping[str, int]]
    """CPU time of each tier so far."""
    clock: Clock = field(default_factory=Clock)
    due_ns: int = 0
    _reported_lost: int = 0
    _last_ns: int = 0
    _last_costs_ns: Mapping[str, int] = field(default_factory=dict)

    def look(self) -> None:
        """Append a row when it is time."""
        now_ns = self.clock.monotonic_ns()
        if now_ns >= self.due_ns:
            self.due_ns = now_ns + PERIOD_NS
            self.write(now_ns)

    def write(self, now_ns: int) -> None:
        """Append a row now."""
        lost = self.lost_rows()
        if lost != self._reported_lost:
            reason = f"{lost - self._reported_lost} rows could not be written"
            self._reported_lost = lost
            self.append("sampler_state", (now_ns, "store", "retry", reason, None, None))
        cpu_ns, rss_bytes = self.clock.process_cpu_ns(), self.clock.resident_bytes()
        self.append("sampler_state", (now_ns, "self", "ok", self._shares(now_ns), cpu_ns, rss_bytes))

    def _shares(self, now_ns: int) -> str:
        """What each tier took since the row before, as `host.medium 0.2100 %, gpu.fast 0.3000 % of a core`."""
        costs_ns, elapsed_ns = self.costs_ns(), now_ns - self._last_ns
        before_ns, known = self._last_costs_ns, self._last_ns > 0 and elapsed_ns > 0
        self._last_ns, self._last_costs_ns = now_ns, costs_ns
        if not known or not costs_ns:
            return ""
        shares = {name: (cost_ns - before_ns.get(name, 0)) / elapsed_ns for name, cost_ns in costs_ns.items()}
        return ", ".join(f"{name} {100 * share:.4f} %" for name, share in shares.items()) + " of a core"
