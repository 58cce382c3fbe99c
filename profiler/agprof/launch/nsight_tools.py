"""Runs Nsight's own programs: a tiny base report, NVTXT merged into a report, a report exported (docs/nsight.md)."""

import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agprof.errors import TraceError
from agprof.launch.nsight import Importer, nsys_version

PROFILE_TIMEOUT_S = 20
"""It takes 1.4 s. When several nsys start at once, one may write its report and then hang."""
IMPORT_TIMEOUT_S = 3600
"""Measured: 200,000 ranges in 1.7 s. A report that takes an hour is no report any more."""

# -s none --cpuctxsw=none: with context switches traced, 2 of 34 runs of nsys 2022.4 never ended.
_PROFILE = ("profile", "-t", "none", "-s", "none", "--cpuctxsw=none", "-f", "true", "-o")
# nsys notes the environment of every process that it sees. With process numbers of its own it sees itself alone. Its
# list of sessions goes by process numbers, so it needs one of its own too.
_OWN_SHM = ("sh", "-c", 'mount -t tmpfs none /dev/shm && exec "$@"', "sh")
_ALONE: Sequence[Sequence[str]] = (
    ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc", *_OWN_SHM),
    ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *_OWN_SHM),
)
_IMPORTED = re.compile(r"(\d+) events imported")


@dataclass(frozen=True, slots=True)
class BaseReport:
    """A report of nothing, to merge into."""

    file: Path
    private: bool
    """nsys saw no process but its own, so the report holds nobody's environment."""


def base_report(nsys: Path, work: Path, cache: Path) -> BaseReport:
    """A report of `/bin/true`, from `cache` where one was made before; else made in folder `work`.

    It is kept only when it is private. Raises TraceError.
    """
    kept = cache / f"base-{nsys_version(nsys) or 'unknown'}.nsys-rep"
    if kept.is_file():
        return BaseReport(kept, private=True)
    file = work / "agprof.nsys-rep"  # nsys-ui shows this name on the tab, whatever the report is called later
    # Its list of sessions lies in TMPDIR (2023) and /dev/shm (2022); with our own, no other nsys is in the way.
    environment = {"PATH": os.defpath, "HOME": str(work), "TMPDIR": str(work), "LC_ALL": "C.UTF-8"}
    said = ""
    for wrapper in (*_ALONE, ()):
        if wrapper and shutil.which(wrapper[0]) is None:
            continue
        command = [*wrapper, str(nsys.resolve()), *_PROFILE, str(file.with_suffix("")), "/bin/true"]
        said = _run(command, environment, PROFILE_TIMEOUT_S, work)
        if not file.is_file():
            continue
        if wrapper:
            _keep(file, kept)
        return BaseReport(file, private=bool(wrapper))
    raise TraceError(f"{nsys} made no report of /bin/true: {said or 'it said nothing'}")


def _keep(file: Path, kept: Path) -> None:
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_name(f"{kept.name}.{os.getpid()}")
        shutil.copyfile(file, partial)
        partial.replace(kept)
    except OSError:
        pass  # made again the next time


def merge(importer: Importer, report: Path, text: Path, out: Path) -> int:
    """Merge NVTXT (TimeBase Relative) into a copy of a report; returns how many events were imported.

    Raises TraceError with the importer's own words.
    """
    # No --target: nsys-ui refuses such files ("Requested device was not found").
    command = [str(importer.program), "--cmd", "merge", "-i", str(report), "-n", str(text), "-o", str(out)]
    out.unlink(missing_ok=True)
    said = _run([*command, "--update_report_time"], importer.environment(), IMPORT_TIMEOUT_S, text.parent)
    match = _IMPORTED.search(said)
    if match is None or not out.is_file():
        out.unlink(missing_ok=True)
        raise TraceError(f"ImportNvtxt wrote no report: {said or 'it said nothing'}")
    return int(match[1])


def export_sqlite(nsys: Path, report: Path, out: Path) -> None:
    """`nsys export --type sqlite`. Raises TraceError."""
    environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(out.parent), "LC_ALL": "C.UTF-8"}
    command = [str(nsys), "export", "-q", "true", "-t", "sqlite", "-f", "true", "-o", str(out), str(report)]
    said = _run(command, environment, IMPORT_TIMEOUT_S, out.parent)
    if not out.is_file():
        raise TraceError(f"nsys could not export {report.name}: {said or 'it said nothing'}")


def import_command(text: Path, report: Path, database: Path) -> str:
    """The command that makes a report of our text where Nsight Systems is installed. The database is touched, because
    nsys stats reads it only while it is newer than the report."""
    return (
        "H=<nsight-systems>/host-linux-x64; LD_LIBRARY_PATH=$H $H/ImportNvtxt --cmd create "
        f"-n '{text}' -o '{report}' && touch '{database}'"
    )


def _run(command: Sequence[str], environment: Mapping[str, str], timeout_s: float, folder: Path) -> str:
    """What a program said, on one line. One that hangs or can't be started says so, and leaves no process behind."""
    try:
        with tempfile.TemporaryFile(dir=folder) as output:
            # Not a pipe: nsys leaves a daemon behind that would keep it open.
            process = subprocess.Popen(
                command,
                env=dict(environment),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                process.wait(timeout_s)
            finally:
                _end_group(process)
            output.seek(0)
            said = output.read().decode("utf-8", "replace")
    except subprocess.TimeoutExpired:
        return f"it did not end within {timeout_s:g} s"
    except OSError as error:
        return str(error.strerror or error)
    return " ".join(said.split())[-500:]


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End what a program started: an agent of nsys that hangs would turn for ever."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # all of them have ended
    process.wait()
