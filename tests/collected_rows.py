"""A stand-in for the stream writer that keeps rows in memory, by table, with the columns' names."""

from collections.abc import Callable
from typing import Any

from agprof.instruments.recorder import Recorder
from agprof.model.settings import InstrumentSettings
from agprof.model.tables import BY_NAME


class CollectedRows:
    def __init__(self) -> None:
        self.tables: dict[str, list[tuple[Any, ...]]] = {}

    def rows(self, table: str) -> Callable[[tuple[Any, ...]], None]:
        return self.tables.setdefault(table, []).append

    def append(self, table: str, row: tuple[Any, ...]) -> None:
        self.rows(table)(row)

    def before_flush(self, hook: Callable[[], None]) -> None:
        pass

    def table(self, name: str) -> list[dict[str, Any]]:
        columns = [column.name for column in BY_NAME[name].columns]
        return [dict(zip(columns, row, strict=True)) for row in self.tables.get(name, [])]

    def facts(self) -> dict[str, str]:
        return {row["key"]: row["value"] for row in self.table("facts")}


def collecting_recorder(**settings: Any) -> tuple[Recorder, CollectedRows]:
    collected = CollectedRows()
    return Recorder(collected, InstrumentSettings(**settings)), collected  # type: ignore[arg-type]


def finish(recorder: Recorder) -> None:
    """What the bootstrap does at the end of a rank."""
    for instrument, function in recorder.on_finish:
        recorder.guard(instrument, function)()
    recorder.enabled = False
    assert recorder.patches.undo() == []
