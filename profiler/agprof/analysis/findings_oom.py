"""The finding that memory ran out."""

from agprof.analysis.evidence import Evidence
from agprof.model.answers import Finding

CAUGHT = "out-of-memory-caught"


def out_of_memory(evidence: Evidence) -> Finding | None:
    """Memory ran out: the job ended by it, or the training caught the error and went on."""
    oom = evidence.memory.oom
    if oom is None:
        return None
    went_on = oom.caught > 0 and (evidence.view.run.outcome or {}).get("reason") == "finished"
    best = next((f"{change}: {gives}." for change, gives in oom.would_fit if "would not fit" not in gives), "")
    return Finding(
        key=CAUGHT if went_on else "out-of-memory",
        title=_title(oom.sentence),
        evidence=f"{oom.sentence}{f' {oom.error[:300]}' if oom.error and oom.certainty == 'known' else ''}",
        section="oom",
        saving_ns_per_step=None,
        confidence="measured" if oom.certainty == "known" else "rule of thumb",
        change=best or "Look at the account of that moment for what held most.",
        check="the run ends without it, and the highest rank's peak stays below the limit.",
    )


def _title(sentence: str) -> str:
    """The sentence up to its figures."""
    return sentence.partition(": ")[0].partition(". ")[0].rstrip(".")
