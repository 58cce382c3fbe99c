"""From a run folder's tables to all answers. Pure: nothing is printed, drawn, written or changed."""

from collections.abc import Mapping

from agprof.analysis.clocks import answer as clock_answer
from agprof.analysis.comm import analyse_communication
from agprof.analysis.comm_calls import matched_calls
from agprof.analysis.compute import analyse_compute
from agprof.analysis.conclusions import conclude
from agprof.analysis.energy import analyse_energy
from agprof.analysis.evidence import gather
from agprof.analysis.gpu_mapping import map_gpus
from agprof.analysis.identity import configuration, identify, is_command
from agprof.analysis.kpis import kpi_row
from agprof.analysis.memory import analyse_memory
from agprof.analysis.methods import methods
from agprof.analysis.monitor import command_answers
from agprof.analysis.one_axis import on_one_axis
from agprof.analysis.quality import judge_quality
from agprof.analysis.ranks import rank_rows
from agprof.analysis.rlhf import analyse_rlhf
from agprof.analysis.stragglers import analyse_stragglers
from agprof.analysis.system import analyse_system, with_energy
from agprof.analysis.time import analyse_time
from agprof.analysis.trace import Compat, analyse_traces, in_words_of
from agprof.analysis.view import View, prepare
from agprof.model.answers import ANSWERS_VERSION, RunAnswers
from agprof.model.trace_answers import TraceAnswer
from agprof.store.reader import Run


def analyse(run: Run, *, compat: Compat | None = None, trace: TraceAnswer | None = None) -> RunAnswers:
    """All answers of one run, also of one that was killed, is incomplete or has no step at all.

    `trace` is what `analyse_traces` said of the run's device traces before; it is not computed again. `compat` then
    shows their time breakdown as another tool would; verdict and findings stay ours. Raises re.error when the
    workload's own pattern of communication kernels is no regular expression.
    """
    view = prepare(run)
    if trace is None and run.traces:
        trace = analyse_traces(on_one_axis(run).traces, communication=communication_patterns(run))
    calls = matched_calls(view)
    time = analyse_time(view)
    communication = analyse_communication(view, calls, trace)
    compute = analyse_compute(view, time.step_time)
    memory = analyse_memory(view, compute)
    mapping = map_gpus(view)
    energy = analyse_energy(view, mapping)
    system = with_energy(analyse_system(view, mapping), energy)
    stragglers = analyse_stragglers(view, calls, mapping)
    evidence = gather(view, time, communication, memory, system, calls, stragglers)
    findings, verdict = conclude(evidence, trace)
    answers = RunAnswers(
        version=ANSWERS_VERSION,
        agprof_version=_agprof_version(view),
        identity=identify(view),
        verdict=verdict,
        findings=findings,
        kpis=kpi_row(view, time, communication, compute, memory, system, trace, energy),
        time=time,
        communication=communication,
        compute=compute,
        memory=memory,
        system=system,
        ranks=rank_rows(view),
        configuration=configuration(view),
        quality=judge_quality(view, communication),
        methods=methods(view),
        rlhf=analyse_rlhf(view, calls),
        trace=in_words_of(compat, trace, run.traces) if trace is not None else None,
        energy=energy,
        clocks=clock_answer(view.clocks, view.origin_ns),
        stragglers=stragglers,
    )
    return command_answers(view, answers) if is_command(view) else answers


def communication_patterns(run: Run) -> dict[str, str]:
    """The workload's own libraries of communication kernels (`kernels.communication`): name -> pattern."""
    value: object = run.manifest
    for key in ("workload", "kernels", "communication"):
        value = value.get(key) if isinstance(value, Mapping) else None
    if not isinstance(value, Mapping):
        return {}
    return {str(name): pattern for name, pattern in value.items() if isinstance(pattern, str)}


def _agprof_version(view: View) -> str:
    """The agprof that measured."""
    manifest = view.run.manifest
    told = [manifest.get("agprof"), manifest.get("agprof_version")]
    told += [stream.header.get("agprof_version") for stream in view.run.streams]
    return next((str(version) for version in told if version), "unknown")
