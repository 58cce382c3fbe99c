"""What `agprof run` shows while the job runs: a live table on a terminal, lines elsewhere.

Everything is read back from the run folder, as any other reader would: the display shows that data is arriving, and
costs the ranks nothing.
"""

import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from agprof.analysis.live import LiveRank
from agprof.errors import StoreError
from agprof.model.tables import PHASES
from agprof.store import layout
from agprof.store.frames import StreamFollower

PHASE_STYLES = {
    "data": "#CC79A7",
    "forward": "#56B4E9",
    "backward": "#0072B2",
    "communication": "#D55E00",
    "optimizer": "#009E73",
    "other": "#999999",
}
_INITIALS = {
    "data": "d", "forward": "f", "backward": "b", "communication": "c", "optimizer": "o", "other": "·",
}  # fmt: skip
BAR_WIDTH = 24
MAX_ROWS = 16
"""More ranks than this are summed up in one line."""


class RunFollower:
    """Follows the rank streams of a run folder."""

    def __init__(self, run: Path) -> None:
        self._folder = run / layout.RANKS
        self._followers: dict[Path, StreamFollower] = {}
        self.ranks: dict[int, LiveRank] = {}
        self.world_size = 0
        """The highest that a rank told; 0 before the first."""

    def poll(self) -> None:
        for path in sorted(self._folder.glob(f"*{layout.SUFFIX}")):
            self._followers.setdefault(path, StreamFollower(path))
        for path, follower in list(self._followers.items()):
            try:
                batches = list(follower.poll())
            except (StoreError, OSError):
                del self._followers[path]
                continue
            if follower.header is None:
                continue
            rank = int(follower.header.get("rank", 0))
            self.world_size = max(self.world_size, int(follower.header.get("world_size") or 1))
            live = self.ranks.setdefault(rank, LiveRank(rank))
            for table, rows in batches:
                live.fold(table, rows)


class Progress:
    """Call `tick` a few times a second; it redraws or prints when it is time. Use as a context manager."""

    def __init__(
        self,
        run: Path,
        *,
        console: Console,
        plain: bool,
        title: str,
        total_steps: int | None,
        expected_ranks: int | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._follower = RunFollower(run)
        self._console = console
        self._plain = plain
        self._title = title
        self._total = total_steps
        self._expected = expected_ranks
        self._clock = clock
        self._started = clock()
        self._next = 0.0
        self._printed_steps = -1
        self._live: Live | None = None

    def __enter__(self) -> "Progress":
        if self._plain:
            what = "the command" if self._expected is None else f"{self._expected} rank{'s' * (self._expected > 1)}"
            self._print(f"{self._title}: starting {what}")
        else:
            self._live = Live(self._render(), console=self._console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._follower.poll()
        if self._live is not None:
            self._live.stop()
        else:
            self._print_line()

    def tick(self) -> None:
        now = self._clock()
        if now < self._next:
            return
        self._next = now + (2.0 if self._plain else 0.5)
        self._follower.poll()
        if self._live is not None:
            self._live.update(self._render())
        else:
            self._print_line()

    def _expected_now(self) -> int:
        """Ranks that were asked for; of a command, as many as its own ranks say."""
        return self._follower.world_size if self._expected is None else self._expected

    # -- lines -----------------------------------------------------------------------------------------------------

    def _print_line(self) -> None:
        ranks = self._follower.ranks
        if not ranks:
            return
        steps = min(live.steps_done for live in ranks.values())
        if steps == self._printed_steps:
            return
        self._printed_steps = steps
        slowest = min(ranks.values(), key=lambda live: live.steps_per_s() or float("inf"))
        parts = [f"step {_of(steps, self._total)}"]
        if (rate := slowest.steps_per_s()) is not None:
            parts.append(f"{rate:.3g} steps/s")
        if (eta := slowest.eta_s(self._total)) is not None:
            parts.append(f"ETA {duration(eta)}")
        if slowest.loss is not None:
            parts.append(f"loss {slowest.loss:.4g}")
        if shares := slowest.shares():
            top = sorted(shares.items(), key=lambda item: -item[1])[:3]
            parts.append(", ".join(f"{phase} {share:.0%}" for phase, share in top))
        if (memory := _memory(slowest)) is not None:
            parts.append(memory)
        expected = self._expected_now()
        if len(ranks) < expected:
            parts.append(f"{len(ranks)} of {expected} ranks")
        self._print(" · ".join(parts))

    def _print(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=True)

    # -- live table ------------------------------------------------------------------------------------------------

    def _render(self) -> RenderableType:
        elapsed = duration(self._clock() - self._started)
        head = Text(f"{self._title} · {elapsed}", style="bold")
        ranks = [self._follower.ranks[rank] for rank in sorted(self._follower.ranks)]
        if not ranks:
            return Group(head, Text("waiting for the ranks to import torch; Ctrl-C ends the job and keeps the data"))
        table = Table(box=None, pad_edge=False, padding=(0, 1))
        for name, justify in (("rank", "right"), ("step", "right"), ("steps/s", "right"), ("ETA", "right"),
                              ("loss", "right"), ("memory", "right"), ("phases", "left")):  # fmt: skip
            table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
        for live in ranks[:MAX_ROWS]:
            rate, eta = live.steps_per_s(), live.eta_s(self._total)
            table.add_row(
                str(live.rank),
                _of(live.steps_done, self._total),
                "–" if rate is None else f"{rate:.3g}",
                "–" if eta is None else duration(eta),
                "–" if live.loss is None else f"{live.loss:.4g}",
                _memory(live) or "–",
                phase_bar(live.shares()),
            )
        parts: list[RenderableType] = [head, table]
        if len(ranks) > MAX_ROWS:
            parts.append(Text(f"and {len(ranks) - MAX_ROWS} more ranks"))
        expected = self._expected_now()
        if len(ranks) < expected:
            parts.append(Text(f"{len(ranks)} of {expected} ranks have begun"))
        parts.append(legend())
        return Group(*parts)


def phase_bar(shares: dict[str, float], width: int = BAR_WIDTH) -> Text:
    """A one-line bar of the phases; letters as well as colours tell them apart. Always `width` cells."""
    bar = Text()
    if not shares:
        return bar.append(" " * width)
    edge, used = 0.0, 0
    for phase in PHASES:
        edge += shares.get(phase, 0.0) * width
        cells = min(round(edge), width) - used
        bar.append(_INITIALS[phase] * cells, style=f"reverse {PHASE_STYLES[phase]}")
        used += cells
    return bar


def legend() -> Text:
    text = Text()
    for phase in PHASES:
        text.append(_INITIALS[phase], style=f"reverse {PHASE_STYLES[phase]}")
        text.append(f" {phase}  ", style="dim")
    return text


def _of(steps: int, total: int | None) -> str:
    """`3/20`; without the total when it is not known, or was said wrong: the job went on past it."""
    return str(steps) if total is None or steps > total else f"{steps}/{total}"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _memory(live: LiveRank) -> str | None:
    if live.allocated_bytes is not None:
        return f"{live.allocated_bytes / 2**30:.2f} GiB GPU"
    if live.rss_bytes is not None:
        return f"{live.rss_bytes / 2**30:.2f} GiB"
    return None
