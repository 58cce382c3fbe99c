"""`agprof schema`."""

import json

import pytest

from agprof.cli.schema import schema
from agprof.config.schema import json_schema


def test_the_schema_is_printed_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    schema()
    assert json.loads(capsys.readouterr().out) == json_schema()
