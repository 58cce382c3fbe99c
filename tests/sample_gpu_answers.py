"""Hand-made answers of a run on GPUs, with energy."""

from dataclasses import replace

from agprof.model.answers import RunAnswers
from sample_answers import sample_answers
from sample_energy_answers import energy_answer
from sample_figures import MS
from sample_system_answers import gpu_system


def gpu_answers(gpus: int = 8, steps: int = 50) -> RunAnswers:
    """The sample on GPUs of one node, with energy."""
    answers = sample_answers(gpus, steps)
    end_ns = max((row.start_ns + row.duration_ns for row in answers.time.steps), default=20_000 * MS)
    return replace(answers, system=gpu_system(gpus, end_ns), energy=energy_answer(gpus))
