"""What can be measured and what can't: each field is ok, tried again later, or unsupported, with the reason."""

from collections.abc import Callable
from typing import Any, Literal, TypeVar

State = Literal["ok", "retry", "unsupported", "slowed"]
Append = Callable[[str, tuple[Any, ...]], None]
Verdict = Literal["retry", "unsupported"]
T = TypeVar("T")

FIRST_BACKOFF_NS = 1_000_000_000
LAST_BACKOFF_NS = 60_000_000_000
SECOND_NS = 1_000_000_000


class States:
    """Writes a row of `sampler_state` when a field's state changes, and only then."""

    def __init__(self, append: Append) -> None:
        self._append = append
        self._known: dict[str, State] = {}
        self._reasons: dict[str, str] = {}

    def set(self, time_ns: int, field: str, state: State, reason: str = "", *, always: bool = False) -> None:
        """`always`: write a row for another reason too."""
        # A field is taken for ok until it is said to be otherwise.
        if always or self._known.get(field, "ok") != state:
            self._known[field] = state
            self._append("sampler_state", (time_ns, field, state, reason[:500], None, None))
            self._reasons[field] = reason
        elif reason:
            self._reasons[field] = reason

    def reason(self, field: str) -> str | None:
        """The newest reason that was given for the field's state, also where it made no row."""
        return self._reasons.get(field)


class Backoff:
    """When to try again after a failure: 1 s later, then 2, 4 ... 60 s."""

    __slots__ = ("_due_ns", "_wait_ns")

    def __init__(self) -> None:
        self._wait_ns = FIRST_BACKOFF_NS
        self._due_ns = 0

    @property
    def due_ns(self) -> int:
        return self._due_ns

    def due(self, now_ns: int) -> bool:
        return now_ns >= self._due_ns

    def failed(self, now_ns: int) -> None:
        self._due_ns = now_ns + self._wait_ns
        self._wait_ns = min(2 * self._wait_ns, LAST_BACKOFF_NS)

    def succeeded(self) -> None:
        self._wait_ns = FIRST_BACKOFF_NS
        self._due_ns = 0


class Probe:
    """One reading that may fail: ok, then tried again with a back-off, or unsupported for good.

    `judge` says which of the two an exception means; it may also raise, to end the whole round.
    """

    __slots__ = ("_backoff", "_explain", "_judge", "_said_ok", "_states", "field", "unsupported")

    def __init__(
        self,
        states: States,
        field: str,
        judge: Callable[[Exception], Verdict],
        explain: Callable[[Exception], str] | None = None,
    ) -> None:
        """`explain` puts an exception into words."""
        self.field = field
        self._explain = explain or describe
        self.unsupported = False
        self._said_ok = False
        self._states = states
        self._judge = judge
        self._backoff = Backoff()

    def read(self, now_ns: int, function: Callable[[], T]) -> T | None:
        """The value, or None when it can't be had now; the reason is in `sampler_state` then."""
        if self.unsupported or not self._backoff.due(now_ns):
            return None
        try:
            value = function()
        except Exception as error:
            # Before judging, which may try something else.
            reason = self._explain(error)
            verdict = self._judge(error)
            self._backoff.failed(now_ns)
            self._said_ok = False
            self.unsupported = verdict == "unsupported"
            self._states.set(now_ns, self.field, verdict, reason)
            return None
        if not self._said_ok:
            self._said_ok = True
            self._backoff.succeeded()
            self._states.set(now_ns, self.field, "ok")
        return value


class Rate:
    """Turns a counter into a rate per second. None at first, and where the counter went backwards."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last: tuple[int, float] | None = None

    def update(self, now_ns: int, value: float | None) -> float | None:
        if value is None:
            return None
        last, self._last = self._last, (now_ns, value)
        if last is None or value < last[1] or now_ns <= last[0]:
            return None
        return (value - last[1]) * SECOND_NS / (now_ns - last[0])


def describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def judge_system_error(error: Exception) -> Verdict:
    """What an exception of a read in /proc or /sys means."""
    lasting = (PermissionError, FileNotFoundError, NotImplementedError, AttributeError)
    return "unsupported" if isinstance(error, lasting) else "retry"
