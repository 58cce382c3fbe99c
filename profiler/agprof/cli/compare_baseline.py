"""What `agprof compare --baseline` means: a name, a run folder, or the number of a side."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from agprof.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from agprof.analysis.compare_sides import ComparedSide


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The baseline that was asked for."""

    path: Path | None = None
    """A run folder that is a side of its own, the first; None: one of the sides given."""
    label: str | None = None
    given: Path | None = None
    """One of the run folders given."""
    number: int | None = None
    """Of a side, from 1."""

    def index(self, sides: "Sequence[ComparedSide]") -> int:
        """Which side it is. Raises ConfigError for a number that no side has."""
        if self.given is not None:
            place = self.given.resolve()
            of_run = (
                at for at, side in enumerate(sides) if any(run.view.run.path.resolve() == place for run in side.runs)
            )
            return next(of_run, 0)
        if self.number is None:
            return 0
        if not 1 <= self.number <= len(sides):
            raise ConfigError(f"--baseline {self.number}: there are sides 1 to {len(sides)}")
        return self.number - 1


def find_baseline(text: str | None, runs: Sequence[Path], groups: int, console: "Console") -> Wanted:
    """A name comes before a folder of that name, a folder before a number. Raises ConfigError, StoreError."""
    from agprof.cli.baseline import pick
    from agprof.store import baselines

    if text is None:
        return Wanted()
    folder = baselines.project(Path.cwd())
    known = baselines.read(folder)
    if text in known:
        path, moved = baselines.locate(known[text], folder)
        if moved:
            console.print(f"baseline {text}: its run was moved from {known[text].path} to {path}", markup=False)
        if any(run.resolve() == path.resolve() for run in runs):
            return Wanted(given=path)
        return Wanted(path=path, label=text)
    given = Path(text)
    if any(run.resolve() == given.resolve() for run in runs):
        return Wanted(given=given)
    if text.isdigit():
        return Wanted(number=int(text))
    if given.is_dir():
        return Wanted(path=given)
    if "/" in text:
        raise ConfigError(f"--baseline {text!r:.200}: there is no such folder")
    pick(known, text)
    return Wanted()
