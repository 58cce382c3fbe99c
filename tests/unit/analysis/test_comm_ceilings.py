"""Collectives against measured links: which measurement fits, what is predicted, what is far below."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agprof.analysis.comm_ceilings import alpha_of
from agprof.analysis.run import analyse
from agprof.analysis.view import prepare
from agprof.model.alpha_beta import fit_points
from agprof.model.answers import RunAnswers
from agprof.model.comm_ceiling import CommCeiling, CommCurve, CommPoint
from agprof.store import layout
from agprof.store.reader import read_run
from synthetic import MIB, build_run

ALPHA_NS, BETA_NS = 100_000, 0.2
"""4 MiB take 0.94 ms; the made-up runs' 3 ms."""


def curve(op: str, n: int = 2, nodes: int = 1, factor: float = 1.0) -> CommCurve:
    times = {size: round(factor * (ALPHA_NS + BETA_NS * size)) for size in (1024, 65536, MIB, 16 * MIB)}
    points = tuple(CommPoint(bytes=s, repeats=7, median_ns=t, low_ns=t, high_ns=t) for s, t in times.items())
    return CommCurve(op=op, group_size=n, nodes=nodes, points=points, fit=fit_points(points))


def ceiling(*curves: CommCurve, **changes: Any) -> CommCeiling:
    fields: dict[str, Any] = {
        "version": 1, "backend": "gloo", "device_type": "cpu", "device_name": "CPU", "ranks": 2, "nodes": 1,
        "setup": None, "link": "loopback", "measured_realtime_ns": 1, "torch_version": "2", "curves": curves,
    }  # fmt: skip
    return CommCeiling(**(fields | changes))


def run_folder(path: Path, *ceilings: CommCeiling, **options: Any) -> Path:
    run = build_run(path / "run", **options)
    (run / layout.COMM).write_text(json.dumps({"version": 1, "ceilings": [each.to_dict() for each in ceilings]}))
    return run


def answers_of(path: Path, *ceilings: CommCeiling, **options: Any) -> RunAnswers:
    return analyse(read_run(run_folder(path, *ceilings, **options)))


def test_each_kind_is_held_against_alpha_and_beta(tmp_path: Path) -> None:
    answers = answers_of(tmp_path, ceiling(curve("all_reduce"), curve("all_gather")))
    rows = {row.op: row for row in answers.communication.ceilings}
    assert set(rows) == {"all_reduce", "all_gather"}
    reduce = rows["all_reduce"]
    assert reduce.predicted.value == pytest.approx(ALPHA_NS + BETA_NS * 4 * MIB, rel=1e-3)
    assert rows["all_gather"].predicted.value == pytest.approx(ALPHA_NS + BETA_NS * 8 * MIB, rel=1e-3)
    measured = reduce.measured.value or 0.0
    assert measured == pytest.approx(3e6, rel=0.1)
    assert reduce.reached.value == pytest.approx((reduce.predicted.value or 0) / measured)
    assert reduce.saving_ns_per_step == pytest.approx(12 * (measured - (reduce.predicted.value or 0)))
    assert reduce.far_below
    assert answers.communication.ceilings[0] == reduce  # what loses most comes first
    assert "far below" in answers.communication.ceilings_sentence


def test_what_is_far_below_is_a_finding_with_its_saving(tmp_path: Path) -> None:
    answers = answers_of(tmp_path, ceiling(curve("all_reduce")))
    (finding,) = (each for each in answers.findings if each.key == "below-ceiling")
    (row,) = answers.communication.ceilings
    assert finding.saving_ns_per_step is not None
    assert finding.saving_ns_per_step.value == pytest.approx(row.saving_ns_per_step)
    for text in (finding.title, finding.evidence, finding.change, finding.check):
        assert text


def test_a_link_that_is_reached_is_no_finding(tmp_path: Path) -> None:
    answers = answers_of(tmp_path, ceiling(curve("all_reduce", factor=3.0), curve("all_gather", factor=2.0)))
    assert not any(row.far_below for row in answers.communication.ceilings)
    assert "None of 2 kinds" in answers.communication.ceilings_sentence
    assert not any(each.key == "below-ceiling" for each in answers.findings)


@pytest.mark.parametrize(
    "other",
    [
        {"backend": "nccl"},
        {"device_type": "cuda"},
        {"nodes": 2},
        {"curves": (curve("all_reduce", n=4),)},
        {"curves": (curve("all_reduce", nodes=2),)},
        {"curves": (replace(curve("all_reduce"), fit=None),)},
    ],
)
def test_what_was_measured_elsewhere_does_not_count(other: dict[str, Any], tmp_path: Path) -> None:
    answers = answers_of(tmp_path, replace(ceiling(curve("all_reduce")), **other))
    assert answers.communication.ceilings == ()
    assert answers.communication.ceilings_sentence


def test_nodes_need_the_same_link(tmp_path: Path) -> None:
    across = ceiling(curve("all_reduce", nodes=2), nodes=2, link="emulated link, 1gbit")
    run = run_folder(tmp_path, across, nodes=2)
    for link, rows in (("emulated link, 200mbit", 0), ("emulated link, 1gbit", 1)):
        manifest = json.loads((run / layout.MANIFEST).read_text()) | {"link": link}
        (run / layout.MANIFEST).write_text(json.dumps(manifest))
        assert len(analyse(read_run(run)).communication.ceilings) == rows


def test_without_a_measurement_the_report_says_what_to_do(tmp_path: Path) -> None:
    answers = analyse(read_run(build_run(tmp_path / "run")))
    assert "agprof bench-comm" in answers.communication.ceilings_sentence


def test_latency_by_operation_and_group(tmp_path: Path) -> None:
    view = prepare(read_run(run_folder(tmp_path, ceiling(curve("all_reduce")))))
    assert alpha_of(view, "all_reduce", 2) == pytest.approx(ALPHA_NS, rel=1e-3)
    assert alpha_of(view, "all_reduce_coalesced", 2) == pytest.approx(ALPHA_NS, rel=1e-3)
    assert alpha_of(view, "all_reduce", 4) is None
    assert alpha_of(view, "broadcast", 2) is None


def test_a_rank_that_is_missing_leaves_nothing_to_hold(tmp_path: Path) -> None:
    answers = answers_of(tmp_path, ceiling(curve("all_reduce")), missing=(1,))
    assert answers.communication.ceilings == ()
