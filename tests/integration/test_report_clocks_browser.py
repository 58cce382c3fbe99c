"""The section on clocks in a real Chromium: drawn, in both schemes, on a wide screen and a narrow one."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from devtools import browser

from agprof_reports.run import write
from sample_answers import HOSTILE, sample_answers
from sample_clock_answers import clock_answer, refused_answer, wall_clock_answer

pytestmark = pytest.mark.system("chromium")
CASES = {
    "two": clock_answer(),
    "forty": clock_answer(40),
    "wall": wall_clock_answer(),
    "refused": refused_answer(HOSTILE),
}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.parametrize("name", CASES)
def test_clocks_are_drawn(page: Any, tmp_path: Path, name: str) -> None:
    file = tmp_path / f"{name}.html"
    write(replace(sample_answers(), clocks=CASES[name]), file)
    bars = {"two": 12, "forty": 60}.get(name, 0)
    for width, scheme in ((1440, "light"), (390, "dark")):
        page.open(file, width=width, scheme=scheme)
        if bars:
            plot = "document.querySelector('#chart-clocks .plot')"
            page.evaluate(f"{plot}.scrollIntoView({{behavior: 'instant', block: 'center'}})")
            page.until(f"{plot}.dataset.drawn")
        assert page.problems == []
        assert page.evaluate("document.documentElement.scrollWidth") == width
        # A bar for each burst of each node that is drawn.
        assert page.evaluate("document.querySelectorAll('#chart-clocks .errorbar').length") == bars
