"""What traces say a run is bound by, and what could be changed."""

from dataclasses import replace
from pathlib import Path

import pytest

from agprof.analysis.run import analyse, communication_patterns
from agprof.analysis.trace import analyse_traces, in_words_of
from agprof.analysis.trace_findings import trace_findings
from agprof.analysis.trace_shares import PARTS, shares_of
from agprof.analysis.trace_verdict import judge_trace
from agprof.model.answers import RunAnswers, Verdict
from agprof.model.trace_answers import TraceAnswer
from agprof.model.trace_tables import CpuKind, GpuKind
from agprof.store.reader import Run, read_run
from synthetic import build_run
from synthetic_trace import TraceBuilder

MS = 1_000_000


def _answer(build: TraceBuilder) -> TraceAnswer:
    answer = analyse_traces({0: build.build()})
    assert answer is not None
    return answer


def _verdict(answer: TraceAnswer) -> Verdict:
    verdict = judge_trace(answer, trace_findings(answer))
    assert verdict is not None
    return verdict


def _keys(answer: TraceAnswer) -> list[str]:
    return [finding.key for finding in trace_findings(answer)]


def _host_bound() -> TraceBuilder:
    build = TraceBuilder()
    for number in range(10):
        build.launch("k", number * 100 * MS, number * 100 * MS + MS, 10 * MS, correlation=number + 1)
    return build


def test_compute() -> None:
    answer = _answer(TraceBuilder().launch("gemm", 0, MS, 100 * MS, correlation=1))
    verdict = _verdict(answer)
    assert verdict.bound_by == "compute"
    assert "100 ms of 100 ms a window (100 %)" in verdict.headline
    assert _keys(answer) == []
    assert any("Nothing stands out" in line for line in verdict.evidence)


def test_the_host_is_late() -> None:
    answer = _answer(_host_bound())
    verdict = _verdict(answer)
    assert verdict.bound_by == "launch"
    (finding,) = trace_findings(answer)
    assert finding.key == "trace-host-bound"
    assert finding.saving_ns_per_step is not None
    assert finding.saving_ns_per_step.value == 9 * (89 * MS + 2)  # a launch takes 2 ns
    assert verdict.next_step == finding.change


def test_per_step_where_steps_are_marked() -> None:
    build = _host_bound()
    for number in range(10):
        build.cpu(f"ProfilerStep#{number}", number * 100 * MS, 100 * MS, kind=CpuKind.ANNOTATION)
    answer = _answer(build)
    shares = shares_of(answer)
    assert shares is not None
    assert (shares.unit, shares.units) == ("step", 10)
    (finding,) = trace_findings(answer)
    assert finding.saving_ns_per_step is not None
    assert finding.saving_ns_per_step.value == pytest.approx(9 * 89 * MS / 10)
    assert "a step" in _verdict(answer).headline


@pytest.mark.parametrize(
    ("call", "kind", "bound_by", "key"),
    [
        ("cudaStreamSynchronize", CpuKind.RUNTIME, "synchronisation", "trace-synchronisation"),
        ("enumerate(DataLoader)#_SingleProcessDataLoaderIter.__next__", CpuKind.ANNOTATION, "data", "trace-data-wait"),
    ],
)
def test_waits_of_the_host(call: str, kind: CpuKind, bound_by: str, key: str) -> None:
    answer = _answer(_host_bound().cpu(call, 5 * MS, 890 * MS, kind=kind))
    assert _verdict(answer).bound_by == bound_by
    assert key in _keys(answer)


def test_copies_and_what_to_do_about_pageable_ones() -> None:
    build = TraceBuilder().launch("gemm", 0, MS, 10 * MS, correlation=1)
    build.launch("Memcpy HtoD (Pageable -> Device)", 2 * MS, 11 * MS, 80 * MS, correlation=2, kind=GpuKind.MEMCPY)
    answer = _answer(build)
    assert _verdict(answer).bound_by == "copies"
    (finding,) = trace_findings(answer)
    assert finding.key == "trace-exposed-copies"
    assert "pin_memory" in finding.change


def test_exposed_communication_saves_no_more_than_compute_can_hide() -> None:
    build = TraceBuilder().launch("gemm", 0, MS, 10 * MS, correlation=1)
    build.launch("ncclDevKernel_AllReduce_Sum_f32", 2 * MS, 11 * MS, 80 * MS, correlation=2)
    answer = _answer(build)
    assert _verdict(answer).bound_by == "communication"
    (finding,) = trace_findings(answer)
    assert finding.saving_ns_per_step is not None
    assert finding.saving_ns_per_step.value == 10 * MS


def test_kernels_that_may_communicate_are_a_finding() -> None:
    build = TraceBuilder().launch("my_p2p_exchange", 0, MS, 100 * MS, correlation=1)
    (finding,) = trace_findings(_answer(build))
    assert finding.key == "trace-unclassified"
    assert "kernels.communication" in finding.change
    assert finding.saving_ns_per_step is None


def test_many_ranks_make_one_step_no_more_than_one() -> None:
    traces = {}
    for rank in range(8):
        build = TraceBuilder(rank=rank, world_size=8).cpu("ProfilerStep#1", 0, 10 * MS, kind=CpuKind.ANNOTATION)
        traces[rank] = build.launch("gemm", 10, 20, 5 * MS, correlation=1).build()
    answer = analyse_traces(traces)
    assert answer is not None
    said = _verdict(answer).confidence_sentence
    assert said.startswith("Measured on the device over 1 step of 8 ranks; so few steps give a first impression only.")


def test_compute_of_one_rank_hides_no_communication_of_another() -> None:
    name = "ncclDevKernel_AllReduce_Sum_f32"
    talks = TraceBuilder(rank=0, world_size=2).gpu(name, 0, 90 * MS).gpu("gemm", 90 * MS, 10 * MS)
    computes = TraceBuilder(rank=1, world_size=2).gpu(name, 0, 10 * MS).gpu("gemm", 10 * MS, 90 * MS)
    answer = analyse_traces({0: talks.build(), 1: computes.build()})
    assert answer is not None
    (finding,) = (each for each in trace_findings(answer) if each.key == "trace-exposed-communication")
    assert finding.saving_ns_per_step is not None
    assert finding.saving_ns_per_step.value == (10 + 10) * MS / 2


def test_a_straggler_comes_first() -> None:
    traces = {}
    for rank in range(4):
        build = TraceBuilder(rank=rank, world_size=4)
        for call in range(20):
            end, wait = (call + 1) * 10 * MS, 8 * MS if rank != 2 else MS
            name = "ncclDevKernel_AllReduce_Sum_f32"
            build.launch(name, end - wait - 100, end - wait, wait, correlation=call + 1)
        traces[rank] = build.build()
    answer = analyse_traces(traces)
    assert answer is not None
    verdict = _verdict(answer)
    assert verdict.bound_by == "straggler"
    assert "rank 2" in verdict.headline
    assert "that rank" in verdict.next_step


def test_shares_add_up() -> None:
    shares = shares_of(_answer(_host_bound()))
    assert shares is not None
    assert sum(shares.parts_ns[part] for part in PARTS) + shares.unknown_ns == shares.window_ns


def test_without_a_device_there_is_nothing_to_judge() -> None:
    answer = _answer(TraceBuilder().cpu("aten::add", 0, 10))
    assert judge_trace(answer, ()) is None
    assert trace_findings(answer) == ()


def _run(tmp_path: Path, build: TraceBuilder, *, imported: bool) -> Run:
    run = read_run(build_run(tmp_path))
    manifest = dict(run.manifest) | ({"imported": {"formats": ["kineto"], "files": [{}]}} if imported else {})
    return replace(run, manifest=manifest, traces={0: build.build()})


def _without_trace(tmp_path: Path) -> RunAnswers:
    return analyse(read_run(build_run(tmp_path)))


def test_a_measured_run_keeps_its_verdict_and_gains_evidence(tmp_path: Path) -> None:
    plain = _without_trace(tmp_path / "a")
    answers = analyse(_run(tmp_path / "b", _host_bound(), imported=False))
    assert answers.trace is not None
    assert answers.verdict == replace(plain.verdict, evidence=(*plain.verdict.evidence, answers.trace.sentence))
    more = [finding for finding in answers.findings if finding.key.startswith("trace-")]
    assert [finding for finding in answers.findings if finding not in more] == list(plain.findings)
    assert [finding.key for finding in more] == ["trace-host-bound"]


def test_an_imported_run_is_judged_by_its_device(tmp_path: Path) -> None:
    answers = analyse(_run(tmp_path, _host_bound(), imported=True))
    assert answers.verdict.bound_by == "launch"
    assert not {finding.key for finding in answers.findings} & {"data-wait", "other-large", "straggler"}


def test_an_imported_run_without_a_device_is_judged_by_its_steps(tmp_path: Path) -> None:
    plain = _without_trace(tmp_path / "a")
    run = _run(tmp_path / "b", TraceBuilder().cpu("aten::add", 0, 10), imported=True)
    assert analyse(run).verdict.bound_by == plain.verdict.bound_by


def test_another_tools_words_change_no_verdict(tmp_path: Path) -> None:
    run = _run(tmp_path, _host_bound(), imported=True)
    ours, theirs = analyse(run), analyse(run, compat="hta")
    assert ours.verdict == theirs.verdict
    assert theirs.trace is not None
    assert theirs.trace.definitions == "hta"
    assert theirs.trace == in_words_of("hta", ours.trace, run.traces) if ours.trace is not None else False


def test_a_kept_answer_is_not_computed_again(tmp_path: Path) -> None:
    run = _run(tmp_path, _host_bound(), imported=True)
    kept = analyse(run).trace
    assert kept is not None
    marked = replace(kept, communication_sentence="kept")
    again = analyse(run, trace=marked).trace
    assert again is not None
    assert again.communication_sentence == "kept"


def test_the_workloads_own_libraries(tmp_path: Path) -> None:
    run = _run(tmp_path, TraceBuilder().gpu("my_exchange", 0, MS), imported=False)
    assert communication_patterns(run) == {}
    own = dict(run.manifest) | {"workload": {"kernels": {"communication": {"mine": "^my_"}}}}
    run = replace(run, manifest=own)
    assert communication_patterns(run) == {"mine": "^my_"}
    answers = analyse(run)
    assert answers.trace is not None
    assert answers.trace.kernels[0].library == "mine"
