"""`sweep.json`: the table of a sweep, field by field."""

import msgspec

from agprof.model.sweep import SweepTable


def encode(table: SweepTable) -> bytes:
    """UTF-8 JSON, indented, keys in the order of `model.sweep`; a float that is no number becomes null."""
    return msgspec.json.format(msgspec.json.encode(table), indent=1) + b"\n"


def decode(data: bytes) -> SweepTable:
    """Read what `encode` wrote. Raises msgspec.ValidationError or msgspec.DecodeError on anything else."""
    return msgspec.json.decode(data, type=SweepTable)
