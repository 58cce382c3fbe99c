"""The undo list: every change to somebody else's object goes through it and is taken back from the same entry."""

import inspect
from collections.abc import Callable
from typing import Any

_MISSING = object()


class Patches:
    """Changes to other modules' objects, undone in reverse order by `undo`."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def replace(self, owner: Any, name: str, make: Callable[[Any], Any]) -> bool:
        """Set `owner.name` to `make(original)`. False when the owner has no such attribute.

        For a class, only the class's own dictionary is changed: an inherited attribute becomes an own one, which undo
        deletes again.
        """
        original = getattr(owner, name, _MISSING)
        if original is _MISSING:
            return False
        own = vars(owner).get(name, _MISSING)
        replacement = make(original)
        if isinstance(inspect.getattr_static(owner, name, None), staticmethod):
            replacement = staticmethod(replacement)
        setattr(owner, name, replacement)

        def undo() -> None:
            if vars(owner).get(name, _MISSING) is not replacement:
                return  # somebody patched over us: taking ours back would take theirs back too
            if own is _MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, own)

        self._undo.append(undo)
        return True

    def on_undo(self, action: Callable[[], Any]) -> None:
        """Run `action` at undo: a hook handle's `remove`, say."""
        self._undo.append(action)

    def undo(self) -> list[Exception]:
        """Take everything back, newest first; errors are returned and do not stop the rest."""
        errors: list[Exception] = []
        while self._undo:
            try:
                self._undo.pop()()
            except Exception as error:
                errors.append(error)
        return errors
