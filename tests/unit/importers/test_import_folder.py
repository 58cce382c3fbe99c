"""Files, folders and archives become a run folder, whole or not at all; formats by content, ranks by who says them."""

import gzip
import io
import json
import pickle
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from nsys_exports import EPOCH_NS, nvtx, write_export

from agprof.analysis.run import analyse
from agprof.errors import AgprofError, StoreError, TraceError
from agprof.importers import archives
from agprof.importers.folder import import_files
from agprof.importers.formats import Format, detect
from agprof.importers.naming import run_name
from agprof.importers.ranks import Claim, assign
from agprof.store import layout
from agprof.store.reader import Run, read_run

SNAPSHOT = pickle.dumps({"segments": [], "device_traces": [[{"action": "alloc", "size": 5, "addr": 1, "time_us": 9}]]})


def kineto(rank: int | None = None, world: int | None = None, *, name: str = "k", base_ns: int = EPOCH_NS) -> bytes:
    """A small trace with one step."""
    events: list[dict[str, Any]] = [
        {"ph": "X", "cat": "user_annotation", "name": "ProfilerStep#3", "pid": 1, "tid": 1, "ts": 0, "dur": 100},
        {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "pid": 1, "tid": 1, "ts": 10, "dur": 5,
         "args": {"correlation": 7}},
        {"ph": "X", "cat": "kernel", "name": name, "pid": 0, "tid": 7, "ts": 20, "dur": 30,
         "args": {"device": 0, "stream": 7, "correlation": 7}},
    ]  # fmt: skip
    value: dict[str, Any] = {"schemaVersion": 1, "baseTimeNanoseconds": base_ns}
    if rank is not None:
        value["distributedInfo"] = {"rank": rank} | ({} if world is None else {"world_size": world})
    return json.dumps(value | {"traceEvents": events}, indent=1).encode()


def no_nsys(report: Path, target: Path) -> Path:
    raise TraceError(f"{report}: there is no nsys here")


Import = Callable[..., Run]


@pytest.fixture
def take(tmp_path: Path) -> Import:
    """Imports files and reads the run; asserts that an import that fails leaves nothing."""

    def call(*files: Path, out: str = "out/run", **more: Any) -> Run:
        target = tmp_path / out
        before = set(tmp_path.rglob("*"))
        try:
            folder = import_files(files, target, name="test", **{"export_report": no_nsys, **more})
        except AgprofError:
            assert set(tmp_path.rglob("*")) - before <= {target.parent}
            raise
        assert folder == target
        assert set(target.parent.iterdir()) - before == {target}
        run = read_run(folder)
        assert run.problems == ()
        return run

    return call


def put(folder: Path, files: Mapping[str, bytes]) -> list[Path]:
    paths = []
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        paths.append(path)
    return paths


def test_ranks_by_what_the_traces_say(tmp_path: Path, take: Import) -> None:
    run = take(*put(tmp_path, {"rank7.json": kineto(1, 4), "rank8.json": kineto(0, 4)}))
    assert sorted(run.traces) == [0, 1]
    assert run.traces[0].meta.source == "rank8.json"
    assert run.traces[0].meta.rank_source == "distributedInfo"
    assert run.manifest["ranks"] == 4


def test_ranks_by_the_names_of_the_files(tmp_path: Path, take: Import) -> None:
    run = take(*put(tmp_path, {"a_worker12.pt.trace.json": kineto(), "a_worker3.pt.trace.json": kineto()}))
    assert {rank: trace.meta.source[2:10] for rank, trace in run.traces.items()} == {3: "worker3.", 12: "worker12"}
    assert run.traces[3].meta.rank_source == "file name"
    assert "ranks" not in run.manifest


def test_ranks_by_the_order_of_the_files(tmp_path: Path, take: Import) -> None:
    run = take(*put(tmp_path, {"b.json": kineto(), "a.json": kineto()}))
    assert [trace.meta.source for trace in run.traces.values()] == ["b.json", "a.json"]
    assert run.traces[0].meta.rank_source == "order of the files"
    assert run.manifest["ranks"] == 2


def test_a_silent_trace_takes_a_free_rank(tmp_path: Path, take: Import) -> None:
    run = take(*put(tmp_path, {"b.json": kineto(), "a.json": kineto(0)}))
    assert {rank: trace.meta.source for rank, trace in run.traces.items()} == {0: "a.json", 1: "b.json"}


@pytest.mark.parametrize(
    "files",
    [{"x.json": kineto(1), "y.json": kineto(1)}, {"rank1.json": kineto(), "y-rank-01.json": kineto()},
     {"x.json": kineto(1), "rank1.json": kineto()}],
)  # fmt: skip
def test_two_traces_of_one_rank_are_an_error_that_names_both(
    tmp_path: Path, take: Import, files: dict[str, bytes]
) -> None:
    with pytest.raises(TraceError) as caught:
        take(*put(tmp_path, files))
    assert all(name in str(caught.value) for name in files)
    assert "both of rank 1" in str(caught.value)


def test_two_files_of_one_name_and_one_rank(tmp_path: Path, take: Import) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = put(tmp_path, {"a/x.json": kineto(1), "b/x.json": kineto(1)})
    with pytest.raises(TraceError, match=r"^two files x.json are both of rank 1 \(distributedInfo\); import"):
        take(first, second)


def test_a_link_to_a_trace_beside_it_is_not_a_second_rank(tmp_path: Path, take: Import) -> None:
    (tmp_path / "traces").mkdir()
    put(tmp_path, {"traces/x.json": kineto()})
    (tmp_path / "traces" / "zlatest.json").symlink_to("x.json")
    run = take(tmp_path / "traces")
    assert list(run.traces) == [0]
    assert "'zlatest.json' is a file that was given already; left out" in (run.path / layout.MANIFEST).read_text()


def test_the_order_of_files_that_say_their_rank_does_not_matter(tmp_path: Path, take: Import) -> None:
    files = put(tmp_path, {f"{c}.json": kineto(n, 3, name=c) for n, c in enumerate("abc")})
    runs = [take(*order, out=f"out{n}/run") for n, order in enumerate((files, files[::-1], files[1:] + files[:1]))]
    whole = [
        {
            rank: {name: frame.collect().rows() for name, frame in trace.tables.items()}
            for rank, trace in run.traces.items()
        }
        for run in runs
    ]
    assert whole[0] == whole[1] == whole[2]
    tables = [{name: frame.rows() for name, frame in run.tables.items()} for run in runs]
    assert tables[0] == tables[1] == tables[2]


def test_formats_are_known_by_content(tmp_path: Path) -> None:
    write_export(tmp_path / "export.txt", {"NVTX_EVENTS": [nvtx(0, 5, "a")]})
    sqlite = (tmp_path / "export.txt").read_bytes()
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as opened:
        opened.addfile(tarfile.TarInfo("a"), None)
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as packed:
        packed.writestr("a", "b")
    contents = {
        Format.KINETO: kineto(), Format.NSYS_SQLITE: sqlite, Format.TORCH_SNAPSHOT: SNAPSHOT,
        Format.TAR: tar.getvalue(), Format.ZIP: zipped.getvalue(), None: b"hello",
    }  # fmt: skip
    for format_, content in contents.items():
        (tmp_path / "x.json").write_bytes(content)
        assert detect(tmp_path / "x.json") is format_
        (tmp_path / "x.json").write_bytes(gzip.compress(content))
        assert detect(tmp_path / "x.json") in (format_, None if format_ is Format.ZIP else format_)
    for text in (b"\xef\xbb\xbf {", b"\n\n[", b" \t{"):
        (tmp_path / "x.bin").write_bytes(text)
        assert detect(tmp_path / "x.bin") is Format.KINETO


def test_an_export_of_nsys_beside_a_trace_of_kineto_and_both_compressed(tmp_path: Path, take: Import) -> None:
    write_export(tmp_path / "e", {"NVTX_EVENTS": [nvtx(0, 5, "step 0"), nvtx(1, 2, "mine")]})
    files = {"one": gzip.compress((tmp_path / "e").read_bytes()), "two": gzip.compress(kineto(0))}
    run = take(*put(tmp_path, files))
    assert {rank: trace.meta.format for rank, trace in run.traces.items()} == {0: "kineto", 1: "nsys"}
    assert run.manifest["imported"]["formats"] == ["kineto", "nsys"]
    assert run.tables["steps"].select("rank", "step", "start_ns", "end_ns").rows() == [
        (0, 3, EPOCH_NS, EPOCH_NS + 100_000),
        (1, 0, EPOCH_NS, EPOCH_NS + 5),
    ]


def test_a_report_goes_through_nsys_or_says_what_to_do(tmp_path: Path, take: Import) -> None:
    (report,) = put(tmp_path, {"x.nsys-rep": b"\x01\x02container"})
    with pytest.raises(TraceError, match="there is no nsys here"):
        take(report)
    run = take(report, export_report=lambda file, out: write_export(out, {"NVTX_EVENTS": [nvtx(0, 5, "a")]}))
    assert run.traces[0].meta.source == "x.nsys-rep"
    (packed,) = put(tmp_path, {"y.nsys-rep.gz": gzip.compress(b"\x01\x02container")})

    def export(file: Path, out: Path) -> Path:
        assert file.read_bytes() == b"\x01\x02container"
        return write_export(out, {"NVTX_EVENTS": [nvtx(0, 5, "a")]})

    assert take(packed, out="out2/run", export_report=export).traces[0].meta.source == "y.nsys-rep.gz"


def test_a_folder_is_searched_and_what_is_no_trace_is_said(tmp_path: Path, take: Import) -> None:
    put(tmp_path / "job", {"a/rank0.json": kineto(), "b/rank1.json": kineto(), "notes.txt": b"hello",
                           "config.json": b'{"lr": 1}', ".hidden.json": kineto()})  # fmt: skip
    run = take(tmp_path / "job")
    assert sorted(run.traces) == [0, 1]
    assert run.manifest["imported"]["notes"] == [
        "'config.json' is JSON and no trace; left out",
        "'notes.txt' is no trace; left out",
    ]


def test_a_report_beside_its_export_is_not_read_again(tmp_path: Path, take: Import) -> None:
    put(tmp_path / "job", {"rank0.nsys-rep": b"\x01container"})
    write_export(tmp_path / "job" / "rank0.sqlite", {"NVTX_EVENTS": [nvtx(0, 5, "a")]})
    run = take(tmp_path / "job")
    assert [trace.meta.source for trace in run.traces.values()] == ["rank0.sqlite"]
    assert run.manifest["imported"]["notes"] == ["'rank0.nsys-rep' stands beside its own SQLite export; left out"]


def test_errors_name_an_unpacked_file_as_the_user_knows_it(tmp_path: Path, take: Import) -> None:
    write_export(tmp_path / "empty", {"OTHER": [{"a": 1}]})
    archive = zip_of(tmp_path / "job.zip", {"rank0.sqlite": (tmp_path / "empty").read_bytes()})
    with pytest.raises(TraceError, match=r"^rank0\.sqlite: the export holds no GPU activity"):
        take(archive)


def test_a_damaged_trace_in_a_folder_is_an_error_and_not_a_missing_rank(tmp_path: Path, take: Import) -> None:
    put(tmp_path / "job", {"rank0.json": kineto(), "rank1.json": b'{"schemaVersion": 1, "traceEvents": 5}'})
    with pytest.raises(TraceError, match=r"rank1\.json"):
        take(tmp_path / "job")


def test_a_folder_without_traces_and_one_that_is_a_run(tmp_path: Path, take: Import) -> None:
    put(tmp_path / "job", {"notes.txt": b"hello"})
    with pytest.raises(TraceError, match="job: holds no trace"):
        take(tmp_path / "job")
    put(tmp_path / "run", {"run.json": b"{}"})
    with pytest.raises(TraceError, match="is a run folder already: agprof report"):
        take(tmp_path / "run")


@pytest.mark.parametrize("content", [b"", b"hello", b"\x1f\x8b", b"\x89PNG\r\n", bytes(1000)])
def test_a_named_file_that_is_no_trace_is_an_error(tmp_path: Path, take: Import, content: bytes) -> None:
    with pytest.raises(TraceError, match=r"x\.json"):
        take(*put(tmp_path, {"x.json": content}))


def test_a_file_that_is_not_there_and_a_folder_that_is(tmp_path: Path, take: Import) -> None:
    with pytest.raises(TraceError, match="there is no such file"):
        take(tmp_path / "missing.json")
    (tmp_path / "taken").mkdir()
    with pytest.raises(StoreError, match="exists already"):
        import_files([tmp_path / "x"], tmp_path / "taken", name="x", export_report=no_nsys)


def test_nothing_is_left_when_the_second_file_fails(tmp_path: Path, take: Import) -> None:
    good, bad = put(tmp_path, {"rank0.json": kineto(), "rank1.json": kineto()[:-400] + b"\x00garbage"})
    shutil.copy(good, tmp_path / "copy.json")
    with pytest.raises(TraceError):
        take(good, put(tmp_path, {"rank0-again.json": kineto()})[0], bad)
    assert not (tmp_path / "out" / "run").exists()


def zip_of(file: Path, members: Mapping[str, bytes], *, links: Sequence[str] = ()) -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in members.items():
            packed.writestr(name, content)
        for name in links:
            info = zipfile.ZipInfo(name)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
            packed.writestr(info, "/etc/passwd")
    return file


def tar_of(file: Path, members: Mapping[str, bytes], *, odd: Sequence[tuple[str, bytes]] = ()) -> Path:
    with tarfile.open(file, "w:gz" if file.suffix == ".gz" else "w") as packed:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(content), 0o4755
            packed.addfile(info, io.BytesIO(content))
        for name, kind in odd:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            packed.addfile(info)
    return file


@pytest.mark.parametrize("name", ["job.zip", "job.tar", "job.tar.gz"])
def test_an_archive_is_its_traces(tmp_path: Path, take: Import, name: str) -> None:
    members = {"job/rank0.json": kineto(), "job/rank1.json.gz": gzip.compress(kineto()), "job/readme.txt": b"hello"}
    run = take((zip_of if name.endswith("zip") else tar_of)(tmp_path / name, members))
    assert sorted(run.traces) == [0, 1]
    assert run.traces[1].meta.rank_source == "file name"


EVIL = ("../../evil.json", "/evil.json", "a/../../evil.json", "C:/evil.json", "..\\evil.json")


@pytest.mark.parametrize("name", ["job.zip", "job.tar", "job.tar.gz"])
def test_members_that_lead_elsewhere_are_refused_and_said(tmp_path: Path, take: Import, name: str) -> None:
    members = {"rank0.json": kineto()} | dict.fromkeys(EVIL, kineto())
    if name == "job.zip":
        archive = zip_of(tmp_path / name, members, links=["link.json"])
        odd = 1
    else:
        kinds = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
        archive = tar_of(tmp_path / name, members, odd=[(f"odd{n}", kind) for n, kind in enumerate(kinds)])
        odd = len(kinds)
    before = set(tmp_path.parent.rglob("*"))
    run = take(archive)
    assert sorted(run.traces) == [0]
    notes = run.manifest["imported"]["notes"]
    assert sum("`..`" in note for note in notes) == 3
    assert sum("absolute" in note for note in notes) == 2
    assert sum("link or a device" in note for note in notes) == odd
    assert not {path for path in set(tmp_path.parent.rglob("*")) - before if "evil" in path.name}


def test_bombs(tmp_path: Path, take: Import, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "FREE_BYTES", 2**20)
    zeros = bytes(64 * 2**20)
    for archive in (zip_of(tmp_path / "b.zip", {"a.json": zeros}), tar_of(tmp_path / "b.tar.gz", {"a.json": zeros})):
        with pytest.raises(TraceError, match="more than 200 times"):
            take(archive)
    with pytest.raises(TraceError, match=r"more than 100,000 bytes; .*--max-size"):
        take(zip_of(tmp_path / "c.zip", {"a.json": kineto() * 1000}), max_bytes=10**5)
    with pytest.raises(TraceError, match="holds no trace"):
        take(zip_of(tmp_path / "e.zip", {"a.json": zeros}), max_bytes=2**30)
    monkeypatch.setattr(archives, "MAX_MEMBERS", 10)
    for archive in (
        zip_of(tmp_path / "d.zip", {f"{n}.json": b"{}" for n in range(20)}),
        tar_of(tmp_path / "d.tar", {f"{n}.json": b"{}" for n in range(20)}),
    ):
        with pytest.raises(TraceError, match="more than 10 members"):
            take(archive)


def test_a_compressed_export_that_is_a_bomb(tmp_path: Path, take: Import, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "FREE_BYTES", 2**20)
    (file,) = put(tmp_path, {"x.sqlite.gz": gzip.compress(b"SQLite format 3\x00" + bytes(64 * 2**20))})
    with pytest.raises(TraceError, match="more than 200 times"):
        take(file)


@pytest.mark.parametrize("name", ["job.zip", "job.tar", "job.tar.gz"])
def test_archives_that_are_cut_or_damaged(tmp_path: Path, take: Import, name: str) -> None:
    """Of a cut archive either everything was read, or nothing is imported."""
    make = zip_of if name.endswith("zip") else tar_of
    whole = make(tmp_path / name, {"rank0.json": kineto(), "rank1.json": kineto()}).read_bytes()
    for number, length in enumerate(range(10, len(whole), max(1, len(whole) // 25))):
        (tmp_path / name).write_bytes(whole[:length])
        try:
            run = take(tmp_path / name, out=f"out{number}/run")
        except TraceError:
            continue
        assert sorted(run.traces) == [0, 1]


def test_an_archive_in_an_archive_counts_against_the_same_limit(tmp_path: Path, take: Import) -> None:
    inner = zip_of(tmp_path / "inner.zip", {"rank0.json": kineto()}).read_bytes()
    assert sorted(take(zip_of(tmp_path / "outer.zip", {"inner.zip": inner})).traces) == [0]


def test_a_memory_snapshot_beside_a_trace(tmp_path: Path, take: Import) -> None:
    run = take(*put(tmp_path, {"trace.json": kineto(3), "snapshot.pickle": SNAPSHOT}))
    assert run.traces[3].table("memory_events")["bytes"].to_list() == [5]


def test_memory_snapshots_go_to_the_rank_in_their_names(tmp_path: Path, take: Import) -> None:
    files = {"a.json": kineto(0), "b.json": kineto(1), "rank1.pickle": SNAPSHOT}
    run = take(*put(tmp_path, files))
    assert [trace.table("memory_events").height for trace in run.traces.values()] == [0, 1]
    with pytest.raises(TraceError, match="it is not known which of ranks 0, 1"):
        take(*put(tmp_path, {"a.json": kineto(0), "b.json": kineto(1), "snapshot.pickle": SNAPSHOT}), out="o2/run")
    with pytest.raises(TraceError, match=r"rank1\.pickle and rank-1\.pickle are both"):
        take(*put(tmp_path, files | {"rank-1.pickle": SNAPSHOT}), out="o3/run")


def test_a_memory_snapshot_alone(tmp_path: Path, take: Import) -> None:
    run = take(*put(tmp_path, {"snapshot.pickle": SNAPSHOT}))
    assert run.traces[0].meta.format == "torch snapshot"
    assert analyse(run).identity.status == "imported"


def test_the_run_says_that_it_was_imported(tmp_path: Path, take: Import) -> None:
    run = take(*put(tmp_path, {"rank0.json": kineto(0, 2)}), communication={"mine": "^k$"})
    assert run.manifest["workload"]["kernels"] == {"communication": {"mine": "^k$"}}
    assert run.manifest["created_realtime_ns"] == EPOCH_NS
    assert [stream.ended for stream in run.streams] == ["imported"]
    answers = analyse(run)
    assert answers.identity.status == "imported"
    assert answers.identity.status_sentence == "imported from one Kineto trace, 1 step on 1 rank"
    assert answers.identity.started_realtime_ns == EPOCH_NS
    words = " ".join((answers.quality.sentence, *answers.quality.problems, *answers.quality.notes))
    assert "Of rank 1 no trace was imported." in words
    assert "Rank 0: numbered by distributedInfo." in words
    assert not any(word in words for word in ("killed", "end record", "agprof itself", "switched off"))


def test_a_trace_without_wall_time_has_no_date(tmp_path: Path, take: Import) -> None:
    answers = analyse(take(*put(tmp_path, {"rank0.json": kineto(0, base_ns=0)})))
    assert answers.identity.started_realtime_ns is None


def test_names_of_runs() -> None:
    assert run_name([Path("/a/trace.json.gz")]) == "trace"
    assert run_name([Path("job.tar.gz")]) == "job"
    assert run_name([Path("/runs/tuesday/rank0.json"), Path("/runs/tuesday/rank1.json")]) == "tuesday"
    assert run_name([Path("<script>.json")]) == "script"
    assert run_name([Path("/a/...json")]) == "imported"
    assert len(run_name([Path("\u8ffd" * 84)]).encode()) <= 80


def test_claims_keep_their_order() -> None:
    claims = [Claim(label=f"f{n}", rank=rank, source="s", name=None) for n, rank in enumerate((2, None, 0, None))]
    assert [found.rank for found in assign(claims)] == [2, 1, 0, 3]


def test_the_folder_of_a_run_is_like_any_other(tmp_path: Path, take: Import) -> None:
    run = take(*put(tmp_path, {"rank0.json": kineto(0)}))
    assert sorted(path.name for path in run.path.iterdir()) == sorted(
        [layout.MANIFEST, layout.NODES, layout.RANKS, layout.TRACES]
    )
