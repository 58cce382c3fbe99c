"""Hand-made answers of `agprof monitor`: a program without ranks and steps, on eight GPUs or on none."""

import random
from dataclasses import replace

from agprof.model.answers import RunAnswers
from agprof.model.figure import Kpi
from sample_answers import sample_answers
from sample_energy_answers import unpriced_energy
from sample_figures import GIB, MS, figure, missing
from sample_system_answers import cpu_system, gpu_system

_END_NS = 90_000 * MS


def monitor_answers(gpus: int = 1) -> RunAnswers:
    answers = sample_answers(1, 0)
    system = gpu_system(gpus, _END_NS, ranks=0) if gpus else cpu_system(random.Random(5), 0, _END_NS, cores=16)
    return replace(
        answers,
        identity=replace(
            answers.identity,
            kind="command",
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
            headline="`convert.sh` used 3.42 of 32 cores on average and 12.1 GiB of memory at its fullest.",
            evidence=("At most 8.10 cores in a sample, 9 processes at once.",),
            confidence="measured",
            confidence_sentence="Measured over 90 samples, one every 1 s.",
            next_step="Where it trains with PyTorch, `agprof run -- COMMAND` shows its steps and what bounds them.",
        ),
        findings=(),
        kpis=(
            Kpi(key="command_cpu", label="CPU", figure=figure(3.42, "cores", n=90), note="of 32, mean"),
            Kpi(
                key="command_memory", label="memory peak", figure=figure(12.1 * GIB, "bytes", n=90), note="9 processes"
            ),
            Kpi(key="command_read", label="read", figure=missing("bytes", "not told by this kernel"), note=""),
        ),
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
