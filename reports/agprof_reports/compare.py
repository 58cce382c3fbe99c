"""The page of a comparison: answers in, one self-contained HTML file out."""

from collections.abc import Sequence

from markupsafe import Markup

from agprof.model.compare_answers import CompareAnswer
from agprof_reports import embed
from agprof_reports.compare_page import build
from agprof_reports.fall_svg import fall_patterns, fall_row_svg, interval_svg
from agprof_reports.run import environment, policy_of

LIMIT_BYTES = 4_000_000


def render_compare(answer: CompareAnswer, others: Sequence[CompareAnswer] = ()) -> str:
    """Return the comparison as one HTML file. The same answers give the same text.

    `others` are comparisons of the same sides with other baselines, among which the reader may choose, without
    JavaScript too. Those that would make the file larger than 4 MB are left out.
    """
    kept = list(others)
    text = _render(answer, kept)
    while kept and len(text.encode("utf-8", "replace")) > LIMIT_BYTES:
        kept = kept[: len(kept) // 2]
        text = _render(answer, kept)
    return text


def _render(answer: CompareAnswer, others: Sequence[CompareAnswer]) -> str:
    page = build(answer, others)
    script = "".join(embed.asset(name) for name in ("moments.js", "report.js"))
    plotly_packed, plotly_hash = embed.plotly()
    has_charts = bool(page.multiples or page.overlays)
    templates = environment()
    templates.globals |= {
        "fall_patterns": fall_patterns,
        "fall_row_svg": fall_row_svg,
        "interval_svg": interval_svg,
    }
    return (
        templates.get_template("compare.html.j2")
        .render(
            page=page,
            policy=policy_of(script, plotly_hash),
            style=Markup(embed.asset("report.css") + embed.asset("compare.css")),
            script=Markup(script),
            plotly=plotly_packed,
            has_charts=has_charts,
        )
        .encode("utf-8", "replace")
        .decode()
    )
