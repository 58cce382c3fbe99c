"""`--sweep KEY=V1,V2`: the variants of a workload that a sweep runs, as `--set` options."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from agprof.config.problems import Problem, config_error, printable

OPTION = "--sweep"
SHORTHAND = {"framework": "args.framework", "peft": "args.peft", "allreduce": "args.allreduce"}
"""Arguments of the bundled workloads that are swept most."""
MAX_VARIANTS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One point of the sweep."""

    values: tuple[str, ...]
    """One per key."""
    sets: tuple[str, ...]
    """The `--set` options that make it."""

    @property
    def label(self) -> str:
        """For folder names: letters, digits and dashes.

        >>> Variant(values=("ddp", "1e-3"), sets=()).label, Variant(values=("[1, 2]",), sets=()).label
        ('ddp-1e-3', '1-2')
        """
        words = "".join(char if char.isascii() and char.isalnum() else " " for char in " ".join(self.values)).split()
        return "-".join(words) or "empty"


def variants(sweeps: Sequence[str]) -> tuple[tuple[str, ...], list[Variant]]:
    """Keys, and the product of all values: the last key changes fastest. Raises ConfigError.

    A comma inside brackets, braces or quotes belongs to the value.

    >>> keys, found = variants(["framework=ddp,fsdp2", "args.steps=5,10"])
    >>> keys, [variant.values for variant in found]
    (('args.framework', 'args.steps'), [('ddp', '5'), ('ddp', '10'), ('fsdp2', '5'), ('fsdp2', '10')])
    """
    keys: list[str] = []
    choices: list[list[str]] = []
    for item in sweeps:
        where = f"{OPTION} {printable(item[:60])}"
        key, equals, text = item.partition("=")
        values = split(text)
        if not equals or not key.strip() or not all(values):
            raise config_error([Problem(where, "", "must be key=value,value as in --sweep framework=ddp,fsdp2")], where)
        key = SHORTHAND.get(key.strip(), key.strip())
        if key == "name":
            raise config_error([Problem(where, key, "is made for each variant by the sweep; leave it out")], where)
        if key in keys:
            raise config_error([Problem(where, key, "is swept twice; give all its values at once")], where)
        if len(set(values)) < len(values):
            raise config_error([Problem(where, key, "has a value twice; leave one out")], where)
        keys.append(key)
        choices.append(values)
    points = list(itertools.islice(itertools.product(*choices), MAX_VARIANTS + 1))
    if len(points) > MAX_VARIANTS:
        raise config_error([Problem(OPTION, "", f"makes more than {MAX_VARIANTS} runs; leave values out")], OPTION)
    return tuple(keys), [
        Variant(values=point, sets=tuple(f"{key}={value}" for key, value in zip(keys, point, strict=True)))
        for point in points
    ]


def split(text: str) -> list[str]:
    """Values between commas.

    >>> split("a, b"), split("[1,2],[3]"), split("'x,y',z")
    (['a', 'b'], ['[1,2]', '[3]'], ["'x,y'", 'z'])
    """
    parts, depth, quote = [""], 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char in "[{":
            depth += 1
        elif char in "]}":
            depth -= 1
        elif char == "," and depth <= 0:
            parts.append("")
            continue
        parts[-1] += char
    return [part.strip() for part in parts]
