"""When the clocks of GPUs were held down, by the driver's clock event reasons (NVML's nvmlClocksEventReason*)."""

import polars as pl

from agprof.analysis.system_samples import Samples, with_gaps_marked
from agprof.model.format import format_value
from agprof.model.system_answers import ThrottleKind, ThrottleSpan

SOFTWARE_POWER_CAP, HARDWARE_SLOWDOWN, SYNC_BOOST, SOFTWARE_THERMAL = 0x4, 0x8, 0x10, 0x20
HARDWARE_THERMAL, POWER_BRAKE, BOARD_LIMIT, RELIABILITY = 0x40, 0x80, 0x200, 0x400
WORDS: dict[int, str] = {
    SOFTWARE_POWER_CAP: "software power cap",
    BOARD_LIMIT: "board power limit",
    SOFTWARE_THERMAL: "software thermal slowdown",
    HARDWARE_THERMAL: "hardware thermal slowdown",
    POWER_BRAKE: "hardware power brake",
    HARDWARE_SLOWDOWN: "hardware slowdown",
    SYNC_BOOST: "sync boost",
    RELIABILITY: "reliability limit",
}
KINDS: dict[ThrottleKind, int] = {
    "power": SOFTWARE_POWER_CAP | BOARD_LIMIT,
    "thermal": SOFTWARE_THERMAL | HARDWARE_THERMAL,
    "hardware": POWER_BRAKE | HARDWARE_SLOWDOWN,
    "sync boost": SYNC_BOOST,
    "other": RELIABILITY,
}
"""Bits by kind. Idle (0x1), clocks set by an application (0x2) and for a display (0x100) hold nothing down."""
POWER_BITS = SOFTWARE_POWER_CAP | BOARD_LIMIT | POWER_BRAKE
THERMAL_BITS = KINDS["thermal"]
"""As the driver's counters of time are summed in `throttled_power_ns` and `throttled_thermal_ns`."""

MOST_SPANS = 4000
"""In all; beyond, spans of one GPU and kind that lie close together are drawn as one."""
_LEAST_SPANS = 40
"""Of one GPU and kind."""


def throttle_spans(tables: Samples) -> tuple[tuple[ThrottleSpan, ...], str | None]:
    """Spans by GPU and time; those of one kind don't overlap. And what was joined in them (None: nothing).

    A span goes from the first sample that shows the reason to the first that does not; a gap ends it.
    """
    rows = tables.of("gpu_samples", "gpu").select("node", "gpu", "at_ns", reasons="clock_event_reasons")
    samples = rows.drop_nulls("reasons")
    ever = int(str(samples["reasons"].bitwise_or() or 0)) if samples.height else 0
    kinds = {kind: bits for kind, bits in KINDS.items() if ever & bits}
    if not kinds:
        return (), None
    samples = _with_ends(with_gaps_marked(samples, "gpu"))
    found = pl.concat([_spans_of(samples, kind, bits) for kind, bits in kinds.items()])
    found, joined_ns = _joined(found)
    spans = tuple(
        ThrottleSpan(node=node, gpu=gpu, start_ns=start, end_ns=end, kind=kind, reasons=in_words(bits))
        for node, gpu, kind, start, end, bits in found.sort("node", "gpu", "start_ns", "kind").iter_rows()
    )
    note = (
        f"Stretches of held-down clocks that begin within {format_value(joined_ns, 'ns')} are drawn as one, as long as "
        "they are together."
    )
    return spans, note if joined_ns else None


def in_words(bits: int) -> tuple[str, ...]:
    """The reasons in a mask."""
    return tuple(words for bit, words in WORDS.items() if bits & bit)


def _with_ends(samples: pl.DataFrame) -> pl.DataFrame:
    """With `first`, whether nothing was sampled before, and `until_ns`, up to when a sample speaks for its GPU."""
    another = (pl.col("node") != pl.col("node").shift(1)) | (pl.col("gpu") != pl.col("gpu").shift(1))
    first = pl.col("gap_before") | another.fill_null(value=True)
    alone = pl.col("at_ns") + pl.col("typical_ns").fill_null(0).cast(pl.Int64)
    last = pl.col("first").shift(-1).fill_null(value=True)
    return samples.with_columns(first=first).with_columns(
        until_ns=pl.when(last).then(alone).otherwise(pl.col("at_ns").shift(-1))
    )


def _spans_of(samples: pl.DataFrame, kind: ThrottleKind, bits: int) -> pl.DataFrame:
    held = (pl.col("reasons") & bits) != 0
    begins = held & (pl.col("first") | ~held.shift(1).fill_null(value=False))
    return (
        samples.select("node", "gpu", "at_ns", "until_ns", reasons=pl.col("reasons") & bits, run=begins.cum_sum())
        .filter(pl.col("reasons") != 0)
        .group_by("node", "gpu", "run", maintain_order=True)
        .agg(
            start_ns=pl.col("at_ns").first(),
            end_ns=pl.col("until_ns").last(),
            bits=pl.col("reasons").bitwise_or(),
        )
        .filter(pl.col("end_ns") > pl.col("start_ns"))
        .select("node", "gpu", pl.lit(kind).alias("kind"), "start_ns", "end_ns", "bits")
    )


def _joined(spans: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """Spans, MOST_SPANS or so in all; of too many, those that begin in one stretch become one; and how long that is.

    One that stands for several is as long as they are together: it begins with the first of them and ends before the
    last does, so that it overlaps none.
    """
    by = ["node", "gpu", "kind"]
    if spans.height <= MOST_SPANS:
        return spans, 0
    most = max(_LEAST_SPANS, MOST_SPANS // spans.select(by).n_unique())
    begin = int(str(spans["start_ns"].min()))
    width = (int(str(spans["end_ns"].max())) - begin) // most + 1
    joined = (
        spans.sort(*by, "start_ns")
        .group_by(*by, stretch=(pl.col("start_ns") - begin) // width, maintain_order=True)
        .agg(
            pl.col("start_ns").first(),
            length=(pl.col("end_ns") - pl.col("start_ns")).sum(),
            bits=pl.col("bits").bitwise_or(),
        )
        .with_columns(end_ns=pl.col("start_ns") + pl.col("length"))
        .select(*by, "start_ns", "end_ns", "bits")
    )
    return joined, width
