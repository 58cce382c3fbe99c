"""Where Nsight Systems lies on this machine. `scripts/nsight` makes it available (docs/nsight.md)."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from agprof.launch.host import cache_dir

NSYS_VARIABLE = "AGPROF_NSYS"
"""Environment variable that names the nsys to use, before every other place."""
WRITER_VARIABLE = "NSYS_WRITER_BACKEND"
"""Environment variable of nsys_writer: its libNvtxwBackend.so."""
HOW_TO_GET = "scripts/nsight unpacks Debian's packages, without root; or put nsys on PATH, or name it in AGPROF_NSYS"

_USUAL_PLACES = ("/opt/nvidia/nsight-systems", "/opt/nvidia/nsight-systems-cli", "/usr/local/cuda/bin")
_VERSION = re.compile(r"\d{4}\.\d+[\d.]*")
_VERSION_TIMEOUT_S = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Importer:
    """Nsight's ImportNvtxt, and the folder of libraries that it needs but does not find by itself."""

    program: Path
    libraries: Path

    def environment(self) -> dict[str, str]:
        """All that it needs, and nothing of ours: reports carry environments (docs/nsight.md)."""
        return {"PATH": os.defpath, "LD_LIBRARY_PATH": str(self.libraries), "LC_ALL": "C.UTF-8"}


def find_nsys(environ: Mapping[str, str] = os.environ) -> Path | None:
    """The nsys program: $AGPROF_NSYS, PATH, agprof's cache, the usual places of NVIDIA's own packages; None without.

    An AGPROF_NSYS that names nothing executable is None too: the user asked for that one and no other.
    """
    if given := environ.get(NSYS_VARIABLE):
        found = shutil.which(given, path=environ.get("PATH"))
        return Path(found) if found else None
    if found := shutil.which("nsys", path=environ.get("PATH", os.defpath)):
        return Path(found)
    return next((place for place in _places(environ) if os.access(place, os.X_OK) and place.is_file()), None)


def find_import_nvtxt(environ: Mapping[str, str] = os.environ) -> Importer | None:
    """ImportNvtxt of the nsys that `find_nsys` gives; None where there is none."""
    for folder in _host_folders(environ):
        program = folder / "ImportNvtxt"
        if os.access(program, os.X_OK):
            return Importer(program=program, libraries=folder)
    return None


def find_writer_backend(environ: Mapping[str, str] = os.environ) -> Path | None:
    """libNvtxwBackend.so, which nsys_writer of Nsight Systems 2026 needs; None where there is none."""
    if given := environ.get(WRITER_VARIABLE):
        return Path(given) if Path(given).is_file() else None
    candidates = (folder / "libNvtxwBackend.so" for folder in _host_folders(environ))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def nsys_version(nsys: Path) -> str | None:
    """`2022.4.2.1` and the like; None when it does not run or says something else. Starts a process."""
    try:
        done = subprocess.run(
            [nsys, "--version"], capture_output=True, text=True, timeout=_VERSION_TIMEOUT_S, check=True, env=quiet()
        )
    except (OSError, subprocess.SubprocessError):
        return None
    match = _VERSION.search(done.stdout)
    return match[0] if match else None


def quiet() -> dict[str, str]:
    """An environment for nsys without secrets and settings of the user: whatever nsys sees ends in its report."""
    return {"PATH": os.environ.get("PATH", os.defpath), "HOME": os.environ.get("HOME", "/"), "LC_ALL": "C.UTF-8"}


def _places(environ: Mapping[str, str]) -> Iterator[Path]:
    yield cache_dir(environ) / "nsight" / "current" / "usr" / "bin" / "nsys"
    for place in map(Path, _USUAL_PLACES):
        if (place / "nsys").exists():
            yield place / "nsys"
        # /opt/nvidia/nsight-systems/2026.1.1/bin/nsys: the newest first
        yield from sorted(place.glob("*/bin/nsys"), reverse=True)
    yield Path("/usr/lib/nsight-systems/bin/nsys")


def _host_folders(environ: Mapping[str, str]) -> Iterator[Path]:
    """Folders of the importers: beside the real file of nsys, then beside the name it was called by (Debian has two
    trees)."""
    nsys = find_nsys(environ)
    if nsys is None:
        return
    seen = set()
    for start in (nsys.resolve(), *_links(nsys)):
        for parent in start.parents[1:3]:
            for folder in sorted(parent.glob("host-linux-*")):
                if folder not in seen:
                    seen.add(folder)
                    yield folder


def _links(path: Path) -> Iterator[Path]:
    """The path itself, and every file that its chain of links passes."""
    for _ in range(10):
        yield path
        if not path.is_symlink():
            return
        path = path.parent / path.readlink()
