"""The workload file as a value. Reading and checking it is `config.load`."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Scalar = str | int | float | bool | None
ArgValue = Scalar | list[str | int | float]
PositiveInt = Annotated[int, Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class LaunchSection(_Section):
    """How the ranks are started."""

    launcher: Literal["torchrun", "deepspeed"] = "torchrun"
    """Program that starts the ranks of a node."""
    ranks_per_node: PositiveInt = 1
    """Ranks started on each node."""
    env: dict[str, str] = Field(default_factory=dict)
    """Environment added for every rank. OMP_NUM_THREADS is cores / ranks unless set here or outside."""
    master_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Port of the rendezvous; a free one is taken when left out."""
    bind_cores: bool = False
    """Bind each rank to its own cores (deepspeed launcher only; needs numactl)."""


class ProfileSection(_Section):
    """What is measured inside each rank."""

    level: Literal["off", "light", "default"] = "default"
    """off: nothing; light: steps and phases only; default: also collectives, memory, flops."""
    profile_step: Annotated[int, Field(ge=0)] | None = 4
    """Optimizer step at which the flops profiler runs on one micro-step; null switches it off."""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """Steps left out of statistics at the start; detected from the data when left out."""
    total_steps: PositiveInt | None = None
    """Optimizer steps that the job runs, for the time left on the live display."""
    nvtx: bool = True
    """Emit every phase, step and collective as an NVTX range in the domain `agprof`."""
    flight_recorder: bool = True
    """Keep torch's flight recorder as the ledger that no collective was missed."""


class MonitorSection(_Section):
    """What is sampled on each node beside the ranks."""

    enabled: bool = True
    """Run the sampler."""
    period_s: Annotated[float, Field(ge=0.05, le=60)] = 1.0
    """Time between samples of processes, host and GPUs."""
    nvml: Literal["auto", "off"] = "auto"
    """Ask NVML for the GPUs; off never loads it."""


class Workload(_Section):
    """A training job and how to profile it."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    """Name of the run; its folder carries it. Letters, digits, `.`, `_`, `-`."""
    description: str = ""
    """One line for `agprof workloads` and the report."""
    module: str | None = None
    """Python module to run, as `python -m`. Give either module or script."""
    script: str | None = None
    """Python file to run, relative to the workload file. Give either module or script."""
    args: dict[str, ArgValue] | list[str | int | float] = Field(default_factory=dict)
    """Arguments: a list as it stands, or a mapping: value -> --key value, true -> --key, false and null -> left out."""
    launch: LaunchSection = Field(default_factory=LaunchSection)
    profile: ProfileSection = Field(default_factory=ProfileSection)
    monitor: MonitorSection = Field(default_factory=MonitorSection)

    @model_validator(mode="after")
    def _one_target(self) -> "Workload":
        if (self.module is None) == (self.script is None):
            raise ValueError("give exactly one of `module` and `script`: the program that the ranks run")
        if self.launch.bind_cores and self.launch.launcher != "deepspeed":
            raise ValueError("`launch.bind_cores` needs `launch.launcher: deepspeed`; torchrun does not bind cores")
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
