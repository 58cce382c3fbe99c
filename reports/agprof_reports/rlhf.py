"""The section on reinforcement learning from human feedback. Only runs that generate and train on it have one."""

from agprof.model.answers import RlhfAnswer, RlhfFlaw, RlhfMetric
from agprof.model.figure import Figure
from agprof_reports import tables
from agprof_reports.charts.rlhf import iteration_bars
from agprof_reports.data import Card, Cell, Column, Section, Table
from agprof_reports.figures import shown, tip
from agprof_reports.text import with_unit

KEY, TITLE = "rlhf", "RLHF"
_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def section(found: RlhfAnswer) -> Section:
    shown_tables = [tables.rlhf_parts(found.parts)] if found.steady_iterations else []
    if found.metrics:
        shown_tables.append(metrics(found))
    return Section(
        key=KEY,
        title=TITLE,
        sentence=found.sentence,
        lines=tuple(("", note) for note in found.notes),
        cards=_cards(found),
        charts=(iteration_bars(found),) if found.ranks else (),
        tables=tuple(shown_tables),
    )


def _cards(found: RlhfAnswer) -> tuple[Card, ...]:
    generation = found.generation
    peaks = {part.name: part.memory_peak for part in found.parts}
    items: list[tuple[str, str, Figure, str]] = [
        ("iteration", "iteration", found.iteration_time, "median, slowest rank"),
        ("generation", "generation", generation.tokens_per_second, "all ranks"),
        ("latency", "latency per token", generation.latency_per_token, "of each sequence"),
        ("batch", "batch", generation.batch, "sequences per call and rank"),
        ("prompt", "prompt", generation.prompt_tokens, "tokens, padded"),
        ("answer", "answer", generation.new_tokens, "tokens per sequence"),
    ]
    for name in ("actor", "critic"):
        if f"train/{name}" in peaks:
            items.append((f"memory_{name}", f"memory, train {name}", peaks[f"train/{name}"], "highest rank"))
    return tuple(Card(key=key, label=label, shown=shown(figure), note=note) for key, label, figure, note in items)


def metrics(found: RlhfAnswer) -> Table:
    """Upstream's printed metrics beside the corrected ones; flaws as footnotes."""
    columns = (
        Column(label="DeepSpeed-Chat's metric", numeric=False),
        Column(label="as printed upstream", tip="by the formulas of DeepSpeed-Chat's own script"),
        Column(label="corrected"),
    )
    return Table(
        key="table-rlhf-metrics",
        caption="Printed metrics of DeepSpeed-Chat, as printed upstream and corrected",
        columns=columns,
        rows=tuple(_row(metric, found.flaws) for metric in found.metrics),
        note="\n".join(_footnote(flaw) for flaw in found.flaws),
    )


def _row(metric: RlhfMetric, flaws: tuple[RlhfFlaw, ...]) -> tuple[str | Cell, ...]:
    here = {flaw.number for flaw in flaws if flaw.applies}
    marks = " ".join(str(number) for number in metric.flaws if number in here).translate(_SUPERSCRIPTS)
    upstream = _cell(metric.upstream)
    text = f"{upstream.text} {marks}" if marks and metric.upstream.value is not None else upstream.text
    return metric.label, Cell(text, upstream.tip, value=upstream.value), _cell(metric.corrected)


def _cell(figure: Figure) -> Cell:
    return Cell(with_unit(figure.value, figure.unit), tip(figure), value=figure.value)


def _footnote(flaw: RlhfFlaw) -> str:
    number = str(flaw.number).translate(_SUPERSCRIPTS)
    here = "Changes figures of this run." if flaw.applies else "Changes no figure of this run."
    return f"{number} {flaw.title[:1].upper()}{flaw.title[1:]}. {flaw.explanation} {here}"
