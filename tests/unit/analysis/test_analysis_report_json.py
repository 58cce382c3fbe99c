import dataclasses
import json
import math
from pathlib import Path

from agprof.analysis.run import analyse
from agprof.exporters import report_json
from agprof.exporters.report_json_docs import document
from agprof.model import answers
from agprof.model.answers import ANSWERS_VERSION
from agprof.store.reader import read_run
from synthetic import build_run

PAGE = Path(__file__).parents[3] / "docs" / "report-json.md"


def test_the_page_on_the_keys_is_current() -> None:
    assert PAGE.read_text() == document(), "python -m agprof.exporters.report_json_docs > docs/report-json.md"


def test_the_page_names_every_key_of_every_type() -> None:
    page = document()
    types = [value for value in vars(answers).values() if dataclasses.is_dataclass(value)]
    for type_ in types:
        section = page.split(f"\n## {type_.__name__}\n")[1].split("\n## ")[0]
        for field in dataclasses.fields(type_):
            assert f"| `{field.name}` |" in section


def test_answers_come_back_as_they_were(tmp_path: Path) -> None:
    answers = analyse(read_run(build_run(tmp_path / "run", gpus=1)))
    assert report_json.decode(report_json.encode(answers)) == answers


def test_keys_are_those_of_the_dataclasses_in_order(tmp_path: Path) -> None:
    found = json.loads(report_json.encode(analyse(read_run(build_run(tmp_path / "run")))))
    assert list(found) == [field.name for field in dataclasses.fields(answers.RunAnswers)]
    assert found["version"] == ANSWERS_VERSION
    assert list(found["time"]["step_time"]) == [field.name for field in dataclasses.fields(answers.Figure)]


def test_numbers_that_are_none_become_null(tmp_path: Path) -> None:
    whole = analyse(read_run(build_run(tmp_path / "run")))
    figure = dataclasses.replace(whole.time.step_time, value=math.nan, low=-math.inf)
    broken = dataclasses.replace(whole, time=dataclasses.replace(whole.time, step_time=figure))
    step_time = json.loads(report_json.encode(broken))["time"]["step_time"]
    assert (step_time["value"], step_time["low"]) == (None, None)
