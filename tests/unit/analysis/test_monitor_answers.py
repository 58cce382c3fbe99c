"""What a command under `agprof monitor` used, from samples and the kernel's count, in closed form."""

from typing import Any

import polars as pl
import pytest

from agprof.analysis.run import analyse
from agprof.analysis.summary import terminal_lines
from agprof.model.answers import RunAnswers
from agprof.model.figure import Figure
from synthetic_system import EPOCH_NS, GIB, SECOND, SystemRun

OWN, CHILDREN = pl.col("role") == "rank", pl.col("role") == "worker"
OWN_CORES, CHILDREN_CORES = 0.25, 2.5
MIB = 2**20


def sampled(*, seconds: float = 60.0, gpus: int = 0, usage: dict[str, Any] | None = None, **outcome: Any) -> SystemRun:
    """A command that uses 2.75 cores and 300 MiB in four processes, reads 1 MB/s and writes nothing."""
    run = SystemRun(seconds=seconds, gpus=gpus, ranks=1, steps=False).empty("facts")
    run.where("process_samples", OWN, cpu_cores=OWN_CORES, rss_bytes=100 * MIB, processes=1, read_bytes_per_s=0.0)
    run.where(
        "process_samples", CHILDREN, cpu_cores=CHILDREN_CORES, rss_bytes=200 * MIB, processes=3, read_bytes_per_s=1e6
    )
    run.where("process_samples", pl.lit(value=True), rank=None, write_bytes_per_s=0.0, cpu_wait_ratio=0.0)
    run.manifest = {
        "kind": "monitor",
        "name": "crunch",
        "ranks": None,
        "nodes": 1,
        "host": {"usable_cores": 8},
        "workload": {"name": "crunch", "monitor": {"period_s": 1.0, "enabled": True}},
    }
    run.outcome = {
        "exit_code": 0,
        "reason": "finished",
        "started_realtime_ns": EPOCH_NS,
        "ended_realtime_ns": EPOCH_NS + int(seconds * SECOND),
        "failures": [],
        "memory": {"limit_bytes": 16 * GIB, "limit": "host", "cgroup_kills": 0, "host_kills": 0},
        "usage": usage,
        **outcome,
    }
    return run


def kpi(answers: RunAnswers, key: str) -> Figure:
    return next(kpi.figure for kpi in answers.kpis if kpi.key == key)


def test_command_and_children_are_one_figure() -> None:
    answers = analyse(sampled().run())
    assert kpi(answers, "command_cpu").value == pytest.approx(OWN_CORES + CHILDREN_CORES)
    assert kpi(answers, "command_memory").value == 300 * MIB
    assert kpi(answers, "command_read").value == pytest.approx(61e6), "61 samples of one second and 1 MB/s"
    assert kpi(answers, "command_written").value == 0
    assert kpi(answers, "duration").value == 60 * SECOND
    assert answers.verdict.headline == (
        "`crunch` used 2.75 of 8 cores on average and 300 MiB of memory at its fullest."
    )  # fmt: skip
    assert "At most 2.75 cores in a sample, 4 processes at once." in answers.verdict.evidence
    assert answers.verdict.confidence_sentence == "Measured over 61 samples, one every 1 s."


def test_a_peak_is_the_highest_sample_and_not_the_sum_of_peaks() -> None:
    run = sampled()
    for role, second in ((OWN, 10), (CHILDREN, 20)):
        at = (pl.col("time_ns") - run.frames["process_samples"]["time_ns"].min()) // SECOND == second
        run.where("process_samples", role & at, rss_bytes=1000 * MIB, cpu_cores=4.0)
    answers = analyse(run.run())
    assert kpi(answers, "command_memory").value == 1200 * MIB
    assert kpi(answers, "command_cpu_peak").value == 4.0 + CHILDREN_CORES


@pytest.mark.parametrize(
    ("cpu_s", "cores"),
    [(240.0, 4.0), (60.0, OWN_CORES + CHILDREN_CORES)],
    ids=["short-lived children are counted by the kernel", "children that nobody waited for are in samples"],
)
def test_the_higher_witness_of_two_is_given(cpu_s: float, cores: float) -> None:
    answers = analyse(sampled(usage={"cpu_s": cpu_s, "peak_rss_bytes": None}).run())
    assert kpi(answers, "command_cpu").value == pytest.approx(cores)


def test_a_peak_between_samples_is_known_from_the_kernel() -> None:
    answers = analyse(sampled(usage={"cpu_s": 1.0, "peak_rss_bytes": 2 * GIB}).run())
    figure = kpi(answers, "command_memory")
    assert (figure.value, "getrusage" in figure.method) == (2 * GIB, True)
    answers = analyse(sampled(usage={"cpu_s": 1.0, "peak_rss_bytes": 200 * MIB}).run())
    assert kpi(answers, "command_memory").value == 300 * MIB


def test_a_command_too_short_to_be_sampled() -> None:
    run = sampled(seconds=0.1, usage={"cpu_s": 0.05, "peak_rss_bytes": None}).empty("process_samples")
    answers = analyse(run.run())
    assert answers.verdict.headline == "`crunch` used 0.500 of 8 cores on average."
    assert answers.verdict.confidence_sentence == (
        "It ended before it was sampled: only what the kernel counted of it is known."
    )
    figure = kpi(answers, "command_memory")
    assert (figure.value, figure.reason) == (None, "it ended before it was sampled")


def test_nothing_at_all_is_known() -> None:
    run = sampled(seconds=0.1).empty("process_samples", "host_samples")
    run.outcome = None
    answers = analyse(run.run())
    assert answers.verdict.headline == "What `crunch` used was not measured."
    assert answers.identity.status_sentence == "the command still runs, or agprof itself was killed"
    assert all(kpi.figure.value is None and kpi.figure.reason for kpi in answers.kpis)


def test_a_value_that_can_not_be_read_of_one_process_is_not_known_of_all() -> None:
    run = sampled().where("process_samples", CHILDREN, rss_bytes=None)
    assert kpi(analyse(run.run()), "command_memory").value is None


def test_only_what_is_notable_is_said() -> None:
    quiet = sampled().where("process_samples", pl.lit(value=True), cpu_cores=0.0)
    assert analyse(quiet.run()).verdict.evidence == ("It read 58.2 MiB of storage.",)
    full = sampled().where("process_samples", OWN, rss_bytes=8 * GIB, processes=1)
    full.where("process_samples", CHILDREN, rss_bytes=0, cpu_wait_ratio=0.5, read_bytes_per_s=0.0)
    assert analyse(full.run()).verdict.evidence == (
        "At most 2.75 cores in a sample, 4 processes at once.",
        "Its main threads were ready to run and had no CPU for 25 % of the time.",
        "Its memory peak is 50 % of the 16.0 GiB it may use.",
    )


def test_what_the_gpus_did_stands_beside_it() -> None:
    answers = analyse(sampled(gpus=2).run())
    assert answers.verdict.headline.endswith("; the 2 GPUs ran a kernel 90 % of the time.")
    assert "gpu_utilization" in {kpi.key for kpi in answers.kpis}


@pytest.mark.parametrize(
    ("outcome", "status", "sentence"),
    [
        ({}, "finished", "finished after 60.0 s"),
        ({"reason": "failed", "exit_code": 5}, "failed", "failed (exit code 5) after 60.0 s"),
        ({"reason": "killed", "exit_code": 137, "signal": "SIGKILL"}, "killed", "killed (SIGKILL) after 60.0 s"),
        (
            {"reason": "interrupted", "exit_code": 130, "signal": "SIGINT"},
            "interrupted",
            "interrupted by SIGINT after 60.0 s",
        ),
    ],
)
def test_how_it_ended(outcome: dict[str, Any], status: str, sentence: str) -> None:
    identity = analyse(sampled(**outcome).run()).identity
    assert (identity.kind, identity.status, identity.status_sentence) == ("command", status, sentence)
    assert identity.duration_ns == 60 * SECOND


def test_no_word_of_steps_and_ranks_where_there_are_none() -> None:
    answers = analyse(sampled().run())
    shown = [
        answers.verdict.headline,
        *answers.verdict.evidence,
        answers.verdict.confidence_sentence,
        answers.identity.status_sentence,
        answers.quality.sentence,
        *answers.quality.problems,
        answers.system.sentence,
        *(f"{kpi.label} {kpi.note} {kpi.figure.reason}" for kpi in (*answers.kpis, *answers.system.figures)),
        *(kpi.label for kpi in answers.quality.cost),
        *(f"{name} {text}" for name, text in answers.methods if name.startswith(("command", "memory of"))),
        *terminal_lines(answers),
    ]
    assert [text for text in shown if "rank" in text or "step" in text.replace("next_step", "")] == []
    assert answers.findings == ()
    assert answers.quality.problems == ()


def test_the_lines_in_the_terminal_are_clean_and_fit() -> None:
    run = sampled()
    run.manifest["name"] = "\x1b[31m<b>" + "x" * 1000
    for line in terminal_lines(analyse(run.run()), width=60):
        assert len(line) <= 60
        assert line.isprintable()
