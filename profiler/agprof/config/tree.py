"""YAML text -> a tree of values that know where they stand.

Only mappings, lists and scalars come out. No tag is ever obeyed, so nothing but these can be made; depth and number of
values are limited while the text is read and again while aliases are expanded, so that no file takes long.

Scalars are read by the core rules of YAML 1.2: `true` and `false` are the only booleans (`no`, `off` and `on` are
text), and numbers with a leading zero stay text, because YAML 1.1 and 1.2 read them differently.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import yaml

from agprof.config.names import text_problem
from agprof.config.problems import Problem, config_error, printable, shown

MAX_DEPTH = 32
"""Levels of nesting. A workload file needs four."""
MAX_VALUES = 10_000
"""Values in a file, aliases expanded."""
MAX_NUMBER = 40
"""Characters of a number; longer ones stay text."""

_NUMBERS: tuple[tuple[re.Pattern[str], Callable[[str], int | float]], ...] = (
    (re.compile(r"[-+]?(0|[1-9][0-9]*)"), int),
    (re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+"), lambda text: int(text, 0)),
    (re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?"), float),
    (re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"), lambda text: float(text.replace(".", ""))),
)
_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}

Value = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Leaf:
    """A scalar."""

    where: str
    value: Value
    text: str
    """As written, without quotes."""


@dataclass(frozen=True, slots=True)
class Items:
    """A list."""

    where: str
    items: list["Tree"] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Table:
    """A mapping."""

    where: str
    entries: dict[str, "Entry"] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Entry:
    """One key of a mapping and its value."""

    where: str
    """Where the key stands."""
    tree: "Tree"


Tree = Leaf | Items | Table


def resolve(text: str) -> Value:
    """The value of a plain (unquoted) scalar."""
    if text in _WORDS:
        return _WORDS[text]
    if len(text) > MAX_NUMBER:
        return text
    return next((convert(text) for form, convert in _NUMBERS if form.fullmatch(text)), text)


def read_tree(text: str, name: str, problems: list[Problem], *, where: str | None = None) -> Tree:
    """The tree of one YAML document. Problems that leave the rest readable are appended to `problems`.

    `name` is the file in positions; `where` replaces positions altogether (for a value that came from an option).
    Raises ConfigError on text that is no YAML or breaks a limit.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
    except _LimitError as error:
        raise _fatal(where or _at(name, error.mark), error.rule, name) from None
    except yaml.MarkedYAMLError as error:
        mark, words = _plain_words(error)
        raise _fatal(where or _at(name, mark or loader.get_mark()), words, name) from None
    except (ValueError, OverflowError):
        # The scanner hands escapes beyond Unicode such as "\\UFFFFFFFF" to chr().
        rule = "an escape (`\\U...`) names no character; use single quotes to keep backslashes"
        raise _fatal(where or _at(name, loader.get_mark()), rule, name) from None
    finally:
        loader.dispose()
    if node is None:
        raise _fatal(where or f"{name}:1:1", "the file holds no value, only comments", name)
    return _Reader(name, where, problems).read(node, "")


class _LimitError(Exception):
    def __init__(self, mark: Any, rule: str) -> None:
        self.mark = mark
        self.rule = rule


class _Loader(yaml.SafeLoader):
    """Composes nodes; resolves no tag (a tag of ours says plain or quoted) and stops at the limits."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = 0
        self.count = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        self.count += 1
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _LimitError(mark, f"nested deeper than {MAX_DEPTH} levels; a workload file needs four")
        if self.count > MAX_VALUES:
            raise _LimitError(mark, f"more than {MAX_VALUES} values; a workload file holds settings, not data")
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def resolve(self, kind: Any, value: Any, implicit: Any) -> str:
        return "plain" if kind is yaml.ScalarNode and implicit[0] else "quoted"

    def descend_resolver(self, current_node: Any, current_index: Any) -> None:
        pass

    def ascend_resolver(self) -> None:
        pass


class _Reader:
    """Turns nodes into a tree, expanding aliases."""

    def __init__(self, name: str, where: str | None, problems: list[Problem]) -> None:
        self._name = name
        self._where = where
        self._problems = problems
        self._count = 0
        self._open: dict[int, str] = {}

    def read(self, node: yaml.Node, key: str) -> Tree:
        where = self._position(node)
        self._count += 1
        if self._count > MAX_VALUES:
            rule = f"aliases expand to more than {MAX_VALUES} values; write the values out"
            # The value of the file's own key, not the innermost one that it expands to.
            raise _fatal([*self._open.values(), where][1], rule, self._name)
        if id(node) in self._open:
            raise _fatal(where, "an alias refers to a value that contains it; write the value out", self._name)
        if len(self._open) >= MAX_DEPTH:
            raise _fatal(where, f"aliases nest deeper than {MAX_DEPTH} levels; write the values out", self._name)
        if node.tag not in ("plain", "quoted"):
            tag = str(node.tag).replace("tag:yaml.org,2002:", "!!")
            rule = f"YAML tags are not allowed, here {shown(tag)}; write the plain value"
            raise config_error([*self._problems, Problem(where, key, rule)], self._name)
        if isinstance(node, yaml.ScalarNode):
            return self._leaf(node, where, key)
        self._open[id(node)] = where
        try:
            if isinstance(node, yaml.SequenceNode):
                return Items(where, [self.read(item, key) for item in node.value])
            return self._table(node, where, key)
        finally:
            del self._open[id(node)]

    def _leaf(self, node: yaml.ScalarNode, where: str, key: str) -> Leaf:
        text: str = node.value
        value = resolve(text) if node.tag == "plain" else text
        rule = text_problem(text)
        if isinstance(value, float) and not math.isfinite(value):
            rule = f'{printable(text)} is not a finite number; write "{printable(text)}" in quotes to mean the text'
        if rule is not None:
            self._problem(where, key, rule)
        return Leaf(where, value, text)

    def _table(self, node: yaml.Node, where: str, key: str) -> Table:
        table = Table(where)
        for key_node, value_node in node.value:
            key_where = self._position(key_node)
            if not isinstance(key_node, yaml.ScalarNode) or key_node.value == "":
                self._problem(key_where, key, "every key must be a word; here stands none")
                continue
            word: str = key_node.value
            dotted = f"{key}.{word}" if key else word
            if word == "<<" and key_node.tag == "plain":
                self._problem(key_where, dotted, "merging with `<<` is not supported; write the keys out")
            elif key_node.tag not in ("plain", "quoted"):
                self._problem(key_where, dotted, "YAML tags are not allowed; write the plain key")
            elif (rule := text_problem(word)) is not None:
                self._problem(key_where, dotted, rule)
            elif word in table.entries:
                first = table.entries[word].where.removeprefix(f"{self._name}:")
                self._problem(key_where, dotted, f"given twice, first at {first}; remove one of the two")
            else:
                table.entries[word] = Entry(key_where, self.read(value_node, dotted))
        return table

    def _problem(self, where: str, key: str, rule: str) -> None:
        self._problems.append(Problem(where, key, rule))

    def _position(self, node: yaml.Node) -> str:
        return self._where or _at(self._name, node.start_mark)


def _at(name: str, mark: Any) -> str:
    return f"{name}:{mark.line + 1}:{mark.column + 1}"


def _fatal(where: str, rule: str, name: str) -> Exception:
    return config_error([Problem(where, "", rule)], name)


_TRANSLATIONS = (
    (r"character '\\t'", "a tab stands where YAML allows spaces only; indent with spaces"),
    (
        r"mapping values are not allowed here",
        "a `:` too many, wrong indentation, or no `:` in the line above; quote a text that holds `: `",
    ),
    (r"could not find expected ':'", "a key without `:`; write `key: value`"),
    (r"expected <block end>, but found", "wrong indentation: this line does not belong to the lines above it"),
    (r"expected a single document", "a second document begins here; one file holds one workload"),
    (
        r"found undefined alias",
        "this alias (`*name`) has no anchor (`&name`) above it; quote a text that begins with *",
    ),
    (r"found duplicate anchor", "this anchor (`&name`) is given twice; rename one"),
    (r"found unexpected end of stream", "a quote begins here and is not closed"),
    (r"found character .* that cannot start any token", "a text can't begin with this character; put it in quotes"),
    (r"expected ',' or '[\]}]'", "a bracket begins here, and a `,` or its closing bracket is missing"),
    (r"found unknown escape character", "this `\\` escape is unknown; use single quotes to keep backslashes"),
)


_BEGINS_BEFORE = ("a quote", "a bracket")
"""Translations for which the place to mend is where the construct began, not where the parser gave up."""


def _plain_words(error: yaml.MarkedYAMLError) -> tuple[Any, str]:
    """Where to look, and what is wrong there, without the parser's terms."""
    said = " ".join(part for part in (error.context, error.problem) if part)
    words = next((words for pattern, words in _TRANSLATIONS if re.search(pattern, said)), None)
    if words is None:
        return error.problem_mark, f"the YAML is broken here: {printable(said)}"
    return (error.context_mark if words.startswith(_BEGINS_BEFORE) else error.problem_mark), words
