"""Paths of modules in the trees that contain them: by which of its names a shared one was called."""

from collections.abc import Iterator
from typing import Any

from agprof.instruments.op_places import ModuleCall


class ModulePaths:
    """Holds the trees that it was asked for."""

    def __init__(self) -> None:
        self._trees: dict[int, tuple[Any, dict[int, list[str]]]] = {}

    def walk(self, root: Any) -> Iterator[tuple[str, Any]]:
        """Every path with its module, parents first; a shared module at each of its paths."""
        yield from root.named_modules(remove_duplicate=False)

    def first(self, root: Any, module: Any) -> str | None:
        names = self._names(root).get(id(module))
        return names[0] if names else None

    def path(self, call: ModuleCall) -> str:
        """From the outermost module of the call: below the path of the nearest call around it that the module is part
        of."""
        root = call.outermost.module
        if call.module is root:
            return ""
        names = self._names(root)
        own = names.get(id(call.module))
        if own is None:
            return type(call.module).__name__  # made since, or called without being a part
        if len(own) > 1:
            outer = call.outer
            while outer is not None:
                above = self.path(outer) + "."
                found = next((path for path in own if path.startswith(above)), None)
                if found is not None:
                    return found
                outer = outer.outer
        return own[0]

    def _names(self, root: Any) -> dict[int, list[str]]:
        held = self._trees.get(id(root))
        if held is None:
            names: dict[int, list[str]] = {}
            for path, module in root.named_modules(remove_duplicate=False):
                names.setdefault(id(module), []).append(path)
            held = self._trees[id(root)] = (root, names)
        return held[1]
