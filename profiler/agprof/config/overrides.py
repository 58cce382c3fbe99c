"""`--set dotted.key=value`: changes to a workload's tree, before it is checked like the file itself."""

from collections.abc import Sequence
from pathlib import Path

from agprof.config.problems import MAX_TEXT, OPTION, Problem, config_error, nearest, printable, shown
from agprof.config.tree import Entry, Items, Leaf, Table, Tree, read_tree, resolve

FREE_SECTIONS = (("launch", "env"), ("args",), ("kernels", "communication"))
"""Mappings whose keys are the user's own. A dot behind them belongs to the key, as in `args.data.root`."""

SWITCHES = (("nsys",),)
"""Mappings that `true` stands for when no option of theirs is changed."""

TEXT_KEYS = ("name", "description", "module", "script")
"""Keys whose value is text even when it looks like a number: a shell has eaten the quotes that would say so."""


def apply_overrides(root: Table, sets: Sequence[str]) -> None:
    """Change `root` in place by each `key=value`, in order; a later one wins.

    A value that begins with a bracket, a brace or a quote is read as YAML (`[1, 2]`, `"no"`), any other as one plain
    scalar, as it stands: `3`, `true`, `null`, `some text: more`. An empty value is the empty text. A relative `script`
    is taken from the current folder. Raises ConfigError when an option has no key, or its key has no place in the tree.
    """
    for item in sets:
        short = item if len(item) <= MAX_TEXT else f"{item[:MAX_TEXT]}..."
        _apply(root, item, f"{OPTION} {printable(short)}")


def _apply(root: Table, item: str, where: str) -> None:
    dotted, equals, text = item.partition("=")
    path = _path(dotted.strip())
    if not equals or not all(path):
        rule = "must be key=value with a dotted key, as in --set launch.ranks_per_node=2"
        raise config_error([Problem(where, "", rule)], where)
    value = _value(text, where)
    if path[-1] in TEXT_KEYS and len(path) == 1 and isinstance(value, Leaf) and value.value is not None:
        value = Leaf(where, value.text, value.text)
    if path == ("script",) and isinstance(value, Leaf) and isinstance(value.value, str) and value.value.strip():
        absolute = str(Path.cwd() / value.value)
        value = Leaf(where, absolute, absolute)
    table = root
    for depth, word in enumerate(path[:-1], start=1):
        entry = table.entries.get(word)
        if entry is None or (isinstance(entry.tree, Leaf) and _makes_way(path[:depth], entry.tree)):
            entry = Entry(where, Table(where))
            table.entries[word] = entry
        if not isinstance(entry.tree, Table):
            raise config_error([_no_place(where, ".".join(path[:depth]), entry.tree)], where)
        table = entry.tree
    held = table.entries.get(path[-1])
    if _is_switch(path) and isinstance(value, Leaf) and value.value is True and held and isinstance(held.tree, Table):
        return  # on already, with options of its own
    table.entries[path[-1]] = Entry(where, value)


def _is_switch(path: tuple[str, ...]) -> bool:
    """Whether `true` stands for a mapping there; a setup's name may be anything."""
    return path in SWITCHES or (len(path) == 3 and path[0] == "setups" and path[2] == "emulate")


def _makes_way(path: tuple[str, ...], leaf: Leaf) -> bool:
    """Whether a mapping may take the place of a single value: of none, and of a switch that was turned."""
    return leaf.value is None or (_is_switch(path) and isinstance(leaf.value, bool))


def _path(dotted: str) -> tuple[str, ...]:
    words = tuple(dotted.split("."))
    if words[0] == "setups" and len(words) > 4 and words[2] == "env":
        return (*words[:3], ".".join(words[3:]))
    for section in FREE_SECTIONS:
        count = len(section)
        if words[:count] == section and len(words) > count + 1:
            return (*section, ".".join(words[count:]))
    return words


def _value(text: str, where: str) -> Tree:
    text = text.strip()
    if text == "":
        return Leaf(where, "", "")
    if text[0] not in "[{\"'":
        return Leaf(where, resolve(text), text)
    problems: list[Problem] = []
    value = read_tree(text, where, problems, where=where)
    if problems:
        raise config_error(problems, where)
    return value


def _no_place(where: str, key: str, tree: Tree) -> Problem:
    if isinstance(tree, Items):
        return Problem(where, key, f"is a list at {tree.where}; set it as a whole: --set '{key}=[...]'")
    known = nearest(key, (".".join(section) for section in FREE_SECTIONS))
    hint = f"; nearest mapping is {shown(known)}" if known and known != key else ""
    return Problem(where, key, f"is a single value, not a mapping{hint}")
