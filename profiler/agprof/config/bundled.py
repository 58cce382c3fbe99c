"""The workload files that come with agprof: `<name>/<preset>.yaml` in the package `agprof_workloads`.

The package is found, never imported: listing workloads must not load what they train with.
"""

import importlib.util
from pathlib import Path
from typing import NamedTuple

PACKAGE = "agprof_workloads"
DEFAULT_PRESET = "tiny"


class Bundled(NamedTuple):
    """One bundled workload file."""

    name: str
    """As given to `agprof run`: `<name>/<preset>`, or `<name>` alone for its preset `tiny`."""
    path: Path


def bundled_workloads() -> list[Bundled]:
    """All bundled workload files, sorted by name; empty when the package is not installed."""
    found = []
    for folder in _folders():
        for path in sorted(folder.glob("*/*.yaml")):
            preset = path.stem
            name = path.parent.name if preset == DEFAULT_PRESET else f"{path.parent.name}/{preset}"
            found.append(Bundled(name, path))
    return sorted(found)


def find_bundled(reference: str) -> Bundled | None:
    """The bundled workload of that name; `<name>/tiny` is the same as `<name>`."""
    name = reference.removesuffix(f"/{DEFAULT_PRESET}")
    return next((bundled for bundled in bundled_workloads() if bundled.name == name), None)


def _folders() -> list[Path]:
    spec = importlib.util.find_spec(PACKAGE)
    return [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
