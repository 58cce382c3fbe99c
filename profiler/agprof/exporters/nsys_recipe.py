"""What `nsys recipe` reads in place of a report: one folder of Parquet tables beside each report, one report a rank.

Recipes number ranks by file, so each rank gets a report: a link to the report of all ranks, which is read only to be
shown. This leans on the export cache of nsys (2023.4.4 was tried), which is no documented format.
"""

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import polars as pl

_TYPES = {"INTEGER": pl.Int64, "REAL": pl.Float64, "TEXT": pl.String}
_OF_ONE_RANK = {"NVTX_EVENTS": "globalTid"}
_OF_ALL = ("StringIds", "TARGET_INFO_SESSION_START_TIME", "ANALYSIS_DETAILS")


def has_recipes(nsys: Path) -> bool:
    """Whether this nsys has `nsys recipe`; that of Debian 12 has none."""
    return (nsys.resolve().parent / "python" / "packages" / "nsys_recipe").is_dir()


def write(database: Path, report: Path, folder: Path) -> list[Path]:
    """Write `rank-NNNNN.nsys-rep` and `rank-NNNNN_pqtdir/` for each rank of a database into a folder, made anew.

    Returns the reports. Raises OSError.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as tables:
        processes = tables.execute("SELECT globalPid, name FROM PROCESSES ORDER BY pid").fetchall()
        # `rank 00 (host)`; padded, because recipes go by the order of file names.
        ranks = {process_id: f"rank-{int(name.split()[1]):05d}" for process_id, name in processes}
        reports = [folder / f"{stem}.nsys-rep" for stem in ranks.values()]
        # All links before the first table: a link changes the report's ctime, and tables older than that don't count.
        for link in reports:
            _link(report, link)
        for process_id, stem in ranks.items():
            _write_tables(tables, process_id, folder / f"{stem}_pqtdir")
    return reports


def _write_tables(tables: sqlite3.Connection, process_id: int, folder: Path) -> None:
    folder.mkdir()
    for name in _OF_ALL:
        _write_table(tables, name, "", (), folder)
    for name, column in _OF_ONE_RANK.items():
        _write_table(tables, name, f"WHERE {column} >> 24 = ? >> 24", (process_id,), folder)


def _write_table(tables: sqlite3.Connection, name: str, where: str, values: tuple[int, ...], folder: Path) -> None:
    columns = tables.execute(f"SELECT name, type FROM pragma_table_info('{name}')").fetchall()
    schema = {column: _TYPES[type_] for column, type_ in columns}
    rows = tables.execute(f"SELECT * FROM {name} {where}", values).fetchall()
    pl.DataFrame(rows, schema=schema, orient="row").write_parquet(folder / f"{name}.parquet", compression="snappy")


def _link(report: Path, link: Path) -> None:
    try:
        os.link(report, link)
    except OSError:
        shutil.copyfile(report, link)  # a file system without links
