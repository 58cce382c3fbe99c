"""`agprof compare`."""

from collections.abc import Sequence
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agprof.errors import AgprofError, ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from agprof.analysis.compare_sides import ComparedRun, ComparedSide
    from agprof.model.compare_answers import CompareAnswer

EXIT_REGRESSION = 1
EXIT_NOT_COMPARABLE = 2
EXIT_FAULT = 3
"""Of everything that kept a comparison from being made: a wrong option, a folder that can't be read or written."""

COMPARE_JSON = "compare.json"
COMPARE_HTML = "compare.html"
_MOST_BASELINES = 6
"""Sides up to which the page can be read against each of them."""

_UsageError: type[Exception] = typer.BadParameter.__bases__[0]


class CommandLine(typer.core.TyperCommand):
    """A command line that can't be read is a fault (3) here: 2 says that the runs can't be compared."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except _UsageError as error:
            said = error.format_message() if hasattr(error, "format_message") else str(error)
            raise _as_fault(ConfigError(f"{said}\nsee: agprof compare --help")) from error


def compare(
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Run folders, 2 to 16 with those of --group and --baseline.")
    ] = None,
    groups: Annotated[
        list[str] | None,
        typer.Option("--group", metavar="NAME=RUN,RUN", help="Repeats of one setup as one side. Repeatable."),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="What to compare with: name of `agprof baseline`, run folder, or number of a side from 1."),
    ] = None,
    gates: Annotated[
        list[str] | None,
        typer.Option("--gate", metavar="CONDITION", help="As 'step_time<=+5%' or 'memory.peak<=2GiB'. Repeatable."),
    ] = None,
    markdown: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write a summary as Markdown; - is stdout.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for compare.html and compare.json.")] = Path("agprof-compare"),
    as_json: Annotated[bool, typer.Option("--json", help="Print compare.json in place of the summary.")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="No spinner.")] = False,
) -> int:
    """Compare runs and explain the difference.

    Says whether the runs are comparable, what changed by how much and how sure that is, and breaks the difference of
    the step time, the memory peak and the energy into parts that add up. Repeats of one setup (`agprof run --repeats`)
    are one side. Exit codes: 0 all gates pass, 1 one does not, 2 the runs can't be compared or what a gate bounds was
    not measured, 3 the comparison could not be made.
    """
    from rich.console import Console

    try:
        from agprof.analysis.compare_gates import read_gate

        conditions = [read_gate(text) for text in gates or ()]
        console = Console(stderr=True, highlight=False)
        quiet = plain or not console.is_terminal
        sides, first = read_sides(runs or (), groups or (), baseline, console, plain=quiet)
        with nullcontext() if quiet else console.status("comparing"):
            answer, others = _compared(sides, first, conditions)
            written = write_comparison(answer, out, others)
        _tell(answer, written, markdown, as_json=as_json)
    except AgprofError as error:
        raise _as_fault(error) from error.__cause__
    return exit_code(answer)


def _as_fault(error: AgprofError) -> AgprofError:
    error.exit_code = EXIT_FAULT
    return error


def exit_code(answer: "CompareAnswer") -> int:
    """0, 1 or 2; runs that can't be compared pass no gate, and what was not measured is no regression."""
    if answer.comparable == "not comparable":
        return EXIT_NOT_COMPARABLE
    if any(gate.passed is False for gate in answer.gates):
        return EXIT_REGRESSION
    return EXIT_NOT_COMPARABLE if any(gate.passed is None for gate in answer.gates) else 0


def compare_folders(runs: Sequence[Path], console: "Console", *, plain: bool, out: Path) -> "CompareAnswer":
    """Compare run folders, repeats of one setup as one side, and write compare.html and compare.json into `out`.

    Raises StoreError, ConfigError.
    """
    sides, first = read_sides(runs, (), None, console, plain=plain)
    with nullcontext() if plain else console.status("comparing"):
        answer, others = _compared(sides, first, ())
        write_comparison(answer, out, others)
    return answer


def _compared(
    sides: "Sequence[ComparedSide]", first: int, gates: Sequence[Any]
) -> "tuple[CompareAnswer, list[CompareAnswer]]":
    """The comparison; and the same sides compared with each of the others, for the page's selector, where few."""
    from agprof.analysis.compare import compare as compare_sides

    answer = compare_sides(sides, baseline=first, gates=gates)
    others = range(len(sides)) if len(sides) <= _MOST_BASELINES else ()
    return answer, [compare_sides(sides, baseline=at, overlays=answer.overlays) for at in others if at != first]


def read_sides(
    runs: Sequence[Path], groups: Sequence[str], baseline: str | None, console: "Console", *, plain: bool
) -> "tuple[list[ComparedSide], int]":
    """The sides in the order given, groups after single runs; and which of them is the baseline."""
    from agprof.analysis.compare_sides import ComparedSide, group_repeats, labels
    from agprof.cli.compare_baseline import find_baseline

    named = [_read_group(text) for text in groups]
    wanted = find_baseline(baseline, runs, len(named), console)
    folders = [*([wanted.path] if wanted.path is not None else []), *runs]
    status = nullcontext() if plain else console.status("reading runs")
    with status:
        loaded = [_load(folder, console) for folder in folders]
        of_groups = [(name, [_load(folder, console) for folder in some]) for name, some in named]
    apart = 1 if wanted.path is not None else 0
    repeats = group_repeats([run.view.run.manifest for run in loaded[apart:]])
    listed = [[run] for run in loaded[:apart]] + [[loaded[apart + at] for at in some] for some in repeats]
    words = labels([*listed, *(some for _, some in of_groups)])
    titles = [*words[: len(listed)], *(name for name, _ in of_groups)]
    if wanted.label is not None and apart:
        titles[0] = wanted.label
    sides = [
        ComparedSide(label=title, runs=tuple(some))
        for title, some in zip(_distinct(titles), [*listed, *(some for _, some in of_groups)], strict=True)
    ]
    return sides, wanted.index(sides)


def _distinct(titles: Sequence[str]) -> list[str]:
    """Titles with a number behind those that come again."""
    found: list[str] = []
    for title in titles:
        again = sum(other == title or other.startswith(f"{title} (") for other in found)
        found.append(f"{title} ({again + 1})" if again else title)
    return found


def _read_group(text: str) -> tuple[str, list[Path]]:
    name, equals, rest = text.partition("=")
    paths = [Path(part.strip()) for part in rest.split(",") if part.strip()]
    if not name.strip() or not equals or not paths:
        raise ConfigError(f"--group {text!r:.100} is no group: write NAME=RUN,RUN")
    return name.strip()[:60], paths


def _load(folder: Path, console: "Console") -> "ComparedRun":
    """Read and analyse a run folder. Raises StoreError."""
    from agprof.analysis.compare_sides import ComparedRun
    from agprof.analysis.view import prepare
    from agprof.cli.report import analyse_run, convert_captured
    from agprof.store.reader import read_run

    if folder.is_dir():
        convert_captured(folder, console, plain=True)
    run = read_run(folder)
    return ComparedRun(answers=analyse_run(run), view=prepare(run))


def write_comparison(answer: "CompareAnswer", out: Path, others: "Sequence[CompareAnswer]" = ()) -> Path:
    """Write compare.json and compare.html; returns the page. Raises StoreError when the folder can't be written."""
    from agprof.errors import StoreError
    from agprof.exporters import compare_json

    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / COMPARE_JSON).write_bytes(compare_json.encode(answer))
        try:
            render = import_module("agprof_reports.compare").render_compare
        except ModuleNotFoundError:
            return out / COMPARE_JSON
        (out / COMPARE_HTML).write_text(render(answer, others), encoding="utf-8")
    except OSError as error:
        raise StoreError(f"{out} can't be written: {error.strerror}; name another folder with --out") from error
    return out / COMPARE_HTML


def _tell(answer: "CompareAnswer", page: Path, markdown: str | None, *, as_json: bool) -> None:
    from agprof.errors import StoreError
    from agprof.exporters import compare_json
    from agprof.exporters.compare_markdown import markdown_summary

    text = markdown_summary(answer) if markdown is not None else ""
    if markdown is not None and markdown != "-":
        try:
            Path(markdown).write_text(text, encoding="utf-8")
        except OSError as error:
            raise StoreError(f"{markdown} can't be written: {error.strerror}") from error
    if as_json:
        print(compare_json.encode(answer).decode(), end="")
    elif markdown == "-":
        print(text, end="")
    else:
        _print(answer, page)


def _print(answer: "CompareAnswer", page: Path) -> None:
    from rich.console import Console
    from rich.text import Text

    from agprof.analysis.compare_summary import summary_lines

    console = Console(highlight=False)
    for line in summary_lines(answer, width=min(console.width, 100)):
        console.print(Text(line), soft_wrap=True)
    console.print(Text(str(page.absolute())), soft_wrap=True)
