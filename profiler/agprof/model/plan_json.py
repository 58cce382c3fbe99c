"""`plan.json` <-> `PlanAnswer`. The file may be anybody's: what does not have exactly the declared types is refused."""

import math
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from agprof.model.plan_answers import PLAN_VERSION, PlanAnswer

MAX_ITEMS = 10_000
"""Longest list that is believed."""


def plan_to_dict(plan: PlanAnswer) -> dict[str, Any]:
    """Values that JSON can hold."""
    return asdict(plan)


def plan_from_dict(value: object) -> PlanAnswer:
    """Raises ValueError that says where and what when `value` is not what `plan_to_dict` gives."""
    if isinstance(value, Mapping) and value.get("version") != PLAN_VERSION:
        raise ValueError(f"version {shown(value.get('version'))} is not {PLAN_VERSION}, which this agprof reads")
    plan = decoded(PlanAnswer, value, "plan")
    assert isinstance(plan, PlanAnswer)
    return plan


def decoded(kind: Any, value: object, where: str) -> Any:
    """`value` as `kind`: a dataclass of such, a tuple, a union with None, a Literal, or a plain type."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is UnionType:
        if value is None and type(None) in arguments:
            return None
        (kind,) = (argument for argument in arguments if argument is not type(None))
        return decoded(kind, value, where)
    if origin is Literal:
        if not isinstance(value, str) or value not in arguments:
            raise ValueError(f"{where}: {shown(value)} is not one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        return _tuple(arguments, value, where)
    if is_dataclass(kind) and isinstance(kind, type):
        return _dataclass(kind, value, where)
    return _plain(kind, value, where)


def _plain(kind: Any, value: object, where: str) -> Any:
    if kind is float and type(value) in (int, float):
        try:
            number = float(value)  # type: ignore[arg-type]
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            raise ValueError(f"{where}: {shown(value)} is no finite number")
        return number
    if type(value) is not kind:
        raise ValueError(f"{where}: {shown(value)} is not of type {kind.__name__}")
    return value


def _tuple(arguments: tuple[Any, ...], value: object, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple) or len(value) > MAX_ITEMS:
        raise ValueError(f"{where}: must be a list of at most {MAX_ITEMS} items")
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(decoded(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if len(value) != len(arguments):
        raise ValueError(f"{where}: has {len(value)} items instead of {len(arguments)}")
    pairs = zip(arguments, value, strict=True)
    return tuple(decoded(kind, item, f"{where}[{index}]") for index, (kind, item) in enumerate(pairs))


def _dataclass(kind: type, value: object, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where}: must be an object, not {shown(value)}")
    kinds = get_type_hints(kind)
    names = {field.name for field in fields(kind)}
    missing = sorted(names - set(value))
    if missing:
        raise ValueError(f"{where}: has no {missing[0]}")
    # Keys nobody knows come from a later agprof of the same version, which only adds.
    return kind(**{name: decoded(kinds[name], value[name], f"{where}.{name}") for name in names})


def shown(value: object) -> str:
    """A value of somebody's, short and without control characters."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
