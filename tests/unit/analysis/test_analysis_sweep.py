"""Several runs beside one another."""

import dataclasses

from agprof.analysis.sweep import UNSEEN, tabulate, trainable_share
from agprof.exporters import sweep_json
from agprof.model.answers import RunAnswers
from agprof.model.figure import Kpi
from agprof.model.sweep import SweepRun
from sample_answers import figure, sample_answers
from sample_energy_answers import energy_answer


def run(value: str, answers: RunAnswers | None, exit_code: int | None = 0, problem: str = "") -> SweepRun:
    return SweepRun(values=(value,), exit_code=exit_code, answers=answers, problem=problem)


def with_fact(answers: RunAnswers, key: str, value: str) -> RunAnswers:
    return dataclasses.replace(answers, configuration=(*answers.configuration, (key, value)))


def test_a_row_holds_the_answers_own_figures() -> None:
    rates = {unit: figure(number, unit) for number, unit in ((11.0, "samples/s"), (1400.0, "tokens/s"))}
    kpis = (
        Kpi(key="samples_per_s", label="", figure=rates["samples/s"]),
        Kpi(key="tokens_per_s", label="", figure=rates["tokens/s"]),
    )
    sample = dataclasses.replace(sample_answers(), kpis=kpis, energy=energy_answer(2))
    answers = with_fact(sample, "optimizer.state_bytes", "4096")
    table = tabulate(["args.framework"], [run("ddp", answers)])
    (row,) = table.rows
    assert (table.keys, row.values, row.exit_code) == (("args.framework",), ("ddp",), 0)
    assert row.run_id == answers.identity.run_id
    assert row.step_time == answers.time.step_time
    assert row.communication_bytes == answers.communication.bytes_per_step
    assert row.communication_exposed == answers.communication.exposed_per_step
    assert row.memory_peak == answers.memory.peak
    assert (row.samples_per_s, row.tokens_per_s) == (rates["samples/s"], rates["tokens/s"])
    assert row.optimizer_state.value == 4096
    assert answers.energy is not None
    assert row.energy_per_sample == answers.energy.per_sample


def test_the_trainable_share_is_of_all_parameters() -> None:
    answers = sample_answers()
    trained, everything = answers.compute.trainable_params.value, answers.compute.params.value
    assert trained and everything
    assert trainable_share(answers).value == trained / everything


def test_what_was_not_measured_is_none_and_never_zero() -> None:
    whole = sample_answers()
    silent = dataclasses.replace(whole, communication=dataclasses.replace(whole.communication, rows=()))
    table = tabulate(["args.framework"], [run("ddp", whole), run("horovod", silent)])
    seen, unseen = table.rows
    assert seen.communication_bytes.value is not None
    assert unseen.communication_bytes.value is unseen.communication_exposed.value is None
    assert unseen.communication_bytes.reason == UNSEEN
    assert any("Horovod" in note for note in table.notes)
    assert seen.energy_per_sample.reason == "no GPU was seen, and RAPL could not be read"
    assert seen.optimizer_state.value is None
    assert seen.optimizer_state.reason


def test_one_rank_without_collectives_communicates_nothing() -> None:
    alone = sample_answers(ranks=1)
    silent = dataclasses.replace(alone, communication=dataclasses.replace(alone.communication, rows=()))
    (row,) = tabulate(["k"], [run("x", silent)]).rows
    assert row.communication_bytes == alone.communication.bytes_per_step


def test_variants_without_a_run_keep_their_row_and_reason() -> None:
    runs = [run("a", None, 3, "torch is not installed"), run("b", None, None), run("c", sample_answers(), 1)]
    first, second, third = tabulate(["k"], runs).rows
    assert (first.exit_code, first.status_sentence, first.run_id) == (3, "torch is not installed", None)
    assert second.exit_code is None
    assert "interrupted" in second.status_sentence
    assert first.step_time.value is second.step_time.value is None
    assert (third.exit_code, third.run_id) == (1, sample_answers().identity.run_id)


def test_different_numbers_of_steps_are_said() -> None:
    same = tabulate(["k"], [run("a", sample_answers()), run("b", sample_answers())])
    other = tabulate(["k"], [run("a", sample_answers()), run("b", sample_answers(steps=30))])
    assert not any("different numbers of steps" in note for note in same.notes)
    assert any("different numbers of steps" in note for note in other.notes)


def test_nothing_given_is_changed_and_the_file_gives_the_table_back() -> None:
    answers = sample_answers()
    table = tabulate(["k"], [run("a", answers), run("b", None, None)])
    assert answers == sample_answers()
    assert sweep_json.decode(sweep_json.encode(table)) == table
