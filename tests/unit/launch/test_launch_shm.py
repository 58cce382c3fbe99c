"""Only a job's own buffers go, and only when nobody maps them."""

import mmap
import os

from agprof.launch.shm import buffers, remove_left_behind


def name(port: int, rank: int, uid: int | None = None) -> str:
    return f"deepspeed_allreduce_buffer_{os.getuid() if uid is None else uid}_127.0.0.1_{port}_{rank}"


def test_only_what_this_job_left_is_removed(tmp_path):
    old, other_port, other_user = name(29500, 7), name(29501, 0), name(29500, 0, uid=os.getuid() + 1)
    (tmp_path / old).touch()
    before = buffers(tmp_path)
    for new in (name(29500, 0), name(29500, 1), other_port, other_user, "something_else"):
        (tmp_path / new).touch()
    removed = remove_left_behind(before, master_ports={29500}, folder=tmp_path)
    assert removed == (name(29500, 0), name(29500, 1))
    assert {path.name for path in tmp_path.iterdir()} == {old, other_port, other_user, "something_else"}


def test_a_mapped_buffer_stays(tmp_path):
    path = tmp_path / name(29500, 0)
    path.write_bytes(b"x" * 4096)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 4096):
        assert remove_left_behind(frozenset(), master_ports={29500}, folder=tmp_path) == ()
    assert remove_left_behind(frozenset(), master_ports={29500}, folder=tmp_path) == (path.name,)


def test_no_such_folder_is_no_error(tmp_path):
    assert buffers(tmp_path / "none") == frozenset()
