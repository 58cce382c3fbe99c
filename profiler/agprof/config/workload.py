"""The workload file as a value. Reading and checking a file is `config.load`.

Rules that a single value must keep stand with its type; combinations that can't work are in `_conflicts`. Rule texts
are written for the person who wrote the file, because `config.load` prints them as they are.
"""

import re
from collections.abc import Iterator
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from agprof.config.energy import EnergySection
from agprof.config.kernels import KernelsSection
from agprof.config.kineto import Kineto
from agprof.config.monitor import MonitorSection
from agprof.config.names import ArgName, EnvName, RunName, Text, checked, text_problem
from agprof.config.nsys import Nsys
from agprof.config.peak import PeakSection
from agprof.config.plan import Plan
from agprof.config.section import Section as _Section
from agprof.config.setups import SetupSection
from agprof.config.traces import TraceFormat


def _check_module(value: str) -> str:
    if re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*", value) and not value.endswith(".py"):
        return value
    hint = "; give a file as `script`" if value.endswith(".py") or "/" in value else ""
    raise PydanticCustomError("rule", "{rule}", {"rule": f"must be a dotted module name such as package.train{hint}"})


def _check_script(value: str) -> str:
    return checked(value, text_problem(value) if value.strip() else "is empty; name a Python file")


def _check_command(value: list[str]) -> list[str]:
    if value and value[0].strip():
        return value
    raise PydanticCustomError("rule", "{rule}", {"rule": "is empty; its first word names the program"})


PositiveInt = Annotated[int, Field(gt=0, le=2**63 - 1)]
NonNegativeInt = Annotated[int, Field(ge=0, le=2**63 - 1)]
Scalar = Text | int | float | bool | None
ArgValue = Scalar | list[Text | int | float]


class LaunchSection(_Section):
    """How the ranks are started."""

    launcher: Literal["torchrun", "deepspeed"] = "torchrun"
    """Program that starts the ranks of a node."""
    ranks_per_node: Annotated[int, Field(gt=0, le=1024)] = 1
    """Ranks started on each node."""
    env: dict[EnvName, Text] = Field(
        default_factory=dict,
        # The file may hold bare numbers, which `config.load` takes as the text they are.
        json_schema_extra={"additionalProperties": {"type": ["string", "number"]}},
    )
    """Environment added for every rank. OMP_NUM_THREADS is cores / ranks unless set here or outside."""
    master_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Port of the rendezvous; a free one is taken when left out."""
    bind_cores: bool = False
    """Bind each rank to its own cores (deepspeed launcher only; needs numactl)."""


class ProfileSection(_Section):
    """What is measured inside each rank."""

    level: Literal["off", "light", "default"] = "default"
    """off: nothing; light: steps and phases only; default: also collectives, memory, flops."""
    profile_step: NonNegativeInt | None = 4
    """Optimizer step at which the flops profiler runs on one micro-step; null switches it off."""
    warmup_steps: NonNegativeInt | None = None
    """Steps left out of statistics at the start; detected from the data when left out."""
    total_steps: PositiveInt | None = None
    """Optimizer steps that the job runs, for the time left on the live display."""
    nvtx: bool = True
    """Emit every phase, step and collective as an NVTX range in the domain `agprof`."""
    flight_recorder: bool = True
    """Keep torch's flight recorder as the ledger that no collective was missed."""


class Workload(_Section):
    """A training job and how to profile it."""

    name: RunName
    """Name of the run; its folder carries it. Letters, digits, `.`, `_`, `-`."""
    description: Text = ""
    """One line for `agprof workloads` and the report."""
    module: Annotated[str, AfterValidator(_check_module)] | None = None
    """Python module to run, as `python -m`. Give either module or script."""
    script: Annotated[str, AfterValidator(_check_script)] | None = None
    """Python file to run, relative to the workload file. Give one of module, script and command."""
    command: Annotated[list[Text], AfterValidator(_check_command)] | None = None
    """A whole command that starts its ranks itself, run as it stands: what `agprof run -- COMMAND` fills in."""
    args: dict[ArgName, ArgValue] | list[Text | int | float] = Field(default_factory=dict)
    """Arguments: a list as it stands, or a mapping: value -> --key value, true -> --key, false and null -> left out."""
    launch: LaunchSection = Field(default_factory=LaunchSection)
    """How the ranks are started."""
    profile: ProfileSection = Field(default_factory=ProfileSection)
    """What is measured inside each rank."""
    monitor: MonitorSection = Field(default_factory=MonitorSection)
    """What is sampled on each node beside the ranks."""
    kineto: Kineto = None
    """Record some steps with torch's own profiler: true, or a mapping of options."""
    nsys: Nsys = None
    """Run the ranks under `nsys profile`: true, or a mapping of options."""
    traces: list[TraceFormat] = Field(default_factory=list)
    """Formats of `agprof export` that are written at the end of the run."""
    plan: Plan = None
    """How `agprof plan` gets the job's model."""
    kernels: KernelsSection = Field(default_factory=KernelsSection)
    """What kernels' names mean, where agprof can't know."""
    peak: PeakSection = Field(default_factory=PeakSection)
    """What the device of a rank can do, where agprof's table does not know it or is to be overruled."""
    energy: EnergySection = Field(default_factory=EnergySection)
    """Prices and CO2 intensity, for the report's sums of energy."""
    setups: dict[RunName, SetupSection] = Field(default_factory=dict)
    """Named node setups, for `agprof run --setup NAME`: name -> where the ranks run, and how many."""

    @model_validator(mode="after")
    def _can_work(self) -> "Workload":
        found = list(_conflicts(self))
        if found:
            rules = "; ".join(conflict.rule for conflict in found)
            raise PydanticCustomError("conflict", "{rules}", {"rules": rules, "conflicts": found})
        return self

    def arguments(self) -> list[str]:
        """The program's arguments as strings."""
        if isinstance(self.args, list):
            return [str(value) for value in self.args]
        words: list[str] = []
        for key, value in self.args.items():
            if value is None or value is False:
                continue
            words.append(f"--{key}")
            if isinstance(value, list):
                words.extend(str(item) for item in value)
            elif value is not True:
                words.append(str(value))
        return words


class Conflict(NamedTuple):
    """Values that are each allowed but can't stand together."""

    keys: tuple[str, ...]
    """Dotted keys that take part, the one to point at first."""
    rule: str


def _conflicts(workload: Workload) -> Iterator[Conflict]:
    if workload.command is not None:
        yield from _command_conflicts(workload)
        return
    if workload.module is not None and workload.script is not None:
        yield Conflict(
            ("script", "module"),
            "`script` and `module` exclude each other; keep one of them (null switches the other off)",
        )
    if workload.module is None and workload.script is None:
        yield Conflict(("module", "script"), "is required, or `script`: the program that the ranks run")
    launch, profile = workload.launch, workload.profile
    if launch.bind_cores and launch.launcher != "deepspeed":
        rule = "needs `launch.launcher: deepspeed`; torchrun does not bind cores"
        yield Conflict(("launch.bind_cores", "launch.launcher"), rule)
    yield from _setup_conflicts(workload)
    yield from _warmup_conflicts(profile)
    yield from _kineto_conflicts(workload)
    yield from _nsys_conflicts(workload)


def _setup_conflicts(workload: Workload) -> Iterator[Conflict]:
    for name, setup in workload.setups.items():
        launcher = setup.launcher or workload.launch.launcher
        if setup.through == "deepspeed" and launcher != "deepspeed":
            rule = "deepspeed needs `launcher: deepspeed`: it is DeepSpeed's runner that goes over ssh then"
            yield Conflict((f"setups.{name}.through", f"setups.{name}.launcher", "launch.launcher"), rule)
        if workload.launch.bind_cores and setup.launcher == "torchrun":
            rule = "torchrun does not bind cores, and `launch.bind_cores` asks for it; change one of them"
            yield Conflict((f"setups.{name}.launcher", "launch.bind_cores"), rule)


def _command_conflicts(workload: Workload) -> Iterator[Conflict]:
    for key in ("module", "script"):
        if getattr(workload, key) is not None:
            yield Conflict((key, "command"), f"`command` and `{key}` exclude each other; keep one of them")
    if workload.args:
        yield Conflict(("args", "command"), "stands beside `command`, which holds its own arguments; put them there")
    if workload.setups:
        rule = "stand beside `command`, which starts its ranks itself; give a script or module instead"
        yield Conflict(("setups", "command"), rule)
    for key in ("launcher", "ranks_per_node", "master_port", "bind_cores"):
        if getattr(workload.launch, key) != LaunchSection.model_fields[key].default:
            rule = "has no effect on `command`, which starts its ranks itself; leave it out"
            yield Conflict((f"launch.{key}", "command"), rule)
    yield from _warmup_conflicts(workload.profile)
    yield from _kineto_conflicts(workload)
    yield from _nsys_conflicts(workload)


def _warmup_conflicts(profile: ProfileSection) -> Iterator[Conflict]:
    if profile.warmup_steps and profile.total_steps and profile.warmup_steps >= profile.total_steps:
        rule = f"leaves no step to measure: `profile.total_steps` is {profile.total_steps}; make it smaller"
        yield Conflict(("profile.warmup_steps", "profile.total_steps"), rule)


def _kineto_conflicts(workload: Workload) -> Iterator[Conflict]:
    kineto, profile = workload.kineto, workload.profile
    if kineto is None:
        return
    if profile.level == "off":
        rule = "needs the instruments, which `profile.level: off` switches off: they tell torch's profiler its steps"
        yield Conflict(("kineto", "profile.level"), rule)
    if workload.nsys is not None:
        rule = "and `nsys` exclude each other: a GPU hands its activities to one of them; switch one off (null)"
        yield Conflict(("kineto", "nsys"), rule)
    step = profile.profile_step
    if profile.level == "default" and step is not None and kineto.first_step <= step <= kineto.last_step:
        rule = f"covers step {step}, in which the FLOPs profiler runs; begin later, or change `profile.profile_step`"
        yield Conflict(("kineto.first_step", "profile.profile_step"), rule)


def _nsys_conflicts(workload: Workload) -> Iterator[Conflict]:
    profile = workload.profile
    if workload.nsys is None:
        return
    if profile.level == "off":
        rule = "needs the instruments, which `profile.level: off` switches off: they tell nsys what to capture"
        yield Conflict(("nsys", "profile.level"), rule)
    elif not profile.nvtx:
        rule = "needs `profile.nvtx: true`: the ranges are what nsys shows of the steps, and by what it captures"
        yield Conflict(("nsys", "profile.nvtx"), rule)
