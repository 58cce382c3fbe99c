"""`report.json`: the answers of a run, field by field. The same answers give the same bytes."""

import msgspec

from agprof.model.answers import RunAnswers


def encode(answers: RunAnswers) -> bytes:
    """UTF-8 JSON, indented, keys in the order of `model.answers`; a float that is no number becomes null
    (msgspec's own rule)."""
    return msgspec.json.format(msgspec.json.encode(answers), indent=1) + b"\n"


def decode(data: bytes) -> RunAnswers:
    """Read what `encode` wrote. Raises msgspec.ValidationError or msgspec.DecodeError on anything else."""
    return msgspec.json.decode(data, type=RunAnswers)
