"""Files that come from another machine: names, sizes and contents are checked, and nothing is written over."""

import base64
import hashlib
import json
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agprof.launch import node_files
from agprof.launch.node_files import Collection, collection_note, name_problem, pieces


def messages(name: str, data: bytes, *, sha256: str | None = None, crc: int | None = None) -> list[dict]:
    piece = {"piece": base64.b64encode(data).decode(), "crc": zlib.crc32(data) if crc is None else crc}
    end = {"file_end": name, "sha256": sha256 or hashlib.sha256(data).hexdigest()}
    return [{"file": name}, piece, end]


def take(run: Path, *rows: dict) -> node_files.Collected:
    collection = Collection(run, 1)
    for row in rows:
        assert collection.take(row)
    return collection.close()


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_what_is_sent_is_what_arrives(tmp_path, monkeypatch):
    monkeypatch.setattr(node_files, "PIECE_BYTES", 1000)
    there, here = tmp_path / "there", tmp_path / "here"
    (there / "ranks").mkdir(parents=True)
    here.mkdir()
    (there / "ranks" / "a.agp").write_bytes(bytes(range(256)) * 20)
    (there / "ranks" / "empty.log").write_bytes(b"")
    (there / "hostfile").write_text("left out")
    rows = [json.loads(json.dumps(row)) for row in pieces(there, without=frozenset({"hostfile"}))]
    result = take(here, *rows)
    assert tree(here) == {"ranks/a.agp": bytes(range(256)) * 20, "ranks/empty.log": b""}
    assert (result.files, result.bytes, result.problems, result.complete) == (2, 5120, [], True)
    assert collection_note("node 1", result) is None


def test_links_and_hidden_files_are_not_sent(tmp_path):
    (tmp_path / "ranks").mkdir()
    (tmp_path / "ranks" / "link").symlink_to("/etc/passwd")
    (tmp_path / "ranks" / ".part").write_text("x")
    assert list(pieces(tmp_path)) == [{"sent": {"files": 0, "bytes": 0, "left_out": []}}]


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/passwd", "ranks/../../x", "ranks//x", "ranks/.x", "", ".", "ranks/a\nb", "ranks/a\x00", "ranks/-x",
     "ranks\\x", "a/b/c/d/e/f/g", "ranks/" + "x" * 300, "run.json", "outcome.json", "report.html", "ranks/\u202ex"],
)  # fmt: skip
def test_names_that_are_refused(tmp_path, name):
    result = take(tmp_path, *messages(name, b"x"))
    assert tree(tmp_path) == {}
    assert len(result.problems) == 1
    assert "\n" not in result.problems[0]


@given(st.text(max_size=60))
def test_a_name_that_passes_stays_in_the_folder(name):
    if name_problem(name) is None:
        path = (Path("/run/x") / name).resolve()
        assert path.is_relative_to("/run/x")
        assert path != Path("/run/x")


def test_a_folder_that_is_a_link_leads_nowhere(tmp_path):
    run, outside = tmp_path / "run", tmp_path / "outside"
    run.mkdir()
    outside.mkdir()
    (run / "ranks").symlink_to(outside)
    result = take(run, *messages("ranks/x", b"x"))
    assert tree(outside) == {}
    assert "leads out of the run folder" in result.problems[0]


def test_nothing_is_written_over(tmp_path):
    (tmp_path / "ranks").mkdir()
    (tmp_path / "ranks" / "x").write_text("mine")
    result = take(tmp_path, *messages("ranks/x", b"theirs"))
    assert tree(tmp_path) == {"ranks/x": b"mine"}
    assert "is there already" in result.problems[0]


@pytest.mark.parametrize(
    "rows",
    [
        messages("ranks/x", b"abc", sha256="0" * 64),
        messages("ranks/x", b"abc", crc=1),
        messages("ranks/x", b"abc")[:2],
        [*messages("ranks/x", b"abc")[:2], {"sent": {"left_out": []}}],
        [*messages("ranks/x", b"abc")[:2], {"file_given_up": "ranks/x"}],
        [{"file": "ranks/x"}, {"piece": "no base64!", "crc": 0}],
        [{"file": "ranks/x"}, {"piece": 7}],
        [{"file": "ranks/x"}, {"sent": 7}],
        [{"file": "ranks/x"}, {"sent": {"left_out": [["only one"]]}}],
    ],
)
def test_a_damaged_or_unfinished_file_leaves_nothing(tmp_path, rows):
    result = take(tmp_path, *rows)
    assert tree(tmp_path) == {}
    assert result.problems
    assert result.files == 0


def test_a_file_after_a_damaged_one_arrives(tmp_path):
    bad = messages("ranks/bad", b"abc", crc=1)
    result = take(tmp_path, *bad, *messages("ranks/good", b"d"), {"sent": {"left_out": [["z", "has 9 bytes"]]}})
    assert tree(tmp_path) == {"ranks/good": b"d"}
    note = collection_note("node 1", result)
    assert note == "node 1: 1 files came over; left out: ranks/bad: ValueError: a piece arrived damaged; z: has 9 bytes"


def test_sizes_have_limits(tmp_path, monkeypatch):
    monkeypatch.setattr(node_files, "MAX_FILE_BYTES", 10)
    assert "larger than is taken" in take(tmp_path, *messages("ranks/x", b"x" * 11)).problems[0]
    (tmp_path / "ranks" / "big").write_bytes(b"x" * 11)
    assert [row["sent"]["left_out"] for row in pieces(tmp_path)] == [[("ranks/big", "has 11 bytes, more than is sent")]]
    monkeypatch.setattr(node_files, "MAX_NODE_BYTES", 15)
    rows = [*messages("ranks/a", b"x" * 9), *messages("ranks/b", b"x" * 9)]
    assert "ranks/b" in take(tmp_path, *rows).problems[0]


def test_other_messages_are_none_of_its(tmp_path):
    assert not Collection(tmp_path, 1).take({"alive": 1})
