"""What differs between the sides before anything ran: configuration, environment, versions, hardware; and what follows.

A difference breaks a comparison (not the same work), matters (a cause of differences that was perhaps not meant), is
expected (what comparisons of setups are about), or is harmless (names, paths, times).
"""

import re
from collections.abc import Iterator, Sequence

from agprof.analysis.compare_sides import ComparedRun, ComparedSide, told
from agprof.model.compare_answers import Comparable, ConfigurationRow, Weight
from agprof.model.format import significant

_MOST_NAMED = 4
_LONGEST = 200

_RULES: tuple[tuple[str, Weight, str], ...] = (
    (r"work: (model parameters|kind)", "breaks", "not the same model: times, memory and energy are of different work"),
    (r"work: trainable parameters", "matters", "more or fewer parameters are trained"),
    (r"work: (samples|tokens) per step", "matters", "steps do different amounts of work; compare throughput"),
    (r"work: tokens per sample", "matters", "sequences are longer or shorter"),
    (r"(setup\.|.*\.emulate\.|.*hostfile|.*slurm\.).*|setup|link|repeat|.*interface|.*SOCKET_IFNAME",
     "expected", "the setup itself"),
    (r"(nodes|ranks|dist\.world_size|.*(ranks_per_node|data_parallel_size|nproc.per.node)|workload\.launch\.nodes)",
     "expected", "the number of ranks or nodes is what setups differ in"),
    (r"(model\..*|.*dtype.*|.*(batch|seq|accumulation|precision|fp16|bf16|checkpointing|attn|compile).*)",
     "matters", "it changes the work of a step"),
    (r".*(zero_stage|zero-stage|zero_optimization\.|offload|bucket_size|overlap_comm).*|framework|deepspeed\..*|launcher"
     r"|workload\.launch\.(launcher|deepspeed).*|workload\.deepspeed.*",
     "expected", "how the framework spreads the work"),
    (r"(device\.(name|type)|host\.(cpu_model|cpu_count|usable_cores|memory.*)|gpu.*)", "matters", "different hardware"),
    (r"(.*driver.*|.*nccl.*version.*|torch\.version|python|package .*|.*\.version|cuda.*|host\.(kernel|os|platform).*)",
     "matters", "a different version of software"),
    (r"(omp_num_threads|cpu\.affinity|environment.*\.(OMP_|MKL_|KMP_|NCCL_|GLOO_|TORCH_|PYTORCH_|CUDA_|TOKENIZERS_).*"
     r"|torch\.(threads|deterministic.*|backends.*))", "matters", "it changes speed"),
    (r"workload\.(profile|monitor|kineto|nsys|kernels|energy|peak|plan)\..*", "matters",
     "what is measured differs, and measuring costs time"),
    (r"commit", "matters", "a different commit of the training code"),
    (r"workload\.(args|env|script|module|argv|steps).*|workload\.launch\..*", "matters", "a different command line"),
    (r"(command|cwd|workload\.(name|description)|name|hosts|run|host\.(hostname|boot.*|pid|ip.*|address.*)"
     r"|.*(seed|path|dir|folder|file|port|address|uuid|MASTER_).*)",
     "harmless", "names, places and times"),
)  # fmt: skip
"""The first that matches the whole key (without regard to case) decides."""
_COMPILED = tuple((re.compile(pattern, re.IGNORECASE), weight, why) for pattern, weight, why in _RULES)
_RESULTS = re.compile(
    r"(memory|output|energy)\..*|optimizer\.state.*|deepspeed\.(lr|checkpoint_calls|persistent_params)|.*_time_ns"
)
"""Facts that a run found and nobody set: they are compared as figures, or not at all."""
_TOLD_BETTER = {
    "environment.OMP_NUM_THREADS": "omp_num_threads",
    "workload.launch.env.OMP_NUM_THREADS": "omp_num_threads",
}
"""Settings whose effect is a fact of every rank, whoever set it: launchers set some by themselves."""
_ORDER: dict[Weight, int] = {"breaks": 0, "matters": 1, "expected": 2, "harmless": 3}


def weigh(key: str) -> tuple[Weight, str]:
    """What a difference in a key of the configuration means, and why.

    >>> weigh("deepspeed.zero_stage")[0], weigh("torch.version")[0], weigh("host.hostname")[0]
    ('expected', 'matters', 'harmless')
    """
    for pattern, weight, why in _COMPILED:
        if pattern.fullmatch(key):
            return weight, why
    return "matters", "it is not known to be harmless"


def configuration_rows(sides: Sequence[ComparedSide]) -> tuple[ConfigurationRow, ...]:
    """Keys whose values are not the same on all sides: what weighs most first."""
    tables = [{**work(side.first), **dict(side.first.answers.configuration)} for side in sides]
    keys = [key for key in dict.fromkeys(key for table in tables for key in table) if _is_setting(key, tables)]
    rows = []
    for key in keys:
        values = tuple(_cut(table.get(key)) for table in tables)
        if len({table.get(key) for table in tables}) > 1:
            weight, why = weigh(key)
            rows.append(ConfigurationRow(key=key, values=values, weight=weight, why=why))
    return tuple(sorted(rows, key=lambda row: _ORDER[row.weight]))


def _is_setting(key: str, tables: Sequence[dict[str, str]]) -> bool:
    """Not a result, and not told better by another key. What agprof changes of the environment shows in the rest."""
    better = _TOLD_BETTER.get(key)
    if key.startswith("environment_changes.") or _RESULTS.fullmatch(key):
        return False
    return better is None or any(better not in table for table in tables)


def _cut(value: str | None) -> str | None:
    return value if value is None or len(value) <= _LONGEST else f"{value[: _LONGEST - 1]}…"


def work(run: ComparedRun) -> dict[str, str]:
    """What a step of a run does, and on how much: keys that no configuration file holds as such."""
    answers = run.answers
    found = {
        "work: kind": answers.identity.kind,
        "work: model parameters": _number(answers.compute.params.value),
        "work: trainable parameters": _number(answers.compute.trainable_params.value),
        "work: samples per step": _number(per_step(run, "samples")),
        "work: tokens per step": _number(per_step(run, "tokens")),
        "nodes": _number(answers.identity.nodes),
        "ranks": _number(answers.identity.world_size),
        "setup": run.view.run.manifest.get("setup"),
        "hosts": ", ".join(sorted({row.host for row in answers.ranks if row.host})) or None,
    }
    samples, tokens = per_step(run, "samples"), per_step(run, "tokens")
    if samples and tokens:
        found["work: tokens per sample"] = significant(tokens / samples)
    return {key: str(value) for key, value in found.items() if value is not None}


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:,.6g}" if value != int(value) else f"{int(value):,}"


def per_step(run: ComparedRun, what: str) -> float | None:
    """Samples or tokens (a column of `steps`) of all ranks per steady step, mean; None where it is not known."""
    steady = run.view.steady
    if not steady.height or steady[what].null_count():
        return None
    return float(steady[what].sum()) / int(steady["step"].n_unique())


def judge(sides: Sequence[ComparedSide], rows: Sequence[ConfigurationRow]) -> tuple[Comparable, tuple[str, ...]]:
    """Whether the sides can be compared, and the reasons why not, or the reservations."""
    broken = [*_different_work(rows), *_nothing_measured(sides), *_batch_unknown(sides, rows)]
    doubts = [*_unknown_work(sides), *_problems(sides), *_uneven_repeats(sides), *_what_matters(rows)]
    verdict: Comparable = "not comparable" if broken else "with reservations" if doubts else "comparable"
    return verdict, tuple(_sentence(reason) for reason in [*broken, *doubts])


def _sentence(text: str) -> str:
    """With a full stop. The case stays: a reason begins with a key or a side's label."""
    return text if text.endswith(".") else f"{text}."


def _different_work(rows: Sequence[ConfigurationRow]) -> Iterator[str]:
    for row in rows:
        if row.weight == "breaks" and None not in row.values:
            yield f"{row.key.removeprefix('work: ')}: {_values(row)}: {row.why}"


def _nothing_measured(sides: Sequence[ComparedSide]) -> Iterator[str]:
    for side in sides:
        if not side.steady_steps and not any(run.answers.trace is not None for run in side.runs):
            yield f"{side.label} has no steady step: nothing of it can be compared"


def _batch_unknown(sides: Sequence[ComparedSide], rows: Sequence[ConfigurationRow]) -> Iterator[str]:
    """Step times of different batches need samples or tokens to be compared by."""
    different = [
        row for row in rows if re.search(r"(micro_batch|train_batch|batch_size|accumulation_steps)", row.key)
        and row.weight == "matters"
    ]  # fmt: skip
    unknown = [
        side.label for side in sides
        if side.steady_steps and per_step(side.first, "samples") is None and per_step(side.first, "tokens") is None
    ]  # fmt: skip
    if different and unknown:
        row = different[0]
        yield (
            f"{row.key} differs ({_values(row)}) and the samples of a step of {' and '.join(unknown)} are not known: "
            "steps do different amounts of work; tell them with agprof.step(samples=...)"
        )


def _unknown_work(sides: Sequence[ComparedSide]) -> Iterator[str]:
    """Runs without instruments, as imported ones."""
    unknown = [side.label for side in sides if side.first.answers.compute.params.value is None]
    if unknown:
        yield f"The model of {' and '.join(unknown)} is not known: whether the runs do the same work can't be told"


def _problems(sides: Sequence[ComparedSide]) -> Iterator[str]:
    for side in sides:
        for problem in told(side).problems:
            yield f"{side.label}: {problem}"


def _uneven_repeats(sides: Sequence[ComparedSide]) -> Iterator[str]:
    """Repeats that are none."""
    for side in sides:
        works = [work(run) | {"hosts": ""} for run in side.runs]
        keys = sorted({key for other in works for key in other if other[key] != works[0].get(key)})
        if keys:
            yield f"The repeats of {side.label} differ among themselves in {', '.join(keys[:_MOST_NAMED])}"


def _what_matters(rows: Sequence[ConfigurationRow]) -> Iterator[str]:
    matter = [row for row in rows if row.weight == "matters"]
    for row in matter[:_MOST_NAMED]:
        yield f"{row.key.removeprefix('work: ')} differs ({_values(row)}): {row.why}"
    if len(matter) > _MOST_NAMED:
        yield f"{len(matter) - _MOST_NAMED} more settings that matter differ; the table lists them"


def _values(row: ConfigurationRow) -> str:
    short = [("not set" if value is None else value if len(value) <= 40 else f"{value[:39]}…") for value in row.values]
    return " / ".join(short[:_MOST_NAMED]) + (" / …" if len(short) > _MOST_NAMED else "")
