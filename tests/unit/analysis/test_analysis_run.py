"""All answers of synthetic runs, through the real writer and reader."""

import dataclasses
import json
import math
import random
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from agprof.analysis.run import analyse
from agprof.analysis.summary import terminal_lines
from agprof.exporters import report_json
from agprof.model.answers import RunAnswers
from agprof.model.tables import PHASES, TABLES, Column
from agprof.store import layout
from agprof.store.reader import Run, read_run
from synthetic import BOOT_NS, HOSTILE, build_run, rank_header, write_stream

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "asynchronous": {"async_ops": True},
    "one rank": {"ranks": 1},
    "two nodes": {"ranks": 4, "nodes": 2},
    "no step": {"steps": 0},
    "one step": {"steps": 1},
    "two steps": {"steps": 2},
    "killed": {"killed": 1},
    "torn": {"torn": 0},
    "missing rank": {"missing": (1,)},
    "no rank": {"missing": (0, 1)},
    "bare": {"bare": True},
    "gpus": {"gpus": 2, "offload": True},
    "hostile": {"hostile": True, "faults": True, "gpus": 1},
    "nan loss": {"nan_loss": True},
    "nothing counted": {"tokens": False, "counted": False, "profile_step": None, "ledger": False},
    "no sampler": {"sampler": False},
    "ceiling": {"ceiling": True},
}


def run_of(path: Path, **options: Any) -> Run:
    return read_run(build_run(path / "run", **options))


def answers_of(path: Path, **options: Any) -> RunAnswers:
    return analyse(run_of(path, **options))


def check(answers: RunAnswers) -> None:
    """What holds for the answers of every run."""
    for row in answers.time.steps:
        assert sum(row.parts_ns.values()) == row.duration_ns
        assert set(row.parts_ns) == set(PHASES)
        assert min(row.parts_ns.values()) >= 0
    for rank in answers.time.ranks:
        assert sum(rank.parts_ns.values()) == pytest.approx(rank.step_ns)
    for span in answers.time.timeline:
        assert span.start_ns >= 0
        assert span.duration_ns > 0
    data = report_json.encode(answers)
    assert data == report_json.encode(answers)
    json.loads(data, parse_constant=lambda name: pytest.fail(f"{name} in report.json"))
    report_json.decode(data)
    lines = terminal_lines(answers)
    assert all(len(line) <= 80 and line.isprintable() for line in lines)
    assert 5 <= len(lines) <= 10
    for figure in figures(answers):
        assert (figure["value"] is None) == (figure["reason"] is not None)


def figures(answers: RunAnswers) -> list[dict[str, Any]]:
    """Every figure anywhere in the answers."""
    found: list[dict[str, Any]] = []

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            if "source" in value and "unit" in value:
                found.append(value)
            for item in value.values():
                walk(item)
        elif isinstance(value, list | tuple):
            for item in value:
                walk(item)

    walk(dataclasses.asdict(answers))
    return found


@pytest.mark.parametrize("case", CASES)
def test_every_case_has_answers(case: str, tmp_path: Path) -> None:
    check(answers_of(tmp_path, **CASES[case]))


@pytest.mark.parametrize("case", ["plain", "hostile", "no step", "two nodes"])
def test_inputs_are_not_changed(case: str, tmp_path: Path) -> None:
    run = run_of(tmp_path, **CASES[case])

    def state() -> Any:
        hashes = {name: (list(t.hash_rows()), t.schema) for name, t in run.tables.items()}
        return hashes, json.dumps(run.manifest), json.dumps(run.outcome), run.streams, run.problems

    before = state()
    analyse(run)
    assert state() == before


@pytest.mark.parametrize("case", ["plain", "two nodes", "killed", "hostile"])
def test_ranks_may_come_in_any_order(case: str, tmp_path: Path) -> None:
    run = run_of(tmp_path, **CASES[case])
    want = report_json.encode(analyse(run))
    random_ = random.Random(5)
    for _ in range(3):
        assert report_json.encode(analyse(shuffled(run, random_))) == want


def shuffled(run: Run, random_: random.Random) -> Run:
    streams = list(run.streams)
    random_.shuffle(streams)
    tables = {}
    for table in TABLES:
        frame = run.tables[table.name]
        parts = frame.partition_by(table.scope) if frame.height else []
        random_.shuffle(parts)
        tables[table.name] = pl.concat(parts) if parts else frame
    return dataclasses.replace(run, streams=tuple(streams), tables=tables)


def test_the_same_folder_gives_the_same_bytes(tmp_path: Path) -> None:
    path = build_run(tmp_path / "run", gpus=2, ranks=3)
    assert report_json.encode(analyse(read_run(path))) == report_json.encode(analyse(read_run(path)))


def test_step_time_is_the_median_of_the_slowest_rank(tmp_path: Path) -> None:
    answers = answers_of(tmp_path, straggler=1, steps=15)
    slowest = [
        max(row.duration_ns for row in rows)
        for _, rows in groupby(
            sorted((r for r in answers.time.steps if r.kind == "steady"), key=lambda r: r.step), key=lambda r: r.step
        )
    ]
    assert answers.time.step_time.value == median(slowest)
    assert answers.time.step_time.n == len(slowest) == 12


def test_warmup_and_profiled_steps_are_marked_and_left_out(tmp_path: Path) -> None:
    answers = answers_of(tmp_path, steps=12, warmup=(3.0, 1.4), profile_step=4)
    kinds = {row.step: row.kind for row in answers.time.steps}
    assert [step for step, kind in kinds.items() if kind == "warm-up"] == [0, 1]
    assert [step for step, kind in kinds.items() if kind == "profiled"] == [4] == list(answers.time.profiled_steps)
    assert answers.time.warmup_steps == 2
    assert answers.time.steady_steps == 9


@pytest.mark.parametrize(("declared", "steady"), [(0, 11), (5, 7), (100, 0)])
def test_a_declared_warmup_is_taken_as_it_is(declared: int, steady: int, tmp_path: Path) -> None:
    answers = answers_of(tmp_path, warmup_steps=declared)
    assert answers.time.steady_steps == steady
    assert "profile.warmup_steps" in answers.time.warmup_rule
    if not steady:
        assert answers.time.step_time.reason == "no steady step: all are warm-up or profiled"
        assert answers.verdict.bound_by == "unknown"


def test_steps_that_other_ranks_lack_are_incomplete(tmp_path: Path) -> None:
    answers = answers_of(tmp_path, killed=1, killed_at=7)
    assert {row.step for row in answers.time.steps if row.kind == "incomplete"} == {7}
    assert answers.identity.status == "killed"
    assert answers.identity.status_sentence == "rank 1 ended after step 6: killed (SIGKILL)"
    assert answers.findings[0].key == "rank-ended"
    rank = answers.ranks[1]
    assert (rank.ended, rank.last_step, rank.last_phase) == ("killed (SIGKILL)", 6, "optimizer")


def test_nodes_with_other_clocks_share_one_axis(tmp_path: Path) -> None:
    one = answers_of(tmp_path / "a", ranks=4, nodes=1)
    two = answers_of(tmp_path / "b", ranks=4, nodes=2)
    assert [row.start_ns for row in one.time.steps] == [row.start_ns for row in two.time.steps]
    assert one.time.timeline == two.time.timeline
    assert any("one axis" in note for note in two.quality.notes)
    assert not any("one axis" in note for note in one.quality.notes)


def test_throughput_counts_all_ranks(tmp_path: Path) -> None:
    answers = answers_of(tmp_path, ranks=4, jitter=0.0)
    kpis = {kpi.key: kpi.figure for kpi in answers.kpis}
    assert answers.time.step_time.value is not None
    seconds = answers.time.step_time.value / 1e9
    assert kpis["samples_per_s"].value == pytest.approx(4 * 2 * 4 / seconds, rel=0.01)
    assert kpis["tokens_per_s"].value == pytest.approx(4 * 2 * 512 / seconds, rel=0.01)


def test_what_was_not_measured_has_a_reason_and_no_zero(tmp_path: Path) -> None:
    answers = answers_of(tmp_path, tokens=False, counted=False)
    kpis = {kpi.key: kpi.figure for kpi in answers.kpis}
    assert kpis["tokens_per_s"].value is None
    assert "agprof.step(tokens=...)" in (kpis["tokens_per_s"].reason or "")
    assert kpis["flops_per_s"].value is None
    assert kpis["flops_per_s"].reason == "FLOPs were not counted"
    assert kpis["mfu"].value is None
    assert answers.compute.tokens_per_second_without_padding.value is None


def test_flops_per_second(tmp_path: Path) -> None:
    answers = answers_of(tmp_path)
    compute = answers.compute
    assert compute.flops_per_step.value == pytest.approx((6e9 + 3.4e9) * 2)
    assert answers.time.step_time.value is not None
    assert compute.flops_per_second.value == pytest.approx(18.8e9 * 1e9 / answers.time.step_time.value)
    assert compute.modules[0].path == ""
    assert (compute.profiled_step, compute.profiled_micro_steps) == (4, 2)


def test_hostile_names_come_through_as_text(tmp_path: Path) -> None:
    answers = answers_of(tmp_path, **CASES["hostile"])
    assert answers.identity.name == HOSTILE
    assert HOSTILE in {row.host for row in answers.ranks}
    assert any("nul\x00byte" in row.name for row in answers.time.ranges)
    decoded = report_json.decode(report_json.encode(answers))
    assert decoded.time.ranges == answers.time.ranges


def test_a_loss_that_is_no_number_is_none_and_said(tmp_path: Path) -> None:
    answers = answers_of(tmp_path, nan_loss=True)
    losses = {row.step: row.loss for row in answers.time.steps}
    assert losses[1] is None
    assert losses[0] is not None
    assert any("loss is not finite at 4 step(s), the first is step 1" in text for text in answers.quality.problems)


def test_a_large_run_is_quick_and_its_time_line_is_cut(tmp_path: Path) -> None:
    answers = answers_of(tmp_path, ranks=64, steps=60, fast=True)
    assert len({span.rank for span in answers.time.timeline}) == 8
    assert answers.time.timeline_note == "shows the first 8 of 64 ranks"
    assert len(answers.ranks) == 64
    check(answers)


def test_too_many_bars_are_cut_to_the_longest(tmp_path: Path) -> None:
    answers = answers_of(tmp_path, ranks=8, steps=6, collectives=600)
    assert len(answers.time.timeline) == 4000
    assert answers.time.timeline_steps is not None
    assert answers.time.timeline_steps[0] == answers.time.timeline_steps[1]
    assert answers.time.timeline_note.startswith("shows the longest 4,000 of ")
    assert any(span.lane == "phase" for span in answers.time.timeline)


WEIRD = ["", HOSTILE, "\u2028", "nul\u0000", "x" * 300, "weird"]
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "category": st.sampled_from(["phase", "phase", "range", "weird"]),
    "name": st.sampled_from([*PHASES, *WEIRD]),
    "op": st.sampled_from(["all_reduce", "all_gather", "barrier", "weird"]),
    "at": st.sampled_from(["step.end", "forward.end", "weird"]),
    "state": st.sampled_from(["ok", "unsupported"]),
    "field": st.sampled_from(["self", "gpu.energy"]),
    "value": st.sampled_from(["1", "-5", "null", "[1]", '{"a": 1}', '"x"', "not json", "NaN", "1e999"]),
    "key": st.sampled_from(
        ["deepspeed.config", "framework", "device.type", "omp_num_threads", "cpu.affinity", "model.params",
         "compute.causal_attention_flops", "compute.deepspeed_forward_flops", "compute.update_flops", "device.name",
         "model.config", "model.trainable_params", "torch.allow_tf32.matmul", "dist.world_size",
         "deepspeed.zero_stage", "deepspeed.offload_optimizer"]
    ),
    "group_size": st.integers(-1, 3),
    "micro_steps": st.integers(-1, 3),
    "depth": st.integers(0, 2),
    "thread": st.integers(1, 2),
}  # fmt: skip


def value_of(column: Column) -> st.SearchStrategy[Any]:
    name = column.name
    if name in VALUES:
        known = VALUES[name]
    elif name.endswith("_ns"):
        known = st.integers(-50, 300).map(lambda t: BOOT_NS + t)
    elif name == "step":
        known = st.integers(-1, 5)
    else:
        known = {
            "int": st.integers(-3, 2**40),
            "float": st.floats(),
            "str": st.sampled_from(WEIRD),
            "bool": st.booleans(),
        }[column.type]
    return known | st.none() if column.optional else known


@st.composite
def random_rows(draw: st.DrawFn, scope: str) -> dict[str, list[tuple[Any, ...]]]:
    rows = {}
    for table in TABLES:
        if table.scope == scope and draw(st.booleans()):
            row = st.tuples(*(value_of(column) for column in table.columns))
            rows[table.name] = draw(st.lists(row, max_size=9 if table.name in ("steps", "spans") else 4))
    return rows


JUNK = st.sampled_from([None, 1, "x", [], {}, [1], {"rank": 0}, [{"rank": 1, "exit_code": -9}], [{"rank": "x"}]])


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # shrinking whole folders takes minutes
)
@given(data=st.data())
def test_no_run_is_too_strange_for_answers(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("strange")
    (path / layout.RANKS).mkdir()
    (path / layout.NODES).mkdir()
    for rank in range(data.draw(st.integers(0, 3))):
        ended = data.draw(st.sampled_from([None, "clean", "exception"]))
        header = {"rank": rank} if data.draw(st.booleans()) else rank_header(rank, 3, node=rank // 2)
        write_stream(layout.rank_stream(path, rank), header, data.draw(random_rows("rank")), ended)  # type: ignore[arg-type]
    if data.draw(st.booleans()):
        write_stream(layout.node_stream(path, 0), {"node": 0}, data.draw(random_rows("node")))  # type: ignore[arg-type]
    manifest = {key: data.draw(JUNK) for key in ("name", "ranks", "workload", "packages", "argv")}
    (path / layout.MANIFEST).write_text(json.dumps({"schema_version": 1, **manifest}))
    outcome = {key: data.draw(JUNK) for key in ("failures", "reason", "notes", "started_realtime_ns")}
    (path / layout.OUTCOME).write_text(json.dumps(outcome))
    check(analyse(read_run(path)))


def test_nan_is_nowhere(tmp_path: Path) -> None:
    for figure in figures(answers_of(tmp_path, nan_loss=True, steps=3)):
        for key in ("value", "low", "high"):
            assert figure[key] is None or math.isfinite(figure[key])
