"""`plan:` of a workload file: how `agprof plan` gets the job's model."""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from agprof.config.section import Section, broken_rule

EXAMPLE = "plan: {model: package.module:function}"


def _check_function(value: str) -> str:
    if re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", value):
        return value
    raise broken_rule("must name a function as `package.module:function`")


class PlanSection(Section):
    """How `agprof plan` gets the job's model."""

    model: Annotated[str, AfterValidator(_check_function)]
    """Function that builds the model without data, as `package.module:function` (docs/plan.md)."""


def _mapping(value: Any) -> Any:
    if value is None or isinstance(value, dict | PlanSection):
        return value
    raise broken_rule(f"must be a mapping with `model`, as in `{EXAMPLE}`")


Plan = Annotated[PlanSection | None, BeforeValidator(_mapping, json_schema_input_type=PlanSection | None)]
