"""What `nsys recipe` reads: one report and one folder of Parquet a rank."""

import polars as pl

from agprof.exporters import nsys_recipe, nsys_sqlite
from agprof.exporters.lanes import processes
from agprof.store.reader import read_run
from synthetic import build_run


def test_a_report_and_its_tables_for_every_rank(tmp_path):
    run = read_run(build_run(tmp_path / "run", async_ops=True))
    nsys_sqlite.write(run, tmp_path / "x.sqlite", lambda _: None)
    (tmp_path / "x.nsys-rep").write_bytes(b"report")
    for _ in range(2):  # written again, nothing is left of the first time
        reports = nsys_recipe.write(tmp_path / "x.sqlite", tmp_path / "x.nsys-rep", tmp_path / "x.recipes")
    assert [report.name for report in reports] == ["rank-00000.nsys-rep", "rank-00001.nsys-rep"]
    assert all(report.read_bytes() == b"report" for report in reports)
    for process in processes(run):
        folder = tmp_path / "x.recipes" / f"rank-{process.rank:05d}_pqtdir"
        assert all(file.stat().st_ctime >= reports[-1].stat().st_ctime for file in folder.iterdir())
        events = pl.read_parquet(folder / "NVTX_EVENTS.parquet")
        assert events.filter(pl.col("eventType") == 59).height == process.ranges
        assert {tid >> 24 & 0xFFFFFF for tid in events["globalTid"]} == {process.pid}
        assert events.schema["doubleValue"] == pl.Float64, "an empty column has its type all the same"
        texts = pl.read_parquet(folder / "StringIds.parquet")
        assert events["textId"].drop_nulls().is_in(texts["id"].to_list()).all()


def test_only_an_nsys_that_has_recipes_gets_them(tmp_path):
    nsys = tmp_path / "target" / "nsys"
    assert not nsys_recipe.has_recipes(nsys)
    (tmp_path / "target" / "python" / "packages" / "nsys_recipe").mkdir(parents=True)
    assert nsys_recipe.has_recipes(nsys)
