"""Calls back when a module has been imported, however late that is."""

import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

Callback = Callable[[ModuleType], None]


class ImportHooks:
    """A finder for sys.meta_path that wraps the loaders of the modules it was asked to watch."""

    def __init__(self) -> None:
        self._callbacks: dict[str, list[Callback]] = {}
        self._finding: set[str] = set()
        self.on_error: Callable[[str, Exception], None] = lambda _name, _error: None
        """Told of callbacks that raised; an import never fails because of one."""

    def install(self) -> None:
        sys.meta_path.insert(0, self)

    def remove(self) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def when_imported(self, name: str, callback: Callback) -> None:
        """Call `callback(module)` once: now if the module is imported and complete, else right after its import."""
        module = sys.modules.get(name)
        if module is not None and not getattr(getattr(module, "__spec__", None), "_initializing", False):
            self._call(callback, name, module)
        else:
            self._callbacks.setdefault(name, []).append(callback)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Part of the finder protocol: let the other finders find it and wrap the loader."""
        if name not in self._callbacks or name in self._finding:
            return None
        self._finding.add(name)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._finding.discard(name)
        if spec is not None and spec.loader is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _Loader(spec.loader, name, self)  # type: ignore[assignment]
        return spec

    def fire(self, name: str, module: ModuleType) -> None:
        for callback in self._callbacks.pop(name, []):
            self._call(callback, name, module)

    def _call(self, callback: Callback, name: str, module: ModuleType) -> None:
        try:
            callback(module)
        except Exception as error:
            self.on_error(name, error)


class _Loader:
    """The original loader, with the callbacks run after the module's code."""

    def __init__(self, loader: Any, name: str, hooks: ImportHooks) -> None:
        self._loader = loader
        self._name = name
        self._hooks = hooks

    def __getattr__(self, name: str) -> Any:
        if name == "_loader":  # a copy that is being made: it has no attributes yet
            raise AttributeError(name)
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)  # type: ignore[no-any-return]

    def exec_module(self, module: ModuleType) -> None:
        # The module must look as if we had never been there, also to its own code.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        self._hooks.fire(self._name, module)
