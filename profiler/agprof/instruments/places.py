"""Where in the job's code something happens: `package/file.py:line function`, and whose code it is.

Paths are given from the folder on `sys.path` that they were imported from, so that they say the same on every machine.
"""

import os
import sys
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

_OURS, _TORCH = f"{os.sep}agprof{os.sep}", f"{os.sep}torch{os.sep}"
_WATCHING = ("op_watch.py", "op_places.py", "readbacks.py", "places.py", "recorder.py")
"""Files of ours that stand between an operation and whoever asked for it."""
_DISPATCHING = ("_python_dispatch.py", "_compile.py", "eval_frame.py")
"""Files of torch that do."""
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
MAX_DEPTH = 100


class Places:
    """Names of code objects, found out once each."""

    def __init__(self) -> None:
        self._names: dict[CodeType, tuple[str, str | None] | None] = {}
        self._own = _main_package()

    def of(self, frame: FrameType | None) -> tuple[str, str | None] | None:
        """(place, package) of the innermost frame outside torch and agprof, from `frame` outwards; None when an
        instrument of ours asked.

        `package` is the installed package that it belongs to; None for the job's own code. The place is empty when
        there is no such frame: autograd's own threads have none.
        """
        while frame is not None and _is_between(frame.f_code):
            frame = frame.f_back
        if frame is not None and _is_ours(frame.f_code):
            return None
        for _depth in range(MAX_DEPTH):
            if frame is None:
                break
            code = frame.f_code
            if code not in self._names:
                self._names[code] = self._name(code)
            known = self._names[code]
            if known is not None:
                return f"{known[0]}:{frame.f_lineno} {code.co_qualname}", known[1]
            frame = frame.f_back
        return "", None

    def _name(self, code: CodeType) -> tuple[str, str | None] | None:
        path = code.co_filename
        if _TORCH in path or _is_ours(code) or path.startswith("<"):
            return None
        installed = next((path.rpartition(part)[2] for part in _INSTALLED if part in path), None)
        if installed is not None:
            package = Path(installed).parts[0].removesuffix(".py")
            return installed, None if package == self._own else package
        if path.startswith((f"{sys.base_prefix}{os.sep}lib{os.sep}", f"{sys.prefix}{os.sep}lib{os.sep}")):
            return None  # the standard library works for somebody
        return _from_import_path(path), None


def _is_between(code: CodeType) -> bool:
    path = code.co_filename
    return (path.endswith(_WATCHING) and _OURS in path) or (path.endswith(_DISPATCHING) and _TORCH in path)


def _is_ours(code: CodeType) -> bool:
    return _OURS in code.co_filename


def _main_package() -> str | None:
    """Package of the module that the job was started as, with `python -m`: it may be installed and is the job's own."""
    spec: Any = getattr(sys.modules.get("__main__"), "__spec__", None)
    name = getattr(spec, "name", None)
    return name.split(".")[0] if isinstance(name, str) and name else None


def _from_import_path(path: str) -> str:
    # `agprof run` starts ranks with folders of its own first on the path; the job's are what is left.
    inside = [folder for folder in sys.path if folder and path.startswith(folder.rstrip(os.sep) + os.sep)]
    return path[len(max(inside, key=len).rstrip(os.sep)) + 1 :] if inside else Path(path).name
