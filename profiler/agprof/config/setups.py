"""`setups:` of a workload file: named node setups that the same job is run on, one after the other."""

import re
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from agprof.config.names import EnvName, Text
from agprof.config.section import Section, broken_rule, switched

_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*(kbit|mbit|gbit)")
_DELAY = re.compile(r"(\d+(?:\.\d+)?)\s*(us|ms|s)")
_RATE_UNITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_DELAY_UNITS = {"us": 1e3, "ms": 1e6, "s": 1e9}
MAX_EMULATED_NODES = 16


def rate_bits_per_s(text: str) -> int:
    """`1gbit` -> 1000000000, as tc writes rates. Raises ValueError."""
    match = _RATE.fullmatch(text.strip().lower())
    if match is None or float(match[1]) <= 0:
        raise ValueError(f"{text!r:.40} is no rate; write it as 1gbit, 200mbit or 64kbit")
    return round(float(match[1]) * _RATE_UNITS[match[2]])


def delay_ns(text: str) -> int:
    """`1ms` -> 1000000, one way. Raises ValueError."""
    match = _DELAY.fullmatch(text.strip().lower())
    if match is None:
        raise ValueError(f"{text!r:.40} is no delay; write it as 1ms, 200us or 0.1s")
    return round(float(match[1]) * _DELAY_UNITS[match[2]])


def _check_rate(text: str) -> str:
    try:
        rate_bits_per_s(text)
    except ValueError as error:
        raise broken_rule(str(error)) from None
    return text


def _check_delay(text: str) -> str:
    try:
        delay_ns(text)
    except ValueError as error:
        raise broken_rule(str(error)) from None
    return text


def _check_line(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise broken_rule("must be one line of text")
    return text


Line = Annotated[str, AfterValidator(_check_line)]


class EmulateSection(Section):
    """Nodes made of network namespaces on this machine, with addresses, host names and a shaped link (root needed)."""

    nodes: Annotated[int, Field(ge=2, le=MAX_EMULATED_NODES)] = 2
    """Namespaces."""
    rate: Annotated[str, AfterValidator(_check_rate)] | None = None
    """Of each node's link, each way: 1gbit; not shaped when left out."""
    delay: Annotated[str, AfterValidator(_check_delay)] | None = None
    """One way: 1ms; none when left out."""


class SlurmSection(Section):
    """How Slurm is asked for the nodes; `--dry-run` writes the sbatch file."""

    partition: Line | None = None
    """Partition."""
    account: Line | None = None
    """Account."""
    time: Line = "01:00:00"
    """Time limit."""
    gpus_per_node: Annotated[int, Field(ge=0, le=64)] = 0
    """GPUs of each node."""
    cpus_per_task: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Cores of each node's task."""
    options: list[Line] = Field(default_factory=list)
    """More options for #SBATCH lines, as they stand: `--exclusive`."""


def _emulate(value: Any) -> Any:
    return switched(EmulateSection, value, "emulate: {nodes: 2, rate: 1gbit, delay: 1ms}")


Emulate: TypeAlias = Annotated[
    EmulateSection | None, BeforeValidator(_emulate, json_schema_input_type=bool | EmulateSection | None)
]


class SetupSection(Section):
    """One node setup. What is left out is that of `launch:`."""

    nodes: Annotated[int, Field(ge=1, le=4096)] = 1
    """Nodes; that of `emulate` or of the hostfile where one is given."""
    ranks_per_node: Annotated[int, Field(gt=0, le=1024)] | None = None
    """Ranks on each node."""
    launcher: Literal["torchrun", "deepspeed"] | None = None
    """Program that starts the ranks of a node."""
    hostfile: Line | None = None
    """Nodes reached over ssh, in DeepSpeed's form, relative to the workload file."""
    ssh: Line = "ssh"
    """Command that reaches a node of the hostfile, with options."""
    through: Literal["agents", "deepspeed"] = "agents"
    """agents: agprof starts the launcher on each node; deepspeed: its runner goes over ssh (pdsh) by itself."""
    slurm: SlurmSection | None = None
    """Nodes that Slurm gives: ranks are started by srun."""
    emulate: Emulate = None
    """Nodes on this machine."""
    interface: Line | None = None
    """Network interface between the nodes, for NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME; chosen when left out."""
    env: dict[EnvName, Text] = Field(
        default_factory=dict, json_schema_extra={"additionalProperties": {"type": ["string", "number"]}}
    )
    """Environment added for every rank of this setup."""
    lost_after_s: Annotated[float, Field(ge=2, le=3600)] = 30.0
    """A node that is not heard of for so long is lost, and the job ends."""

    @model_validator(mode="after")
    def _one_way(self) -> "SetupSection":
        ways = [name for name in ("hostfile", "slurm", "emulate") if getattr(self, name) is not None]
        if len(ways) > 1:
            raise broken_rule(f"{' and '.join(ways)} exclude one another; keep one way to get at the nodes")
        if self.nodes > 1 and not ways:
            raise broken_rule(f"nodes is {self.nodes}: say where they are, by hostfile, slurm or emulate")
        if self.emulate is not None and "nodes" in self.model_fields_set and self.nodes != self.emulate.nodes:
            raise broken_rule(f"nodes is {self.nodes} and emulate.nodes {self.emulate.nodes}; leave nodes out")
        if self.through == "deepspeed" and self.hostfile is None:
            raise broken_rule("through: deepspeed needs a hostfile, whose nodes DeepSpeed's runner reaches over ssh")
        return self
