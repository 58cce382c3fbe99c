"""What every section of a workload file has in common."""

from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """A mapping of the file: strict, frozen, and without keys that nobody knows."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def broken_rule(rule: str) -> PydanticCustomError:
    """The error whose text `config.load` prints as it is."""
    return PydanticCustomError("rule", "{rule}", {"rule": rule})


def switched(section: type[Section], value: Any, example: str) -> Any:
    """What stands behind the key of an optional section: `true` is a section of defaults, `false` and null are none.

    A mapping goes on to be checked. Anything else breaks the rule, which ends with the example.
    """
    if value is True:
        return section()
    if value is None or value is False:
        return None
    if isinstance(value, dict | section):
        return value
    raise broken_rule(f"must be true, false or a mapping of options, as in `{example}`")
