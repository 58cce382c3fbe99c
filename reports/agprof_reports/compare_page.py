"""Answers of a comparison -> its page as plain data. Every section opens with its sentence."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from agprof.model.compare_answers import CompareAnswer, Quantity, Side, Waterfall
from agprof.model.format import percent
from agprof_reports import compare_kpis, compare_tables
from agprof_reports.charts.overlay import overlays
from agprof_reports.charts.scaling import scaling_charts
from agprof_reports.charts.waterfall import signed, waterfall
from agprof_reports.compare_data import Against, ComparePage, Fall, FallGroup, SideCard
from agprof_reports.compare_tables import labels_of
from agprof_reports.data import Section, Table
from agprof_reports.figures import SOURCES
from agprof_reports.tables import pairs

Verdict = Literal["better", "worse", "no change shown", "not tested"]

_COMPARABLE_MARKS = {"comparable": "good", "with reservations": "watch", "not comparable": "bad"}
_QUANTITIES: tuple[tuple[Quantity, str, str], ...] = (
    ("step time", "fall-step", "The difference of the step time, explained"),
    ("memory peak", "fall-memory", "Memory peak"),
    ("energy per step", "fall-energy", "Energy per step"),
)
_VERDICTS: tuple[tuple[Verdict, str], ...] = (
    ("better", "better"),
    ("worse", "worse"),
    ("no change shown", "with no change shown"),
    ("not tested", "not tested"),
)
_SCALING_KINDS = {
    "weak": "Weak scaling: each rank has the same batch, so that perfect is the same step time.",
    "strong": "Strong scaling: all ranks share the same batch, so that perfect is a step 1/n as long.",
    "neither": "The batch differs both per rank and over all ranks: efficiency compares throughput per rank.",
}


def build(answer: CompareAnswer, others: Sequence[CompareAnswer] = ()) -> ComparePage:
    """`others` are the same sides against other baselines, for the choice at the head of the page."""
    labels = labels_of(answer)
    gates_mark, gates_sentence = _gates_sentence(answer)
    drawn = overlays(answer.overlays, labels)
    return ComparePage(
        title=_title(answer),
        comparable=answer.comparable,
        comparable_mark=_COMPARABLE_MARKS[answer.comparable],
        reasons=answer.reasons,
        gates_sentence=gates_sentence,
        gates_mark=gates_mark,
        baseline_hint=_hint(answer, others),
        sides=tuple(_side(side, i) for i, side in enumerate(answer.sides)),
        against=tuple(_against(item) for item in (answer, *others)),
        fall_sections=tuple(
            (key, title)
            for quantity, key, title in _QUANTITIES
            if any(fall.quantity == quantity for item in (answer, *others) for fall in item.waterfalls)
        ),
        configuration_sentence=_configuration_sentence(answer),
        configuration=_configuration(answer, labels),
        scaling=_scaling(answer, labels),
        multiples=scaling_charts(answer.scaling, labels) if answer.scaling is not None else (),
        forecast=_forecast(answer),
        overlays=Section(
            key="overlays",
            title="Steps laid over one another",
            sentence=_overlay_sentence(answer),
            charts=(drawn,),
        )
        if drawn is not None
        else None,
        gates=Section(key="gates", title="Gates", sentence=gates_sentence, tables=(compare_tables.gates(answer.gates),))
        if answer.gates
        else None,
        methods=_methods(answer),
        agprof_version=answer.agprof_version,
    )


def _title(answer: CompareAnswer) -> str:
    candidates = [side.label for i, side in enumerate(answer.sides) if i != answer.baseline]
    baseline = answer.sides[answer.baseline].label
    if len(candidates) == 1:
        return f"{candidates[0]} against {baseline}"
    return f"{len(candidates)} candidates against {baseline}"


def _hint(answer: CompareAnswer, others: Sequence[CompareAnswer]) -> str:
    held = {answer.baseline, *(other.baseline for other in others)}
    if len(held) == len(answer.sides):
        return ""
    number = next(i for i in range(len(answer.sides)) if i not in held) + 1
    return f"To compare with another side: `agprof compare … --baseline {number}`, by its number here."


def _side(side: Side, index: int) -> SideCard:
    repeats = len(side.runs)
    facts = (
        ("setup", side.setup if side.setup != side.label else None),
        ("ranks", f"{side.ranks:,} on {side.nodes:,} node{'s' * (side.nodes != 1)}"),
        ("hosts", _some(side.hosts)),
        ("framework", side.framework),
        ("repeats" if repeats > 1 else "run", f"{repeats:,}: {_some(side.runs)}" if repeats > 1 else _some(side.runs)),
        ("steady steps", f"{side.steady_steps:,}"),
        ("status", side.status),
    )
    return SideCard(
        number=index + 1,
        label=side.label,
        facts=tuple((key, value) for key, value in facts if value),
        problems=side.problems,
    )


def _some(names: Sequence[str], most: int = 4) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest:,} more" if rest > 0 else "")


def _configuration_sentence(answer: CompareAnswer) -> str:
    counts = Counter(row.weight for row in answer.configuration)
    if not counts:
        return "The sides have the same configuration, environment, versions and hardware."
    words = {
        "breaks": ("changes what is computed", "change what is computed"),
        "matters": ("may matter without being meant", "may matter without being meant"),
        "expected": ("is what is compared", "are what is compared"),
        "harmless": ("is harmless", "are harmless"),
    }
    told = [
        f"{counts[weight]:,} {words[weight][counts[weight] > 1]}" for weight in compare_tables.WEIGHTS if counts[weight]
    ]
    whole = sum(counts.values())
    return f"{whole:,} key{'s differ' if whole > 1 else ' differs'}: {', '.join(told)}."


def _configuration(answer: CompareAnswer, labels: Sequence[str]) -> tuple[Table, ...]:
    weighty = [row for row in answer.configuration if row.weight != "harmless"]
    harmless = [row for row in answer.configuration if row.weight == "harmless"]
    made = []
    if weighty:
        made.append(compare_tables.configuration(weighty, labels, "table-configuration", "What differs"))
    if harmless:
        caption = f"{len(harmless):,} harmless difference{'s' * (len(harmless) > 1)}"
        made.append(compare_tables.configuration(harmless, labels, "table-harmless", caption))
    return tuple(made)


def _against(answer: CompareAnswer) -> Against:
    labels = labels_of(answer)
    key = f"b{answer.baseline + 1}"
    limit = percent(compare_kpis.reach(answer))
    return Against(
        key=key,
        baseline=answer.baseline,
        label=labels[answer.baseline],
        headline=answer.sentence,
        sentence=_changes_sentence(answer),
        kpis=compare_kpis.lines(answer),
        kpi_table=compare_kpis.changes_table(answer, f"table-changes-{key}"),
        axis_note=f"Line beneath a change: its 95 % interval on an axis from −{limit} to +{limit}; arrows go beyond.",
        falls=_falls(answer, key),
        moved=_moved(answer, key),
        moved_sentence=_moved_sentence(answer),
    )


def _changes_sentence(answer: CompareAnswer) -> str:
    verdicts = Counter(change.verdict for row in answer.kpis for change in row.changes if change is not None)
    if not verdicts:
        return "No figure was measured on both sides."
    told = ", ".join(f"{verdicts[verdict]:,} {words}" for verdict, words in _VERDICTS if verdicts[verdict])
    tests = {change.test for row in answer.kpis for change in row.changes if change is not None} - {"none"}
    how = f" Tested by {' and by '.join(sorted(tests))}." if tests else ""
    return f"Changes against {answer.sides[answer.baseline].label}: {told}.{how}"


def _falls(answer: CompareAnswer, key: str) -> tuple[FallGroup, ...]:
    groups = []
    for quantity, name, title in _QUANTITIES:
        found = [fall for fall in answer.waterfalls if fall.quantity == quantity]
        if found:
            falls = tuple(_fall(fall, answer, f"{name}-{key}-{fall.side + 1}") for fall in found)
            groups.append(FallGroup(key=name, title=title, sentence=_falls_sentence(found, answer), falls=falls))
    return tuple(groups)


def _fall(found: Waterfall, answer: CompareAnswer, key: str) -> Fall:
    names = (answer.sides[answer.baseline].label, answer.sides[found.side].label)
    return waterfall(found, key, f"From {names[0]} to {names[1]}", names)


def _falls_sentence(found: Sequence[Waterfall], answer: CompareAnswer) -> str:
    if len(found) == 1:
        return found[0].sentence
    farthest = max(found, key=lambda fall: abs(fall.candidate - fall.baseline))
    change = signed(farthest.candidate - farthest.baseline, farthest.unit)
    return f"Farthest of {len(found)}: {answer.sides[farthest.side].label}, {change}. {farthest.sentence}"


def _moved(answer: CompareAnswer, key: str) -> tuple[Table, ...]:
    if not answer.moved:
        return ()
    made = compare_tables.moved(answer.moved, labels_of(answer), f"table-moved-{key}", "What moved, largest first")
    return (made,)


def _moved_sentence(answer: CompareAnswer) -> str:
    if not answer.moved:
        return "No module, collective, kernel or range is known on both sides."
    first = max(answer.moved, key=lambda row: abs(row.change))
    where = f" of {answer.sides[first.side].label}" if len(answer.sides) > 2 else ""
    return f"Most moved the {first.kind} {first.name[:80]}{where}: {signed(first.change, first.unit)} a step."


def _scaling(answer: CompareAnswer, labels: Sequence[str]) -> Section | None:
    found = answer.scaling
    if found is None:
        return None
    return Section(
        key="scaling",
        title="Scaling and cost",
        sentence=found.sentence,
        lines=(("", f"{_SCALING_KINDS[found.kind]} Dotted: without any loss."),),
        tables=(compare_tables.scaling(found.points, labels),),
    )


def _forecast(answer: CompareAnswer) -> Section | None:
    found = answer.forecast
    if found is None:
        return None
    return Section(
        key="forecast",
        title="Forecast",
        sentence=found.sentence,
        lines=(("", found.basis),) if found.basis else (),
        tables=(compare_tables.forecast(found.rows),) if found.rows else (),
    )


def _overlay_sentence(answer: CompareAnswer) -> str:
    missing = [side.label for side, curves in zip(answer.sides, answer.overlays, strict=True) if not curves]
    words = "Every step is stretched to the same length; the height of a colour is the share of ranks in that phase."
    return f"{words} Without steady steps: {_some(missing)}." if missing else words


def _gates_sentence(answer: CompareAnswer) -> tuple[str, str]:
    """Mark and sentence; both empty without gates."""
    if not answer.gates:
        return "", ""
    failed = [gate.condition for gate in answer.gates if gate.passed is False]
    unknown = [gate.condition for gate in answer.gates if gate.passed is None]
    passed = len(answer.gates) - len(failed) - len(unknown)
    words = f"{passed:,} of {len(answer.gates):,} gate{'s' * (len(answer.gates) > 1)} pass"
    if failed:
        words += f"; not: {', '.join(f'`{item}`' for item in failed[:4])}"
    if unknown:
        words += f"; not measured: {', '.join(f'`{item}`' for item in unknown[:4])}"
    return "bad" if failed else "watch" if unknown else "good", f"{words}."


def _methods(answer: CompareAnswer) -> Section:
    methods = (*answer.methods, *((f"mark “{source}”", meaning) for source, meaning in SOURCES.items()))
    return Section(
        key="method",
        title="Method",
        sentence="How changes, intervals and parts are computed; every figure of this page is in compare.json.",
        tables=(pairs("table-methods", "How it is computed", methods, ("term", "method"), code=False),),
    )
