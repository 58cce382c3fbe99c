"""`agprof baseline`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from agprof.store.baselines import Baseline


def baseline(
    action: Annotated[Literal["set", "list", "show", "rm"], typer.Argument(help="What to do.")],
    name: Annotated[str | None, typer.Argument(help="Name of the baseline.")] = None,
    run: Annotated[Path | None, typer.Argument(help="Run folder, for `set`.")] = None,
) -> None:
    """Name run folders that others are compared with.

    `agprof baseline set main RUN` names a run, `agprof compare NEW --baseline main` compares with it. `list` shows all,
    `show NAME` one, `rm NAME` forgets a name (never the run). They are kept in .agprof/baselines.json of the project:
    the nearest folder upwards with that file or a .git. Exit code 4 when a baseline's run is gone.
    """
    from agprof.errors import ConfigError
    from agprof.store import baselines

    folder = baselines.project(Path.cwd())
    known = baselines.read(folder)
    if action == "list":
        _print_all(known, folder)
        return
    if name is None:
        raise ConfigError(f"`agprof baseline {action}` needs the name of a baseline")
    if action == "set":
        if run is None:
            raise ConfigError(f"`agprof baseline set {name}` needs a run folder behind the name")
        made = baselines.make(name, run, folder)
        file = baselines.write(folder, {**known, name: made})
        before = f" (was {known[name].path})" if name in known and known[name].path != made.path else ""
        print(f"{name}: {made.path}{before}, kept in {file}")
        return
    found = pick(known, name)
    if action == "rm":
        baselines.write(folder, {key: value for key, value in known.items() if key != name})
        print(f"{name} is no baseline any more; its run stays where it is: {found.path}")
        return
    path, moved = baselines.locate(found, folder)
    print(f"{found.name}: {found.run_name}, set {_day(found.set_realtime_ns)}")
    print(f"{path}{f' (moved there from {found.path})' if moved else ''}")


def pick(known: "dict[str, Baseline]", name: str) -> "Baseline":
    """Raises ConfigError that names the ones there are."""
    from agprof.errors import ConfigError

    if name in known:
        return known[name]
    there = (
        f"there are {', '.join(sorted(known))}" if known else "there is none; `agprof baseline set NAME RUN` sets one"
    )
    raise ConfigError(f"there is no baseline {name!r:.80}; {there}")


def _print_all(known: "dict[str, Baseline]", folder: Path) -> None:
    from agprof.errors import StoreError
    from agprof.store import baselines

    if not known:
        print(f"no baselines in {folder}; `agprof baseline set NAME RUN` sets one")
    for name, found in sorted(known.items()):
        try:
            path, moved = baselines.locate(found, folder)
            state = f"{path}{', moved there' if moved else ''}"
        except StoreError:
            state = f"{found.path}, not there any more"
        print(f"{name:<20} {found.run_name:<24} set {_day(found.set_realtime_ns)}  {state}")


def _day(realtime_ns: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(realtime_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M UTC")
