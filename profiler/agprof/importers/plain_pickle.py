"""Reads pickles from anybody: a machine for the opcodes of plain values, and for no others.

A pickle is a program. Its machine in the standard library imports modules, calls functions and sets attributes, and
what it can be kept from is a matter of what one thought of; also, a file of ten bytes can make it allocate gigabytes
(a memo index, a length). Here those opcodes do not exist: nothing in this file imports, calls or sets an attribute of
anything that a pickle names. What it makes is dict (keys: text), list, tuple, str, bytes, bool, int, float and None.

Time is linear in the size of the file, and memory is counted while the values are made.
"""

import struct
from collections.abc import Callable
from typing import Any, NoReturn

MAX_INTEGER_BYTES = 16
"""Addresses and sizes have 8."""
_NAME_BYTES = 100
_POINTER_BYTES = 8
_OPCODES_PER_ACCOUNT = 65_536
"""After so many the stack itself is counted: most opcodes push a value that exists already."""
_BY_REFUSAL = {
    "R": "REDUCE", "b": "BUILD", "i": "INST", "o": "OBJ", "\x81": "NEWOBJ", "\x92": "NEWOBJ_EX", "\x82": "EXT1",
    "\x83": "EXT2", "\x84": "EXT4", "P": "PERSID", "Q": "BINPERSID", "\x97": "NEXT_BUFFER",
}  # fmt: skip
_RUNS = "that makes objects or calls functions"


class PickleRefusedError(ValueError):
    """The pickle is damaged, too large, or asks for more than plain values."""


class _Mark:
    """Stands on the stack where a collection begins."""


_MARK: Any = _Mark()


def load_plain(data: Any, *, max_memory_bytes: int) -> Any:
    """The value of a pickle of protocol 2 to 5, given as bytes or a memory map. Raises PickleRefusedError.

    Nothing named in it is imported or called. What follows its end is not looked at.
    """
    return _Machine(data, max_memory_bytes).run()


class _Machine:
    """One pickle on its way into a value."""

    __slots__ = ("_bytes_left", "_data", "_end", "_memo", "_most", "_position", "_stack", "_stopped")

    def __init__(self, data: Any, max_memory_bytes: int) -> None:
        self._data = data
        self._end = len(data)
        self._position = 0
        self._stack: list[Any] = []
        # A dictionary: an index costs what it holds, and not what lies below it.
        self._memo: dict[int, Any] = {}
        self._most = self._bytes_left = max_memory_bytes
        self._stopped = False

    def run(self) -> Any:
        data, handlers = self._data, _HANDLERS
        if self._end < 2 or data[0] != 0x80 or not 2 <= data[1] <= 5:
            raise PickleRefusedError("it does not begin as a pickle of protocol 2 to 5")
        while not self._stopped:
            for _ in range(_OPCODES_PER_ACCOUNT):
                if self._position >= self._end:
                    raise PickleRefusedError("it breaks off")
                code = data[self._position]
                self._position += 1
                handlers[code](self)
                if self._stopped:
                    break
            if _POINTER_BYTES * len(self._stack) > self._bytes_left:
                self.spend(self._most)
        if len(self._stack) != 1 or self._stack[0] is _MARK:
            raise PickleRefusedError("it ends with something other than one value")
        return self._stack[0]

    # -- arguments and accounts ------------------------------------------------------------------------------------

    def take(self, size: int) -> bytes:
        """The next bytes: a length that is longer than the file allocates nothing."""
        begin = self._position
        if size > self._end - begin:
            raise PickleRefusedError("it breaks off")
        self._position = begin + size
        return bytes(self._data[begin : begin + size])

    def skip(self, size: int) -> None:
        self.take(size)

    def number(self, size: int) -> int:
        """An unsigned number of that many bytes."""
        return int.from_bytes(self.take(size), "little")

    def spend(self, size: int) -> None:
        """Count memory that is about to be taken."""
        self._bytes_left -= size
        if self._bytes_left < 0:
            raise PickleRefusedError(f"it needs more than {self._most:,} bytes of memory")

    # -- the stack -------------------------------------------------------------------------------------------------

    def push(self, value: Any, size: int = 0) -> None:
        self._bytes_left -= size
        if self._bytes_left < 0:
            self.spend(0)
        self._stack.append(value)

    def pop(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise PickleRefusedError("it takes a value where there is none")
        return self._stack.pop()

    def since_mark(self) -> list[Any]:
        """Take everything above the last mark, and the mark."""
        stack = self._stack
        for position in range(len(stack) - 1, -1, -1):
            if stack[position] is _MARK:
                values = stack[position + 1 :]
                del stack[position:]
                self.spend(_POINTER_BYTES * len(values))
                return values
        raise PickleRefusedError("it closes a collection that was not begun")

    def collection(self, kind: type) -> Any:
        if not self._stack or type(self._stack[-1]) is not kind:
            raise PickleRefusedError(f"it puts values into something that is no {kind.__name__}")
        return self._stack[-1]

    def put_items(self, flat: list[Any]) -> None:
        target = self.collection(dict)
        if len(flat) % 2:
            raise PickleRefusedError("it has a key without a value")
        self.spend(48 * len(flat))
        for position in range(0, len(flat), 2):
            key = flat[position]
            if type(key) is not str:
                # Numbers can be chosen so that all of them collide; nested tuples so that hashing overflows the stack.
                raise PickleRefusedError(f"it has a key that is a {type(key).__name__} and no text")
            target[key] = flat[position + 1]

    # -- opcodes ---------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        self._stopped = True

    def mark(self) -> None:
        self._stack.append(_MARK)

    def appends(self) -> None:
        values = self.since_mark()
        self.collection(list).extend(values)

    def append(self) -> None:
        value = self.pop()
        self.spend(_POINTER_BYTES)
        self.collection(list).append(value)

    def set_items(self) -> None:
        self.put_items(self.since_mark())

    def set_item(self) -> None:
        value = self.pop()
        self.put_items([self.pop(), value])

    def tuple_of(self, count: int) -> None:
        values = [self.pop() for _ in range(count)]
        self.push(tuple(reversed(values)), 40 + _POINTER_BYTES * count)

    def tuple_since_mark(self) -> None:
        values = self.since_mark()
        self.push(tuple(values), 40)

    def list_since_mark(self) -> None:
        values = self.since_mark()
        self.push(values, 56)

    def dict_since_mark(self) -> None:
        flat = self.since_mark()
        self.push({}, 64)
        self.put_items(flat)

    def integer(self, size: int) -> None:
        if size > MAX_INTEGER_BYTES:
            raise PickleRefusedError(f"it has a number of {size:,} bytes")
        self.push(int.from_bytes(self.take(size), "little", signed=True), 32)

    def text(self, size: int) -> None:
        data = self.take(size)
        # Up to four bytes a character, once one of them needs it.
        self.push(data.decode("utf-8", "surrogatepass"), 56 + (size if data.isascii() else 4 * size))

    def binary(self, size: int) -> None:
        self.push(self.take(size), 40 + size)

    def float_(self) -> None:
        self.push(struct.unpack(">d", self.take(8))[0], 24)

    def remember(self, index: int) -> None:
        if not self._stack or self._stack[-1] is _MARK:
            raise PickleRefusedError("it remembers a value where there is none")
        self.spend(64)
        self._memo[index] = self._stack[-1]

    def recall(self, size: int) -> None:
        # The hottest opcode: a number that the end cuts short ends the reading with the next opcode.
        begin = self._position
        self._position = end = begin + size
        try:
            self._stack.append(self._memo[int.from_bytes(self._data[begin:end], "little")])
        except KeyError:
            raise PickleRefusedError("it recalls a value that it did not remember") from None

    def refuse_global(self) -> NoReturn:
        """GLOBAL: two lines of text."""
        head = bytes(self._data[self._position : self._position + 2 * _NAME_BYTES]).decode("latin-1")
        raise PickleRefusedError(_asks_for(".".join(head.split("\n")[:2])))

    def refuse_stack_global(self) -> NoReturn:
        """STACK_GLOBAL: module and name lie on the stack."""
        raise PickleRefusedError(
            _asks_for(".".join(value[:_NAME_BYTES] for value in self._stack[-2:] if type(value) is str))
        )

    def refuse(self) -> NoReturn:
        code = chr(self._data[self._position - 1])
        name = _BY_REFUSAL.get(code)
        if name in ("PERSID", "BINPERSID", "NEXT_BUFFER"):
            raise PickleRefusedError(f"it refers to objects outside of it ({name}): not read")
        if name is not None:
            raise PickleRefusedError(f"it has an opcode {_RUNS} ({name}), and holds more than plain values: not read")
        raise PickleRefusedError(f"opcode {code!a} at byte {self._position - 1:,} is none of a snapshot's")


def _asks_for(name: str) -> str:
    return f"it asks for {name[:_NAME_BYTES]!a}, and a snapshot holds plain values only: not read"


Handler = Callable[[_Machine], None]


def _handlers() -> tuple[Handler, ...]:
    """One per opcode; what is not named here is refused."""
    m = _Machine
    known: dict[bytes, Handler] = {
        b"\x80": lambda s: s.skip(1),  # PROTO
        b"\x95": lambda s: s.skip(8),  # FRAME: a hint for readers
        b".": m.stop,
        b"(": m.mark,
        b"N": lambda s: s.push(None),
        b"\x88": lambda s: s.push(True),
        b"\x89": lambda s: s.push(False),
        b"K": lambda s: s.push(s.number(1), 32),
        b"M": lambda s: s.push(s.number(2), 32),
        b"J": lambda s: s.integer(4),
        b"\x8a": lambda s: s.integer(s.number(1)),
        b"\x8b": lambda s: s.integer(s.number(4)),
        b"G": m.float_,
        b"\x8c": lambda s: s.text(s.number(1)),
        b"X": lambda s: s.text(s.number(4)),
        b"\x8d": lambda s: s.text(s.number(8)),
        b"C": lambda s: s.binary(s.number(1)),
        b"B": lambda s: s.binary(s.number(4)),
        b"\x8e": lambda s: s.binary(s.number(8)),
        b"]": lambda s: s.push([], 56),
        b"e": m.appends,
        b"a": m.append,
        b"l": m.list_since_mark,
        b"}": lambda s: s.push({}, 64),
        b"u": m.set_items,
        b"s": m.set_item,
        b"d": m.dict_since_mark,
        b")": lambda s: s.push((), 0),
        b"t": m.tuple_since_mark,
        b"\x85": lambda s: s.tuple_of(1),
        b"\x86": lambda s: s.tuple_of(2),
        b"\x87": lambda s: s.tuple_of(3),
        b"q": lambda s: s.remember(s.number(1)),
        b"r": lambda s: s.remember(s.number(4)),
        b"\x94": lambda s: s.remember(len(s._memo)),
        b"h": lambda s: s.recall(1),
        b"j": lambda s: s.recall(4),
        b"c": m.refuse_global,
        b"\x93": m.refuse_stack_global,
    }
    return tuple(known.get(bytes([code]), m.refuse) for code in range(256))


_HANDLERS = _handlers()
