"""Named baselines: names of run folders that comparisons are made with, in `.agprof/baselines.json` of a project.

The project is the nearest folder upwards that has such a file, else the nearest that has a `.git`, else the folder
itself. The file can be committed: paths inside the project are kept relative to it. A run is known by its name and the
time of its begin as well, so that another run in its place isn't taken for it, and one that was moved can be found.
"""

import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agprof.errors import ConfigError, StoreError
from agprof.store import layout

FOLDER = ".agprof"
FILE = "baselines.json"
VERSION = 1
RUNS = "agprof-runs"
"""Where `agprof run` puts runs unless told otherwise: looked through for a run that was moved."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MOST_LOOKED_AT = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """A name for a run."""

    name: str
    path: str
    """Of the run folder: relative to the project when it lies inside, else absolute."""
    run_name: str
    created_realtime_ns: int | None
    """When the run began; with its name what it is known by."""
    set_realtime_ns: int


def project(start: Path) -> Path:
    """The folder whose baselines count in `start`."""
    places = [start.absolute(), *start.absolute().parents]
    with_file = (place for place in places if (place / FOLDER / FILE).is_file())
    with_git = (place for place in places if (place / ".git").exists())
    return next(with_file, None) or next(with_git, None) or places[0]


def read(folder: Path) -> dict[str, Baseline]:
    """The baselines of a project, by name. Raises StoreError when the file can't be used."""
    file = folder / FOLDER / FILE
    if not file.exists():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
        listed = value["baselines"]
        if value["version"] != VERSION:
            raise ValueError(f"it has version {value['version']!r:.20} and this agprof reads {VERSION}")
        found = [_baseline(entry) for entry in listed]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(
            f"{file} can't be used: {error!s:.200}; mend it, or delete it and set baselines anew"
        ) from error
    return {baseline.name: baseline for baseline in found}


def _baseline(entry: Mapping[str, Any]) -> Baseline:
    name, path, run_name, created, at = (entry[key] for key in Baseline.__slots__)
    if not all(isinstance(text, str) for text in (name, path, run_name)) or not isinstance(at, int):
        raise ValueError("an entry is none")
    created = created if isinstance(created, int) else None
    return Baseline(name=name, path=path, run_name=run_name, created_realtime_ns=created, set_realtime_ns=at)


def write(folder: Path, baselines: Mapping[str, Baseline]) -> Path:
    """Write the file; returns it. Raises StoreError."""
    file = folder / FOLDER / FILE
    listed = [asdict(baseline) for _, baseline in sorted(baselines.items())]
    fresh = file.with_suffix(".new")
    try:
        file.parent.mkdir(exist_ok=True)
        fresh.write_text(json.dumps({"version": VERSION, "baselines": listed}, indent=1) + "\n", encoding="utf-8")
        fresh.replace(file)
    except OSError as error:
        raise StoreError(f"{file} can't be written: {error.strerror}") from error
    return file


def make(name: str, run: Path, folder: Path) -> Baseline:
    """A baseline of a run folder. Raises ConfigError for a bad name, StoreError when there is no run."""
    if _NAME.fullmatch(name) is None or name.isdigit():
        raise ConfigError(
            f"{name!r:.80} is no name for a baseline: letters, digits and . _ - (not first), at most 64, no mere number"
        )
    mark = _mark(run)
    if mark is None:
        raise StoreError(f"{run} is not a run folder: it has no readable {layout.MANIFEST}")
    absolute, inside = run.resolve(), folder.resolve()
    path = absolute.relative_to(inside) if absolute.is_relative_to(inside) else absolute
    return Baseline(
        name=name, path=str(path), run_name=mark[0], created_realtime_ns=mark[1], set_realtime_ns=time.time_ns()
    )


def locate(baseline: Baseline, folder: Path) -> tuple[Path, bool]:
    """The run's folder, and whether it was found in another place than where it was set. Raises StoreError."""
    path = folder / baseline.path
    wanted = (baseline.run_name, baseline.created_realtime_ns)
    if _mark(path) == wanted:
        return path, False
    found = [run for run in _near(path, folder) if _mark(run) == wanted]
    if len(found) == 1:
        return found[0], True
    why = "another run is there now" if path.exists() else "it is not there any more"
    many = f", and {len(found)} copies of it lie elsewhere" if found else ""
    raise StoreError(
        f"baseline {baseline.name}: {path}: {why}{many}; set it again with `agprof baseline set {baseline.name} RUN`"
    )


def _mark(run: Path) -> tuple[str, int | None] | None:
    """What a run is known by; None when there is none."""
    try:
        manifest = json.loads((run / layout.MANIFEST).read_text(encoding="utf-8"))
        name, created = manifest.get("name"), manifest.get("created_realtime_ns")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return str(name or run.name), created if isinstance(created, int) else None


def _near(path: Path, folder: Path) -> Iterator[Path]:
    """Folders in which a run that was moved is looked for: beside its old place, and where runs are by default."""
    seen: set[Path] = set()
    for place in (path.parent, folder / RUNS, folder):
        try:
            inner = sorted(place.iterdir())[:_MOST_LOOKED_AT] if place.is_dir() else []
        except OSError:
            continue
        for run in inner:
            if run.resolve() not in seen and (run / layout.MANIFEST).is_file():
                seen.add(run.resolve())
                yield run
