"""Groups of modules against the roof: which are bound by memory, and how far below it they run.

The groups cut the trees so that every counted FLOP is in exactly one of them: the parts of repeated blocks
(`layers.0.mlp`, `layers.1.mlp` ... are `layers.*.mlp`), modules beside them whole, and what a module that was cut
computes itself.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from agprof.analysis.compute_ceilings import Ceilings
from agprof.analysis.compute_profile import Profile, Row, finite
from agprof.model.compute_answers import RooflinePoint

RoofPass = Literal["forward", "backward"]
_PASSES: tuple[RoofPass, RoofPass] = ("forward", "backward")
_TRIFLE = 1e-9
"""Of a module's FLOPs: what is left of subtracting its parts in floating point."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """A module, or what it computes itself; values by pass."""

    root: int
    label: str
    type: str
    flops: dict[str, float]
    bytes: dict[str, float]
    duration_ns: dict[str, float | None]


def roofline(profile: Profile, ceilings: Ceilings, dtype: str | None) -> tuple[RooflinePoint, ...]:
    """Points with FLOPs and bytes, those with most FLOPs first."""
    best = ceilings.best(dtype)
    peak = best.flops_per_second if best is not None else None
    bandwidth = ceilings.bandwidth(dtype)
    groups: dict[tuple[int, str, str], list[_Piece]] = {}
    for piece in _cut(profile):
        groups.setdefault((piece.root, piece.label, piece.type), []).append(piece)
    labels = [label for _, label, _ in groups]
    several = len(profile.roots) > 1
    points = []
    for (root, label, type_), pieces in groups.items():
        shown = f"{label} ({type_})" if labels.count(label) > 1 and not several else label
        shown = f"{_root_name(profile, root)}: {shown}" if several else shown
        for name in _PASSES:
            point = _point(shown, name, pieces, peak, bandwidth)
            if point is not None:
                points.append(point)
    points.sort(key=lambda point: (-point.flops, point.label, point.in_pass))
    return tuple(points)


def _root_name(profile: Profile, root: int) -> str:
    kind = next((row["type"] for row in profile.roots if row["root"] == root), "model")
    return f"{kind} {root}"


def _point(
    label: str, in_pass: RoofPass, pieces: list[_Piece], peak: float | None, bandwidth: float | None
) -> RooflinePoint | None:
    flops = sum(piece.flops[in_pass] for piece in pieces)
    moved = sum(piece.bytes[in_pass] for piece in pieces)
    if flops <= 0 or moved <= 0 or not math.isfinite(flops / moved):
        return None
    times = [piece.duration_ns[in_pass] for piece in pieces]
    known = [time_ns for time_ns in times if time_ns is not None]
    duration_ns = round(sum(known)) if len(known) == len(times) else None
    slope = flops / moved * bandwidth if bandwidth else None
    bound: Literal["compute", "memory", "unknown"] = "unknown"
    if peak and slope is not None:
        bound = "compute" if slope >= peak else "memory"
    return RooflinePoint(
        label=label,
        modules=len(pieces),
        in_pass=in_pass,
        flops=flops,
        bytes=moved,
        intensity=flops / moved,
        duration_ns=duration_ns,
        flops_per_second=flops * 1e9 / duration_ns if duration_ns else None,
        roof_flops_per_second=min(peak, slope) if peak and slope is not None else None,
        bound_by=bound,
    )


def _cut(profile: Profile) -> Iterator[_Piece]:
    children: dict[tuple[int, str], list[Row]] = {}
    for row in profile.modules:
        if row["parent"] is not None:
            children.setdefault((row["root"], row["parent"]), []).append(row)
    holds_blocks = {
        (row["root"], above) for row in profile.modules if _is_block(row["path"]) for above in _above(row["path"])
    }
    for root in profile.roots:
        yield from _pieces(root, children, holds_blocks, inside=False)


def _pieces(
    row: Row, children: dict[tuple[int, str], list[Row]], holds_blocks: set[tuple[int, str]], *, inside: bool
) -> Iterator[_Piece]:
    """`inside`: the row is a part of a block, and stays whole."""
    key = (row["root"], row["path"])
    parts = children.get(key, [])
    if inside or not parts or (key not in holds_blocks and not _is_block(row["path"])):
        yield _piece(row, [])
        return
    block = _is_block(row["path"])
    for part in parts:
        yield from _pieces(part, children, holds_blocks, inside=block)
    own = _piece(row, parts)
    if any(own.flops[name] > _TRIFLE * (finite(row[f"{name}_flops"]) or 0.0) for name in _PASSES):
        yield own


def _piece(row: Row, without: list[Row]) -> _Piece:
    def rest(column: str) -> float | None:
        whole = finite(row[column])
        if whole is None:
            return None
        return max(0.0, whole - sum(finite(part[column]) or 0.0 for part in without))

    label = ".".join("*" if word.isdigit() else word for word in row["path"].split(".")) or row["type"]
    return _Piece(
        row["root"],
        f"{label} (itself)" if without else label,
        row["type"],
        {name: rest(f"{name}_flops") or 0.0 for name in _PASSES},
        {name: rest(f"{name}_bytes") or 0.0 for name in _PASSES},
        {name: rest(f"{name}_ns") for name in _PASSES},
    )


def _is_block(path: str) -> bool:
    return path.rpartition(".")[2].isdigit()


def _above(path: str) -> Iterator[str]:
    while path:
        path = path.rpartition(".")[0]
        yield path
