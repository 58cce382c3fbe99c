"""`agprof forecast`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from agprof.model.compare_answers import ForecastAnswer
    from agprof.model.figure import Figure
    from agprof.store.reader import Run


def forecast(
    run: Annotated[Path, typer.Argument(help="Run folder to forecast from.")],
    checks: Annotated[
        list[Path] | None, typer.Argument(help="More runs of the same job, to hold the model against.")
    ] = None,
    nodes: Annotated[
        int | None, typer.Option(min=1, max=65536, help="Nodes; as in the run when left out.", metavar="N")
    ] = None,
    ranks_per_node: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Ranks of each node; as in the run when left out.", metavar="N")
    ] = None,
    rate: Annotated[
        str | None, typer.Option(help="Rate of each node's link, each way: 200mbit, 10gbit.", metavar="RATE")
    ] = None,
    delay: Annotated[str | None, typer.Option(help="Delay of the link, one way: 1ms.", metavar="DELAY")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")] = False,
) -> int:
    """Predict the step time on other nodes and links.

    From a measured run: its compute stays, its communication is computed anew by latency and bandwidth, fitted to
    `agprof bench-comm` over the same link where the run has it, else to the run's own collectives. Ranks keep the work
    that each has. The model and what it leaves out: docs/forecast.md.
    """
    import json
    from dataclasses import asdict

    from agprof.analysis.compare_sides import group_repeats
    from agprof.analysis.forecast import forecast_sides
    from agprof.analysis.view import prepare
    from agprof.config.setups import delay_ns, rate_bits_per_s
    from agprof.errors import ConfigError, StoreError
    from agprof.model.forecast_answers import ForecastTarget
    from agprof.store.reader import read_run

    try:
        target = ForecastTarget(
            nodes=nodes,
            ranks_per_node=ranks_per_node,
            rate_bits_per_s=rate_bits_per_s(rate) if rate is not None else None,
            delay_ns=delay_ns(delay) if delay is not None else None,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None
    asked = target != ForecastTarget()
    if not asked and not checks:
        raise ConfigError("say what to forecast: --nodes, --ranks-per-node, --rate or --delay, or a second run")
    found = [read_run(folder) for folder in (run, *(checks or ()))]
    groups = group_repeats([each.manifest for each in found])
    sides = [(_label(found[group[0]], len(group)), [prepare(found[at]) for at in group]) for group in groups]
    answer = forecast_sides(sides, target if asked else None)
    if answer is None:
        raise StoreError(f"{run} has no steady step to forecast from")
    if as_json:
        print(json.dumps(asdict(answer), indent=2))
    else:
        print("\n".join(lines(answer)))
    return 0


def _label(run: "Run", repeats: int) -> str:
    setup = run.manifest.get("setup")
    name = setup[:60] if isinstance(setup, str) and setup else run.path.resolve().name
    return name if repeats == 1 else f"{name} ({repeats} repeats)"


def lines(answer: "ForecastAnswer") -> list[str]:
    """The answer as text."""
    found = [f"from {answer.basis}"]
    for row in answer.rows:
        text = f"  {row.label}, {row.link}: {_span(row.predicted)}"
        if row.measured is not None and row.measured.value and row.predicted.value is not None:
            off = row.predicted.value / row.measured.value - 1
            text += f"; measured {_span(row.measured)}: {off:+.1%}"
        found.append(text)
    clean = ["".join(char if char.isprintable() else "?" for char in line) for line in found]
    return [*clean, answer.sentence]


def _span(figure: "Figure") -> str:
    from agprof.model.format import format_value

    if figure.value is None:
        return f"not known: {figure.reason}"
    text = format_value(figure.value, "ns")
    if figure.low is None or figure.high is None:
        return text
    return f"{text} [{format_value(figure.low, 'ns')}, {format_value(figure.high, 'ns')}]"
