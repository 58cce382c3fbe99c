"""Several runs of one workload beside one another. Pure."""

from collections.abc import Sequence

from agprof.analysis.statistics import nothing
from agprof.model.answers import RunAnswers
from agprof.model.figure import Figure
from agprof.model.sweep import SweepRow, SweepRun, SweepTable

SWEEP_VERSION = 1
_OPTIMIZER_STATE = "optimizer.state_bytes"
_FIGURES = {
    "step_time": "ns",
    "executed_flops": "FLOP",
    "communication_bytes": "bytes",
    "communication_exposed": "ns",
    "memory_peak": "bytes",
    "samples_per_s": "samples/s",
    "tokens_per_s": "tokens/s",
    "trainable_share": "ratio",
    "optimizer_state": "bytes",
    "energy_per_sample": "J",
}
UNSEEN = (
    "no collective was seen although there are several ranks: the framework sends from code of its own, as Horovod does"
)


def tabulate(keys: Sequence[str], runs: Sequence[SweepRun]) -> SweepTable:
    """One row per run, in order; `keys` are what the values of each run belong to."""
    rows = tuple(_row(run) for run in runs)
    return SweepTable(version=SWEEP_VERSION, keys=tuple(keys), rows=rows, notes=tuple(_notes(runs, rows)))


def _row(run: SweepRun) -> SweepRow:
    answers = run.answers
    if answers is None:
        why = run.problem or "not started: the sweep was interrupted"
        figures = {name: nothing(unit, why) for name, unit in _FIGURES.items()}
        return SweepRow(values=run.values, run_id=None, exit_code=run.exit_code, status_sentence=why, **figures)
    communication = answers.communication
    # a job of several ranks always communicates: nothing seen means that nothing could be seen
    unseen = (answers.identity.world_size or 1) > 1 and not communication.rows and answers.time.steady_steps > 0
    return SweepRow(
        values=run.values,
        run_id=answers.identity.run_id,
        exit_code=run.exit_code,
        status_sentence=answers.identity.status_sentence,
        step_time=answers.time.step_time,
        executed_flops=answers.compute.executed_flops_per_step,
        communication_bytes=nothing("bytes", UNSEEN) if unseen else communication.bytes_per_step,
        communication_exposed=nothing("ns", UNSEEN) if unseen else communication.exposed_per_step,
        memory_peak=answers.memory.peak,
        samples_per_s=_kpi(answers, "samples_per_s", "samples/s"),
        tokens_per_s=_kpi(answers, "tokens_per_s", "tokens/s"),
        trainable_share=trainable_share(answers),
        optimizer_state=_optimizer_state(answers),
        energy_per_sample=_energy_per_sample(answers),
    )


def _energy_per_sample(answers: RunAnswers) -> Figure:
    if answers.energy is None:
        return nothing("J", "no GPU was seen, and RAPL could not be read")
    return answers.energy.per_sample


def _kpi(answers: RunAnswers, key: str, unit: str) -> Figure:
    return next((kpi.figure for kpi in answers.kpis if kpi.key == key), nothing(unit, "it was not measured"))


def trainable_share(answers: RunAnswers) -> Figure:
    """Trained parameters over all parameters."""
    trained, everything = answers.compute.trainable_params, answers.compute.params
    method = "parameters that require a gradient / all parameters"
    if trained.value is None or not everything.value:
        return nothing("ratio", "the model was not seen", method=method, source="counted")
    return Figure(value=trained.value / everything.value, unit="ratio", source="counted", n=everything.n, method=method)


def _optimizer_state(answers: RunAnswers) -> Figure:
    method = "tensors in the optimizer's state after the first updates, on the lowest rank"
    text = dict(answers.configuration).get(_OPTIMIZER_STATE)
    if text is None or not text.isdigit():
        return nothing("bytes", "no optimizer with a state was seen", method=method, source="counted")
    return Figure(value=int(text), unit="bytes", source="counted", n=1, method=method)


def _is_ddp(answers: RunAnswers | None) -> bool:
    return answers is not None and answers.identity.framework == "DDP" and (answers.identity.world_size or 1) > 1


def _notes(runs: Sequence[SweepRun], rows: Sequence[SweepRow]) -> list[str]:
    notes = []
    if any(row.communication_bytes.reason == UNSEEN for row in rows):
        notes.append(f"Communication is missing where {UNSEEN}.")
    if any(_is_ddp(run.answers) for run in runs):
        notes.append(
            "DDP waits for its last buckets in C++, inside backward: that wait counts as backward, not as exposed time."
        )
    if any(run.answers is not None and run.answers.memory.kind == "host" for run in runs):
        notes.append("Peak memory is the resident set of the highest rank, libraries included: there is no GPU.")
    steps = {len({row.step for row in run.answers.time.steps}) for run in runs if run.answers is not None}
    if len(steps) > 1:
        notes.append("The variants made different numbers of steps: compare with care.")
    return notes
