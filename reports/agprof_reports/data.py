"""A page as plain data: what `page.py` builds, tests assert and the templates render.

Nothing here is HTML. Text may come from outside and is escaped when it is rendered; the specs of charts hold numbers,
labels already escaped for plotly, and colours by name (`$forward`), which the page looks up in its style sheet.
"""

from dataclasses import dataclass
from typing import Any

from agprof.model.figure import Confidence, Source

Spec = dict[str, Any]
"""A plotly figure as plain data: `data`, `layout`, and `variants` for a switch above the chart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Most:
    """How much of what has no natural bound a page carries."""

    slices: int = 120_000
    """Of the trace's time line."""
    steps: int = 1_000
    """Rows of the table of steps."""
    modules: int = 400
    """Rows of the table of modules."""
    points: int = 400
    """Of one GPU's row in a chart over the run; lines of plain charts of GPU and host have twice as many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A figure as it is printed."""

    number: str
    """`374`, or a dash when it was not measured."""
    unit: str
    interval: str
    """`[371, 379], n = 46`, in the unit of the number; empty without an interval."""
    source: Source
    tip: str
    """Source, formula, n and interval; or why it was not measured."""
    reason: str
    """Why the number is a dash; empty when it is not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    key: str
    label: str
    shown: Shown
    note: str


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell that says more than its text."""

    text: str
    tip: str = ""
    mark: str = ""
    """good | watch | bad: drawn as a tick, a triangle, a cross before the text."""
    value: float | None = None
    """Sorted and copied instead of the text, where a column mixes units."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    label: str
    unit: str = ""
    numeric: bool = True
    source: Source | None = None
    tip: str = ""
    base_unit: str = ""
    """Unit of the cells' values, where their texts have units of their own."""
    code: bool = False
    """Set in the monospaced face: names of code, keys, commands."""
    fold: bool = False
    """Long texts are shown shortened, whole on demand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    key: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str | Cell, ...], ...]
    note: str = ""
    filter_column: int | None = None
    """Column among whose values the reader may choose."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Something drawn over a bar: a tick where `begin` and `end` are the same, else a hatched outline between them."""

    begin: float
    end: float
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One bar of parts, for the drawings that need no JavaScript."""

    label: str
    parts: tuple[tuple[str, float], ...]
    """Class of the colour and value, in drawing order."""
    marks: tuple[Mark, ...] = ()
    """In the unit of the values, from the bar's begin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    key: str
    title: str
    description: str
    """What it shows, for those who can't see it."""
    height: int
    spec: Spec
    table: Table | None
    legend: tuple[tuple[str, str], ...] = ()
    """Class of the colour and its meaning."""
    note: str = ""
    axis: str = ""
    """Charts with the same axis zoom together; empty for none."""
    bars: tuple[Bar, ...] = ()
    """The same in short, drawn on the server; shown until plotly takes over."""
    bars_unit: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slices:
    """A time line of many slices for the canvas of assets/timeline*.js; charts/trace_timeline.py states the code."""

    key: str
    title: str
    description: str
    head: Spec
    """Names, kinds, lanes, window."""
    columns: bytes
    """Begin, duration and name of every slice."""
    legend: tuple[tuple[str, str], ...]
    table: Table
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of a long section, with a heading and a sentence of its own."""

    key: str
    title: str
    sentence: str
    lines: tuple[tuple[str, str], ...] = ()
    charts: tuple[Chart, ...] = ()
    slices: Slices | None = None
    tables: tuple[Table, ...] = ()
    cards: tuple[Card, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    key: str
    title: str
    sentence: str
    charts: tuple[Chart, ...] = ()
    cards: tuple[Card, ...] = ()
    tables: tuple[Table, ...] = ()
    lines: tuple[tuple[str, str], ...] = ()
    """Mark (good, watch, bad or empty) and sentence, under the first."""
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingCard:
    key: str
    title: str
    evidence: str
    section: str
    section_title: str
    saving: Shown | None
    saving_share: str
    confidence: Confidence
    change: str
    check: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    title: str
    subtitle: str
    run_id: str
    status: str
    status_mark: str
    """good | watch | bad, or empty."""
    facts: tuple[tuple[str, str], ...]
    bound_by: str
    """Name of the colour of what bounds the run."""
    bound_word: str
    headline: str
    evidence: tuple[str, ...]
    confidence: Confidence
    confidence_sentence: str
    next_step: str
    step_bar: Bar | None
    step_bar_unit: str
    step_bar_title: str
    """What the bar shows, for who does not see it."""
    step_bar_legend: tuple[tuple[str, str], ...]
    per: str
    """What savings count for: `a step`, or `a window` of a trace without steps."""
    quality_sentence: str
    quality_mark: str
    findings: tuple[FindingCard, ...]
    findings_sentence: str
    kpis: tuple[Card, ...]
    kpis_sentence: str
    """Instead of cards, when nothing was measured."""
    sections: tuple[Section, ...]
    agprof_version: str
    urgent: tuple[Section, ...] = ()
    """What comes before the findings: memory ran out."""
    first_title: str = "Verdict"
    """Of the first section in the list of sections."""
    moments: Spec | None = None
    """Steps and phases at each moment, for the heads of hovers: moments.py."""
