"""Reinforcement learning from human feedback: where an iteration goes, what generation delivers, printed metrics.

An iteration ends where the training of its models ends, and the next begins there: with its data and its `generate`.
It is not an optimizer step: with gradient accumulation a step has several, and with several PPO epochs an iteration has
several steps.
"""

import math
from typing import Any

import polars as pl

from agprof.analysis import rlhf_metrics as formulas
from agprof.analysis.memory import memory_kind
from agprof.analysis.statistics import median_figure, nothing
from agprof.analysis.view import View
from agprof.model.answers import RlhfAnswer, RlhfFlaw, RlhfGeneration, RlhfGroup, RlhfMetric, RlhfPart, RlhfRank
from agprof.model.figure import Figure, Source
from agprof.model.format import format_value, percent

PARTS = (
    "data", "generate", "score/actor", "score/reference", "score/reward", "score/critic",
    "train/actor", "train/critic", "train/unsupervised", "ema",
)  # fmt: skip
"""Parts by name, in drawing order; engines whose role is not known come behind their kind, `other` last."""
TRAINED = pl.col("name").str.starts_with("train/") | (pl.col("name") == "ema")
NEAR_NS = 1_000_000
"""A phase may end a little after the range inside it: its border belongs to that range all the same."""

_GROUPS: dict[str, RlhfGroup] = {
    "generate": "generate", "train/actor": "train actor", "train/critic": "train critic",
    "train/unsupervised": "train unsupervised", "ema": "EMA", "data": "data", "other": "other",
}  # fmt: skip
GROUPS: tuple[RlhfGroup, ...] = (
    "data", "generate", "score", "train actor", "train critic", "train unsupervised", "train", "EMA", "other",
)  # fmt: skip
ITERATION_METHOD = "per iteration the slowest rank's duration, over steady iterations"


def analyse_rlhf(view: View, calls: pl.DataFrame) -> RlhfAnswer | None:
    """The RLHF section; None when nothing was generated and then trained on. `calls` is `matched_calls(view)`."""
    parts = part_intervals(view.tables["spans"])
    found = iterations(view, parts)
    if not found.height:
        return None
    steady = found.filter("steady")
    placed = _placed(parts, steady)
    rows = _parts(view, calls, found, steady, parts, placed)
    slowest = steady.group_by("iteration").agg(pl.col("duration_ns").max()).sort("iteration")["duration_ns"]
    time = median_figure(slowest.to_list(), "ns", method=ITERATION_METHOD, reason="no steady iteration")
    metrics, flaws, notes = _metrics(view, steady, placed, rows)
    return RlhfAnswer(
        sentence=_sentence(time, rows),
        iteration_time=time,
        iterations=found["iteration"].n_unique(),
        steady_iterations=steady["iteration"].n_unique(),
        parts=rows,
        ranks=_ranks(steady, placed, [row.name for row in rows]),
        generation=_generation(view, steady),
        metrics=metrics,
        flaws=flaws,
        notes=(_iteration_note(view, found), *_memory_note(view), *notes),
    )


def group_of(name: str) -> RlhfGroup:
    """The part's group: one colour, one word.

    >>> group_of("score/reward"), group_of("train/actor"), group_of("train/engine 2")
    ('score', 'train actor', 'train')
    """
    kind = name.partition("/")[0]
    return _GROUPS.get(name, "score" if kind == "score" else "train" if kind == "train" else "other")


# -- intervals -----------------------------------------------------------------------------------------------------


def part_intervals(spans: pl.DataFrame) -> pl.DataFrame:
    """Disjoint intervals of the parts on each rank's main thread: rank, name, start_ns, end_ns, in order.

    Of nested ranges the outermost counts. Pieces of one model's scoring or training (its forward, backward, step) that
    follow on one another with no other part between are one interval: what lies between them (the loss) is part of it.
    """
    name, kind = pl.col("name"), pl.col("name").str.starts_with("score/") | TRAINED | (pl.col("name") == "generate")
    range_ = pl.col("category") == "range"
    data = (name == "data") & (range_ | (pl.col("category") == "phase"))
    named = spans.filter((range_ & kind) | data).with_columns(own=range_ & kind)
    main = (
        named.filter("own")
        .group_by("rank", "thread")
        .agg(total=(pl.col("end_ns") - pl.col("start_ns")).clip(0).sum())
        .sort("rank", "total", "thread", descending=[False, True, False])
        .unique("rank", keep="first", maintain_order=True)
        .select("rank", "thread")
    )
    return (
        named.join(main, on=["rank", "thread"], how="semi")
        .sort("rank", "start_ns", "end_ns", "depth", "span", descending=[False, False, True, False, False])
        .with_columns(reach=pl.col("end_ns").cum_max().shift(1).over("rank"))
        .with_columns(start_ns=pl.max_horizontal("start_ns", "reach"))
        .filter(pl.col("end_ns") > pl.col("start_ns"))
        .with_columns(follows=(name == name.shift(1).over("rank")) & name.str.contains("/"))
        .with_columns(block=(~pl.col("follows").fill_null(False)).cum_sum())
        .group_by("rank", "block", "name")
        .agg(pl.col("start_ns").min(), pl.col("end_ns").max())
        .sort("rank", "start_ns")
        .select("rank", "name", "start_ns", "end_ns")
    )


def iterations(view: View, parts: pl.DataFrame) -> pl.DataFrame:
    """rank, iteration, start_ns, end_ns, duration_ns, generate_ns (first generation's begin), steady.

    They tile each rank's time from the run's first step, or first part, to the end of the last training. One begins at
    the end of the last training before a `generate`, so generations in a row with no training between are of one.
    """
    marked = parts.with_columns(trained=TRAINED.cast(pl.Int64).cum_sum().over("rank"))
    trainings = marked.filter(TRAINED).select("rank", "trained", at_ns="end_ns")
    firsts = _begins(view, parts)
    rows = (
        marked.filter(pl.col("name") == "generate")
        .group_by("rank", "trained")
        .agg(generate_ns=pl.col("start_ns").min())
        .join(trainings, on=["rank", "trained"], how="left")
        .join(firsts, on="rank", how="left")
        .sort("rank", "trained")
        .with_columns(start_ns=pl.coalesce("at_ns", "first_ns"), iteration=pl.int_range(pl.len()).over("rank"))
        .join(trainings.group_by("rank").agg(last_ns=pl.col("at_ns").max()), on="rank", how="left")
        .with_columns(end_ns=pl.coalesce(pl.col("start_ns").shift(-1).over("rank"), "last_ns"))
        .filter(pl.col("end_ns") > pl.col("generate_ns"))
        .with_columns(duration_ns=pl.col("end_ns") - pl.col("start_ns"))
        .select("rank", "iteration", "start_ns", "end_ns", "duration_ns", "generate_ns")
        .sort("rank", "iteration")
    )
    return rows.with_columns(steady=_steady(view, parts, rows))


def _begins(view: View, parts: pl.DataFrame) -> pl.DataFrame:
    """When each rank's first iteration begins: first_ns."""
    first = pl.col("start_ns").min()
    both = [frame.group_by("rank").agg(first_ns=first) for frame in (view.steps, parts)]
    return pl.concat(both).group_by("rank").agg(pl.col("first_ns").min())


def _steady(view: View, parts: pl.DataFrame, rows: pl.DataFrame) -> pl.Series:
    """Whether an iteration counts: all ranks have it whole, and no step in it is a warm-up or profiled step.

    Steps in it are the one in progress when its first generation began, and those that end in it afterwards.
    """
    steps = view.steps.select("rank", "kind", step_start_ns="start_ns", step_end_ns="end_ns")
    at_begin = rows.sort("generate_ns").join_asof(
        steps.sort("step_start_ns"), left_on="generate_ns", right_on="step_start_ns", by="rank", check_sortedness=False
    )
    good = at_begin.filter((pl.col("kind") == "steady") & (pl.col("step_end_ns") > pl.col("generate_ns")))
    ended = steps.sort("step_end_ns").join_asof(
        rows.sort("start_ns"), left_on="step_end_ns", right_on="start_ns", by="rank", check_sortedness=False
    )
    bad = ended.filter(
        (pl.col("kind") != "steady")
        & (pl.col("step_end_ns") > pl.col("generate_ns"))
        & (pl.col("step_end_ns") <= pl.col("end_ns"))
    )
    names = pl.col("name").filter(TRAINED).unique().sort()
    trained = _placed(parts, rows).group_by("rank", "iteration").agg(names=names)
    # A run that was stopped leaves a last iteration that lacks some of the others' training.
    count = pl.col("names").list.len()
    whole = trained.filter(count == count.max())
    key = ["rank", "iteration"]
    counted = (
        good.select(key).join(bad.select(key), on=key, how="anti").join(whole.select(key), on=key, how="semi").unique()
    )
    ranks = rows["rank"].n_unique()
    everywhere = counted.group_by("iteration").agg(ranks=pl.len()).filter(pl.col("ranks") == ranks)
    return (
        rows.select(key)
        .join(everywhere.select("iteration", steady=pl.lit(True)), on="iteration", how="left", maintain_order="left")[
            "steady"
        ]
        .fill_null(False)
    )


def _placed(intervals: pl.DataFrame, rows: pl.DataFrame) -> pl.DataFrame:
    """The intervals that lie in one of the iterations, with its number."""
    inside = rows.select("rank", "iteration", "duration_ns", from_ns="start_ns", until_ns="end_ns").sort("from_ns")
    return (
        intervals.sort("start_ns")
        .join_asof(inside, left_on="start_ns", right_on="from_ns", by="rank", check_sortedness=False)
        .filter(pl.col("end_ns") <= pl.col("until_ns"))
        .with_columns(ns=pl.col("end_ns") - pl.col("start_ns"))
        .sort("rank", "start_ns")
    )


def iteration_parts(rows: pl.DataFrame, parts: pl.DataFrame) -> pl.DataFrame:
    """rank, iteration, name, ns: every part of each iteration, `other` among them. They add up to its duration."""
    placed = _placed(parts, rows)
    named = placed.group_by("rank", "iteration", "name").agg(pl.col("ns").sum())
    covered = named.group_by("rank", "iteration").agg(covered=pl.col("ns").sum())
    other = rows.join(covered, on=["rank", "iteration"], how="left").select(
        "rank", "iteration", name=pl.lit("other"), ns=pl.col("duration_ns") - pl.col("covered").fill_null(0)
    )
    return pl.concat([named, other]).sort("rank", "iteration", "name")


# -- parts ---------------------------------------------------------------------------------------------------------


def _parts(
    view: View,
    calls: pl.DataFrame,
    found: pl.DataFrame,
    steady: pl.DataFrame,
    parts: pl.DataFrame,
    placed: pl.DataFrame,
) -> tuple[RlhfPart, ...]:
    count = max(1, steady.height)
    total = float(steady["duration_ns"].sum()) or 1.0
    sums = iteration_parts(steady, parts).group_by("name").agg(pl.col("ns").sum())
    times = dict(sums.iter_rows())
    many = dict(placed.group_by("name").agg(pl.len()).iter_rows())
    memory = _memory(view, _placed(parts, found))
    communication = _communication(calls, steady, placed)
    names = sorted({*times, "other"}, key=_place)
    rows = []
    for name in names:
        issued, size, stood = communication.get(name, (0, 0, 0))
        rows.append(
            RlhfPart(
                name=name,
                group=group_of(name),
                ns_per_iteration=times.get(name, 0) / count,
                share=times.get(name, 0) / total,
                calls_per_iteration=many.get(name, 0) / count,
                memory_peak=memory.get(name) or nothing("bytes", "no border of a phase lies in it", method=_PEAK),
                collectives_per_iteration=issued / count,
                communication_bytes_per_iteration=None if size is None else size / count,
                communication_ns_per_iteration=stood / count,
            )
        )
    return tuple(rows)


def _place(name: str) -> tuple[int, int, str]:
    return GROUPS.index(group_of(name)), PARTS.index(name) if name in PARTS else len(PARTS), name


_PEAK = "highest at the borders of phases in the part, over ranks and iterations"


def _memory(view: View, placed: pl.DataFrame) -> dict[str, Figure]:
    kind = memory_kind(view)
    column = "allocated_bytes" if kind == "device" else "rss_bytes"
    what = "live tensors of torch's allocator" if kind == "device" else "resident set of the process"
    rows = (
        view.tables["memory"]
        .select("rank", "time_ns", size=column)
        .drop_nulls()
        .sort("time_ns")
        .join_asof(
            placed.select("rank", "name", "start_ns", "end_ns").sort("start_ns"),
            left_on="time_ns",
            right_on="start_ns",
            by="rank",
            check_sortedness=False,
            allow_exact_matches=False,
        )
        .filter(pl.col("time_ns") <= pl.col("end_ns") + NEAR_NS)
    )
    peaks = rows.group_by("name").agg(pl.col("size").max(), n=pl.len())
    return {
        name: Figure(value=size, unit="bytes", source="measured", n=n, method=f"{what}, {_PEAK}")
        for name, size, n in peaks.iter_rows()
    }


def _memory_note(view: View) -> tuple[str, ...]:
    if memory_kind(view) == "device" or not view.tables["memory"].height:
        return ()
    return (
        "Memory is the process's resident set, which hardly falls when a part gives memory back: on a CPU the parts' "
        "peaks tell little apart.",
    )


def _communication(calls: pl.DataFrame, steady: pl.DataFrame, placed: pl.DataFrame) -> dict[str, tuple[Any, Any, Any]]:
    """Per part: collectives issued in it, their bytes (None when a size is not known), time that callers stood."""
    stood = (pl.col("issue_end_ns") - pl.col("start_ns") + pl.col("wait_ns")).clip(0)
    issued = calls.select("rank", "bytes", at_ns="start_ns", stood=stood).sort("at_ns")
    inside = steady.select("rank", from_ns="start_ns", until_ns="end_ns").sort("from_ns")
    named = placed.select("rank", "name", part_ns="start_ns", part_end_ns="end_ns").sort("part_ns")
    rows = (
        issued.join_asof(inside, left_on="at_ns", right_on="from_ns", by="rank", check_sortedness=False)
        .filter(pl.col("at_ns") < pl.col("until_ns"))
        .join_asof(named, left_on="at_ns", right_on="part_ns", by="rank", check_sortedness=False)
        .with_columns(name=pl.when(pl.col("at_ns") < pl.col("part_end_ns")).then("name").otherwise(pl.lit("other")))
        .group_by("name")
        .agg(pl.len(), unknown=pl.col("bytes").null_count(), size=pl.col("bytes").sum(), stood=pl.col("stood").sum())
    )
    return {name: (count, None if unknown else size, time) for name, count, unknown, size, time in rows.iter_rows()}


def _ranks(steady: pl.DataFrame, placed: pl.DataFrame, names: list[str]) -> tuple[RlhfRank, ...]:
    answers = []
    sums = {(rank, name): ns for rank, name, ns in placed.group_by("rank", "name").agg(pl.col("ns").sum()).iter_rows()}
    totals = steady.group_by("rank").agg(pl.len(), pl.col("duration_ns").sum()).sort("rank")
    for rank, count, duration in totals.iter_rows():
        own = {name: sums.get((rank, name), 0) for name in names}
        own["other"] = duration - sum(ns for name, ns in own.items() if name != "other")
        parts = {name: ns / count for name, ns in own.items()}
        answers.append(RlhfRank(rank=rank, iterations=count, iteration_ns=duration / count, parts_ns=parts))
    return tuple(answers)


def _sentence(time: Figure, rows: tuple[RlhfPart, ...]) -> str:
    if time.value is None:
        return "No iteration can be told in figures: all of them lie in warm-up or profiled steps."
    shares: dict[str, float] = {}
    for row in rows:
        shares[row.group] = shares.get(row.group, 0.0) + row.share
    order = sorted((group for group in shares if group != "other"), key=lambda group: -shares[group])
    words = [f"{group} {percent(shares[group])}" for group in order if shares[group] >= 0.005]
    if shares.get("other", 0.0) >= 0.005:
        words.append(f"everything else {percent(shares['other'])}")
    return f"An iteration takes {format_value(time.value, 'ns')}: {', '.join(words)}."


def _iteration_note(view: View, found: pl.DataFrame) -> str:
    steps = view.steps.filter(pl.col("end_ns") <= found["end_ns"].max()).group_by("rank").agg(pl.len())["len"].max()
    count = found["iteration"].n_unique()
    note = f"{count:,} iteration{'' if count == 1 else 's'}, each from the end of one training to the end of the next"
    if isinstance(steps, int) and steps != count:
        note += f"; the models' owner made {steps:,} optimizer steps in them"
    return f"{note}. Left out of the figures: those with a warm-up or profiled step."


# -- generation ----------------------------------------------------------------------------------------------------


def _generation(view: View, steady: pl.DataFrame) -> RlhfGeneration:
    table = view.tables["generations"].filter(pl.col("end_ns") > pl.col("start_ns"))
    rows = _placed(table.select("rank", "start_ns", "end_ns", "batch", "prompt_tokens", "new_tokens"), steady)
    known = rows.filter(pl.col("new_tokens") > 0).drop_nulls(["batch", "new_tokens"])
    reason = (
        "no call of a Hugging Face model's generate was seen"
        if not table.height
        else "no steady iteration"
        if not rows.height
        else "what generate returned had no shape that tells its tokens"
    )

    def figure(values: pl.Series, unit: str, method: str, source: Source) -> Figure:
        return median_figure(values.drop_nulls().to_list(), unit, method=method, reason=reason, source=source)

    per_iteration = (
        known.with_columns(tokens=pl.col("batch") * pl.col("new_tokens"))
        .group_by("rank", "iteration")
        .agg(pl.col("tokens").sum(), pl.col("ns").sum())
        .group_by("iteration")
        .agg(pl.col("tokens").sum(), pl.col("ns").max())
        .sort("iteration")
    )
    return RlhfGeneration(
        tokens_per_second=figure(
            per_iteration["tokens"] * 1e9 / per_iteration["ns"],
            "tokens/s",
            "sequences x new positions of all ranks / the slowest rank's time in generate, per steady iteration",
            "measured",
        ),
        latency_per_token=figure(
            known["ns"] / known["new_tokens"], "ns", "time of a call / new positions per sequence", "measured"
        ),
        batch=figure(known["batch"], "1", "sequences in the result of a call", "counted"),
        prompt_tokens=figure(known["prompt_tokens"], "1", "positions of a prompt, padding included", "counted"),
        new_tokens=figure(known["new_tokens"], "1", "positions generated per sequence", "counted"),
    )


# -- printed metrics -----------------------------------------------------------------------------------------------

_METRICS: tuple[tuple[str, str, str, Source, tuple[int, ...]], ...] = (
    ("e2e_time", "end to end", "ns", "measured", (4,)),
    ("batch", "sequences per iteration", "1", "counted", (2,)),
    ("samples_per_s", "samples per second", "samples/s", "measured", (2, 4)),
    ("e2e_flops", "end to end, per device", "FLOP/s", "modelled", (2, 4)),
    ("generate_time", "generation", "ns", "measured", ()),
    ("latency_per_token", "generation, per token", "ns", "measured", ()),
    ("bandwidth", "generation, parameters read", "bytes/s", "modelled", (3,)),
    ("generate_flops", "generation, per device", "FLOP/s", "modelled", ()),
    ("score_time", "scoring", "ns", "measured", ()),
    ("score_flops", "scoring, per device", "FLOP/s", "modelled", ()),
    ("train_time", "training", "ns", "measured", ()),
    ("train_flops", "training, per device", "FLOP/s", "modelled", (2,)),
)
_UPSTREAM_METHODS = {
    "e2e_time": "training + last generation x generations per iteration, on the lowest rank",
    "batch": "batch x generations x PPO epochs x ranks; 2 with an unsupervised data set",
    "generate_time": "the last generation of the iteration, on the lowest rank",
    "latency_per_token": "last generation / answer length",
    "bandwidth": "parameters x bytes of the declared type / latency per token; -1 GB/s for an unknown type",
    "train_time": "from the end of scoring to the end of training, on the lowest rank",
}
_CORRECTED_METHODS = {
    "e2e_time": "the whole iteration, mean over ranks",
    "batch": "sequences generated, all ranks",
    "generate_time": "all time in generate, mean over ranks",
    "latency_per_token": "time in generate / positions generated per sequence",
    "bandwidth": "parameters x bytes of their type / latency per token",
    "score_time": "the scoring forwards, mean over ranks",
    "train_time": "forward, backward and step of actor and critic (and the unsupervised step), mean over ranks",
}
_FLOPS_METHOD = "24 f B s L h^2 (1 + s/6h + V/16Lh) over the time above"
_ALIASES = {
    "generation_batch": "per_device_generation_batch_size",
    "prompt_length": "max_prompt_seq_len",
    "answer_length": "max_answer_seq_len",
}
"""Names of the bundled workload's arguments -> DeepSpeed-Chat's."""
_SECONDS = ("e2e_time", "generate_time", "latency_per_token", "score_time", "train_time")


def _metrics(
    view: View, steady: pl.DataFrame, placed: pl.DataFrame, rows: tuple[RlhfPart, ...]
) -> tuple[tuple[RlhfMetric, ...], tuple[RlhfFlaw, ...], tuple[str, ...]]:
    setting, assumed = _setting(view, steady, placed, rows)
    actor, critic = (_model(view, role) for role in ("actor", "critic"))
    notes = list(assumed)
    for role, model in (("actor", actor), ("critic", critic)):
        if model is None:
            notes.append(f"The {role}'s configuration was not seen, so the FLOPs of the printed metrics are missing.")
    applies = formulas.applying(setting, actor)
    flaws = tuple(
        RlhfFlaw(number=number, title=title, explanation=words, applies=here)
        for number, ((title, words), here) in enumerate(zip(formulas.FLAWS, applies, strict=True), start=1)
    )
    if not steady.height:
        return (), flaws, tuple(notes)
    times = _times(steady, placed, rows)
    n = steady["iteration"].n_unique()
    left = formulas.upstream(setting, times, actor, critic)
    right = formulas.corrected(setting, times, actor, critic)
    metrics = []
    for key, label, unit, source, flaw in _METRICS:
        metrics.append(
            RlhfMetric(
                key=key,
                label=label,
                upstream=_figure(key, left, unit, source, n, _UPSTREAM_METHODS),
                corrected=_figure(key, right, unit, source, n, _CORRECTED_METHODS),
                flaws=flaw,
            )
        )
    return tuple(metrics), flaws, tuple(notes)


def _figure(key: str, values: dict[str, float], unit: str, source: Source, n: int, methods: dict[str, str]) -> Figure:
    upstream = methods is _UPSTREAM_METHODS
    method = methods.get(key) or (_FLOPS_METHOD if unit == "FLOP/s" else "sequences / end to end")
    value = values.get(key)
    if value is None or not math.isfinite(value):
        reason = (
            "upstream prints nothing of this"
            if upstream and key.startswith("score_")
            else "the models' sizes are not known"
            if value is None
            else "there is nothing to divide by"
        )
        return nothing(unit, reason, method=method, source=source)
    value *= 1e9 if key in _SECONDS else 1.0
    return Figure(value=value, unit=unit, source=source, n=n, method=f"{method}; of the mean steady iteration")


def _model(view: View, role: str) -> formulas.Model | None:
    def known(key: str, default: Any = None) -> Any:
        return view.fact(f"rlhf.{role}.{key}", default)

    layers, hidden, vocab, params = (known(key) for key in ("layers", "hidden", "vocab", "params"))
    if not all(isinstance(value, int) and value > 0 for value in (layers, hidden, vocab, params)):
        return None
    dtype = str(known("dtype", "float32"))
    settings = _settings(view)
    lora = settings.get(f"{role}_lora_dim", known("lora_dim", 0))
    checkpointing = settings.get(f"{role}_gradient_checkpointing", known("gradient_checkpointing", False))
    return formulas.Model(
        layers=layers,
        hidden=hidden,
        vocab=vocab,
        params=params,
        dtype=dtype,
        declared_dtype=str(known("declared_dtype", dtype)),
        checkpointing=bool(checkpointing),
        lora_dim=lora if isinstance(lora, int) and lora > 0 else 0,
    )


def _settings(view: View) -> dict[str, Any]:
    """What DeepSpeed-Chat's script was called with, or the arguments in the workload file."""
    told = view.fact("rlhf.settings")
    if isinstance(told, dict):
        return told
    workload = view.run.manifest.get("workload")
    args = workload.get("args") if isinstance(workload, dict) else None
    if not isinstance(args, dict):
        return {}
    named = {str(key).strip("-").replace("-", "_"): value for key, value in args.items()}
    return {_ALIASES.get(key, key): value for key, value in named.items()}


def _setting(
    view: View, steady: pl.DataFrame, placed: pl.DataFrame, rows: tuple[RlhfPart, ...]
) -> tuple[formulas.Setting, list[str]]:
    settings = _settings(view)
    generation = _generation(view, steady)
    seen = {row.name: row for row in rows}
    assumed = []

    def number(key: str, default: float | None) -> float:
        value = settings.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
            return float(value)
        return default or 0.0

    epochs = number("ppo_epochs", None)
    if not epochs:
        epochs = 1
        assumed.append("The printed metrics assume one PPO epoch: no setting tells how many there are.")
    generated = generation.new_tokens.value
    world = view.fact("dist.world_size")
    return formulas.Setting(
        ranks=world if isinstance(world, int) and world > 0 else max(1, len(view.ranks)),
        generation_batch=number("per_device_generation_batch_size", generation.batch.value),
        generation_batches=number("generation_batches", seen["generate"].calls_per_iteration)
        if "generate" in seen
        else 0.0,
        ppo_epochs=int(epochs),
        prompt_tokens=number("max_prompt_seq_len", generation.prompt_tokens.value),
        answer_tokens=number("max_answer_seq_len", generated),
        generated_tokens=generated or 0.0,
        unsupervised=bool(settings.get("unsupervised_dataset_name")) or "train/unsupervised" in seen,
    ), assumed


def _times(steady: pl.DataFrame, placed: pl.DataFrame, rows: tuple[RlhfPart, ...]) -> formulas.Times:
    """Seconds; those of upstream on the lowest rank, which is the one that prints."""
    first = placed.filter(pl.col("rank") == pl.col("rank").min())
    generations = first.filter(pl.col("name") == "generate").sort("start_ns")
    last = generations.group_by("iteration", maintain_order=True).agg(pl.col("ns").last())["ns"]
    training = first.filter(TRAINED).group_by("iteration").agg(training_ns=pl.col("start_ns").min())
    before = (
        first.join(training, on="iteration", how="inner")
        .filter(~TRAINED & (pl.col("name") != "data") & (pl.col("start_ns") < pl.col("training_ns")))
        .group_by("iteration")
        .agg(train_s=(pl.col("until_ns") - pl.col("end_ns").max()).first())
    )["train_s"]
    by_group: dict[str, float] = {}
    for row in rows:
        by_group[row.group] = by_group.get(row.group, 0.0) + row.ns_per_iteration / 1e9
    return formulas.Times(
        upstream_generate=_mean(last) / 1e9,
        upstream_train=_mean(before) / 1e9,
        generate=by_group.get("generate", 0.0),
        score=by_group.get("score", 0.0),
        train=sum(time for group, time in by_group.items() if group.startswith("train")),
        iteration=_mean(steady["duration_ns"]) / 1e9,
    )


def _mean(values: pl.Series) -> float:
    return float(values.sum()) / len(values) if len(values) else 0.0
