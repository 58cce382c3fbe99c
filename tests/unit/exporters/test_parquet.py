"""Every table of a run, with its texts, and the wall time of each row."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
from scene_runs import NASTY, run_of

from agprof.exporters import parquet
from agprof.model.tables import SCHEMA_VERSION, TABLES
from agprof.model.trace_tables import TRACE_TABLES, CpuKind, GpuKind
from agprof.store.reader import read_run
from synthetic import EPOCH_NS, build_run


def test_every_table_is_a_file_with_all_its_rows_and_columns(tmp_path: Path) -> None:
    run = read_run(build_run(tmp_path / "run", hostile=True, gpus=2, nodes=2))
    files = parquet.export(run, tmp_path, lambda line: None)
    assert {file.name for file in files} == {f"{table.name}.parquet" for table in TABLES}
    for table in TABLES:
        file = tmp_path / "parquet" / f"{table.name}.parquet"
        written = pl.read_parquet(file)
        assert written.drop("wall", strict=False).equals(run.tables[table.name])
        metadata = pl.read_parquet_metadata(file)
        assert metadata["agprof.schema_version"] == str(SCHEMA_VERSION) and metadata["agprof.table"] == table.name
    assert not list(tmp_path.rglob("*.partial"))


def test_wall_time_is_that_of_each_node_s_clock_to_the_nanosecond(tmp_path: Path) -> None:
    run = read_run(build_run(tmp_path / "run", ranks=2, nodes=2))
    parquet.export(run, tmp_path, lambda line: None)
    firsts = pl.read_parquet(tmp_path / "parquet" / "steps.parquet").group_by("rank").agg(pl.col("wall").min())
    assert firsts["wall"].cast(pl.Int64).to_list() == [EPOCH_NS, EPOCH_NS]
    assert firsts["wall"][0] == datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=EPOCH_NS // 1000)
    nodes = pl.read_parquet(tmp_path / "parquet" / "host_samples.parquet").sort("node", "time_ns")
    walls = nodes.group_by("node", maintain_order=True).agg(pl.col("wall").min())["wall"].cast(pl.Int64)
    assert walls.n_unique() == 1


def test_traces_have_real_texts_instead_of_ids(tmp_path: Path) -> None:
    gpu = [{"start_ns": n, "duration_ns": 1, "kind": int(GpuKind.MEMCPY), "text": name} for n, name in enumerate(NASTY)]
    cpu = [{"start_ns": 5, "duration_ns": 1, "kind": int(CpuKind.OP), "text": "aten::mm"}]
    with run_of({0: []}, trace={"gpu": gpu, "cpu": cpu}) as run:
        said: list[str] = []
        files = parquet.export(run, tmp_path, said.append)
    names = {file.name for file in files}
    assert all(line.startswith("parquet: tables written: ") for line in said), "only what takes its time is told of"
    assert {f"trace_{table.name}.parquet" for table in TRACE_TABLES if table.name != "names"} <= names
    written = pl.read_parquet(tmp_path / "parquet" / "trace_gpu.parquet")
    assert written["name"].to_list() == [name.encode("utf-8", "replace").decode() for name in NASTY]
    assert written["kind"].unique().to_list() == ["memcpy"] and written["rank"].unique().to_list() == [0]
    assert written["wall"].cast(pl.Int64).to_list() == [EPOCH_NS + n for n in range(len(NASTY))]
    on_host = pl.read_parquet(tmp_path / "parquet" / "trace_cpu.parquet")
    assert on_host.row(0, named=True)["name"] == "aten::mm" and on_host["kind"].to_list() == ["op"]
