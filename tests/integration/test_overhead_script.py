"""scripts/overhead --sampler: the real sampler on the fake NVML with real processes; its memory stays in its bounds."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_short_measurement_of_the_sampler_says_what_it_read() -> None:
    if not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        pytest.skip("no C compiler (cc, gcc or clang): the fake NVML can't be built; install the package gcc")
    argv = [sys.executable, "-P", str(ROOT / "scripts" / "overhead"), "--sampler", "--quick"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("agprof.sampler "))
    found = re.search(r"([0-9.]+)% of a core .*?([0-9.]+) MB .*?([0-9.]+) rows/s, ([0-9.]+) MB a day", line)
    assert found is not None, line
    cpu_percent, rss_mb, rows_per_s, day_mb = map(float, found.groups())
    assert rss_mb < 40
    # 40 rows of GPUs by the fast tier, 16 of GPUs by the medium, 16 of process trees, and some of the host.
    assert rows_per_s > 60
    assert 0 < cpu_percent < 20
    assert day_mb > 0
