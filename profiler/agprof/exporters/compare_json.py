"""`compare.json`: the answer of a comparison, field by field. The same runs give the same bytes."""

import msgspec

from agprof.model.compare_answers import CompareAnswer


def encode(answer: CompareAnswer) -> bytes:
    """UTF-8 JSON, indented, keys in the order of `model.compare_answers`; a float that is no number becomes null."""
    return msgspec.json.format(msgspec.json.encode(answer), indent=1) + b"\n"


def decode(data: bytes) -> CompareAnswer:
    """Read what `encode` wrote. Raises msgspec.ValidationError or msgspec.DecodeError on anything else."""
    return msgspec.json.decode(data, type=CompareAnswer)
