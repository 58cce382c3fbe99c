"""Reads what a rank wrote."""

from pathlib import Path
from types import SimpleNamespace

from agprof.model.tables import BY_NAME
from agprof.store.frames import StreamFollower

Tables = dict[str, list[SimpleNamespace]]


def read(path: Path) -> Tables:
    """The rows of a stream by table; `end` holds the reason it ended for, if it did."""
    follower = StreamFollower(path)
    tables: Tables = {}
    for table, rows in follower.poll():
        names = [column.name for column in BY_NAME[table].columns]
        tables.setdefault(table, []).extend(SimpleNamespace(**dict(zip(names, row, strict=True))) for row in rows)
    assert follower.damage is None
    tables["end"] = [SimpleNamespace(reason=follower.ended)] if follower.ended is not None else []
    tables["header"] = [SimpleNamespace(**(follower.header or {}))]
    return tables


def faults(tables: Tables) -> list[SimpleNamespace]:
    """Faults but those of instruments that are not part of these tests."""
    return [row for row in tables.get("faults", []) if row.instrument not in ("flops", "comm")]
