"""`agprof run --sweep`: variants of a workload, one run after the other, and a table at the end."""

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from agprof.config.load import LoadedWorkload
    from agprof.config.sweep import Variant
    from agprof.model.answers import RunAnswers
    from agprof.model.figure import Figure
    from agprof.model.sweep import SweepRow, SweepRun, SweepTable

SWEEP_JSON = "sweep.json"
_MAX_NAME = 64
_MAX_SAME_SECOND = 1000
_WIDEST = 1000

Load = Callable[[Sequence[str]], "LoadedWorkload"]
RunOne = Callable[["LoadedWorkload", Path], int]


def sweep(load: Load, run_one: RunOne, sweeps: Sequence[str], out: Path, console: "Console") -> int:
    """Run all variants in a folder of their own and print the table; the first failure's exit code, or 0.

    `load` gets the `--set` options of a variant, `run_one` the workload and the folder for its run folder. A bad option
    is found before anything starts; afterwards a variant that fails does not keep the others from running. An
    interruption does: what has run is in the table.
    """
    from agprof.analysis.sweep import tabulate
    from agprof.config.sweep import variants

    keys, points = variants(sweeps)
    name = load(points[0].sets).workload.name
    loaded = [load([*point.sets, f"name={_name(name, point, number)}"]) for number, point in enumerate(points, start=1)]
    folder = make_folder(out, f"{name}-sweep")
    runs: list[SweepRun] = []
    stopped = False
    try:
        for number, (point, workload) in enumerate(zip(points, loaded, strict=True), start=1):
            if stopped:
                runs.append(not_started(point.values))
                continue
            settings = ", ".join(point.sets)
            print(f"sweep {number}/{len(points)}: {settings}", file=sys.stderr, flush=True)
            runs.append(run_into(folder, point.values, partial(run_one, workload, folder)))
            stopped = was_interrupted(runs[-1])
    finally:
        runs += [not_started(point.values) for point in points[len(runs) :]]
        table = tabulate(keys, runs)
        _write(table, folder)
        print_table(table, console)
        _print_path(folder, console)
    return next((run.exit_code for run in runs if run.exit_code), 0)


def dry_sweep(load: Load, print_plan: Callable[["LoadedWorkload"], object], sweeps: Sequence[str]) -> int:
    """Print the launch plan of each variant; nothing is started."""
    from agprof.config.sweep import variants

    _, points = variants(sweeps)
    for number, (point, workload) in enumerate([(point, load(point.sets)) for point in points], start=1):
        print(f"sweep {number}/{len(points)}: {', '.join(point.sets)}")
        print_plan(workload)
    return 0


def _name(base: str, point: "Variant", number: int) -> str:
    name = f"{base}-{point.label}"
    return name if len(name) <= _MAX_NAME else f"{base[: _MAX_NAME - 4]}-{number}"


def make_folder(out: Path, name: str) -> Path:
    """A new folder NAME-TIME for several runs. Raises LaunchError."""
    from agprof.errors import LaunchError
    from agprof.launch.folder import name_run

    base = name_run(name, time.time_ns())
    try:
        out.mkdir(parents=True, exist_ok=True)
        for attempt in range(_MAX_SAME_SECOND):
            folder = out.absolute() / (base if attempt == 0 else f"{base}-{attempt + 1}")
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            return folder
    except OSError as error:
        raise LaunchError(f"{out} can't be written: {error.strerror}; give another with --out DIR") from error
    raise LaunchError(f"{out} already holds {_MAX_SAME_SECOND} folders named {base}; give another --name")


def run_into(folder: Path, values: tuple[str, ...], start: Callable[[], int]) -> "SweepRun":
    """Start a run that makes its folder in `folder`; one that can't be started is a row of its own."""
    from agprof.errors import AgprofError
    from agprof.model.sweep import SweepRun

    before = set(folder.iterdir())
    problem = ""
    try:
        code = start()
    except AgprofError as error:
        code, problem = error.exit_code, str(error)
        print(f"error: {error}", file=sys.stderr, flush=True)
    new = sorted(path for path in folder.iterdir() if path not in before and path.is_dir())
    answers = _answers(new[0]) if new else None
    if answers is None and not problem:
        problem = "its report could not be written" if new else "it left no run folder"
    return SweepRun(values=values, exit_code=code, answers=answers, problem=problem)


def _answers(run: Path) -> "RunAnswers | None":
    from msgspec import MsgspecError

    from agprof.exporters import report_json
    from agprof.store import layout

    try:
        return report_json.decode((run / layout.REPORT_JSON).read_bytes())
    except (OSError, MsgspecError):
        return None


def not_started(values: tuple[str, ...]) -> "SweepRun":
    from agprof.model.sweep import SweepRun

    return SweepRun(values=values, exit_code=None, answers=None)


def was_interrupted(run: "SweepRun") -> bool:
    return run.answers is not None and run.answers.identity.status == "interrupted"


def _write(table: "SweepTable", folder: Path) -> None:
    from agprof.errors import StoreError
    from agprof.exporters import sweep_json

    try:
        (folder / SWEEP_JSON).write_bytes(sweep_json.encode(table))
    except OSError as error:
        raise StoreError(f"{folder / SWEEP_JSON} can't be written: {error.strerror}") from error


def print_table(table: "SweepTable", console: "Console") -> None:
    """The table, then its notes."""
    from rich.text import Text

    # Lines wider than the terminal rather than figures cut short; Text, because brackets in values are no markup.
    for line in [*table_lines(table, plain=not console.is_terminal or console.is_dumb_terminal), *table.notes]:
        console.print(Text(line), soft_wrap=True)


def table_lines(table: "SweepTable", *, plain: bool) -> list[str]:
    """One line per variant under a head; columns that no variant fills are left out. `plain`: Markdown."""
    import io

    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.MARKDOWN if plain else box.SIMPLE_HEAD)
    columns = [(title, cells) for title, cells in _columns(table.rows) if set(cells) != {_dash()}]
    for key in table.keys:
        drawn.add_column(Text(key.removeprefix("args.")))
    for title, _ in columns:
        drawn.add_column(title, justify="right")
    for index, row in enumerate(table.rows):
        drawn.add_row(*(Text(word) for word in (*row.values, *(cells[index] for _, cells in columns))))
    wide = Console(file=io.StringIO(), width=_WIDEST, color_system=None, force_terminal=False)
    with wide.capture() as captured:
        wide.print(drawn)
    return [line.rstrip() for line in captured.get().splitlines() if line.strip()]


def _dash() -> str:
    from agprof.model.format import DASH

    return DASH


def _columns(rows: Sequence["SweepRow"]) -> list[tuple[str, list[str]]]:
    from agprof.model.format import format_interval, format_value

    def value(figure: "Figure") -> str:
        return format_value(figure.value, figure.unit)

    def spread(figure: "Figure") -> str:
        return f"{value(figure)} {format_interval(figure)}".rstrip()

    energy = [value(row.energy_per_sample) for row in rows]
    return [
        ("step time", [spread(row.step_time) for row in rows]),
        ("FLOPs/step", [value(row.executed_flops) for row in rows]),
        ("comm/step", [value(row.communication_bytes) for row in rows]),
        ("exposed/step", [value(row.communication_exposed) for row in rows]),
        ("peak memory", [value(row.memory_peak) for row in rows]),
        ("samples/s", [value(row.samples_per_s).removesuffix(" samples/s") for row in rows]),
        ("tokens/s", [value(row.tokens_per_s).removesuffix(" tokens/s") for row in rows]),
        ("trained", [value(row.trainable_share) for row in rows]),
        ("optimizer", [value(row.optimizer_state) for row in rows]),
        *([("energy/sample", energy)] if any(word != _dash() for word in energy) else []),
        ("exit", ["not run" if row.exit_code is None else str(row.exit_code) for row in rows]),
    ]


def _print_path(folder: Path, console: "Console") -> None:
    from rich.text import Text

    console.print(Text(str(folder / SWEEP_JSON)), soft_wrap=True)
