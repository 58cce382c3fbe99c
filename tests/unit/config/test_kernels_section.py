"""`kernels:` of a workload file."""

from pathlib import Path

import pytest

from agprof.config.load import parse_workload
from agprof.errors import ConfigError


def _load(text: str, sets: tuple[str, ...] = ()) -> dict[str, str]:
    loaded = parse_workload(f"name: job\nmodule: a.b\n{text}", Path("/nowhere"), sets)
    return loaded.workload.kernels.communication


def test_libraries_of_ones_own() -> None:
    assert _load("") == {}
    text = "kernels:\n  communication:\n    mylib: ^mylib_(ring|tree)\n    my lib 2: exchange\n"
    assert _load(text) == {"mylib": "^mylib_(ring|tree)", "my lib 2": "exchange"}
    assert _load("", ("kernels.communication.mylib=^x",)) == {"mylib": "^x"}
    assert _load("", ("kernels.communication.my.lib=^x",)) == {"my.lib": "^x"}


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("mylib: '('", "is no regular expression"),
        ("mylib: ''", "is empty"),
        (f"mylib: {'a' * 1001}", "at most 1,000"),
        ("'<b>': x", "must be 1 to 64 letters"),
        ("mylib: [a]", "communication.mylib"),
    ],
)
def test_what_is_wrong_is_said(text: str, rule: str) -> None:
    with pytest.raises(ConfigError) as error:
        _load(f"kernels:\n  communication:\n    {text}\n")
    assert rule in str(error.value)
