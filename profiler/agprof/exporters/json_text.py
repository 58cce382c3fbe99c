"""JSON as polars expressions: whole columns of events become text at once, without a Python object per row."""

from collections.abc import Mapping, Sequence

import msgspec
import polars as pl


def quoted(texts: pl.Series) -> pl.Series:
    """Each text as a JSON string; None stays None. Every different text is encoded once."""
    different = texts.drop_nulls().unique(maintain_order=True)
    encoded = [msgspec.json.encode(text).decode() for text in different]
    table = pl.DataFrame({"text": different, "json": pl.Series(encoded, dtype=pl.String)})
    return pl.DataFrame({"text": texts}).join(table, on="text", how="left", maintain_order="left")["json"]


def number(column: str) -> pl.Expr:
    """A column of integers or finite floats as JSON; what is None, NaN or infinite is None."""
    value = pl.col(column)
    return pl.when(value.cast(pl.Float64).is_finite()).then(value.cast(pl.String))


def boolean(column: str) -> pl.Expr:
    return pl.col(column).cast(pl.String)


def microseconds(value: pl.Expr) -> pl.Expr:
    """Whole nanoseconds, not negative, as decimal microseconds with three digits: exact, never through a float."""
    return pl.concat_str((value // 1000).cast(pl.String), pl.lit("."), (value % 1000).cast(pl.String).str.zfill(3))


def members(fields: Mapping[str, pl.Expr]) -> pl.Expr:
    """The members of an object, without its braces; a field whose value is None is left out."""
    return pl.concat_str(
        [pl.concat_str(pl.lit(f"{msgspec.json.encode(key).decode()}:"), value) for key, value in fields.items()],
        separator=",",
        ignore_nulls=True,
    )


def joined(parts: Sequence[pl.Expr]) -> pl.Expr:
    """Texts one after the other; where one is None the whole is None."""
    return pl.concat_str(list(parts))
