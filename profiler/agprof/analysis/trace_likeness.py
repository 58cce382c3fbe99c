"""Matching names of kernels and operators of two traces: equal ones first, then those that are alike."""

import re
from collections.abc import Callable, Iterable, Mapping

LONGEST = 4_096
"""Characters of a name that are looked at."""


def match_names(a: Mapping[str, int], b: Mapping[str, int]) -> list[tuple[str | None, str | None]]:
    """Pairs of names, each name once; None where the other side has nothing like it.

    The values are times: of several names that are alike the longest-running are matched first. Alike are, first, names
    that differ in digits only, then those that differ in template arguments and parameters only.
    """
    pairs: list[tuple[str | None, str | None]] = [(name, name) for name in sorted(a.keys() & b.keys())]
    left, right = ({name: each[name] for name in each if name not in other} for each, other in ((a, b), (b, a)))
    for likeness in (without_digits, without_arguments):
        found = _alike(left, right, likeness)
        pairs.extend(found)
        for one, other in found:
            del left[one], right[other]
    return [*pairs, *((name, None) for name in sorted(left)), *((None, name) for name in sorted(right))]


def _alike(a: Mapping[str, int], b: Mapping[str, int], likeness: Callable[[str], str]) -> list[tuple[str, str]]:
    groups_a, groups_b = _grouped(a, likeness), _grouped(b, likeness)
    both = sorted(groups_a.keys() & groups_b.keys())
    return [pair for key in both for pair in zip(groups_a[key], groups_b[key], strict=False)]


def _grouped(times: Mapping[str, int], likeness: Callable[[str], str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in _longest_first(times):
        if key := likeness(name[:LONGEST]):
            groups.setdefault(key, []).append(name)
    return groups


def _longest_first(times: Mapping[str, int]) -> Iterable[str]:
    return sorted(times, key=lambda name: (-times[name], name))


def without_digits(name: str) -> str:
    """
    >>> without_digits("triton_poi_fused_add_12")
    'triton_poi_fused_add_#'
    """
    return re.sub(r"\d+", "#", name)


def without_arguments(name: str) -> str:
    """The name without template arguments, parameters and digits.

    >>> without_arguments("void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float> >(ReduceOp<float>)")
    'void at::native::reduce_kernel'
    >>> without_arguments("void (anonymous namespace)::softmax<1>(float*)")
    'void (anonymous namespace)::softmax'
    """
    kept: list[str] = []
    depth = 0
    for part in re.split(r"(\(anonymous namespace\)|[<>()])", name):
        if part in ("<", "("):
            depth += 1
        elif part in (">", ")"):
            depth = max(0, depth - 1)
        elif depth == 0:
            kept.append(part)
    return without_digits("".join(kept)).strip()
