"""Progress of long exports."""

from agprof.exporters.pace import Pace


def test_nothing_is_said_of_what_is_quick_and_then_not_too_often():
    clock = [0.0]
    said = []
    pace = Pace(said.append, "rows:", now=lambda: clock[0])
    for second in range(8):
        clock[0] = second * 1.0
        pace.add(1000)
    assert said == ["rows: 3,000", "rows: 5,000", "rows: 7,000"]


def test_items_go_by_unchanged():
    said = []
    ticks = iter(range(0, 1000, 3))
    pace = Pace(said.append, "rows:", now=lambda: next(ticks))
    assert list(pace.over(range(10_000))) == list(range(10_000))
    assert said == ["rows: 4,096", "rows: 8,192", "rows: 10,000"]
