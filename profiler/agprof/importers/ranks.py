"""Which rank a trace file is of: by what it says itself, else by its name, else by the order of the files."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from agprof.errors import TraceError

ORDER = "order of the files"
FILE_NAME = "file name"
MAX_RANK = 10**6
_PATTERNS = (
    re.compile(r"(?:^|[^a-z])rank[ _.-]?0*(\d{1,7})(?![0-9a-z])", re.IGNORECASE),
    re.compile(r"(?:^|[^a-z])worker[ _.-]?0*(\d{1,7})(?![0-9a-z])", re.IGNORECASE),
    re.compile(r"_0*(\d{1,5})\.(?=json|pt|sqlite|nsys-rep|pickle|gz|trace)", re.IGNORECASE),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A trace and what is known of its rank."""

    label: str
    """Of the file, for messages."""
    rank: int | None
    """What the trace says itself."""
    source: str
    name: str | None
    """Name of the file, where it may tell; None where a file holds several ranks."""


@dataclass(frozen=True, slots=True)
class Assigned:
    """A rank and how it is known."""

    rank: int
    source: str


def rank_of_name(name: str) -> int | None:
    """The rank in a file's name: rank0, rank-0, worker0, _0. in that order.

    >>> [rank_of_name(n) for n in ("rank-00012.json", "host_worker3.pt.trace.json", "trace_8_rank_1.json", "t_7.json")]
    [12, 3, 1, 7]
    >>> rank_of_name("v100_train_rank1of2.json.gz"), rank_of_name("trace.json")
    (1, None)
    """
    plain = re.sub(r"(rank[ _.-]?\d+)of\d+", r"\1", name, flags=re.IGNORECASE)
    for pattern in _PATTERNS:
        match = pattern.search(plain)
        if match and int(match[1]) < MAX_RANK:
            return int(match[1])
    return None


def assign(claims: Iterable[Claim]) -> list[Assigned]:
    """A rank for every trace, in the given order. Raises TraceError when two traces are of the same rank.

    Names count only where every trace without a word of its own has one, and they differ: `resnet50_d3fb407_1.json`
    alone says nothing sure, but then nothing else does either.
    """
    given = list(claims)
    known: list[Assigned | None] = [
        Assigned(claim.rank, claim.source) if claim.rank is not None and 0 <= claim.rank < MAX_RANK else None
        for claim in given
    ]
    _refuse_twice(given, known)
    silent = [number for number, found in enumerate(known) if found is None]
    names = {number: rank_of_name(given[number].name or "") for number in silent}
    taken = {found.rank for found in known if found is not None}
    told = [rank for rank in names.values() if rank is not None]
    if silent and len(told) == len(silent):
        for number in silent:
            known[number] = Assigned(names[number] or 0, FILE_NAME)
        _refuse_twice(given, known)
    else:
        free = (rank for rank in range(MAX_RANK) if rank not in taken)
        for number in silent:
            known[number] = Assigned(next(free), ORDER)
    return [found for found in known if found is not None]


def _refuse_twice(claims: list[Claim], known: list[Assigned | None]) -> None:
    by_rank: dict[int, tuple[str, str]] = {}
    for claim, found in zip(claims, known, strict=True):
        if found is None:
            continue
        if found.rank in by_rank:
            first, source = by_rank[found.rank]
            both = f"two files {first}" if first == claim.label else f"{first} and {claim.label}"
            known_by = source if source == found.source else f"{source}; {found.source}"
            raise TraceError(
                f"{both} are both of rank {found.rank} ({known_by}); import the traces of one run, and one of each rank"
            )
        by_rank[found.rank] = (claim.label, found.source)
