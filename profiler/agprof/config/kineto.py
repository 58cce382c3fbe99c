"""`kineto:` of a workload file: torch's own profiler in some steps of some ranks."""

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from agprof.config.section import Section, broken_rule, switched

_MAX = 2**31 - 1


def _check_ranks(value: list[int]) -> list[int]:
    if not value:
        raise broken_rule("is empty; name the ranks that are captured, or leave `kineto` out")
    return value


class KinetoSection(Section):
    """Which steps torch's profiler records, and what of them. `kineto: true` means all of it as it stands here."""

    first_step: Annotated[int, Field(ge=0, le=_MAX)] = 5
    """Optimizer step at whose begin the profiler is prepared."""
    warmup: Annotated[int, Field(ge=0, le=1000)] = 1
    """Steps in which it is prepared and keeps nothing."""
    active: Annotated[int, Field(gt=0, le=1000)] = 3
    """Steps that it records."""
    ranks: Annotated[list[Annotated[int, Field(ge=0, le=_MAX)]], AfterValidator(_check_ranks)] = Field(
        default_factory=lambda: [0]
    )
    """Ranks that record."""
    shapes: bool = False
    """Record the shapes of operators' inputs."""
    stacks: bool = False
    """Record Python functions and modules; costs much more."""
    memory: bool = False
    """Record allocations."""
    keep: bool = False
    """Keep the JSON file in the run folder when its tables have been made."""

    @property
    def last_step(self) -> int:
        """The last step that is recorded."""
        return self.first_step + self.warmup + self.active - 1


def _switched(value: Any) -> Any:
    return switched(KinetoSection, value, "kineto: {warmup: 1, active: 3}")


Kineto = Annotated[KinetoSection | None, BeforeValidator(_switched, json_schema_input_type=bool | KinetoSection | None)]
"""`true` is a section of defaults, `false` and null are none."""
