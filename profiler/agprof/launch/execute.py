"""Runs a job to its end: starts launcher and sampler, watches the ranks, ends what must end, says how it went.

    agprof ── guard ── launcher ── ranks          the guard adopts whatever the launcher loses (see guard.py)
          └── sampler                             started again when it fails (see sampler.py)

Two threads supervise, one the ranks and one the sampler, so that a slow display never delays the end of a broken job.
Linux only.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from agprof.launch import host_memory, shm
from agprof.launch.folder import write_json
from agprof.launch.interrupts import catching_signals
from agprof.launch.job import adopting_orphans, start_job
from agprof.launch.judge import judge
from agprof.launch.nsys import collect_reports
from agprof.launch.plan import COMMAND, LaunchPlan
from agprof.launch.sampler import SupervisedSampler
from agprof.launch.streams import no_rank_note
from agprof.launch.supervisor import TICK_S, Deadlines, Supervisor
from agprof.model.outcome import Outcome
from agprof.model.settings import ENV_SETTINGS, NSYS_GRACE_S
from agprof.store import layout
from agprof.store.memory_limits import read_kills


def execute(
    plan: LaunchPlan,
    run_dir: Path,
    *,
    on_tick: Callable[[], None] | None = None,
    deadlines: Deadlines | None = None,
) -> Outcome:
    """Run the job and write `outcome.json`. Returns when no process of it is left.

    `on_tick` is called about four times a second, on the calling thread. Ctrl-C, SIGTERM and SIGHUP are caught
    meanwhile (when called on the main thread) and end the job; the second Ctrl-C ends it at once. Raises LaunchError
    when nothing could be started.
    """
    deadlines = deadlines or Deadlines()
    if plan.nsys is not None:
        deadlines = deadlines.with_more(NSYS_GRACE_S)
    started_ns = time.time_ns()
    buffers = shm.buffers()
    kills_before = read_kills()
    with ExitStack() as stack:
        stack.enter_context(adopting_orphans())
        signals = stack.enter_context(catching_signals())
        job = start_job(plan, run_dir, stack)
        # Whatever happens in here, also an error of ours, the job ends with this block.
        stack.callback(job.end_at_once)
        sampler = SupervisedSampler(plan.sampler_argv, run_dir, cwd=plan.cwd, period_s=plan.sampler_period_s)
        stack.callback(sampler.end, 0.0)
        sampler.start()
        supervisor = Supervisor(job, signals, plan, run_dir, deadlines)
        supervisor.start()
        tick_problem = _tick_until_ended(supervisor, on_tick)
        job.end_at_once()
        sampler_code = sampler.end(deadlines.sampler_s)
        notes = [*plan.shortfall, *supervisor.notes, *sampler.notes]
        if supervisor.problem is not None:
            raise supervisor.problem
    if tick_problem is not None:
        notes.append(f"the live display stopped: {tick_problem}")
    ports = supervisor.master_ports if plan.master_port is None else {plan.master_port}
    removed = shm.remove_left_behind(buffers, master_ports=ports)
    if plan.launcher == COMMAND and ENV_SETTINGS in plan.env:
        notes.extend(no_rank_note(run_dir))
    notes.extend(collect_reports(run_dir))
    memory = host_memory.since(kills_before)
    verdict = judge(supervisor.observed(), run_dir, launcher=plan.launcher)
    outcome = Outcome(
        exit_code=verdict.exit_code,
        reason=verdict.reason,
        started_realtime_ns=started_ns,
        ended_realtime_ns=time.time_ns(),
        failures=verdict.failures,
        signal=verdict.signal,
        launcher_exit_code=verdict.launcher_exit_code,
        sampler_exit_code=sampler_code,
        removed_shared_memory=removed,
        notes=(*notes, *verdict.notes, *host_memory.notes(memory)),
        memory=memory,
    )
    return write_outcome(run_dir, outcome)


def _tick_until_ended(supervisor: "Supervisor", on_tick: Callable[[], None] | None) -> str | None:
    problem: str | None = None
    while True:
        supervisor.join(TICK_S)
        if on_tick is not None and problem is None:
            try:
                on_tick()
            except Exception as error:  # a display must not cost the user his job
                problem = f"{type(error).__name__}: {error}"
        if not supervisor.is_alive():
            return problem


def write_outcome(run_dir: Path, outcome: Outcome) -> Outcome:
    try:
        write_json(run_dir / layout.OUTCOME, outcome.to_dict())
    except OSError as error:
        # The job is over and its result is what counts; the caller still has it in hand.
        return replace(outcome, notes=(*outcome.notes, f"{layout.OUTCOME} could not be written: {error.strerror}"))
    return outcome
