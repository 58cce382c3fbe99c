"""scripts/nsight: run again it does nothing, and says so."""

import subprocess
from pathlib import Path

import pytest

from agprof.launch.nsight import find_nsys, nsys_version

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "nsight"


def nsight(*words):
    return subprocess.run([SCRIPT, *words], capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.system("nsight-systems")
def test_what_is_there_is_left_alone():
    done = nsight()
    assert done.returncode == 0, done.stderr
    assert f"nsight: already there: Nsight Systems {nsys_version(find_nsys())}" in done.stdout


def test_its_arguments():
    assert "--suite" in nsight("--help").stdout
    wrong = nsight("--sweet", "trixie")
    assert wrong.returncode == 1
    assert wrong.stderr == "nsight: unknown argument '--sweet'; usage: scripts/nsight [--suite SUITE]\n"


def test_where_there_is_no_apt_it_says_what_to_do(tmp_path):
    """An empty cache and a PATH with the shell's own tools alone."""
    for name in ("bash", "dirname", "grep", "head", "uname", "readlink", "sed", "env"):
        (tmp_path / name).symlink_to(Path("/usr/bin") / name)
    done = subprocess.run(
        ["/bin/bash", SCRIPT],
        env={"PATH": str(tmp_path), "AGPROF_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "put nsys on PATH" in done.stderr
    assert not (tmp_path / "cache").exists()
