"""The memory account of real runs under ZeRO 0-3: a quick part of `scripts/memory-account`, which does the whole."""

import re
import subprocess
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from synthetic import build_run
from synthetic_memory import UNEXPLAINED

SCRIPT = Path(__file__).parents[2] / "scripts" / "memory-account"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    loader = SourceFileLoader("memory_account_script", str(SCRIPT))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.mark.timeout(1200)
@pytest.mark.slow
def test_the_account_closes_in_every_stage(tmp_path: Path) -> None:
    """Four runs, each stage once, offload twice; some 90 seconds on two quiet cores."""
    done = subprocess.run(
        [str(SCRIPT), "--quick", "--out", str(tmp_path)], capture_output=True, text=True, timeout=1100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line for line in done.stdout.splitlines() if " ZeRO-" in line]
    assert {re.search(r"ZeRO-(\d)", row)[1] for row in rows} == {"0", "1", "2", "3"}  # type: ignore[index]
    assert done.stdout.endswith("4 runs, 0 failures\n")


def test_the_whole_is_every_stage_with_and_without_offload(script: ModuleType) -> None:
    whole = {(case.workload, case.stage, case.offload) for case in script.ALL}
    assert len(whole) == 2 * 4 * 2
    assert {(case.stage, case.offload) for case in script.QUICK} <= {(stage, off) for _, stage, off in whole}


def test_what_does_not_hold_is_said(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = script.Case("gpt2/tiny", 2, False)
    good = build_run(tmp_path / "good")
    assert list(script.check(case, good)) == []

    (failure, *_) = script.check(case, build_run(tmp_path / "none", account=False))
    assert "rank 0 has no account peak: No account was recorded" in failure

    monkeypatch.setitem(UNEXPLAINED, "peak", 20_000_000)
    failures = list(script.check(case, build_run(tmp_path / "open")))
    assert len(failures) == 2  # on each rank
    assert all("bytes unexplained" in failure for failure in failures)


def test_parts_that_are_not_the_formula_s_are_said(script: ModuleType) -> None:
    def account(held: float, formula: float | None) -> SimpleNamespace:
        return SimpleNamespace(parts=[SimpleNamespace(part="gradients", bytes=held, formula_bytes=formula)])

    assert list(script.deviations(account(101_900, 100_000))) == []
    assert list(script.deviations(account(102_100, 100_000))) == ["gradients 102,100 bytes, the formula says 100,000"]
    assert list(script.deviations(account(97_900, 100_000)))
    assert list(script.deviations(account(4, None))) == []
    assert list(script.deviations(account(5_000, None)))
