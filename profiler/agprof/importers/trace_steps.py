"""Steps of a trace: from ProfilerStep#N, agprof's own `step N`, or ranges that are called iteration or step."""

import polars as pl

from agprof.importers.trace_ranges import STEP

_ORDER = ("ProfilerStep", "agprof", "numbered", "counted")
"""Ways of counting, the surest first: one of them makes all steps of a rank."""
SCHEMA = {"step": pl.Int64, "start_ns": pl.Int64, "end_ns": pl.Int64, "thread": pl.Int64}


def find_steps(ranges: pl.DataFrame) -> pl.DataFrame:
    """Columns step, start_ns, end_ns, thread; in order, none overlapping another, no number twice.

    `ranges` is what `trace_ranges.host_ranges` gives. Where two steps overlap, or have one number, the earlier counts.
    """
    found = ranges.filter(pl.col("what") == STEP)
    for way in _ORDER:
        some = found.filter(pl.col("which") == way)
        if some.height:
            return _in_order(some, counted=way == "counted")
    return pl.DataFrame(schema=SCHEMA)


def _in_order(ranges: pl.DataFrame, *, counted: bool) -> pl.DataFrame:
    number = pl.col("text").str.extract(r"(\d{1,18})$").cast(pl.Int64)
    rows: list[tuple[int, int, int, int | None]] = []
    seen: set[int] = set()
    end_ns = None
    for step, start, end, thread in ranges.select(number, "start_ns", "end_ns", "thread").iter_rows():
        told = len(rows) if counted or step is None else step
        if told not in seen and (end_ns is None or start >= end_ns) and end > start:
            rows.append((told, start, end, thread))
            seen.add(told)
            end_ns = end
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def step_in_progress(steps: pl.DataFrame, times: pl.Series) -> pl.Series:
    """The step in progress at each time: the first that ends later; behind the last, one more. 0 without steps."""
    if not steps.height:
        return pl.Series("step", [0], dtype=pl.Int64).new_from_index(0, len(times))
    numbers = steps["step"].to_list()
    position = steps["end_ns"].search_sorted(times, side="right")
    padded = pl.Series([*numbers, numbers[-1] + 1], dtype=pl.Int64)
    return padded.gather(position).alias("step")
