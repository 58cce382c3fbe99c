"""Clocks of GPUs that no rank uses are no finding."""

from dataclasses import replace

from agprof.analysis.system_figures import gpus_of_run
from agprof.model.system_answers import COMPUTES_ON_CPU, GpuMapping, SystemAnswer
from sample_gpu_answers import gpu_answers


def mapped(*reasons: str | None) -> SystemAnswer:
    system = gpu_answers(8).system
    rows = [
        GpuMapping(rank=rank, node=0, gpu=None if reason else rank, by=None if reason else "uuid", reason=reason)
        for rank, reason in enumerate(reasons)
    ]
    return replace(system, mapping=tuple(rows), gpus=tuple(replace(gpu, ranks=()) for gpu in system.gpus))


def test_findings_speak_of_no_gpu_where_every_rank_computes_on_the_cpu() -> None:
    assert gpus_of_run(mapped(COMPUTES_ON_CPU, COMPUTES_ON_CPU)) == ()


def test_a_rank_whose_gpu_is_not_known_leaves_all_of_them() -> None:
    assert len(gpus_of_run(mapped(COMPUTES_ON_CPU, "no evidence"))) == 8
    assert len(gpus_of_run(mapped())) == 8
