"""The section on compute: FLOPs three ways, utilisation, operations, modules, roofline."""

from agprof.model.compute_answers import ComputeAnswer, FlopsWay, OperationRow, RooflinePoint
from agprof.model.figure import Figure
from agprof.model.format import percent
from agprof_reports import compute_tables
from agprof_reports.charts.compute import modules
from agprof_reports.charts.flops import can_draw, flops_ways
from agprof_reports.charts.roofline import placed, roofline
from agprof_reports.compute_tables import device_ns, executed, of_roof
from agprof_reports.data import Card, Part, Section
from agprof_reports.figures import cards
from agprof_reports.text import clean, with_unit

KEY, TITLE = "compute", "Compute"


def section(found: ComputeAnswer, most_rows: int) -> Section:
    parts = (_ways(found), _utilisation(found), _operations(found), _modules(found, most_rows), _roofline(found))
    return Section(
        key=KEY,
        title=TITLE,
        sentence=found.sentence or "The modules were not profiled.",
        cards=_cards(found),
        lines=_lines(found),
        parts=tuple(part for part in parts if part is not None),
    )


def _cards(found: ComputeAnswer) -> tuple[Card, ...]:
    unpadded = found.tokens_per_second_without_padding
    again = found.executed_flops_per_step.value != found.flops_per_step.value
    return cards(
        ("params", "parameters", found.params, ""),
        ("trainable", "trainable", found.trainable_params, ""),
        ("forward", "forward", found.forward_flops_per_micro_step, "per micro-step"),
        ("step_flops", "per step", found.flops_per_step, "forward and backward"),
        *((("executed_flops", "executed per step", found.executed_flops_per_step, "recomputed too"),) if again else ()),
        ("rate", "rate", found.flops_per_second, "per rank"),
        ("tokens", "tokens", found.tokens_per_second, "all ranks, padding included"),
        *(
            (("tokens_unpadded", "tokens without padding", unpadded, "all ranks"),)
            if unpadded.value is not None
            else ()
        ),
    )


def _lines(found: ComputeAnswer) -> tuple[tuple[str, str], ...]:
    if found.profiled_step is None or not (found.modules or found.operations or found.ways):
        return ()
    micro = found.profiled_micro_steps
    over = "" if micro is None else f", over its {micro:,} micro-step{'' if micro == 1 else 's'}"
    lines = [("", f"Counted in step {found.profiled_step} on one rank{over}; the step is left out of statistics.")]
    unpadded = found.tokens_per_second_without_padding
    if found.tokens_per_second.value is not None and unpadded.value is None and unpadded.reason:
        lines.append(("", f"Tokens without padding are not known: {unpadded.reason}."))
    return tuple(lines)


def _ways(found: ComputeAnswer) -> Part | None:
    if not found.ways:
        return None
    drawn = can_draw(found.ways)
    return Part(
        key="compute-flops",
        title="FLOPs, three ways",
        sentence=_ways_sentence(found.ways),
        lines=tuple(("", f"{way.label}: {way.note}") for way in found.ways if way.note),
        charts=(flops_ways(found.ways),) if drawn else (),
        tables=() if drawn else (compute_tables.ways(found.ways),),
    )


def _ways_sentence(ways: tuple[FlopsWay, ...]) -> str:
    used = next((way for way in ways if way.used), None)
    if used is None or used.total.value is None:
        return "No way gave a figure that FLOP/s and MFU could be made of."
    words = f"{_first_up(used.label)}: {with_unit(used.total.value, 'FLOP')} a {used.scope} on a rank"
    forward, backward = used.forward.value, used.backward.value
    if forward and backward is not None:
        words += f", backward being {backward / forward:.3f} times forward"
    if used.recomputed.value:
        words += f"; {with_unit(used.recomputed.value, 'FLOP')} more are computed again"
    words += ". FLOP/s and MFU are made of it."
    others = [way for way in ways if not way.used and way.ratio_to_counted is not None]
    if others:
        told = "; ".join(f"{way.label} says {way.ratio_to_counted:.2f} times what was counted" for way in others)
        words += f" {_first_up(told)}."
    return words


def _first_up(text: str) -> str:
    return text[:1].upper() + text[1:]


def _utilisation(found: ComputeAnswer) -> Part | None:
    if not (found.utilisation or found.ceilings or found.peak_hint):
        return None
    known = any(_known(row.of_datasheet) or _known(row.of_achievable) for row in found.utilisation)
    tables = [compute_tables.utilisation(found.utilisation)] if known else []
    if found.ceilings:
        tables.append(compute_tables.ceilings(found.ceilings))
    return Part(
        key="compute-utilisation",
        title="Utilisation: MFU and HFU",
        sentence=_utilisation_sentence(found),
        lines=(("watch", found.peak_hint),) if found.peak_hint else (),
        tables=tuple(tables),
    )


def _known(figure: Figure) -> bool:
    return figure.value is not None


def _utilisation_sentence(found: ComputeAnswer) -> str:
    told: list[str] = []
    for row in found.utilisation:
        if row.key not in ("mfu_full", "hfu"):
            continue
        of = [
            f"{_percent(figure.value)} of {what}"
            for figure, what in ((row.of_datasheet, "the data sheet"), (row.of_achievable, "what the device achieved"))
            if figure.value is not None
        ]
        if of:
            told.append(f"{row.label} {'is' if not told else ''} {' and '.join(of)}".replace("  ", " "))
    if not told:
        return "No MFU and no HFU are given: a utilisation needs a ceiling of this very device."
    kind = f" in {found.dtype}" if found.dtype else ""
    return f"{'; '.join(told)}{kind}. Conventions differ: the table says what each counts."


def _percent(ratio: float) -> str:
    return percent(ratio).replace(" ", "\u00a0")


def _operations(found: ComputeAnswer) -> Part | None:
    if not found.operations:
        return None
    return Part(
        key="compute-operations",
        title="Operations",
        sentence=_operations_sentence(found.operations),
        tables=(compute_tables.operations(found.operations),),
    )


def _operations_sentence(rows: tuple[OperationRow, ...]) -> str:
    counted = [row for row in rows if row.flops > 0]
    if not counted:
        return "No operation with FLOPs was executed in the profile step."
    top = max(counted, key=lambda row: row.flops)
    words = f"Most FLOPs are {_code(top.kind)} in {top.in_pass}"
    if top.flops_share is not None:
        words += f", {_percent(top.flops_share)} of what was executed"
    other = sum(row.duration_ns or 0 for row in rows if not row.flops)
    whole = sum(row.duration_ns or 0 for row in rows)
    if whole and other:
        words += f"; operations that count no FLOPs take {_percent(other / whole)} of the device's time"
    return f"{words}."


def _modules(found: ComputeAnswer, most_rows: int) -> Part | None:
    if not found.modules:
        return None
    return Part(
        key="compute-modules",
        title="Modules",
        sentence=_modules_sentence(found),
        charts=(modules(found, most_rows),),
    )


def _modules_sentence(found: ComputeAnswer) -> str:
    above = {(row.root, row.parent) for row in found.modules}
    leaves = [row for row in found.modules if (row.root, row.path) not in above]
    roots = len({row.root for row in found.modules})
    words = f"{len(found.modules):,} modules{f' of {roots} models' if roots > 1 else ''}"
    timed = [row for row in leaves if device_ns(row)]
    if timed:
        top = max(timed, key=lambda row: device_ns(row) or 0)
        words += f"; of those without children {_code(top.path or top.type)} takes most time"
        if top.time_share is not None:
            words += f", {_percent(top.time_share)} of the device's"
        if top.of_ceiling is not None:
            words += f", at {_percent(top.of_ceiling)} of the ceiling"
    elif leaves:
        top = max(leaves, key=executed)
        words += f"; of those without children {_code(top.path or top.type)} has most FLOPs"
    return f"{words}."


def _roofline(found: ComputeAnswer) -> Part | None:
    if not found.roofline:
        return None
    drawn = bool(placed(found.roofline))
    return Part(
        key="compute-roofline",
        title="Roofline",
        sentence=_roofline_sentence(found.roofline),
        charts=(roofline(found),) if drawn else (),
        tables=() if drawn else (compute_tables.roofline(found.roofline),),
    )


def _roofline_sentence(points: tuple[RooflinePoint, ...]) -> str:
    known = [point for point in points if point.bound_by != "unknown"]
    if not known:
        return "Where the roof stands is not known, so that no group can be called bound by memory or by computing."
    memory = sum(point.bound_by == "memory" for point in known)
    words = f"{memory:,} of {len(known):,} groups of modules and passes are under the memory's roof"
    whole = sum(point.duration_ns or 0 for point in known)
    under = sum(point.duration_ns or 0 for point in known if point.bound_by == "memory")
    if whole:
        words += f", with {_percent(under / whole)} of their time"
    lost = [(reached, point) for point in known if (reached := of_roof(point)) is not None]
    if lost and whole:
        reached, point = max(lost, key=lambda pair: (1 - min(pair[0], 1)) * (pair[1].duration_ns or 0))
        words += f"; {_code(point.label)} in {point.in_pass} loses most: it reaches {_percent(reached)} of its roof"
    return f"{words}."


def _code(name: str) -> str:
    """A name inside a sentence: short, and without the mark that ends code."""
    return f"`{clean(name, 64).replace('`', chr(39))}`"
