"""`plan:` of a workload file."""

from pathlib import Path

import pytest

from agprof.config.load import parse_workload
from agprof.errors import ConfigError


def _load(text: str, sets: tuple[str, ...] = ()) -> str | None:
    plan = parse_workload(f"name: job\nmodule: a.b\n{text}", Path("/nowhere"), sets).workload.plan
    return None if plan is None else plan.model


def test_a_function_is_named_by_its_module() -> None:
    assert _load("") is None
    assert _load("plan: null") is None
    assert _load("plan: {model: package.plan:model}") == "package.plan:model"
    assert _load("", ("plan.model=plan:größe",)) == "plan:größe"


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("plan: true", "must be a mapping with `model`"),
        ("plan: a.b:c", "must be a mapping with `model`"),
        ("plan: {}", "model"),
        ("plan: {model: a.b}", "must name a function as `package.module:function`"),
        ("plan: {model: plan.py}", "must name a function"),
        ("plan: {model: 'a:b; import os'}", "must name a function"),
        ("plan: {model: 'a:b.c'}", "must name a function"),
        ("plan: {model: 3}", "plan.model"),
        ("plan: {modle: 'a:b'}", "modle"),
    ],
)
def test_what_is_wrong_is_said(text: str, rule: str) -> None:
    with pytest.raises(ConfigError) as error:
        _load(text)
    assert rule in str(error.value)
