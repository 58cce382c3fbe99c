"""The report of one run: answers in, one self-contained HTML file out."""

import re
from dataclasses import replace
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from agprof.model.answers import RunAnswers
from agprof_reports import embed, trace
from agprof_reports.data import Most, Page
from agprof_reports.page import build
from agprof_reports.svg import bars_svg
from agprof_reports.text import clean

LIMIT_BYTES = 3_000_000
_TIMELINE = ("timeline_slices.js", "timeline_paint.js", "timeline.js")
_PERCENT = re.compile(r"(\d) %")
"""A number does not part from its sign."""
_SLICE_BYTES = 4
"""What a slice of a time line takes in the page, at least."""
_LEAST_SLICES = 3_000
_FEWER_STEPS, _FEWER_MODULES, _FEWER_POINTS, _LEAST_POINTS = 300, 150, 150, 60
"""Rows of the longest tables and points of GPUs' rows, in a page that would be too large."""


def render(answers: RunAnswers) -> bytes:
    """Return the report as one HTML file. The same answers give the same bytes.

    A page that would be too large carries fewer rows of its longest tables and fewer points of GPUs' curves, then fewer
    slices of the trace's time line, and says so.
    """
    timeline = answers.trace.timeline if answers.trace is not None else None
    slices = sum(len(lane.start_ns) for lane in timeline.lanes) if timeline is not None else 0
    most = Most()
    html = render_page(build(answers))
    if len(html) > LIMIT_BYTES:
        most = replace(most, steps=_FEWER_STEPS, modules=_FEWER_MODULES, points=_FEWER_POINTS)
        html = render_page(build(answers, most=most))
    if len(html) > LIMIT_BYTES and answers.system.curves:
        most = replace(most, points=_LEAST_POINTS)
        html = render_page(build(answers, most=most))
    while len(html) > LIMIT_BYTES and min(most.slices, slices) > _LEAST_SLICES:
        kept = min(most.slices, slices) - (len(html) - LIMIT_BYTES) // _SLICE_BYTES - 1
        most = replace(most, slices=max(kept, _LEAST_SLICES))
        html = render_page(build(answers, most=most))
    return html


def write(answers: RunAnswers, path: Path) -> None:
    """Write the report; a reader never sees half of it."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(render(answers))
    part.replace(path)


def render_page(page: Page) -> bytes:
    sections = (*page.urgent, *page.sections)
    parts = [part for section in sections for part in section.parts]
    has_traces = any(section.key == trace.KEY for section in sections)
    has_slices = any(part.slices for part in parts)
    script = "".join(embed.asset(name) for name in ("moments.js", "report.js", *(_TIMELINE if has_slices else ())))
    style = embed.asset("report.css") + (embed.asset("trace.css") if has_traces else "")
    plotly_packed, plotly_hash = embed.plotly()
    text = (
        environment()
        .get_template("run.html.j2")
        .render(
            page=page,
            policy=policy_of(script, plotly_hash),
            style=Markup(style),
            script=Markup(script),
            plotly=plotly_packed,
            has_charts=any(section.charts for section in sections) or any(part.charts for part in parts),
        )
    )
    return text.encode("utf-8", "replace")


def policy_of(script: str, plotly_hash: str) -> str:
    """The content security policy: this script and plotly run, nothing is asked for from anywhere."""
    return (
        f"default-src 'none'; script-src {embed.script_hash(script)} {plotly_hash}; style-src 'unsafe-inline'; "
        "img-src data:; connect-src 'none'; base-uri 'none'; form-action 'none'"
    )


def environment() -> Environment:
    """Templates of all pages: what is not our own markup is cleaned and escaped."""
    made = Environment(
        loader=PackageLoader("agprof_reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    made.filters["prose"] = _prose
    made.globals["bars_svg"] = bars_svg
    made.globals["payload"] = embed.payload
    made.globals["payload_bytes"] = embed.payload_bytes
    return made


def _shown(value: object) -> object:
    """Every text that is not our own markup is cleaned; escaping follows."""
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _prose(text: str) -> Markup:
    """Escape a sentence; what stands between backticks is code."""
    text = _PERCENT.sub("\\1\u00a0%", clean(text))
    pieces = text.split("`")
    if len(pieces) % 2 == 0:
        return escape(text)
    return Markup("").join(Markup("<code>{}</code>").format(p) if i % 2 else escape(p) for i, p in enumerate(pieces))
