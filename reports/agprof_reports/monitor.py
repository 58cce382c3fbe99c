"""The page of a run without ranks and steps, as `agprof monitor` makes it: what was sampled, nothing that is empty."""

from dataclasses import replace

from agprof.model.answers import RunAnswers
from agprof_reports import energy, system
from agprof_reports.charts.pieces import AXIS_TITLE
from agprof_reports.data import Card, Chart, Page, Section
from agprof_reports.figures import card

_KEPT = (system.KEY, energy.KEY, "configuration", "quality")
_AXIS_TITLE = "time, s"


def is_monitored(answers: RunAnswers) -> bool:
    """Nothing of a training is there, and none was started: no rank was asked for."""
    if answers.identity.kind == "command":
        return True
    wanted = answers.identity.world_size or answers.quality.ranks_expected
    return not (wanted or answers.ranks or answers.time.steps or answers.trace is not None)


def without_steps(page: Page, answers: RunAnswers) -> Page:
    """The page with what the sampler saw first; the rest of it is left as it is."""
    known = [section for section in page.sections if section.key in _KEPT]
    verdict, is_command = answers.verdict, answers.identity.kind == "command"
    given = answers.kpis if is_command else answers.system.figures
    figures = [card(kpi) for kpi in given if kpi.figure.value is not None]
    seen = (answers.system.sentence, *((answers.energy.sentence,) if answers.energy is not None else ()))
    spent = next((section.cards for section in known if section.key == energy.KEY), ())
    return replace(
        page,
        first_title="Summary",
        bound_by="",
        bound_word="",
        headline=verdict.headline if is_command else answers.system.sentence or page.headline,
        evidence=(*verdict.evidence, *filter(None, seen)) if is_command else seen[1:],
        confidence_sentence=verdict.confidence_sentence if is_command else "",
        next_step=verdict.next_step if is_command else "",
        findings_sentence=page.findings_sentence if page.findings else "",
        kpis=(*figures, *_spent(spent)),
        kpis_sentence="",
        sections=tuple(_renamed(section) for section in known),
        per="in the run",
    )


def _spent(cards: tuple[Card, ...]) -> tuple[Card, ...]:
    return tuple(held for held in cards if held.key in ("energy_run", "energy_kwh") and not held.shown.reason)


def _renamed(section: Section) -> Section:
    """The first step is no zero of time where there is none; figures that stand above are not told again."""
    parts = tuple(replace(part, charts=tuple(_timed(chart) for chart in part.charts)) for part in section.parts)
    charts = tuple(_timed(chart) for chart in section.charts)
    cards = () if section.key == system.KEY else tuple(held for held in section.cards if not held.shown.reason)
    return replace(section, parts=parts, charts=charts, cards=cards)


def _timed(chart: Chart) -> Chart:
    title = chart.spec["layout"].get("xaxis", {}).get("title", {})
    if title.get("text") == AXIS_TITLE:
        title["text"] = _AXIS_TITLE
    return chart
