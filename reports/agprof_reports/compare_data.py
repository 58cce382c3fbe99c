"""The comparison page as plain data: what `compare_page.py` builds, tests assert and the template renders."""

from dataclasses import dataclass

from agprof_reports.data import Chart, Section, Shown, Table


@dataclass(frozen=True, slots=True, kw_only=True)
class SideCard:
    """One side as its head shows it."""

    number: int
    """From 1, as `--baseline` takes it."""
    label: str
    facts: tuple[tuple[str, str], ...]
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A change and its interval on an axis from -1 to 1, zero in the middle; ends beyond are cut and marked."""

    at: float
    low: float | None
    high: float | None
    cut_low: bool
    cut_high: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class KpiCell:
    """A figure of one side; everything on change is empty at the baseline."""

    shown: Shown
    is_baseline: bool
    mark: str
    """good | bad, or empty."""
    verdict: str
    change: str
    """`+117 %`"""
    change_interval: str
    absolute: str
    p: str
    test: str
    interval: Interval | None


@dataclass(frozen=True, slots=True, kw_only=True)
class KpiLine:
    key: str
    label: str
    direction: str
    cells: tuple[KpiCell, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FallRow:
    """A bar of a waterfall: from `low` to `high` of the drawing's width, in per cent; `end` is where it leads to."""

    label: str
    value: str
    colour: str
    """Class of the colour; empty for totals."""
    is_total: bool
    low: float
    high: float
    end: float
    tip: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fall:
    """A waterfall as it is drawn, with its table."""

    key: str
    title: str
    sentence: str
    description: str
    rows: tuple[FallRow, ...]
    zero: float | None
    """Where zero lies, in per cent; None when the axis begins later."""
    cut: str
    """Where the axis begins, when not at zero."""
    legend: tuple[tuple[str, str], ...]
    sum_mark: str
    sum_sentence: str
    table: Table


@dataclass(frozen=True, slots=True, kw_only=True)
class FallGroup:
    """The waterfalls of one quantity, one per candidate."""

    key: str
    title: str
    sentence: str
    falls: tuple[Fall, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Against:
    """Everything that depends on which side is the baseline."""

    key: str
    baseline: int
    label: str
    headline: str
    sentence: str
    """Of the section on figures."""
    kpis: tuple[KpiLine, ...]
    kpi_table: Table
    axis_note: str
    falls: tuple[FallGroup, ...]
    """Step time, memory peak, energy: those there are."""
    moved: tuple[Table, ...]
    moved_sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparePage:
    title: str
    comparable: str
    comparable_mark: str
    reasons: tuple[str, ...]
    gates_sentence: str
    gates_mark: str
    baseline_hint: str
    sides: tuple[SideCard, ...]
    against: tuple[Against, ...]
    """The first is what the page opens with."""
    fall_sections: tuple[tuple[str, str], ...]
    """Key and title of the waterfalls there are."""
    configuration_sentence: str
    configuration: tuple[Table, ...]
    """What weighs, then what is harmless."""
    scaling: Section | None
    multiples: tuple[Chart, ...]
    """Small charts of the scaling section, beside one another."""
    forecast: Section | None
    overlays: Section | None
    gates: Section | None
    methods: Section
    agprof_version: str
