"""The section on memory: the account that closes, the profile step, ZeRO's formulas, allocations, plan."""

from collections.abc import Sequence

from agprof.model.answers import TimeAnswer
from agprof.model.format import percent
from agprof.model.memory_answers import MemoryAccount, MemoryAnswer
from agprof_reports import memory_tables
from agprof_reports.charts.memory import memory_curves, memory_peaks
from agprof_reports.charts.memory_account import account_bars, chosen_ranks, drawn_accounts, size_of, waterfall
from agprof_reports.charts.memory_parts import word_of
from agprof_reports.charts.memory_step import step_memory, top_of
from agprof_reports.charts.memory_zero import zero_bars
from agprof_reports.charts.pieces import Span
from agprof_reports.data import Chart, Part, Section
from agprof_reports.tables import StepGroup
from agprof_reports.text import clean, with_unit

KEY, TITLE = "memory", "Memory"
_SMALL = 0.03
"""Share of a total below which a part is not named in a sentence."""
_NEAR = 0.1
"""A planned figure that is off by less is called near."""


def section(found: MemoryAnswer, time: TimeAnswer, groups: tuple[StepGroup, ...], run: Span) -> Section:
    parts = (_account(found), _step(found), _zero(found), _allocations(found), _plan(found))
    drawn: list[Chart] = []
    if any(curve.x_ns for curve in found.curves):
        drawn.extend(memory_curves(found, time, groups, run))
    if any(rank.peak.value is not None for rank in found.ranks):
        drawn.append(memory_peaks(found))
    lines = [("", found.account_hint)] if found.account_hint and not found.accounts else []
    if found.oom is not None:
        lines.insert(0, ("bad", "Memory ran out: see Out of memory, the first section below the verdict."))
    return Section(
        key=KEY,
        title=TITLE,
        sentence=found.sentence or "Memory was not measured.",
        lines=tuple(lines),
        charts=tuple(drawn),
        parts=tuple(part for part in parts if part is not None),
    )


_MOMENTS = {
    "standing": "between steps",
    "peak": "at its peak",
    "generation": "at the highest of its generation",
    "oom": "when memory ran out",
}


def highest(accounts: Sequence[MemoryAccount]) -> MemoryAccount | None:
    """The account with most: a peak before what stands, the device before the host."""
    order = ("standing", "generation", "oom", "peak")
    return max(
        accounts, key=lambda a: (a.space == "device", order.index(a.at), size_of(a), -a.rank), default=None
    )  # fmt: skip


def _account(found: MemoryAnswer) -> Part | None:
    accounts = [item for item in found.accounts if item.at != "oom" or found.oom is None]
    top = highest(accounts)
    if top is None:
        return None
    drawn = drawn_accounts(accounts)
    several = len(chosen_ranks(accounts)) > 1 or len(drawn) > 1
    return Part(
        key="memory-account",
        title="What holds it",
        sentence=account_sentence(top),
        lines=tuple(_notes(accounts)),
        charts=(account_bars("memory-account", accounts), waterfall("memory-waterfall", top)),
        tables=(memory_tables.parts("table-memory-parts", drawn),) if several else (),
    )


def account_sentence(account: MemoryAccount) -> str:
    """`Rank 1 at its peak holds 208 MiB: activations 60 %, ...; 2.9 % are unexplained. Held by ...`."""
    total = size_of(account)
    moment = _MOMENTS[account.at]
    words = f"Rank {account.rank} {moment} holds {with_unit(total, 'bytes')} on the {account.space}"
    if total > 0:
        known = sorted((p for p in account.parts if p.part != "unexplained"), key=lambda part: -part.bytes)
        told = [f"{word_of(p.part)} {_percent(p.bytes / total)}" for p in known if p.bytes / total >= _SMALL]
        if told:
            words += f": {', '.join(told)}"
        rest = account.unexplained_bytes
        if rest < 0:
            words += f"; the parts say {_percent(-rest / total)} more than was measured"
        else:
            words += f"; {_tiny(rest / total)} of it is unexplained"
    words += "."
    return f"{words} Held by {account.held_by}." if account.held_by else words


def _notes(accounts: Sequence[MemoryAccount]) -> list[tuple[str, str]]:
    peaks = [item for item in accounts if item.at == "peak" and size_of(item) > 0]
    if not peaks:
        return []
    worst = max(peaks, key=lambda a: abs(a.unexplained_bytes) / size_of(a))
    share = abs(worst.unexplained_bytes) / size_of(worst)
    which = "on the only account" if len(peaks) == 1 else f"on the worst of {len(peaks)} accounts, rank {worst.rank}"
    words = f"The accounts close to {_tiny(share)} of the peak {which}."
    return [("good" if share < 0.1 else "watch", words)]


def _step(found: MemoryAnswer) -> Part | None:
    known = [curve for curve in found.step_curves if curve.x_ns and top_of(curve) > 0]
    if not known:
        return None
    top = max(known, key=top_of)
    at = next(x for x, y in zip(top.x_ns, top.y, strict=True) if y == top_of(top))
    phase = next(
        (row.phase for row in found.step_phases if row.rank == top.rank and row.begin_ns <= at <= row.end_ns), ""
    )
    return Part(
        key="memory-profile-step",
        title="Over one step",
        sentence=f"In the profile step live tensors of {top.label} reach {with_unit(top_of(top), 'bytes')}, "
        f"{with_unit(float(at), 'ns')} after its begin{f', in {phase}' if phase else ''}.",
        charts=(step_memory(found),),
    )


def _zero(found: MemoryAnswer) -> Part | None:
    if not found.zero:
        return None
    return Part(
        key="memory-zero-part",
        title="By ZeRO's formulas",
        sentence=found.zero_sentence,
        charts=(zero_bars(found.zero),),
    )


def _allocations(found: MemoryAnswer) -> Part | None:
    rows = [row for row in found.allocations if row.at != "oom" or found.oom is None]
    if not rows:
        return None
    top = max(rows, key=lambda row: row.bytes)
    made = f", made by `{top.operation.replace('`', chr(39))[:64]}`" if top.operation else ""
    where = f" in `{top.module.replace('`', chr(39))[:64]}`" if top.module else ""
    return Part(
        key="memory-allocations",
        title="Largest tensors at the peak",
        sentence=f"The largest of {len(rows):,} tensors that were looked at has {with_unit(float(top.bytes), 'bytes')}"
        f"{made}{where}.",
        tables=(memory_tables.allocations("table-allocations", "Largest tensors at the peak", rows),),
    )


def _plan(found: MemoryAnswer) -> Part | None:
    if not found.predictions:
        return None
    known = [(row.ratio, row.label) for row in found.predictions if row.ratio and row.ratio > 0]
    sentence = "Nothing that was planned was measured."
    if known:
        near = sum(abs(ratio - 1) <= _NEAR for ratio, _ in known)
        ratio, name = max(known, key=lambda item: max(item[0], 1 / item[0]))
        sentence = (
            f"{near:,} of {len(known):,} planned figures are within {_percent(_NEAR)} of what was measured; the "
            f"furthest, {clean(name, 80)}, is {ratio:.2f} times it."
        )
    return Part(
        key="memory-plan",
        title="Plan against measurement",
        sentence=sentence,
        tables=(memory_tables.predictions(found.predictions),),
    )


def _tiny(ratio: float) -> str:
    """A share whose digits tell nothing when it is small."""
    return "less than 0.1\u00a0%" if 0 < ratio < 0.001 else _percent(ratio)


def _percent(ratio: float) -> str:
    return percent(ratio).replace(" ", "\u00a0")
