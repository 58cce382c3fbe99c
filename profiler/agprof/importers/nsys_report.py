"""Has Nsight Systems itself export a report: nobody else reads its container."""

import subprocess
from collections.abc import Mapping
from pathlib import Path

from agprof.errors import TraceError

TIMEOUT_S = 3600


def export_report(report: Path, target: Path, nsys: Path | None, environment: Mapping[str, str]) -> Path:
    """The SQLite export of a report. Raises TraceError, with the command to run elsewhere where there is no nsys."""
    by_hand = f"nsys export --type sqlite --output {report.stem}.sqlite {report.name}"
    if nsys is None:
        raise TraceError(
            f"{report}: only Nsight Systems reads its own reports, and there is no nsys here (scripts/nsight installs "
            f"one). Where there is one: {by_hand}; then import {report.stem}.sqlite"
        )
    # -q: else a line of progress per event.
    command = [str(nsys), "export", "-q", "true", "-t", "sqlite", "-f", "true", "-o", str(target), str(report)]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
            env=dict(environment),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TraceError(f"{report}: nsys export did not end: {error}; by hand: {by_hand}") from error
    if done.returncode != 0 or not target.is_file():
        said = (done.stderr or done.stdout).decode("utf-8", "replace").strip().splitlines()
        raise TraceError(
            f"{report}: nsys export failed: {said[-1][:300] if said else f'exit code {done.returncode}'}; "
            f"a report of a newer Nsight Systems needs that one: {by_hand}"
        )
    return target
