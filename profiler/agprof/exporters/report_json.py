"""`report.json`: the answers of a run, field by field. The same answers give the same bytes."""

import dataclasses
import math
from typing import Any

import msgspec

from agprof.model.answers import RunAnswers


def encode(answers: RunAnswers) -> bytes:
    """UTF-8 JSON, indented, keys in the order of `model.answers`; a float that is no number becomes null."""
    return msgspec.json.format(msgspec.json.encode(_finite(answers)), indent=1) + b"\n"


def decode(data: bytes) -> RunAnswers:
    """Read what `encode` wrote. Raises msgspec.ValidationError or msgspec.DecodeError on anything else."""
    return msgspec.json.decode(data, type=RunAnswers)


def _finite(value: Any) -> Any:
    """Plain data with every NaN and infinity as None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _finite(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return value
