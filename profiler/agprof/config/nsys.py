"""`nsys:` of a workload file: the ranks run under `nsys profile`."""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from agprof.config.section import Section, broken_rule, switched

OWN_OPTIONS = (
    "-o", "--output", "-t", "--trace", "-s", "--sample", "--cpuctxsw", "-c", "--capture-range", "--capture-range-end",
    "-p", "--nvtx-capture", "-f", "--force-overwrite", "-e", "--env-var", "--session-new", "-w", "--wait",
)  # fmt: skip
"""Options of `nsys profile` that agprof gives itself."""

_MAX_RANK = 2**31 - 1


def _check_trace(value: list[str]) -> list[str]:
    for word in value:
        if not re.fullmatch(r"[a-z][a-z0-9-]{0,31}", word):
            raise broken_rule("holds words of `nsys profile --trace` such as cuda, nvtx and osrt")
    if "nvtx" not in value:
        raise broken_rule("must hold nvtx: agprof's ranges and the captured steps are told to nsys by it")
    return value


def _check_arguments(value: list[str]) -> list[str]:
    for word in value:
        option = word.partition("=")[0]
        if not re.fullmatch(r"--?[A-Za-z][A-Za-z0-9-]*(=[^\x00-\x1f\x7f\ud800-\udfff]*)?", word):
            raise broken_rule("holds options of `nsys profile`, each one word with its value: --name=value")
        if option in OWN_OPTIONS or (option[:2] in OWN_OPTIONS and not option.startswith("--")):
            raise broken_rule(f"holds {option}, which agprof gives itself; leave it out")
    return value


def _check_ranks(value: list[int] | None) -> list[int] | None:
    if value == []:
        raise broken_rule("is empty; null means every rank, and `nsys: false` none")
    return value


class NsysSection(Section):
    """How the ranks run under `nsys profile`. `nsys: true` means all of it as it stands here."""

    trace: Annotated[list[str], AfterValidator(_check_trace)] | None = None
    """What nsys traces; null: cuda, nvtx, osrt, cublas and cudnn where there is a GPU, else nvtx and osrt."""
    first_step: Annotated[int, Field(ge=0, le=2**63 - 1)] = 5
    """The first optimizer step that is captured."""
    steps: Annotated[int, Field(gt=0, le=2**63 - 1)] | None = 3
    """Optimizer steps that are captured; null captures the rank's whole life."""
    ranks: Annotated[list[Annotated[int, Field(ge=0, le=_MAX_RANK)]], AfterValidator(_check_ranks)] | None = None
    """Ranks that run under nsys; null: every rank."""
    timeout_s: Annotated[float, Field(ge=0.1, le=86400)] = 60.0
    """Seconds that nsys may take to write a report once its rank has ended; then it is ended without one."""
    args: Annotated[list[str], AfterValidator(_check_arguments)] = Field(default_factory=list)
    """Further options of `nsys profile`, each one word: --name=value."""


def _switched(value: Any) -> Any:
    return switched(NsysSection, value, "nsys: {first_step: 10, steps: 2}")


Nsys = Annotated[NsysSection | None, BeforeValidator(_switched, json_schema_input_type=bool | NsysSection | None)]
"""`true` is a section of defaults, `false` and null are none."""
