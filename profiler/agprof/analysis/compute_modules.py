"""Modules and operations of the profile step: shares, rates, and how far from the ceiling they are."""

import math

from agprof.analysis.compute_ceilings import Ceilings
from agprof.analysis.compute_profile import PASSES, Profile, Row, finite, total_of
from agprof.model.compute_answers import ModuleRow, OperationRow


def module_rows(profile: Profile, ceilings: Ceilings, dtype: str | None) -> tuple[ModuleRow, ...]:
    """The rows of `modules`, parents first. Shares are of all trees together."""
    all_flops = total_of(_all(row, "flops") for row in profile.roots)
    all_ns = total_of(_all(row, "ns") for row in profile.roots)
    best = ceilings.best(dtype)
    peak = best.flops_per_second if best is not None else None
    return tuple(_module(row, all_flops, all_ns, peak) for row in profile.modules)


def _all(row: Row, what: str) -> float | None:
    """FLOPs or ns of all passes together."""
    return total_of(row[f"{name}_{what}"] for name in PASSES)


def _module(row: Row, all_flops: float | None, all_ns: float | None, peak: float | None) -> ModuleRow:
    flops, duration_ns = _all(row, "flops"), _all(row, "ns")
    moved = total_of((row["forward_bytes"], row["backward_bytes"]))
    model_flops = total_of((row["forward_flops"], row["backward_flops"]))
    rate = _over(flops, duration_ns, 1e9)
    return ModuleRow(
        root=row["root"],
        path=row["path"],
        parent=row["parent"],
        depth=row["depth"],
        type=row["type"],
        params=row["params"],
        trainable_params=row["trainable_params"],
        calls=row["calls"],
        recomputed_calls=row["recomputed_calls"],
        forward_flops=finite(row["forward_flops"]),
        backward_flops=finite(row["backward_flops"]),
        recomputed_flops=finite(row["recomputed_flops"]),
        modelled_flops=total_of((row["modelled_forward_flops"], row["modelled_backward_flops"])),
        forward_ns=_ns(row["forward_ns"]),
        backward_ns=_ns(row["backward_ns"]),
        recomputed_ns=_ns(row["recomputed_ns"]),
        flops_share=_over(flops, all_flops),
        time_share=_over(duration_ns, all_ns),
        flops_per_second=rate,
        of_ceiling=_over(rate, peak),
        intensity=_over(model_flops, moved),
    )


def _ns(value: object) -> int | None:
    return value if isinstance(value, int) and value >= 0 else None


def _over(part: float | None, whole: float | None, factor: float = 1.0) -> float | None:
    if part is None or not whole:
        return None
    ratio = part / whole * factor
    return ratio if math.isfinite(ratio) else None


def operation_rows(profile: Profile, ceilings: Ceilings) -> tuple[OperationRow, ...]:
    """The rows of `operations`: most FLOPs first, then most time."""
    all_flops = total_of(row["flops"] for row in profile.operations)
    rows = [_operation(row, all_flops, ceilings) for row in profile.operations]
    order = {name: at for at, name in enumerate((*PASSES, "outside"))}
    rows.sort(
        key=lambda row: (-row.flops, -(row.duration_ns or 0), order.get(row.in_pass, 9), row.kind, row.dtype or "")
    )
    return tuple(rows)


def _operation(row: Row, all_flops: float | None, ceilings: Ceilings) -> OperationRow:
    flops = finite(row["flops"]) or 0.0
    duration_ns = _ns(row["duration_ns"])
    rate = _over(flops, duration_ns, 1e9) if flops else None
    sheet, measured = ceilings.datasheet(row["dtype"]), ceilings.measured(row["dtype"])
    return OperationRow(
        in_pass=row["in_pass"],
        kind=row["kind"],
        dtype=row["dtype"],
        calls=row["calls"],
        flops=flops,
        flops_share=_over(flops, all_flops),
        duration_ns=duration_ns,
        flops_per_second=rate,
        of_datasheet=_over(rate, sheet.flops_per_second if sheet is not None else None),
        of_achievable=_over(rate, measured.flops_per_second if measured is not None else None),
    )


def dtype_of_most_flops(profile: Profile) -> str | None:
    """The element type that most executed FLOPs had; None when no operation was counted."""
    flops: dict[str, float] = {}
    for row in profile.operations:
        if row["dtype"] is not None:
            flops[row["dtype"]] = flops.get(row["dtype"], 0.0) + (finite(row["flops"]) or 0.0)
    most = max(flops, key=lambda dtype: (flops[dtype], dtype), default=None)
    return most if most is not None and flops[most] > 0 else None


def mostly_convolutions(profile: Profile, dtype: str) -> bool:
    """Whether convolutions are more than half of the executed FLOPs of an element type."""
    rows = [row for row in profile.operations if row["dtype"] == dtype]
    convolutions = sum(finite(row["flops"]) or 0.0 for row in rows if row["kind"] == "convolution")
    return convolutions > 0.5 * sum(finite(row["flops"]) or 0.0 for row in rows)
