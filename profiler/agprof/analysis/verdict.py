"""What the run is bound by, in one sentence, and how sure that is."""

from agprof.analysis.comm import describe
from agprof.analysis.evidence import Evidence
from agprof.analysis.time import PHASE_WORDS
from agprof.model.answers import Finding, Verdict
from agprof.model.format import format_interval, format_value, percent
from agprof.model.tables import PHASES

_NEXT = {
    "data": "Give the loader more workers.",
    "forward": "Look in the table of modules for what the forward spends its FLOPs on.",
    "backward": "Look in the table of modules for what needs a gradient, and in the settings for recomputation.",
    "communication": "Look in the table of collectives for calls that are many, small or unhidden.",
    "optimizer": "Look whether the optimizer runs fused, and where its states live.",
    "other": "Put agprof.range around what the loop does outside of its phases.",
}


def judge(evidence: Evidence, findings: tuple[Finding, ...]) -> Verdict:
    """The verdict: the straggler where one explains the waiting, else the largest part of the step."""
    if not evidence.mean_ns:
        return _unknown(evidence)
    straggler = evidence.straggler
    largest = max(PHASES, key=lambda phase: evidence.parts[phase])
    confidence_sentence = _confidence(evidence)
    # a dead rank comes before anything that is only slow
    first = next((f for f in findings if _leads(f)), None)
    step = format_value(evidence.mean_ns, "ns")
    rest = _others(evidence, largest)
    if straggler is not None and (largest == "communication" or straggler.lost_ns > 0.1 * evidence.mean_ns):
        lost = straggler.lost_ns
        return Verdict(
            bound_by="straggler",
            headline=(
                f"Bound by rank {straggler.rank}: the others wait {format_value(lost, 'ns')} of {step} a step "
                f"({percent(lost / evidence.mean_ns)}) for its {straggler.phase}."
            ),
            evidence=(
                f"Own work of rank {straggler.rank}: {format_value(straggler.own_ns, 'ns')} a step, "
                f"of the others: {format_value(straggler.others_ns, 'ns')}.",
                f"The largest part on all ranks is {PHASE_WORDS[largest]}: {percent(evidence.share(largest))}.",
            ),
            confidence="measured",
            confidence_sentence=confidence_sentence,
            next_step=first.change if first else "Look at that rank's CPU, clocks and input.",
        )
    return Verdict(
        bound_by=largest,  # type: ignore[arg-type]
        headline=_headline(evidence, largest, step),
        evidence=(*rest, *_inside(evidence, largest), *_nothing_found(findings)),
        confidence="measured",
        confidence_sentence=confidence_sentence,
        next_step=first.change if first else _NEXT[largest],
    )


def _headline(evidence: Evidence, phase: str, step: str) -> str:
    part, share = format_value(evidence.parts[phase], "ns"), percent(evidence.share(phase))
    if phase == "communication" and evidence.communication.rows:
        top = describe(evidence.communication.rows[0])
        return f"Bound by exposed communication: {part} of {step} a step ({share}) stand in collectives, mostly {top}."
    return f"Bound by {PHASE_WORDS[phase]}: {part} of {step} a step ({share})."


def _others(evidence: Evidence, largest: str) -> tuple[str, ...]:
    order = sorted((p for p in PHASES if p != largest), key=lambda phase: -evidence.parts[phase])
    words = [f"{PHASE_WORDS[phase]} {percent(evidence.share(phase))}" for phase in order if evidence.parts[phase] > 0]
    return (f"The rest of the step: {', '.join(words)}.",) if words else ()


def _leads(finding: Finding) -> bool:
    """Whether a finding is sure enough to be the next step: a rule of thumb is not."""
    if finding.key in ("out-of-memory", "rank-ended"):
        return True
    return finding.saving_ns_per_step is not None and finding.confidence != "rule of thumb"


def _inside(evidence: Evidence, phase: str) -> tuple[str, ...]:
    """The user's own ranges that take most of a compute-bound step."""
    if phase not in ("forward", "backward", "other"):
        return ()
    top = sorted(evidence.time.ranges, key=lambda row: -row.share)[:3]
    words = [f"`{row.name}` {percent(row.share)}" for row in top if row.share >= 0.02]
    return (f"Your own ranges that take most of a step: {', '.join(words)}.",) if words else ()


def _nothing_found(findings: tuple[Finding, ...]) -> tuple[str, ...]:
    return () if findings else ("Nothing stands out: no rule of this report found anything to change.",)


def _confidence(evidence: Evidence) -> str:
    figure, n = evidence.time.step_time, evidence.time.steady_steps
    interval = format_interval(figure)
    present, expected = len(evidence.view.ranks), evidence.view.run.manifest.get("ranks")
    ranks = f"{present} of {expected} ranks" if isinstance(expected, int) else f"{present} ranks"
    words = f"measured over {n} steady step{'' if n == 1 else 's'} of {ranks}, as means"
    if figure.value and figure.low is not None and figure.high is not None and n > 1:
        words += f"; the median step lies in {interval} {format_value(figure.value, 'ns').split()[-1]}"
        if (figure.high - figure.low) / figure.value > 0.1:
            words += ", a wide interval: more steps would say more"
    if n < 6:
        words += "; so few steps give a first impression only"
    return words[:1].upper() + words[1:] + "."


def _unknown(evidence: Evidence) -> Verdict:
    reason = evidence.time.step_time.reason or "steps have no duration"
    return Verdict(
        bound_by="unknown",
        headline=f"Nothing can be said about what bounds this run: {reason}.",
        evidence=(),
        confidence="rule of thumb",
        confidence_sentence="There is nothing to judge by.",
        next_step="Run more optimizer steps: three at least, twenty for a good interval.",
    )
