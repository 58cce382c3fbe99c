"""agprof peak, and a run that is held against what it measured."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agprof.store import layout
from agprof.store.reader import read_run

SCRIPT = Path(__file__).parent / "scripts" / "big_products.py"
WIDTH, LAYERS, ROWS, LENGTH = 768, 4, 8, 64


def agprof(environ: dict[str, str], *words: str) -> str:
    command = [sys.executable, "-m", "agprof", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, env=environ)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("peak")
    environ = os.environ | {"AGPROF_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    said = agprof(environ, "peak", "--quick", "--threads", "1")
    assert "float32" in said
    assert "memory" in said
    agprof(environ, "run", "--plain", "--out", str(folder / "runs"), "--", sys.executable, str(SCRIPT))
    (run,) = (folder / "runs").iterdir()
    return run, json.loads((run / layout.REPORT_JSON).read_text())


def test_the_run_keeps_the_ceiling_that_it_began_with(report: tuple[Path, dict[str, Any]]) -> None:
    (ceiling,) = read_run(report[0]).ceilings
    assert (ceiling.device_type, ceiling.threads, ceiling.quick) == ("cpu", 1, True)
    (shown,) = report[1]["compute"]["ceilings"]
    product = ceiling.product("float32")
    assert product is not None
    assert shown["flops_per_second"] == pytest.approx(product.flops_per_second)


def test_flops_of_a_step_are_the_closed_form(report: tuple[Path, dict[str, Any]]) -> None:
    product = 2 * ROWS * LENGTH * WIDTH * WIDTH
    counted, modelled, _deepspeed = report[1]["compute"]["ways"]
    for way in (counted, modelled):
        assert way["forward"]["value"] == LAYERS * product
        assert way["backward"]["value"] == (2 * LAYERS - 1) * product  # the inputs need no gradient


def test_a_run_of_products_reaches_much_of_its_own_machine(report: tuple[Path, dict[str, Any]]) -> None:
    shares = {each["key"]: each for each in report[1]["compute"]["utilisation"]}
    mfu = shares["mfu_full"]["of_achievable"]["value"]
    assert 0.01 < mfu < 1.2  # of a machine that other work may share; a wrong unit or thread count is far off
    assert shares["mfu_full"]["of_datasheet"]["value"] is None
    assert shares["hfu"]["of_achievable"]["value"] == pytest.approx(mfu)
    assert report[1]["compute"]["peak_hint"] == ""
    cards = {card["key"]: card["figure"]["value"] for card in report[1]["kpis"]}
    assert cards["mfu"] == mfu


def test_products_in_the_profile_step_stay_below_the_ceiling(report: tuple[Path, dict[str, Any]]) -> None:
    rows = [row for row in report[1]["compute"]["operations"] if row["kind"] == "matmul"]
    assert {(row["in_pass"], row["dtype"]) for row in rows} == {("forward", "float32"), ("backward", "float32")}
    assert all(0.01 < row["of_achievable"] < 1.2 for row in rows)


def test_tokens_are_told_from_padding(report: tuple[Path, dict[str, Any]]) -> None:
    compute = report[1]["compute"]
    every, unpadded = compute["tokens_per_second"]["value"], compute["tokens_per_second_without_padding"]["value"]
    assert unpadded / every == pytest.approx(0.5)
