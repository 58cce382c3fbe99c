"""Hand-made answers of `agprof monitor`: a program without ranks and steps, on eight GPUs or on none."""

import random
from dataclasses import replace

from agprof.model.answers import RunAnswers
from sample_answers import sample_answers
from sample_energy_answers import unpriced_energy
from sample_figures import MS
from sample_system_answers import cpu_system, gpu_system

_END_NS = 90_000 * MS


def monitor_answers(gpus: int = 1) -> RunAnswers:
    answers = sample_answers(1, 0)
    system = gpu_system(gpus, _END_NS, ranks=0) if gpus else cpu_system(random.Random(5), 0, _END_NS, cores=16)
    return replace(
        answers,
        identity=replace(
            answers.identity,
            name="convert.sh",
            run_id="convert-20260101-120000",
            description="./convert.sh --all",
            world_size=None,
            framework=None,
            device=None,
            dtype=None,
            status_sentence="finished with exit code 0 after 90.0 s",
        ),
        verdict=replace(
            answers.verdict,
            bound_by="unknown",
            headline="Not known: no step was seen.",
            evidence=(),
            confidence="measured",
            confidence_sentence="",
            next_step="",
        ),
        findings=(),
        kpis=tuple(kpi for kpi in answers.kpis if kpi.key != "exposed"),
        system=replace(system, mapping=(), memory=()),
        ranks=(),
        energy=unpriced_energy() if gpus else None,
        quality=replace(
            answers.quality,
            sentence="The sampler ran throughout; no rank was started by agprof.",
            ranks_expected=None,
            ranks_present=0,
            problems=(),
        ),
    )
