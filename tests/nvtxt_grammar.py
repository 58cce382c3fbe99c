"""A strict reader of NVTXT, for tests: every rule that Nsight's ImportNvtxt was seen to have (docs/nsight.md).

Where the importer would drop something or guess, this reader raises.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

MAX_ID = 0xFFFFFF
MAX_TIME = 2**53 - 1
_TIME_BASES = {"Manual", "Relative"}
_COMMANDS = {
    "RangePush": {"Time", "ProcessId", "ThreadId", "Message", "Color"},
    "RangePop": {"Time", "ProcessId", "ThreadId"},
    "Marker": {"Time", "ProcessId", "ThreadId", "Message", "Color"},
}
_VALUE = re.compile(r'\s*(?:"((?:[^"\\]|\\.)*)"|(0x[0-9A-Fa-f]+|\d+))\s*(,|$)')


class NvtxtError(AssertionError):
    """The importer would not take this file as it is meant."""


@dataclass(frozen=True, order=True)
class Range:
    pid: int
    tid: int
    start: int
    end: int
    depth: int
    name: str
    colour: int


@dataclass(frozen=True, order=True)
class Mark:
    pid: int
    time: int
    name: str


@dataclass
class Document:
    title: str = ""
    processes: dict[int, str] = field(default_factory=dict)
    threads: dict[tuple[int, int], str] = field(default_factory=dict)
    ranges: list[Range] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)


def parse(file: Path) -> Document:
    """Raises NvtxtError at the first line that breaks a rule, or when a range is left open."""
    return _Parser().parse(file.read_bytes().decode("utf-8"))


class _Parser:
    def __init__(self) -> None:
        self.document = Document()
        self.time_base = False
        self.formats: dict[str, list[str]] = {}
        self.open: dict[tuple[int, int], list[tuple[int, str, int]]] = {}
        self.last: dict[tuple[int, int], int] = {}

    def parse(self, text: str) -> Document:
        if not text.endswith("\n"):
            raise NvtxtError("the last line is not ended")
        # Not splitlines: the importer ends a line at a line feed alone.
        for number, line in enumerate(text[:-1].split("\n"), start=1):
            try:
                self.line(line)
            except NvtxtError as error:
                raise NvtxtError(f"line {number}: {error}: {line[:120]!r}") from None
        if left := [where for where, stack in self.open.items() if stack]:
            raise NvtxtError(f"ranges are never closed on {left}")
        return self.document

    def line(self, line: str) -> None:
        if any(ord(char) < 32 or 127 <= ord(char) < 160 for char in line):
            raise NvtxtError("a control character")
        if not line or line.startswith("#"):
            return
        if line.startswith("@"):
            name, *arguments = [word.strip() for word in line[1:].split(",")]
            if name not in _COMMANDS or set(arguments) != _COMMANDS[name] or len(arguments) != len(_COMMANDS[name]):
                raise NvtxtError("a format that the importer does not know")
            self.formats[name] = arguments
            return
        if match := re.fullmatch(r"(\w+) = (\w+)", line):
            if match[1] != "TimeBase" or match[2] not in _TIME_BASES:
                raise NvtxtError("an assignment that changes every command, or an unknown time base")
            self.time_base = True
            return
        self.command(line)

    def command(self, line: str) -> None:
        if not self.time_base:
            raise NvtxtError("a command before TimeBase")
        name, _, rest = line.partition(", ")
        values = _values(rest)
        if name == "SetFileDisplayName":
            (self.document.title,) = _texts(values, 1)
        elif name == "NameProcess":
            pid, text = _identifier(values[0]), *_texts(values[1:], 1)
            self.document.processes[pid] = text
        elif name == "NameOsThread":
            pid, tid, text = _identifier(values[0]), _identifier(values[1]), *_texts(values[2:], 1)
            if (pid, tid) in self.document.threads:
                raise NvtxtError("a thread named twice")
            if text in self.document.threads.values():
                raise NvtxtError("two threads of one name: the importer keeps the name of one of them")
            self.document.threads[pid, tid] = text
        elif name in self.formats:
            if len(values) != len(self.formats[name]):
                raise NvtxtError("no matching definition")
            self.event(name, dict(zip(self.formats[name], values, strict=True)))
        else:
            raise NvtxtError("an unknown command, or one without its format")

    def event(self, name: str, given: dict[str, int | str]) -> None:
        time, pid, tid = given["Time"], _identifier(given["ProcessId"]), _identifier(given["ThreadId"])
        if not isinstance(time, int) or time > MAX_TIME:
            raise NvtxtError("a time that a double does not hold exactly")
        if (pid, tid) not in self.document.threads or pid not in self.document.processes:
            raise NvtxtError("an event of a process or thread without a name")
        if name == "Marker":
            (text,) = _texts([given["Message"]], 1)
            self.document.marks.append(Mark(pid, time, text))
            return
        if time < self.last.get((pid, tid), 0):
            raise NvtxtError("time goes back within a thread")
        self.last[pid, tid] = time
        stack = self.open.setdefault((pid, tid), [])
        if name == "RangePush":
            (text,) = _texts([given["Message"]], 1)
            colour = given["Color"]
            if not isinstance(colour, int) or not 0xFF000000 <= colour <= 0xFFFFFFFF:
                raise NvtxtError("a colour that is not 0xFFrrggbb")
            stack.append((time, text, colour))
            return
        if not stack:
            raise NvtxtError("a pop without a push")
        start, text, colour = stack.pop()
        self.document.ranges.append(Range(pid, tid, start, time, len(stack), text, colour))


def _values(text: str) -> list[int | str]:
    values: list[int | str] = []
    at = 0
    while True:
        match = _VALUE.match(text, at)
        if match is None:
            raise NvtxtError("a value that is neither a number from 0 nor a text in quotes")
        values.append(match[1] if match[1] is not None else int(match[2], 0))
        at = match.end()
        if match[3] == "":
            return values


def _identifier(value: int | str) -> int:
    if not isinstance(value, int) or value > MAX_ID:
        raise NvtxtError("a process or thread id above 24 bits")
    return value


def _texts(values: list[int | str], count: int) -> list[str]:
    if len(values) != count or not all(isinstance(value, str) for value in values):
        raise NvtxtError("arguments in another order")
    return [str(value) for value in values]
