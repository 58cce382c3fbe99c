"""What is wrong in a workload file, as values, and the one error made of them."""

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from agprof.errors import ConfigError

OPTION = "--set"
"""The option whose problems stand beside those of the file."""
MAX_SHOWN = 10
"""Problems printed; the rest is counted."""
MAX_TEXT = 60
"""Characters of a user's value repeated in a message."""


class Problem(NamedTuple):
    """One broken rule."""

    where: str
    """`file:line:column`, or the `--set` option it came from."""
    key: str
    """Dotted key; empty when it concerns no key."""
    rule: str
    """Which rule, and what to do."""

    def __str__(self) -> str:
        return f"{self.where}: key {shown(self.key)}: {self.rule}" if self.key else f"{self.where}: {self.rule}"


def config_error(problems: Sequence[Problem], source: str) -> ConfigError:
    """The error that reports all problems found in `source`, in file order; a single one stands on one line."""
    if len(problems) == 1:
        return ConfigError(str(problems[0]))
    lines = [
        f"{source} has {len(problems)} problems:",
        *(f"  {problem}" for problem in sorted(problems, key=_order)[:MAX_SHOWN]),
    ]
    if len(problems) > MAX_SHOWN:
        lines.append(f"  and {len(problems) - MAX_SHOWN} more")
    return ConfigError("\n".join(lines))


def _order(problem: Problem) -> tuple[float, float]:
    position = re.search(r":(\d+):(\d+)$", problem.where)
    return (int(position[1]), int(position[2])) if position else (math.inf, 0)


def shown(value: object) -> str:
    """A value as a message repeats it: quoted, one line, no control characters, not long."""
    text = repr(value)
    return text if len(text) <= MAX_TEXT + 2 else f"{text[:MAX_TEXT]}...{text[0]}"


def printable(text: str) -> str:
    """The text with every character that would not print as itself escaped."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word most like `word`, or with a part most like it (`rnks`: ranks_per_node); None when none is."""
    words = {candidate.lower().replace("-", "_"): candidate for candidate in known}
    parts = {part: words[candidate] for candidate in words for part in candidate.split("_") if len(part) > 4}
    asked = word[:200].lower().replace("-", "_")
    for choice, cutoff in ((words, 0.6), (parts, 0.75)):
        found = difflib.get_close_matches(asked, choice, n=1, cutoff=cutoff)
        if found:
            return choice[found[0]]
    return None
