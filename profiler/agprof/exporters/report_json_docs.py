"""docs/report-json.md from the dataclasses of `model.answers`, their docstrings included.

python -m agprof.exporters.report_json_docs > docs/report-json.md
"""

import ast
import inspect
from collections.abc import Iterator, Sequence
from types import ModuleType

from agprof.model import (
    answers,
    clock_answers,
    comm_answers,
    compute_answers,
    energy_answers,
    figure,
    memory_answers,
    straggler_answers,
    system_answers,
    trace_answers,
)

_MODULES = (
    answers, figure, comm_answers, straggler_answers, clock_answers, compute_answers, memory_answers, system_answers,
    energy_answers, trace_answers,
)  # fmt: skip

_HEAD = f"""# report.json

Written by `agprof run` and `agprof report` beside `report.html`: all answers of one run, UTF-8 JSON, the same bytes for
the same run folder. This page is generated from `agprof.model.answers`; version {answers.ANSWERS_VERSION} (key
`version`), raised when a key changes its meaning or goes away. New keys may appear at any time.

- Units are in the key's name (`duration_ns`) or beside the value (`unit` of a Figure). Times count from the begin of
  the run's first step unless the key says otherwise.
- What was not measured is `null`, never 0, and a Figure says why in `reason`. There is no NaN and no infinity.
- Text from the job (names of ranges, modules, hosts) is given as it was found: escape it before showing it.

Read it back in Python:

```python
from pathlib import Path
from agprof.exporters import report_json

answers = report_json.decode(Path("report.json").read_bytes())
print(answers.verdict.headline)
```
"""


def document() -> str:
    """The page as Markdown: the root first, then every type in the order in which it is met."""
    return document_of(_MODULES, "RunAnswers", _HEAD)


def document_of(modules: Sequence[ModuleType], root: str, head: str) -> str:
    """A page on the dataclasses of some modules that are reached from one of them."""
    module = ast.parse("\n".join(inspect.getsource(each) for each in modules))
    classes = {node.name: node for node in module.body if isinstance(node, ast.ClassDef)}
    names = {**dict.fromkeys(classes), **_aliases(module)}
    ordered = list(_reachable(root, classes))
    aliases = [f"- `{name}`: {words}" for name, words in names.items() if words]
    sections = [_section(classes[name], set(classes)) for name in ordered]
    return "\n".join([head, "Words used as types:\n", *aliases, "", *sections]).rstrip() + "\n"


def _aliases(module: ast.Module) -> dict[str, str]:
    """`Source = Literal["measured", ...]` as name -> its words."""
    found = {}
    for node in module.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            words = _literal(node.value)
            if words:
                found[node.targets[0].id] = words
    return found


def _literal(node: ast.expr) -> str:
    """`a`, `b`, `c` of a Literal; empty for anything else."""
    if not (isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "Literal"):
        return ""
    items = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    return ", ".join(f"`{item.value!s}`" for item in items if isinstance(item, ast.Constant))


def _reachable(name: str, classes: dict[str, ast.ClassDef], seen: set[str] | None = None) -> Iterator[str]:
    seen = set() if seen is None else seen
    if name in seen:
        return
    seen.add(name)
    yield name
    for field in _fields(classes[name]):
        for inner in _names(field.annotation):
            if inner in classes:
                yield from _reachable(inner, classes, seen)


def _fields(node: ast.ClassDef) -> list[ast.AnnAssign]:
    return [item for item in node.body if isinstance(item, ast.AnnAssign)]


def _names(annotation: ast.expr) -> list[str]:
    """Names in an annotation, also quoted ones."""
    found = []
    for node in ast.walk(annotation):
        if isinstance(node, ast.Name):
            found.append(node.id)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
    return found


def _section(node: ast.ClassDef, classes: set[str]) -> str:
    lines = [f"## {node.name}\n"]
    if text := ast.get_docstring(node):
        lines.append(f"{text}\n")
    lines += ["| key | type | meaning |", "| --- | --- | --- |"]
    for index, item in enumerate(node.body):
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            lines.append(f"| `{item.target.id}` | {_type(item.annotation, classes)} | {_doc(node.body, index)} |")
    return "\n".join(lines) + "\n"


def _doc(body: list[ast.stmt], index: int) -> str:
    """The string that follows a field, on one line."""
    following = body[index + 1] if index + 1 < len(body) else None
    if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
        return " ".join(str(following.value.value).split()).replace("|", "\\|")
    return ""


def _type(annotation: ast.expr, classes: set[str]) -> str:
    """The JSON type in words."""
    if words := _literal(annotation):
        return f"one of {words}"
    if isinstance(annotation, ast.BinOp):
        return f"{_type(annotation.left, classes)} or null"
    if isinstance(annotation, ast.Subscript):
        return _container(annotation, classes)
    name = str(annotation.value) if isinstance(annotation, ast.Constant) else ast.unparse(annotation)
    if name in classes:
        return f"[{name}](#{name.lower()})"
    return {"int": "integer", "float": "number", "str": "text", "bool": "true or false"}.get(name, f"`{name}`")


def _container(annotation: ast.Subscript, classes: set[str]) -> str:
    inner = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
    if ast.unparse(annotation.value) == "dict":
        return f"object: {_type(inner[0], classes)} -> {_type(inner[1], classes)}"
    if len(inner) == 2 and isinstance(inner[1], ast.Constant) and inner[1].value is Ellipsis:
        return f"array of {_type(inner[0], classes)}"
    return f"array ({', '.join(_type(item, classes) for item in inner)})"


if __name__ == "__main__":
    print(document(), end="")
