"""What every section of a workload file has in common."""

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
