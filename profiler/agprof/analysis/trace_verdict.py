"""What device traces say about what a run is bound by."""

from collections import Counter

from agprof.analysis.trace_sentences import CAUSE_WORDS
from agprof.analysis.trace_shares import PARTS, Shares, shares_of, short_name, waiting
from agprof.model.answers import Finding, Verdict
from agprof.model.format import format_value, percent
from agprof.model.trace_answers import TraceAnswer

FEWEST_STEPS = 6
"""Of one rank: fewer give a first impression only, however many ranks there are."""
_NEXT = {
    "compute": "Look in the table of kernels for what takes most, and whether it runs in the precision you mean.",
    "communication": "Look in the table of collectives for what waits, and for calls that nothing hides.",
    "copies": "Look in the table of kernels for the copies that take most.",
    "launch": "Launch fewer and larger kernels: torch.compile, CUDA graphs, a fused optimizer, a larger micro-batch.",
    "kernel wait": "Look in the time line for kernels that wait for another stream.",
    "synchronisation": "Take .item(), .cpu() and synchronize() out of the step.",
    "data": "Give the loader more workers.",
}


def judge_trace(trace: TraceAnswer, findings: tuple[Finding, ...]) -> Verdict | None:
    """The verdict by the device's time; None when no rank's trace has a device.

    The straggler where one is named and the others wait for it a tenth of the time; else compute where it takes half
    of the time or more; else the largest of the other parts.
    """
    shares = shares_of(trace)
    if shares is None:
        return None
    late = _straggler(trace, shares)
    largest = _largest(shares)
    first = _first(findings, "trace-straggler" if late is not None else None)
    headline = late if late is not None else _headline(trace, shares, largest)
    return Verdict(
        bound_by="straggler" if late is not None else largest,  # type: ignore[arg-type]
        headline=headline,
        evidence=tuple(_evidence(trace, shares, largest, findings)),
        confidence="measured",
        confidence_sentence=_confidence(trace, shares),
        next_step=first.change if first is not None else _NEXT[largest],
    )


def _largest(shares: Shares) -> str:
    if shares.share("compute") >= 0.5:
        return "compute"
    others = [part for part in PARTS if part != "compute" and shares.parts_ns[part]]
    return max(others, key=lambda part: shares.parts_ns[part], default="compute")


def _first(findings: tuple[Finding, ...], key: str | None) -> Finding | None:
    """The finding to begin with: the one of that key, else the first that would save time and is no rule of thumb."""
    sure = [f for f in findings if f.saving_ns_per_step is not None and f.confidence != "rule of thumb"]
    return next((finding for finding in sure if key in (None, finding.key)), None)


def _headline(trace: TraceAnswer, shares: Shares, part: str) -> str:
    text = shares.text(part)
    if part == "compute":
        return f"Bound by compute: kernels run {text} on the device."
    if part == "communication":
        return f"Bound by exposed communication: the device does nothing else for {text}.{waiting(trace)}"
    if part == "copies":
        return f"Bound by copies: the device does nothing else for {text}{_top(trace, ('memcpy', 'memset'))}."
    if part == "launch":
        return f"Bound by the host: the device idles {text} because what comes next was not launched yet."
    if part == "kernel wait":
        return f"Bound by waits on the device: {text} pass after a launch returned with nothing running."
    if part == "synchronisation":
        return f"Bound by synchronisation: the device idles {text} while the host stands in a synchronising call."
    return f"Bound by waiting for data: the device idles {text} while the host stands in its data loader."


def _straggler(trace: TraceAnswer, shares: Shares) -> str | None:
    named = [row for row in trace.stragglers if row.is_straggler]
    if not named or shares.parts_ns["communication"] < 0.1 * shares.window_ns:
        return None
    waited = sum(row.caused_wait_ns for row in named)
    if waited < 0.1 * sum(row.window_ns for row in trace.windows):
        return None
    ranks = ", ".join(str(row.rank) for row in named)
    per_rank = format_value(waited / (len(trace.stragglers) - 1), "ns")
    words = f"they stand {per_rank} each in collectives that it enters last"
    return f"Bound by rank {ranks}: the others wait for it; {words}."


def _top(trace: TraceAnswer, kinds: tuple[str, ...]) -> str:
    row = next((row for row in trace.kernels if row.kind in kinds), None)
    return f", mostly `{short_name(row)}`" if row is not None else ""


def _evidence(trace: TraceAnswer, shares: Shares, largest: str, findings: tuple[Finding, ...]) -> list[str]:
    words = {"compute": "compute", "communication": "exposed communication", "copies": "exposed copies"}
    rest = sorted((part for part in PARTS if part != largest), key=lambda part: -shares.parts_ns[part])
    said = [
        f"{words.get(part, f'idle because {CAUSE_WORDS.get(part)}')} {percent(shares.share(part))}"
        for part in rest
        if shares.share(part) >= 0.001
    ]
    if shares.unknown_ns >= 0.001 * shares.window_ns:
        said.append(f"idle of unknown cause {percent(shares.unknown_ns / shares.window_ns)}")
    found = [f"The rest of the device's time: {', '.join(said)}."] if said else []
    computing = [row for row in trace.kernels if row.kind == "compute"][:2]
    if largest == "compute" and computing:
        top = ", ".join(f"`{short_name(row)}` {percent(row.share)}" for row in computing)
        found.append(f"The kernels that take most: {top}.")
    if not findings:
        found.append("Nothing stands out: no rule of this report found anything to change.")
    return found


def _confidence(trace: TraceAnswer, shares: Shares) -> str:
    ranks = len(trace.windows)
    where = f"{ranks:,} rank{'' if ranks == 1 else 's'}"
    if shares.unit == "window":
        return f"Measured on the device over the whole window of {where}. {trace.quality_sentence}"
    steps = max(Counter(row.rank for row in trace.steps).values())
    few = "; so few steps give a first impression only" if steps < FEWEST_STEPS else ""
    count = f"{steps:,} step{'' if steps == 1 else 's'} of {where}"
    return f"Measured on the device over {count}{few}. {trace.quality_sentence}"
