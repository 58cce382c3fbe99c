"""compare.json's page of keys, and the Markdown summary."""

import dataclasses
from pathlib import Path

from agprof.analysis.compare import compare
from agprof.analysis.compare_gates import read_gate
from agprof.exporters.compare_json_docs import document
from agprof.exporters.compare_markdown import escaped, markdown_summary
from agprof.model import compare_answers
from compared_runs import side, varied

PAGE = Path(__file__).parents[3] / "docs" / "compare-json.md"


def test_the_page_on_the_keys_is_current() -> None:
    assert PAGE.read_text() == document(), "python -m agprof.exporters.compare_json_docs > docs/compare-json.md"


def test_the_page_names_every_key_of_every_type() -> None:
    page = document()
    types = [value for value in vars(compare_answers).values() if dataclasses.is_dataclass(value)]
    for type_ in types:
        section = page.split(f"\n## {type_.__name__}\n")[1].split("\n## ")[0]
        for field in dataclasses.fields(type_):
            assert f"| `{field.name}` |" in section


def test_every_row_of_a_table_has_as_many_cells() -> None:
    hostile = "a|b\n<script>`*_[x](http://y)"
    sides = [side(varied("two ranks"), label=hostile), side(varied("slow link"), label="two")]
    text = markdown_summary(compare(sides, gates=[read_gate("step_time<=+5%")]))
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) >= 3
    for table in tables:
        cells = {len(row.replace("\\|", "").split("|")) for row in table}
        assert len(cells) == 1, table
    assert "<script>" not in text
    assert "](http" not in text.replace("\\]", "")


def test_text_is_shown_as_it_is() -> None:
    assert escaped("\u202ea\x1b[1m") == " a \\[1m"
