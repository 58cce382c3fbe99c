"""Rules of names and texts that stand in a workload file, and the types that check them."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from agprof.config.section import broken_rule
from agprof.model.settings import (
    ENV_FOREIGN,
    ENV_HOME,
    ENV_NODE,
    ENV_NSYS,
    ENV_NSYS_STARTED,
    ENV_PASS,
    ENV_RANK_PID,
    ENV_RUN_DIR,
    ENV_SETTINGS,
    ENV_UNDER_NSYS,
)

RESERVED_ENV = frozenset(
    {
        "RANK",
        "LOCAL_RANK",
        "GROUP_RANK",
        "WORLD_SIZE",
        "LOCAL_WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
        ENV_RUN_DIR,
        ENV_SETTINGS,
        ENV_HOME,
        ENV_RANK_PID,
        ENV_NODE,
        ENV_FOREIGN,
        ENV_PASS,
        ENV_NSYS,
        ENV_NSYS_STARTED,
        ENV_UNDER_NSYS,
    }
)
"""Variables that the launcher or agprof itself sets for every rank."""

_BAD_CHARACTER = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


def text_problem(value: str) -> str | None:
    """The rule that a text breaks, or None. NUL can't be passed to a program; the others corrupt terminals and logs."""
    found = _BAD_CHARACTER.search(value)
    if found is None:
        return None
    return f"holds the control character {found.group()!a}; only tab and line feed may stand in a text"


def env_name_problem(value: str) -> str | None:
    """The rule that the name of an environment variable breaks, or None."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        return "is no name of an environment variable; use letters, digits and `_`"
    if value == "MASTER_PORT":
        return "is set by the launcher; use `launch.master_port`"
    if value in RESERVED_ENV:
        return "is set by the launcher or by agprof for every rank; leave it out"
    return None


def arg_name_problem(value: str) -> str | None:
    """The rule that a key of `args` breaks, or None."""
    if value.startswith("-"):
        return f"is written without the dashes: {value.lstrip('-') or 'a name'!r} becomes `--{value.lstrip('-')}`"
    if not value or re.search(r"[\s=]", value):
        return "is no name of an argument; it must not be empty or hold blanks or `=`"
    return text_problem(value)


def _check_text(value: str) -> str:
    return checked(value, text_problem(value))


def _check_env_name(value: str) -> str:
    return checked(value, env_name_problem(value))


def _check_arg_name(value: str) -> str:
    return checked(value, arg_name_problem(value))


def run_name_problem(value: str) -> str | None:
    """The rule that the name of a run breaks, or None."""
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", value):
        return None
    return "must be 1 to 64 letters, digits, `.`, `_` or `-`, the first a letter or digit: the run's folder carries it"


def _check_run_name(value: str) -> str:
    return checked(value, run_name_problem(value))


def checked(value: str, problem: str | None) -> str:
    if problem is not None:
        raise broken_rule(problem)
    return value


Text = Annotated[str, AfterValidator(_check_text)]
EnvName = Annotated[str, AfterValidator(_check_env_name)]
ArgName = Annotated[str, AfterValidator(_check_arg_name)]
RunName = Annotated[
    str, AfterValidator(_check_run_name), Field(json_schema_extra={"pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"})
]
