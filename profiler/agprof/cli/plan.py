"""`agprof plan`."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from agprof.config.load import LoadedWorkload
    from agprof.model.answers import RunAnswers
    from agprof.model.plan_answers import PlanAnswer

BUDGET_S = 30.0
MIN_WIDTH = 120


def plan(
    workload: Annotated[str, typer.Argument(help="YAML file, or a bundled workload (see `agprof workloads`).")],
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a key of the file: dotted.key=value. Repeatable.", metavar="KEY=VALUE"),
    ] = None,
    run: Annotated[
        Path | None, typer.Option(help="Run folder to compare with; plan.json is written into it.", metavar="RUN")
    ] = None,
    device: Annotated[
        Literal["gpu", "cpu"] | None,
        typer.Option(help="What the job is planned for; the run's device, else gpu."),
    ] = None,
    ranks: Annotated[
        int | None, typer.Option(min=1, max=2**20, help="Ranks in all; those of the run, else of the file.")
    ] = None,
    budget: Annotated[
        float, typer.Option(min=0, max=86400, help="Seconds after which no further variant is begun.", metavar="S")
    ] = BUDGET_S,
    json_: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> int:
    """Say what a job will need before it runs.

    That is memory per rank and FLOPs per step. The model is built without data and without weights, and one micro-step
    of each kind is counted. A table shows the job as written and what changes with ZeRO's stage, offload, micro-batch,
    sequence length, activation checkpointing and LoRA, and which GPUs would hold it. With --run the plan stands beside
    what that run measured, also in its report. How a workload names its model: docs/plan.md.
    """
    import json

    from rich.console import Console

    from agprof.config.load import load_workload
    from agprof.model.plan_json import plan_to_dict

    loaded = load_workload(workload, sets or [])
    for note in loaded.notes:
        _say(f"note: {note}")
    console = Console(highlight=False)
    answers = _answers_of(run) if run is not None else None
    planned = make(loaded, device=device, ranks=ranks, budget_s=budget, answers=answers)
    if run is not None and answers is not None:
        planned = compared(planned, answers, run.resolve().name)
        write(planned, run)
    if json_:
        print(json.dumps(plan_to_dict(planned), indent=1, allow_nan=False))
    else:
        _print(planned, console)
    return 0


def make(
    loaded: "LoadedWorkload",
    *,
    device: Literal["gpu", "cpu"] | None = None,
    ranks: int | None = None,
    variants: bool = True,
    budget_s: float = BUDGET_S,
    answers: "RunAnswers | None" = None,
) -> "PlanAnswer":
    """The plan of a workload; `answers` are those of a run of it, `variants`: whether shapes are varied too.

    Raises ConfigError, LaunchError.
    """
    from agprof.analysis.plan import make_plan
    from agprof.analysis.plan_run import plan_of_run
    from agprof.cli.plan_progress import Progress
    from agprof.launch.meta import count_on_meta

    workload = loaded.workload
    if device is None:
        device = "cpu" if answers is not None and answers.memory.kind == "host" else "gpu"
    if ranks is None:
        ranks = answers.identity.world_size if answers is not None else None
    if workload.plan is None and answers is not None:
        return plan_of_run(workload.name, answers)
    with Progress() as progress:
        counted = count_on_meta(
            workload,
            base_dir=loaded.base_dir,
            device=device,
            ranks=ranks or workload.launch.ranks_per_node,
            variants=variants,
            budget_s=budget_s,
            say=progress.tell,
        )
    return make_plan(workload.name, counted.scenarios, device=device, notes=counted.notes)


def compared(planned: "PlanAnswer", answers: "RunAnswers", run: str) -> "PlanAnswer":
    """The plan with what the run measured beside it."""
    from dataclasses import replace

    from agprof.analysis.plan_predictions import predict

    return replace(planned, run=run, predictions=predict(planned, answers.compute, answers.memory.accounts))


def write(planned: "PlanAnswer", run: Path) -> None:
    """`plan.json` of a run folder. Raises StoreError."""
    import json

    from agprof.errors import StoreError
    from agprof.model.plan_json import plan_to_dict
    from agprof.store import layout

    text = json.dumps(plan_to_dict(planned), indent=1, allow_nan=False)
    unfinished = run / f".{layout.PLAN}.part"
    try:
        unfinished.write_text(text + "\n", encoding="utf-8")
        unfinished.replace(run / layout.PLAN)
    except OSError as error:
        raise StoreError(f"{run / layout.PLAN} can't be written: {error.strerror}") from error


def _answers_of(run: Path) -> "RunAnswers":
    from agprof.cli.report import analyse_folder

    return analyse_folder(run)


def _say(line: str) -> None:
    print(_printable(line), file=sys.stderr, flush=True)


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)


def _print(planned: "PlanAnswer", console: "Console") -> None:
    if console.width < MIN_WIDTH and not console.is_terminal:
        console.width = MIN_WIDTH  # a file is not 80 columns wide
    console.print(_printable(planned.sentence), markup=False, soft_wrap=True)
    console.print()
    if planned.micro_steps:
        console.print(_micro_steps(planned))
        console.print()
    console.print(_rows(planned))
    console.print()
    if planned.predictions:
        console.print(_predictions(planned))
        console.print()
    for note in (planned.margin_method, *planned.notes):
        console.print(f"note: {_printable(note)}", markup=False, soft_wrap=True, style="dim")


def _micro_steps(planned: "PlanAnswer") -> object:
    from agprof.model.format import format_value

    rows = [
        (
            kind.name,
            f"{kind.per_step:g}",
            format_value(kind.forward_flops, "FLOP"),
            format_value(kind.backward_flops, "FLOP"),
            format_value(kind.recomputed_flops, "FLOP"),
            format_value(kind.activation_bytes, "bytes"),
        )
        for kind in planned.micro_steps
    ]
    return _table(("micro-step", "per step", "forward", "backward", "recomputed", "activations"), rows)


def _rows(planned: "PlanAnswer") -> object:
    from agprof.model.format import format_value

    rows = []
    for row in (planned.as_written, *planned.rows):
        fits = ", ".join(str(size) for size in row.fits_gb[:1]) or f"over {planned.gpu_sizes_gb[-1]}"
        rows.append(
            (
                row.label,
                format_value(row.device_bytes, "bytes"),
                format_value(row.host_bytes, "bytes") if row.host_bytes else "–",
                f"{row.trainable_params:,}",
                format_value(flops, "FLOP") if (flops := row.forward_flops + row.backward_flops) else "–",
                format_value(row.recomputed_flops, "FLOP") if row.recomputed_flops else "–",
                fits,
            )
        )
    head = ("configuration", "device/rank", "host/rank", "trained", "FLOPs/step", "recomputed", "fits GB")
    return _table(head, rows)


def _predictions(planned: "PlanAnswer") -> object:
    from agprof.model.format import format_value

    rows = [
        (
            row.label,
            format_value(row.predicted, row.unit),
            format_value(row.measured, row.unit) if row.measured is not None else "–",
            f"{row.ratio:.3f}" if row.ratio is not None else "–",
        )
        for row in planned.predictions
    ]
    return _table((f"beside {planned.run}", "plan", "measured", "ratio"), rows)


def _table(head: Iterable[str], rows: Iterable[tuple[str, ...]]) -> object:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, name in enumerate(head):
        table.add_column(Text(_printable(name)), justify="right" if number else "left", no_wrap=bool(number))
    for row in rows:
        table.add_row(*(Text(_printable(cell)) for cell in row))
    return table
