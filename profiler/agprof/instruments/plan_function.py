"""What a workload's model function returns, checked. The protocol is in docs/plan.md."""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, get_args

from agprof.model.plan_json import shown
from agprof.model.plan_measure import Change, Job, OptimizerKernel

CHANGES: tuple[str, ...] = get_args(Change)
FRAMEWORKS = ("deepspeed", "ddp", "fsdp2", "plain")
SAME_AS = {"horovod": "plain", "": "plain"}
OPTIMIZERS = ("adam", "adamw", "sgd")
MAX_COUNT = 2**40
DEFAULT_BUCKET = 500_000_000
HOW = "docs/plan.md says what a model function returns"


class FunctionError(Exception):
    """The model function is missing, failed, or returned something else than the protocol says."""


class EndedError(FunctionError):
    """The model function ended the process: why, it has printed."""


class Kind(NamedTuple):
    """One kind of micro-step."""

    name: str
    per_step: float
    by_chance: str
    run: Callable[[], Any]
    """One forward; returns the loss."""


class Planned(NamedTuple):
    """What the function returned."""

    module: Any
    kinds: tuple[Kind, ...]
    job: Job
    can_change: frozenset[str]


def find_function(reference: str) -> Callable[..., Any]:
    """`package.module:function`. Raises FunctionError."""
    module_name, _, name = reference.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise FunctionError(f"{module_name} can't be imported: {error_text(error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise FunctionError(f"{module_name} has no function {name!r}; {HOW}")
    return function  # type: ignore[no-any-return]


def call(function: Callable[..., Any], arguments: list[str], asked: dict[str, Any], torch: Any) -> Planned:
    """Raises FunctionError with one sentence."""
    try:
        returned = function(list(arguments), dict(asked))
    except SystemExit as ended:
        raise EndedError(f"ended the process with {shown(ended.code)} instead of returning a model") from ended
    except Exception as error:
        raise FunctionError(f"raised {error_text(error)}") from error
    return _Reader(returned, asked, torch).planned()


class _Reader:
    """Reads fields of a mapping or of an object's attributes."""

    def __init__(self, returned: Any, asked: Mapping[str, Any], torch: Any) -> None:
        if returned is None or isinstance(returned, str | bytes | int | float | list | tuple | set):
            raise FunctionError(f"returned {shown(returned)}, not a mapping or an object with `module` ...; {HOW}")
        self._returned = returned
        self._asked = asked
        self._torch = torch

    def planned(self) -> Planned:
        module = self._get("module")
        if not isinstance(module, self._torch.nn.Module):
            raise FunctionError(f"`module` is {shown(module)}, not a torch.nn.Module; {HOW}")
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if tensor.device.type != "meta":
                raise FunctionError(
                    f"`module` holds {name} on {tensor.device.type}; build it on the meta device: "
                    "`with torch.device('meta'): ...`"
                )
        if not any(True for _ in module.parameters()):
            raise FunctionError("`module` has no parameters")
        changes = self._get("can_change", ())
        are_names = isinstance(changes, list | tuple | set | frozenset)
        if not are_names or not all(change in CHANGES for change in changes):
            raise FunctionError(f"`can_change` is {shown(changes)}, not a list of {', '.join(CHANGES)}")
        return Planned(module, self._kinds(), self._job(module), frozenset(changes))

    def _kinds(self) -> tuple[Kind, ...]:
        given = self._get("micro_steps")
        if not isinstance(given, list | tuple) or not 0 < len(given) <= 100:
            raise FunctionError(f"`micro_steps` is {shown(given)}, not a list of 1 to 100 kinds; {HOW}")
        return tuple(_kind(number, one) for number, one in enumerate(given))

    def _job(self, module: Any) -> Job:
        framework = str(self._get("framework", "plain"))
        framework = SAME_AS.get(framework, framework)
        if framework not in FRAMEWORKS:
            known = ", ".join([*FRAMEWORKS, "horovod"])
            raise FunctionError(f"`framework` is {shown(framework)}; known are {known}")
        optimizer = str(self._get("optimizer", "adamw")).lower()
        if optimizer not in OPTIMIZERS:
            raise FunctionError(f"`optimizer` is {shown(optimizer)}; known are {', '.join(OPTIMIZERS)}")
        kernel = self._get("optimizer_kernel", "torch")
        if kernel not in get_args(OptimizerKernel):
            raise FunctionError(f"`optimizer_kernel` is {shown(kernel)}, not one of {get_args(OptimizerKernel)}")
        stage = self._count("zero_stage", 0, low=0, high=3)
        assert stage is not None
        return Job(
            framework=framework,
            ranks=self._count("ranks", self._asked.get("ranks", 1)) or 1,
            zero_stage=stage,
            offload_optimizer=bool(self._get("offload_optimizer", False)),
            offload_param=bool(self._get("offload_param", False)),
            accumulation=self._count("accumulation", 1) or 1,
            dtype=_training_dtype(module),
            optimizer=optimizer,
            optimizer_kernel=kernel,
            bucket_elements=self._count("bucket_elements", DEFAULT_BUCKET) or DEFAULT_BUCKET,
            micro_batch=self._count("micro_batch", None),
            sequence_length=self._count("sequence_length", None),
            checkpointing=self._switch("checkpointing"),
            lora=self._switch("lora"),
        )

    def _get(self, name: str, *default: Any) -> Any:
        returned = self._returned
        if isinstance(returned, Mapping):
            value, found = returned.get(name), name in returned
        else:
            value, found = getattr(returned, name, None), hasattr(returned, name)
        if found:
            return value
        if default:
            return default[0]
        raise FunctionError(f"returned nothing named `{name}`; {HOW}")

    def _count(self, name: str, default: int | None, *, low: int = 1, high: int = MAX_COUNT) -> int | None:
        value = self._get(name, default)
        if value is None and default is None:
            return None
        if type(value) is not int or not low <= value <= high:
            raise FunctionError(f"`{name}` is {shown(value)}, not a whole number from {low} to {high}")
        return value

    def _switch(self, name: str) -> bool | None:
        value = self._get(name, None)
        return None if value is None else bool(value)


def _kind(number: int, given: Any) -> Kind:
    where = f"`micro_steps[{number}]`"
    if not isinstance(given, Mapping):
        raise FunctionError(f"{where} is {shown(given)}, not a mapping with `name`, `run` and `per_step`; {HOW}")
    run, per_step = given.get("run"), given.get("per_step")
    if not callable(run):
        raise FunctionError(f"{where}: `run` is {shown(run)}, not a function that returns the loss")
    if type(per_step) not in (int, float) or not 0 < per_step <= MAX_COUNT:  # type: ignore[operator]
        raise FunctionError(f"{where}: `per_step` is {shown(per_step)}, not a number above 0")
    name = str(given.get("name", f"micro-step {number}"))[:200]
    return Kind(name, float(per_step), str(given.get("by_chance") or "")[:200], run)  # type: ignore[arg-type]


def _training_dtype(module: Any) -> str:
    """Element type of most trained elements; of all elements when none is trained."""
    elements: dict[str, int] = {}
    parameters = list(module.parameters())
    for parameter in [p for p in parameters if p.requires_grad] or parameters:
        name = str(parameter.dtype).removeprefix("torch.")
        elements[name] = elements.get(name, 0) + parameter.numel()
    return max(elements, key=lambda name: elements[name])


def error_text(error: BaseException) -> str:
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message[:300]}" if message else type(error).__name__


def search_first(folder: str) -> None:
    """Modules beside a workload's script come first, as they do when the script runs."""
    sys.path.insert(0, folder)
