"""Out of memory: what happened, what held the memory, and what would have fitted. Definitions: docs/oom.md."""

from collections.abc import Sequence

from agprof.analysis.oom_evidence import Killed, Noticed, first_noticed, killed, limit_words, noticed
from agprof.analysis.oom_fit import would_fit
from agprof.analysis.ranks import last_seen, where_it_ended
from agprof.analysis.view import View
from agprof.model.format import format_value, percent
from agprof.model.memory_answers import AllocationRow, MemoryAccount, OomAnswer, Space
from agprof.model.zero import ModelStates

MAX_ALLOCATIONS = 20
_MEMORY: dict[Space, str] = {"device": "device memory", "host": "host memory"}


def analyse_oom(
    view: View,
    accounts: Sequence[MemoryAccount],
    allocations: Sequence[AllocationRow],
    states: ModelStates | None = None,
) -> OomAnswer | None:
    """What is said of a run that ran out of memory; None when it did not, or nobody can tell.

    `states`: the run's own, for what other stages of ZeRO would have held.
    """
    own, kill = first_noticed(view), killed(view)
    if own is not None and own.uncaught:
        return _by_error(view, own, accounts, allocations, states)
    if kill is not None:
        return _by_kernel(view, kill, accounts, states)
    return _by_error(view, own, accounts, allocations, states) if own is not None else None


def _by_error(
    view: View,
    own: Noticed,
    accounts: Sequence[MemoryAccount],
    allocations: Sequence[AllocationRow],
    states: ModelStates | None,
) -> OomAnswer:
    account = next((a for a in accounts if (a.rank, a.at, a.space) == (own.rank, "oom", own.space)), None)
    missing = None
    if own.wanted_bytes is not None and own.free_bytes is not None:
        missing = max(0, own.wanted_bytes - own.free_bytes)
    rows = [row for row in allocations if row.rank == own.rank and row.at == "oom"]
    return OomAnswer(
        sentence=_sentence(view, own, account),
        rank=own.rank,
        space=own.space,
        error=own.error,
        step=own.step,
        phase=own.phase,
        module=own.module,
        wanted_bytes=own.wanted_bytes,
        limit_bytes=own.limit_bytes,
        account=account,
        allocations=tuple(rows[:MAX_ALLOCATIONS]),
        would_fit=would_fit(view, own.space, account, states, missing),
        certainty="known",
        caught=own.count - own.uncaught,
    )


def _sentence(view: View, own: Noticed, account: MemoryAccount | None) -> str:
    words = f"Rank {own.rank} ran out of {_MEMORY[own.space]}{_where(own)}"
    facts = []
    if own.wanted_bytes is not None:
        facts.append(f"it asked for {format_value(own.wanted_bytes, 'bytes')}")
    if own.held_bytes is not None:
        facts.append(_held(own))
    if facts:
        words += ": " + " while ".join(facts)
    largest = max(account.parts, key=lambda part: part.bytes, default=None) if account is not None else None
    if largest is not None and largest.share is not None and largest.part != "unexplained":
        words += f"; most of the live tensors, {percent(largest.share)}, are {largest.part.replace('_', ' ')}"
    words += "."
    others = sum(row.uncaught and row.rank != own.rank for row in noticed(view))
    if others:
        words += f" So did {others:,} other rank{'' if others == 1 else 's'}."
    caught = own.count - own.uncaught
    if caught:
        times = "once" if caught == 1 else f"{caught:,} times"
        words += f" The training caught such an error {times}{' before' if own.uncaught else ' and went on'}."
    return words


def _where(own: Noticed) -> str:
    words = f" in {own.phase}" if own.phase not in ("", "other") else ""
    if own.step is not None:
        words += f" of step {own.step}" if words else f" in step {own.step}"
    return words + (f", in `{own.module}`" if own.module else "")


def _held(own: Noticed) -> str:
    held = format_value(own.held_bytes, "bytes")
    if own.limit_bytes is None:
        return f"{held} were held"
    limit = format_value(own.limit_bytes, "bytes")
    if own.limit == "rlimit":
        return f"its address space was {held} of the {limit} that it may have (RLIMIT_AS)"
    if own.space == "device":
        return f"its tensors held {held} of the device's {limit}"
    whose = "cgroup may have" if own.limit == "cgroup" else "machine has"
    return f"it held {held} of the {limit} that the {whose}"


def _by_kernel(view: View, kill: Killed, accounts: Sequence[MemoryAccount], states: ModelStates | None) -> OomAnswer:
    rank, step = kill.rank, None
    if rank is not None:
        step, _phase = last_seen(view, [rank])[rank]
    # What stood at its highest before: of the moment itself nobody could write anything.
    of_rank = [a for a in accounts if a.space == "host" and (rank is None or a.rank == rank)]
    account = next((a for a in of_rank if a.at == "peak"), None)
    return OomAnswer(
        sentence=_kernel_sentence(kill, where_it_ended(view, rank) if rank is not None else ""),
        rank=rank,
        space="host",
        error=kill.why,
        step=step,
        phase="",
        module="",
        wanted_bytes=None,
        limit_bytes=kill.limit_bytes,
        account=account,
        allocations=(),
        would_fit=would_fit(view, "host", account, states, None),
        certainty=kill.certainty,
    )


def _kernel_sentence(kill: Killed, where: str) -> str:
    limit = limit_words(kill.limit, kill.limit_bytes)
    if kill.rank is None:
        if kill.certainty == "known":
            return (
                f"The kernel killed a process of the job's cgroup: out of memory{limit}. It was no rank, or none that "
                "was seen: a worker of one, perhaps, or the launcher."
            )
        return f"The job was killed, likely by the kernel, out of memory{limit}: {kill.why}."
    if kill.certainty == "known":
        return f"Rank {kill.rank} was killed by the kernel {where}: out of memory{limit}."
    return f"Rank {kill.rank} was killed {where}, likely by the kernel, out of memory{limit}: {kill.why}."
