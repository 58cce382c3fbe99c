"""What an imported run is called, and where it goes when nobody says so."""

import time
from collections.abc import Sequence
from pathlib import Path

_SUFFIXES = (".gz", ".tar", ".tgz", ".zip", ".json", ".sqlite", ".nsys-rep", ".qdrep", ".pickle", ".pt", ".trace")
"""Taken off a file's name, in this order."""


def run_name(files: Sequence[Path]) -> str:
    """A name for the run: `trace.json.gz` -> `trace`; of several files the name of the first one's folder."""
    first = files[0].absolute()
    name = first.name if len(files) == 1 else first.parent.name
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    safe = "".join(char if char.isalnum() or char in "-_." else "-" for char in name).strip(".-")
    return safe.encode()[:80].decode(errors="ignore") or "imported"


def default_folder(name: str, base: Path) -> Path:
    """Where a run goes when nobody says so: NAME-TIME under `base`."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    wanted = base / f"{name}-{stamp}"
    numbers = (base / f"{wanted.name}-{number}" for number in range(2, 1000))
    return wanted if not wanted.exists() else next(path for path in numbers if not path.exists())
