"""A tree of values -> Workload, or the list of everything that is wrong with it."""

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from agprof.config.names import arg_name_problem, env_name_problem, run_name_problem
from agprof.config.problems import OPTION, Problem, nearest, printable, shown
from agprof.config.setups import SetupSection
from agprof.config.source import is_file
from agprof.config.tree import Items, Leaf, Table, Tree, resolve
from agprof.config.workload import Conflict, Workload

FREE_KEYS = ("launch.env", "args", "setups")
"""Mappings whose keys are the user's own."""


def check_tree(root: Table, base_dir: Path, problems: list[Problem]) -> Workload | None:
    """The workload, or None with the reasons appended to `problems`."""
    meant: set[str] = set()
    values = _section(root, Workload, "", problems, meant)
    bad = {problem.key for problem in problems}
    try:
        workload = Workload.model_validate(values)
    except ValidationError as error:
        for detail in error.errors():
            problem = _problem(root, detail)
            # A key that was meant by a misspelt one is not missing too.
            known = bad | meant if detail["type"] == "missing" else bad
            if detail["type"] != "conflict" and not _covered(problem.key, known):
                problems.append(problem)
        bad |= {problem.key for problem in problems}
        problems.extend(_conflict_problems(root, values, bad | meant))
        workload = None
    problems.extend(_script_problems(root, values, bad, base_dir))
    return workload


def _covered(key: str, bad: set[str]) -> bool:
    """Whether a problem of this key, of what holds it or of what it holds, is reported already."""
    return any(key == other or key.startswith(f"{other}.") or other.startswith(f"{key}.") for other in bad)


def _conflict_problems(root: Table, values: dict[str, Any], bad: set[str]) -> list[Problem]:
    """Combinations that can't work, found with every value that is wrong by itself replaced by its default."""
    rest = copy.deepcopy(values)
    for key in bad:
        *sections, word = key.split(".")
        section: Any = rest
        for part in sections:
            section = section.get(part) if isinstance(section, dict) else None
        if isinstance(section, dict):
            section.pop(word, None)
    if _covered("name", bad):
        rest["name"] = "x"
    try:
        Workload.model_validate(rest)
    except ValidationError as error:
        conflicts = [conflict for detail in error.errors() for conflict in detail.get("ctx", {}).get("conflicts", ())]
        free = [conflict for conflict in conflicts if not any(_covered(key, bad) for key in conflict.keys)]
        return [Problem(_culprit(root, conflict), conflict.keys[0], conflict.rule) for conflict in free]
    return []


def _culprit(root: Table, conflict: Conflict) -> str:
    """Where the conflict came from: the option, when one took part in it, else the first key's value."""
    places = [_where(root, key) for key in conflict.keys]
    return next((place for place in places if place.startswith(OPTION)), places[0])


def _script_problems(root: Table, values: dict[str, Any], bad: set[str], base_dir: Path) -> list[Problem]:
    script = values.get("script")
    if not isinstance(script, str) or _covered("script", bad):
        return []
    path = base_dir / script
    if is_file(path):
        return []
    try:
        folder = path.is_dir()
        siblings = sorted(other.name for other in path.parent.glob("*.py")) if path.parent.is_dir() else []
    except (OSError, ValueError):
        folder, siblings = False, []
    if folder:
        rule = f"{_path_shown(path)} is a directory; name the Python file in it"
    else:
        close = nearest(path.name, siblings)
        hint = f"did you mean {shown(close)}?" if close else "a relative path begins at the workload file's folder"
        rule = f"there is no file {_path_shown(path)}; {hint}"
    return [Problem(_where(root, "script"), "script", rule)]


def _path_shown(path: Path) -> str:
    """A path in full: cut short it would not help to find the file."""
    return f"'{printable(str(path))[:500]}'"


# From the tree to plain values. Unknown keys are reported here, because only here all known keys are at hand.


def _section(
    table: Table, model: type[BaseModel], prefix: str, problems: list[Problem], meant: set[str]
) -> dict[str, Any]:
    """The mapping's values. The keys that misspelt ones stand for are added to `meant`."""
    values: dict[str, Any] = {}
    for word, entry in table.entries.items():
        key = f"{prefix}{word}"
        if word not in model.model_fields:
            known = _known_key(word, model, prefix)
            hint = f"did you mean {shown(known)}?" if known else f"known keys here: {', '.join(model.model_fields)}"
            problems.append(Problem(entry.where, key, f"unknown key; {hint}"))
            meant |= {known} if known and known.startswith(prefix) else set()
            continue
        section = _model_of(word, model)
        empty = isinstance(entry.tree, Leaf) and entry.tree.value is None
        if empty and (section is not None or key in FREE_KEYS or (model is SetupSection and word == "env")):
            continue  # `launch:` with nothing below it is the same as leaving it out
        if section is not None and isinstance(entry.tree, Table):
            values[word] = _section(entry.tree, section, f"{key}.", problems, meant)
        elif key == "launch.env" or (model is SetupSection and word == "env"):
            values[word] = _env(entry.tree, key, problems)
        elif key == "setups" and isinstance(entry.tree, Table):
            values[word] = _setups(entry.tree, problems, meant)
        elif key == "args":
            values[word] = _args(entry.tree, problems)
        elif key == "command" and isinstance(entry.tree, Items):
            words = enumerate(entry.tree.items)
            values[word] = [str(_arg_word(item, f"command[{number}]", problems)) for number, item in words]
        else:
            values[word] = _plain(entry.tree)
    return values


def _model_of(word: str, model: type[BaseModel]) -> type[BaseModel] | None:
    """The section that a key holds, also where it may be left out (`Section | None`)."""
    annotation = model.model_fields[word].annotation
    if get_origin(annotation) is dict:
        return None
    kinds = get_args(annotation) or (annotation,)
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _known_key(word: str, model: type[BaseModel], prefix: str) -> str | None:
    """The known key nearest to an unknown one, first in the same mapping and then in the whole file."""
    close = nearest(word, model.model_fields)
    if close is not None:
        return f"{prefix}{close}"
    everywhere = {key.rpartition(".")[2]: key for key in known_keys()}
    close = nearest(word.rpartition(".")[2], everywhere)
    return everywhere[close] if close is not None else None


def known_keys() -> list[str]:
    """Every key of a workload file, dotted."""
    keys = []
    for word in Workload.model_fields:
        section = _model_of(word, Workload)
        keys += [f"{word}.{inner}" for inner in section.model_fields] if section else [word]
    return keys


def _plain(tree: Tree) -> Any:
    if isinstance(tree, Leaf):
        return tree.value
    if isinstance(tree, Items):
        return [_plain(item) for item in tree.items]
    return {word: _plain(entry.tree) for word, entry in tree.entries.items()}


def _setups(table: Table, problems: list[Problem], meant: set[str]) -> dict[str, Any]:
    """The named setups; one with nothing below its name has every default."""
    values: dict[str, Any] = {}
    for name, entry in table.entries.items():
        broken = run_name_problem(name)
        if broken is not None:
            problems.append(Problem(entry.where, f"setups.{name}", broken))
        elif isinstance(entry.tree, Table):
            values[name] = _section(entry.tree, SetupSection, f"setups.{name}.", problems, meant)
        else:
            empty = isinstance(entry.tree, Leaf) and entry.tree.value is None
            values[name] = {} if empty else _plain(entry.tree)
    return values


def _env(tree: Tree, section: str, problems: list[Problem]) -> dict[str, str]:
    values: dict[str, str] = {}
    if not isinstance(tree, Table):
        problems.append(Problem(tree.where, section, "must be a mapping of `NAME: value` lines"))
        return values
    for name, entry in tree.entries.items():
        key = f"{section}.{name}"
        broken = env_name_problem(name)
        if broken is not None:
            problems.append(Problem(entry.where, key, broken))
        elif not isinstance(entry.tree, Leaf):
            problems.append(Problem(entry.tree.where, key, "must be one text, not a list or mapping"))
        elif isinstance(entry.tree.value, bool):
            text = entry.tree.text
            rule = (
                f'must be text, and {text} is a boolean; write "{text.lower()}" or "{int(entry.tree.value)}" in quotes'
            )
            problems.append(Problem(entry.tree.where, key, f"{rule}, whichever the program expects"))
        elif entry.tree.value is None:
            problems.append(Problem(entry.tree.where, key, 'has no value; write "" for an empty one, or leave it out'))
        else:
            values[name] = entry.tree.text
    return values


def _args(tree: Tree, problems: list[Problem]) -> Any:
    if isinstance(tree, Leaf):
        rule = f"must be a mapping of `name: value` lines or a list of words, not {_shown_leaf(tree)}"
        problems.append(Problem(tree.where, "args", rule))
        return {}
    if isinstance(tree, Items):
        return [_arg_word(item, f"args[{number}]", problems) for number, item in enumerate(tree.items)]
    values: dict[str, Any] = {}
    for name, entry in tree.entries.items():
        key = f"args.{name}"
        broken = arg_name_problem(name)
        if broken is not None:
            problems.append(Problem(entry.where, key, broken))
        elif isinstance(entry.tree, Items):
            numbered = enumerate(entry.tree.items)
            values[name] = [_arg_word(item, f"{key}[{number}]", problems) for number, item in numbered]
        elif isinstance(entry.tree, Leaf):
            values[name] = _as_written(entry.tree)
        else:
            rule = "must be one value or a list, not a mapping; a name with dots is written `a.b: value`"
            problems.append(Problem(entry.tree.where, key, rule))
    return values


def _arg_word(tree: Tree, key: str, problems: list[Problem]) -> Any:
    if not isinstance(tree, Leaf):
        problems.append(Problem(tree.where, key, "must be one word, not a list or mapping"))
    elif tree.value is None or isinstance(tree.value, bool):
        rule = f"must be text or a number, not {_shown_leaf(tree)}; put a word in quotes"
        problems.append(Problem(tree.where, key, rule))
    else:
        return _as_written(tree)
    return ""


def _as_written(leaf: Leaf) -> Any:
    """The argument as it stands in the file: 1.10 must not reach the program as 1.1, nor 1e6 as 1000000.0."""
    if isinstance(leaf.value, int | float) and not isinstance(leaf.value, bool) and str(leaf.value) != leaf.text:
        return leaf.text
    return leaf.value


# From pydantic's errors to ours.


def _problem(root: Table, detail: ErrorDetails) -> Problem:
    path, tree = _walk(root, detail["loc"])
    key = ".".join(path)
    if detail["type"] == "missing":
        key = ".".join(str(part) for part in detail["loc"])
        return Problem(tree.where, key, f"is required; add `{key.rpartition('.')[2]}: ...`")
    return Problem(tree.where, key, _rule(detail, tree))


def _walk(root: Table, loc: Sequence[int | str]) -> tuple[list[str], Tree]:
    """Follow a location as far as the tree goes."""
    path: list[str] = []
    tree: Tree = root
    for part in loc:
        if isinstance(tree, Table) and str(part) in tree.entries:
            tree = tree.entries[str(part)].tree
        elif isinstance(tree, Items) and isinstance(part, int) and part < len(tree.items):
            tree = tree.items[part]
        else:
            break
        path.append(str(part))
    return path, tree


def _where(root: Table, dotted: str) -> str:
    return _walk(root, dotted.split("."))[1].where


_KINDS = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "model_type": "a mapping of `key: value` lines",
    "dict_type": "a mapping of `key: value` lines",
    "list_type": "a list",
}
_LIMITS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


def _rule(detail: ErrorDetails, tree: Tree) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    given = _shown_leaf(tree)
    if kind in _LIMITS:
        name, words = _LIMITS[kind]
        return f"must be {words} {context[name]}, not {given}"
    if kind == "literal_error":
        expected = str(context["expected"])
        close = nearest(str(tree.text), re.findall(r"'([^']*)'", expected)) if isinstance(tree, Leaf) else None
        return f"must be {expected}, not {given}" + (f"; did you mean {shown(close)}?" if close else "")
    if kind in _KINDS:
        return f"must be {_KINDS[kind]}, not {given}{_advice(kind, tree)}"
    # Rules of config.workload, written for users.
    return str(context.get("rule", detail["msg"]))


def _advice(kind: str, tree: Tree) -> str:
    if not isinstance(tree, Leaf):
        return ""
    if kind == "string_type" and tree.value is not None:
        return f'; put it in quotes: "{tree.text}"'
    if kind == "bool_type" and tree.text.lower() in ("yes", "on", "y", "1"):
        return "; write true"
    if kind == "bool_type" and tree.text.lower() in ("no", "off", "n", "0"):
        return "; write false"
    if isinstance(tree.value, str) and resolve(tree.value) != tree.value:
        return f"; write {tree.text} without quotes"
    return ""


def _shown_leaf(tree: Tree) -> str:
    if isinstance(tree, Items):
        return "a list"
    if isinstance(tree, Table):
        return "a mapping"
    if tree.value is None:
        return "empty" if tree.text == "" else "null"
    return f"the text {shown(tree.value)}" if isinstance(tree.value, str) else printable(tree.text)
