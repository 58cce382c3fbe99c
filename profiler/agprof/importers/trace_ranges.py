"""The host's ranges of a trace, and what their names say: steps, phases, collectives, or a range of the user's."""

import polars as pl

from agprof.model.trace_tables import CpuKind
from agprof.store.traces import RankTrace

STEP, MICRO_STEP, PHASE, BACKWARD_OP = "step", "micro-step", "phase", "backward op"
COLLECTIVE, HIDDEN, RANGE = "collective", "hidden", "range"

# Rules in order: the first that matches counts. (pattern, what it is, phase or way of counting)
_RULES = (
    (r"^ProfilerStep\s?#\d+$", STEP, "ProfilerStep"),
    (r"^step \d+$", STEP, "agprof"),
    (r"(?i)^(?:train(?:ing)?[ _]?)?(?:step|iter|iteration|global_step)[ _#:=-]*\d+$", STEP, "numbered"),
    (r"(?i)^(?:train(?:ing)?[ _]?)?(?:step|iter|iteration)$", STEP, "counted"),
    (r"^micro-step \d+$", MICRO_STEP, ""),
    (r"^Optimizer\.step#", PHASE, "optimizer"),
    (r"^enumerate\(DataLoader\)#", PHASE, "data"),
    (r"^(?:#+ ?)?(?:data|dataloader|get_batch|wait_for_batch)(?: ?#+)?$", PHASE, "data"),
    (r"^(?:#+ ?)?(?:forward|forward_pass)(?: ?#+)?$", PHASE, "forward"),
    (r"^(?:#+ ?)?(?:backward|backward_pass)(?: ?#+)?$", PHASE, "backward"),
    (r"^(?:#+ ?)?(?:optimizer|optimizer_step)(?: ?#+)?$", PHASE, "optimizer"),
    (r"^(?:DistributedDataParallel|FullyShardedDataParallel|DeepSpeedEngine)\.forward$", PHASE, "forward"),
    (r"^autograd::engine::evaluate_function", BACKWARD_OP, ""),
    (r"^(?:\w*::)*\w+Backward\d*$|AccumulateGrad$", BACKWARD_OP, ""),
    (r"^(?:nccl|gloo|mpi|ucc):\w+$", COLLECTIVE, "work"),
    (r"^(?:(?:all_)?reduce|all_gather|reduce_scatter|broadcast|all_to_all|barrier|gather|scatter|send|recv|send_recv)"
     r"(?: [\d.]+ [KMGT]?i?B)?$", COLLECTIVE, "call"),
    (r"^nccl[A-Z]", COLLECTIVE, ""),
    (r"^PyTorch Profiler|^\[memory\]$|^Command Buffer Full$|^Activity Buffer Request$", HIDDEN, ""),
    (r"^agprof\.(?:rank|capture)", HIDDEN, ""),
)  # fmt: skip


def classified(trace: RankTrace) -> pl.DataFrame:
    """Table `names` of a trace with `what` (one of the words above) and `which` (the phase, or the way of counting)."""
    names = trace.table("names").unique("name", maintain_order=True)
    short = pl.col("text").str.slice(0, 500)
    what, which = pl.lit(RANGE), pl.lit("")
    for pattern, word, kind in reversed(_RULES):
        fits = short.str.contains(pattern)
        what = pl.when(fits).then(pl.lit(word)).otherwise(what)
        which = pl.when(fits).then(pl.lit(kind)).otherwise(which)
    return names.with_columns(what=what, which=which)


def host_ranges(trace: RankTrace, names: pl.DataFrame) -> pl.DataFrame:
    """Host events that name a step, a phase or a collective, backward operators, and all annotations.

    Columns start_ns, end_ns, kind, thread, text, what, which; sorted by start, longest first. Old traces hold
    annotations under the category of operators, so steps and phases count whatever their kind.
    """
    special = names.filter(pl.col("what").is_in([STEP, PHASE, BACKWARD_OP, COLLECTIVE]))["name"]
    annotation = pl.col("kind") == int(CpuKind.ANNOTATION)
    host = (pl.col("kind") == int(CpuKind.OP)) | annotation
    events = (
        trace.tables["cpu"]
        .filter(annotation | (pl.col("name").is_in(special.implode()) & host))
        .select("kind", "thread", "name", "start_ns", end_ns=pl.col("start_ns") + pl.col("duration_ns"))
        .collect()
    )
    told = events.join(names, on="name", how="left", maintain_order="left")
    # A step without a number or an operator that is no annotation: `step` alone is a user's word only there.
    bad = (pl.col("what") == STEP) & (pl.col("which") != "ProfilerStep") & ~annotation
    return told.filter((pl.col("what") != HIDDEN) & ~bad).sort("start_ns", "end_ns", descending=[False, True])
