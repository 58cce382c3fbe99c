"""Findings and verdict of a run, from its own measurements and from device traces."""

from dataclasses import replace

from agprof.analysis.evidence import Evidence
from agprof.analysis.findings import find_all, in_order
from agprof.analysis.identity import imported_from
from agprof.analysis.trace_findings import trace_findings
from agprof.analysis.trace_verdict import judge_trace
from agprof.analysis.verdict import judge
from agprof.model.answers import Finding, Verdict
from agprof.model.trace_answers import TraceAnswer

_OF_PHASES = ("data-wait", "other-large", "exposed-communication", "small-messages", "straggler")
"""Findings on the host's phases. Of an imported run these are guessed, and its device's time says the same better."""
_BEYOND_PHASES = ("trace-host-bound", "trace-exposed-copies", "trace-synchronisation", "trace-unclassified")
"""Findings that a run's own phases can't give."""


def conclude(evidence: Evidence, trace: TraceAnswer | None) -> tuple[tuple[Finding, ...], Verdict]:
    """All findings, and what the run is bound by.

    A run that agprof measured is judged by its steps, and what its traces add stands beside it; an imported one is
    judged by its device's time.
    """
    own = find_all(evidence)
    if trace is None or not trace.has_device:
        return own, judge(evidence, own)
    seen = trace_findings(trace)
    if imported_from(evidence.view) is None:
        verdict = judge(evidence, own)
        more = tuple(finding for finding in seen if finding.key in _BEYOND_PHASES)
        return in_order((*own, *more)), replace(verdict, evidence=(*verdict.evidence, trace.sentence))
    kept = tuple(finding for finding in own if finding.key not in _OF_PHASES)
    findings = in_order((*seen, *kept))
    return findings, judge_trace(trace, findings) or judge(evidence, findings)
