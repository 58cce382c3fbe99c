"""Where energy is told beside its section: cards, the terminal's lines, methods."""

from pathlib import Path
from typing import Any

from agprof.analysis.run import analyse
from agprof.analysis.summary import terminal_lines
from agprof.model.answers import RunAnswers
from agprof.store.reader import read_run
from synthetic import build_run

LONG = {"steps": 70, "transfer_ms": 8.0}
"""15 s of steps."""


def answers_of(path: Path, **options: Any) -> RunAnswers:
    return analyse(read_run(build_run(path / "run", **options)))


def test_cards_terminal_and_methods_tell_of_energy(tmp_path: Path) -> None:
    answers = answers_of(tmp_path, gpus=2, **LONG)
    energy = answers.energy
    assert energy is not None
    assert energy.scope == "2 GPUs"
    cards = {kpi.key: kpi for kpi in answers.kpis}
    assert cards["energy_per_step"].figure == energy.per_step
    assert cards["energy_per_token"].figure == energy.per_token
    assert cards["energy_per_token"].note == "2 GPUs"
    (line,) = [line for line in terminal_lines(answers, 120) if line.startswith("energy: ")]
    assert line.endswith(" a token (2 GPUs)")
    assert "energy" in dict(answers.methods)
    runs = {(gpu.node, gpu.gpu): gpu.run for gpu in energy.gpus}
    assert {(row.node, row.gpu): row.energy for row in answers.system.gpus} == runs


def test_a_short_run_tells_why_there_is_none(tmp_path: Path) -> None:
    answers = answers_of(tmp_path, gpus=1)
    assert answers.energy is not None
    assert answers.energy.run.value is None
    assert not [kpi for kpi in answers.kpis if kpi.key.startswith("energy")]
    assert not [line for line in terminal_lines(answers) if line.startswith("energy")]


def test_without_gpu_and_rapl_there_is_no_section(tmp_path: Path) -> None:
    answers = answers_of(tmp_path, **LONG)
    assert answers.energy is None
    assert "energy" not in dict(answers.methods)


def test_the_energy_of_a_hostile_run_is_told_without_harm(tmp_path: Path) -> None:
    answers = answers_of(tmp_path, gpus=2, hostile=True, **LONG)
    assert answers.energy is not None
    assert all(len(phase.phase) <= 60 for phase in answers.energy.phases)
    assert all(len(line) <= 80 and line.isprintable() for line in terminal_lines(answers, 80))
