"""`agprof export --format nsys-rep`: a report for nsys-ui and nsys stats, of a run that nsys need not have captured.

NAME.nvtxt is merged by Nsight's own importer into a tiny real report, because nsys-ui of 2022 crashes on a report made
of text alone. NAME.sqlite beside it holds what text can't: domains, categories, payloads. Where nsys captured the same
run, its reports get our spans on their own timeline.
"""

import os
import tempfile
from pathlib import Path

from agprof.errors import TraceError
from agprof.exporters import nsys_recipe, nsys_sqlite, nsys_writer, nvtxt
from agprof.exporters.formats import Say
from agprof.launch.host import cache_dir
from agprof.launch.nsight import HOW_TO_GET, Importer, find_import_nvtxt, find_nsys, find_writer_backend
from agprof.launch.nsight_tools import base_report, export_sqlite, import_command, merge
from agprof.store import layout
from agprof.store.reader import Run

SUFFIX = ".nsys-rep"
RECIPES = ".recipes"
"""Suffix of the folder for `nsys recipe --input`."""
_OLDER_S = 3
_SLOW_EVENTS = 300_000
"""ImportNvtxt takes 240,000 a second; what takes longer than two seconds is announced."""


def export(run: Run, folder: Path, say: Say) -> list[Path]:
    """Write the report, its SQLite and its text; and one report more for each that nsys captured of the run.

    Without Nsight Systems the text and the SQLite are written, and how to import them is said. Raises TraceError when
    Nsight Systems is there and fails, and OSError.
    """
    text, database, report = (folder / f"{run.path.name}{s}" for s in (nvtxt.SUFFIX, nsys_sqlite.SUFFIX, SUFFIX))
    nsys, importer = find_nsys(), find_import_nvtxt()
    if (backend := find_writer_backend()) is not None and nsys_writer.is_installed():
        nsys_writer.write(run, report, backend, say)
        files = [report]
    else:
        written = nvtxt.write(run, text, say)
        files = [text]
        if written.left_out:
            say(f"{text.name}: {written.left_out} spans that end before they begin are left out")
        if nsys is not None and importer is not None:
            _import(nsys, importer, text, report, written, say)
            files.insert(0, report)
        else:
            say(f"Nsight Systems is not here, so there is no {report.name}: {HOW_TO_GET}. Or elsewhere:")
            say(import_command(text, report, database))
    # After the report: nsys stats takes the database beside a report only while it is the newer one.
    nsys_sqlite.write(run, database, say)
    files.append(database)
    if nsys is not None and report in files and nsys_recipe.has_recipes(nsys):
        files += nsys_recipe.write(database, report, folder / f"{run.path.name}{RECIPES}")
    if nsys is not None and importer is not None:
        for rank, captured in captured_reports(run):
            files += _merge_captured(run, rank, captured, nsys, importer, folder, say)
    return files


def captured_reports(run: Run) -> list[tuple[int, Path]]:
    """(rank, report) of what nsys captured of this run."""
    found = []
    for file in sorted((run.path / layout.NSYS).glob(f"rank-*{SUFFIX}")):
        number = file.name.removeprefix("rank-").split(".")[0].split("-")[0].split("_")[0]
        if number.isdigit():
            found.append((int(number), file))
    return found


def _import(nsys: Path, importer: Importer, text: Path, report: Path, written: nvtxt.Written, say: Say) -> None:
    wanted = 2 * sum(written.ranges.values()) + sum(written.marks.values())
    if not wanted:
        raise TraceError("the run holds no span and no mark, so a report would be empty")
    if wanted > _SLOW_EVENTS:
        say(f"{report.name}: ImportNvtxt reads {wanted:,} events")
    # The base is made in the system's own folder for such things: its path stands in every report that is made of it.
    with tempfile.TemporaryDirectory(prefix="nsys-") as away:
        base = base_report(nsys, Path(away), cache_dir(os.environ) / "nsight")
        if not base.private:
            say(_secrets(report, "of the processes that ran on this machine just now"))
        with tempfile.TemporaryDirectory(dir=report.parent, prefix=".nsys-") as work:
            partial = Path(work) / report.name
            imported = merge(importer, base.file, text, partial)
            _date_back(partial)
            partial.replace(report)
    if imported != wanted:
        say(f"note: ImportNvtxt took {imported} of {wanted} events of {text.name}")


def _merge_captured(
    run: Run, rank: int, captured: Path, nsys: Path, importer: Importer, folder: Path, say: Say
) -> list[Path]:
    """Our spans on the timeline of a report that nsys captured of this rank."""
    report = folder / captured.name
    if report == captured:
        raise TraceError(f"{captured} would be overwritten by the report that it is merged into; choose another --out")
    say(_secrets(report, "of the job, as nsys captured it"))
    database = report.with_suffix(nsys_sqlite.SUFFIX)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".nsys-") as work:
        exported, text, merged = (Path(work) / name for name in ("x.sqlite", "x.nvtxt", "x.nsys-rep"))
        export_sqlite(nsys, captured, exported)
        epoch = nsys_sqlite.session_start_ns(exported)
        if epoch is None:
            say(f"{captured.name} does not say when it began; agprof's spans are not merged into it")
            return []
        written = nvtxt.write(run, text, say, epoch=epoch, only=rank)
        if not sum(written.ranges.values()):
            say(f"{captured.name}: rank {rank} has no span after it began; nothing to merge")
            return []
        merge(importer, captured, text, merged)
        nsys_sqlite.extend(run, exported, say, rank=rank, epoch=epoch, domain="run folder: ")
        _date_back(merged)
        merged.replace(report)
        exported.replace(database)
    database.touch()
    return [report, database]


def _date_back(report: Path) -> None:
    """Make a report older than what we write beside it: nsys takes that only when it is newer, by whole seconds."""
    then = report.stat().st_mtime - _OLDER_S
    os.utime(report, (then, then))


def _secrets(report: Path, whose: str) -> str:
    return f"note: {report.name} holds environment variables {whose}, secrets among them; look before you share it"
