"""`kernels:` of a workload file: what kernels' names mean, where agprof can't know."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from agprof.config.section import Section, broken_rule

_MAX_PATTERN = 1000


def _check_library(value: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 ._+-]{0,63}", value):
        return value
    raise broken_rule("must be 1 to 64 letters, digits, blanks, `.`, `_`, `+` or `-`, the first a letter or digit")


def _check_pattern(value: str) -> str:
    if not value:
        raise broken_rule("is empty and would match every kernel; write a regular expression for kernels' names")
    if len(value) > _MAX_PATTERN:
        raise broken_rule(f"is {len(value):,} characters long; at most {_MAX_PATTERN:,}")
    try:
        re.compile(value)
    except (re.error, RecursionError, OverflowError) as error:
        raise broken_rule(f"is no regular expression: {error}") from error
    return value


class KernelsSection(Section):
    """What kernels' names mean, where agprof can't know."""

    communication: dict[
        Annotated[str, AfterValidator(_check_library)], Annotated[str, AfterValidator(_check_pattern)]
    ] = Field(default_factory=dict)
    """Libraries of your own that communicate: name -> regular expression that their kernels' names match anywhere."""
