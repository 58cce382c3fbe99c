"""Which leading steps are warm-up: left out of statistics, still drawn."""

from collections.abc import Sequence
from statistics import median

from agprof.analysis.statistics import mad


def declared_warmup(warmup_steps: int) -> str:
    """The rule in words when the workload file gives the number."""
    return f"the first {warmup_steps} steps, as profile.warmup_steps of the workload file says"


def detect_warmup(durations: Sequence[float]) -> tuple[int, str]:
    """Number of leading steps that are warm-up, and the rule in words.

    `durations` are those of complete steps in order, without profiled ones. From three steps on the first is always
    warm-up; it goes on while steps are slower than the median of the last two thirds by more than 3 deviations
    (1.4826 MAD) and 5 %, and takes at most a third of the steps.
    """
    n = len(durations)
    if n < 3:
        return 0, "none: fewer than three complete steps"
    most = n // 3
    rest = durations[most:]
    middle = median(rest)
    limit = middle + max(3 * 1.4826 * mad(rest), 0.05 * middle)
    count = 0
    while count < most and durations[count] > limit:
        count += 1
    rule = (
        "leading steps slower than the median of the last two thirds by 3 deviations (MAD) and 5 %; "
        "at least the first, at most a third of the steps"
    )
    return max(1, count), rule
