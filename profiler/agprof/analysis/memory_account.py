"""What held a rank's memory between steps and at its highest: parts, and what they leave of the measured total."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args

import polars as pl

from agprof.analysis.identity import imported_from
from agprof.analysis.view import View
from agprof.model.figure import Figure, Source
from agprof.model.format import format_value, percent
from agprof.model.memory_answers import MemoryAccount, MemoryMoment, MemoryPart, Space
from agprof.model.zero import MODEL_STATES, Moment

PARTS = (
    "parameters", "gradients", "optimizer_states", "master_weights", "activations", "temporary", "buckets", "buffers",
    "kv_cache", "inputs", "context", "fragmentation",
)  # fmt: skip
"""In the order in which they are drawn; what another agprof knows more comes behind them."""
UNEXPLAINED = "unexplained"
TOTAL = "total"
MOMENTS: tuple[MemoryMoment, ...] = get_args(MemoryMoment)
SPACES: tuple[Space, ...] = get_args(Space)
INSTRUMENT = "memory account"
MAX_TEXT = 300
MAX_DETAILS = 20
MAX_BYTES = 2**53
"""Above it, sums of floats are no longer exact; no machine has as many."""

Formulas = Callable[[int, Moment, Space], Mapping[str, float]]
"""(rank, moment, space) -> bytes by part."""


def memory_accounts(view: View, formulas: Formulas) -> tuple[MemoryAccount, ...]:
    """One account per rank, moment and space, in this order: standing before peak before oom, device before host."""
    table = view.tables["memory_parts"].filter(pl.col("bytes").is_between(0, MAX_BYTES))
    accounts = []
    for key, rows in table.group_by("rank", "at", "space", maintain_order=True):
        rank, at, space = int(str(key[0])), str(key[1]), str(key[2])
        if at in MOMENTS and space in SPACES:
            # Of an account written twice (a restarted rank) the later one counts.
            latest = rows.filter(pl.col("step") == rows["step"][-1])
            accounts.append(_account(view, rank, at, space, latest, formulas))
    return tuple(sorted(accounts, key=lambda a: (a.rank, MOMENTS.index(a.at), SPACES.index(a.space))))


def _account(
    view: View, rank: int, at: MemoryMoment, space: Space, rows: pl.DataFrame, formulas: Formulas
) -> MemoryAccount:
    total_rows = rows.filter(pl.col("part") == TOTAL)
    sums = _sums(rows.filter(pl.col("part") != TOTAL))
    told = sum(sums[part]["bytes"] for part in sums)
    total = _total(total_rows, told)
    unexplained = int(total.value or 0) - told
    formula = _formula(view, rank, at, space, formulas)
    for part in MODEL_STATES:
        if formula.get(part, 0) >= 1 and part not in sums:
            method = "no tensor of this part was found"
            sums[part] = {"bytes": 0, "sources": ["measured"], "methods": [method], "details": {}}
    parts = [_part(name, sums[name], total.value, formula.get(name)) for name in sorted(sums, key=_order)]
    parts.append(
        MemoryPart(
            part=UNEXPLAINED,
            bytes=float(unexplained),
            share=_share(unexplained, total.value),
            source=total.source,
            method="the total less the parts",
            details=(),
            formula_bytes=None,
        )
    )
    return MemoryAccount(
        rank=rank,
        step=int(rows["step"][0]),
        at=at,
        space=space,
        total=total,
        parts=tuple(parts),
        unexplained_bytes=float(unexplained),
        held_by=held_by(view, rank, int(rows["step"][0])) if at == "peak" else "",
    )


def _sums(rows: pl.DataFrame) -> dict[str, dict[str, Any]]:
    sums: dict[str, dict[str, Any]] = {}
    for part, detail, size, source, method in rows.select("part", "detail", "bytes", "source", "method").iter_rows():
        if part == UNEXPLAINED:
            continue  # concluded here, never believed
        known = sums.setdefault(part[:MAX_TEXT], {"bytes": 0, "sources": [], "methods": [], "details": {}})
        known["bytes"] += size
        for key, value in (("sources", source), ("methods", method[:MAX_TEXT])):
            if value not in known[key]:
                known[key].append(value)
        known["details"][detail[:MAX_TEXT]] = known["details"].get(detail[:MAX_TEXT], 0) + size
    return sums


def _total(rows: pl.DataFrame, told: int) -> Figure:
    if not rows.height:
        method = "sum of the parts: no total was measured"
        return Figure(value=float(told), unit="bytes", source="modelled", n=1, method=method)
    value, method = rows.select("bytes", "method").row(-1)
    return Figure(value=float(value), unit="bytes", source="measured", n=1, method=method[:MAX_TEXT])


def _part(name: str, sums: Mapping[str, Any], total: float | None, formula: float | None) -> MemoryPart:
    details = sorted(sums["details"].items(), key=lambda item: (-item[1], item[0]))
    if [detail for detail, _ in details] == [""]:
        details = []
    source: Source = "measured" if sums["sources"] == ["measured"] else "modelled"
    return MemoryPart(
        part=name,
        bytes=float(sums["bytes"]),
        share=_share(sums["bytes"], total),
        source=source,
        method="; ".join(sums["methods"]),
        details=tuple((detail or "other", float(size)) for detail, size in details[:MAX_DETAILS]),
        formula_bytes=formula,
    )


def _share(value: float, total: float | None) -> float | None:
    return value / total if total else None


def _order(part: str) -> tuple[int, str]:
    return (PARTS.index(part) if part in PARTS else len(PARTS), part)


def _formula(view: View, rank: int, at: MemoryMoment, space: Space, formulas: Formulas) -> dict[str, float]:
    """Formulas of the moment; none for gradients where these are only partly there, as in a forward."""
    if at not in ("standing", "peak"):
        return {}
    standing = formulas(rank, "standing", space)
    if at == "standing":
        return dict(standing)
    phase = view.facts.get(rank, {}).get("memory.peak_phase")
    found = dict(formulas(rank, "update" if phase == "optimizer" else "backward", space))
    if phase not in ("optimizer", "backward") and standing.get("gradients") != found.get("gradients"):
        found.pop("gradients", None)
    return found


def held_by(view: View, rank: int, step: int) -> str:
    """`backward of step 4, in llama.layers.3.mlp`."""
    facts = view.facts.get(rank, {})
    phase, module = str(facts.get("memory.peak_phase") or ""), str(facts.get("memory.peak_module") or "")
    if not phase:
        return ""
    # What belongs to no phase is between them: making batches, or the loop's own work.
    place = f"{phase} of step {step}" if phase not in ("other", "outside") else f"step {step}, outside its phases"
    return f"{place}, in {module[:MAX_TEXT]}" if module else place


def account_sentence(accounts: tuple[MemoryAccount, ...]) -> str:
    """The highest peak in words: where it was, its largest parts, and what is unexplained."""
    peak = highest_peak(accounts)
    if peak is None or not peak.total.value:
        return ""
    what = "Tensors on the device" if peak.space == "device" else "Tensors"
    words = f"{what} peak at {format_value(peak.total.value, 'bytes')}"
    words += f" in {peak.held_by}" if peak.held_by else f" in step {peak.step}"
    words += f" (rank {peak.rank})"
    largest = sorted((p for p in peak.parts if p.part != UNEXPLAINED), key=lambda part: -part.bytes)
    named = [f"{p.part.replace('_', ' ')} {format_value(p.bytes, 'bytes')}" for p in largest if (p.share or 0) >= 0.02]
    if named:
        words += f": {', '.join(named[:5])}"
    return f"{words}; {percent(peak.unexplained_bytes / peak.total.value)} unexplained."


def highest_peak(accounts: tuple[MemoryAccount, ...]) -> MemoryAccount | None:
    """Of the device where there is one, else of the host."""
    peaks = [account for account in accounts if account.at == "peak" and account.total.value]
    on_device = [account for account in peaks if account.space == "device"]
    return max(on_device or peaks, key=lambda a: (a.total.value or 0.0, -a.rank), default=None)


def why_no_account(view: View) -> str:
    """Why there is none, and what to do."""
    return next(_reasons(view))


def _reasons(view: View) -> Iterator[str]:
    profile = _mapping(_mapping(view.run.manifest.get("workload")).get("profile"))
    step = profile.get("profile_step")
    faults = view.tables["faults"].filter(pl.col("instrument") == INSTRUMENT)
    if imported_from(view) is not None:
        yield "An imported trace holds no account of memory: run the job with `agprof run`."
    if faults.height:
        yield f"The memory account failed: {str(faults['error'][0])[:MAX_TEXT]}"
    if profile.get("level") in ("off", "light"):
        yield f"`profile.level: {profile['level']}` has no profile step; set it to `default`."
    if "profile_step" in profile and step is None:
        yield "`profile.profile_step` is null: no step is looked at closely; set it to a step that the run reaches."
    absent = view.fact("compute.profiler_absent")
    if absent:
        yield f"The profile step could not be looked at: {str(absent)[:MAX_TEXT]}."
    if isinstance(step, int) and not view.steps.filter(pl.col("step") >= step).height:
        yield f"The run ended before its profile step {step} did: run longer, or set `profile.profile_step` lower."
    yield "No account was recorded, as by an agprof that made none: run the job again."


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
