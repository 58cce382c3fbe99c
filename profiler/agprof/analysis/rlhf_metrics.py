"""The metrics that DeepSpeed-Chat prints in its third stage: by its own formulas, and corrected. Plain arithmetic.

Upstream is `dschat/utils/perf.py`. Seconds in, seconds and FLOP/s out; rates are per device, as upstream's are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

UPSTREAM_BYTES = {"float16": 2, "float32": 4}
BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
GIGA = 1e9

FLAWS: tuple[tuple[str, str], ...] = (
    (
        "local batch over world",
        "Stages 1 and 2 divide the FLOPs of one rank's batch by the time of all ranks, so TFLOPs are too low by the "
        "number of ranks and samples/s count one rank. They read the clock without waiting for the device.",
    ),
    (
        "unsupervised batch of 2",
        "With an unsupervised data set the batch is 2 whatever was trained: the product of batch, generations, epochs "
        "and ranks stands before a conditional expression that gives 2 instead of the whole of it, by precedence. "
        "Samples and training FLOPs are then those of two sequences.",
    ),
    (
        "no bandwidth for bf16",
        "Bytes per parameter are known for fp16 and fp32 only; for anything else, bf16 above all, -1 is printed.",
    ),
    (
        "scoring left out",
        "The end-to-end time is training plus the last generation times the number of generations. The four scoring "
        "forwards, loading data and everything between are left out, and all generations count as long as the last.",
    ),
)
"""Title and explanation of what is wrong upstream; their place in this list plus one is their number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What the formulas know of a model. Its feed-forward layers are taken to be four times as wide as it is."""

    layers: int
    hidden: int
    vocab: int
    params: int
    dtype: str
    declared_dtype: str
    """Of its configuration: what upstream looks at."""
    checkpointing: bool = False
    lora_dim: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What stays the same from one iteration to the next. Batches are one rank's."""

    ranks: int
    generation_batch: float
    generation_batches: float
    ppo_epochs: int
    prompt_tokens: float
    answer_tokens: float
    """As configured: what upstream divides by."""
    generated_tokens: float
    """As generated, per sequence."""
    unsupervised: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Seconds of a mean iteration."""

    upstream_generate: float
    """The last generation of the iteration on the rank that prints."""
    upstream_train: float
    """There, from the end of scoring to the end of training."""
    generate: float
    score: float
    train: float
    """Forward, backward and step of what is trained."""
    iteration: float


def forward_flops(model: Model, rows: float, length: float) -> float:
    """24 B s L h^2 (1 + s / 6h + V / 16Lh): Megatron-LM's count of a forward pass."""
    h, layers = model.hidden, model.layers
    return 24 * rows * length * layers * h**2 * (1 + length / (6 * h) + model.vocab / (16 * layers * h))


def training_factor(model: Model) -> float:
    """Passes of a training step in units of a forward: 3, 4 with activation checkpointing, less 1 - 2r/h with LoRA.

    >>> model = Model(layers=1, hidden=64, vocab=1, params=1, dtype="float32", declared_dtype="float32", lora_dim=8)
    >>> training_factor(model)
    2.25
    """
    factor = 4.0 if model.checkpointing else 3.0
    return factor - (1 - 2 * model.lora_dim / model.hidden) if model.lora_dim else factor


def upstream_batch(setting: Setting) -> float:
    """Sequences of an iteration as upstream counts them."""
    if setting.unsupervised:
        return 2
    return setting.generation_batch * setting.generation_batches * setting.ppo_epochs * setting.ranks


def upstream(setting: Setting, times: Times, actor: Model | None, critic: Model | None) -> dict[str, float]:
    """Metric -> value by upstream's formulas; those that need a model that is not known are left out."""
    length = setting.prompt_tokens + setting.answer_tokens
    batch = upstream_batch(setting)
    end_to_end = times.upstream_train + times.upstream_generate * setting.generation_batches
    found = {
        "batch": batch,
        "e2e_time": end_to_end,
        "samples_per_s": _over(batch, end_to_end),
        "generate_time": times.upstream_generate,
        "latency_per_token": _over(times.upstream_generate, setting.answer_tokens),
        "train_time": times.upstream_train,
    }
    if actor is not None:
        size = UPSTREAM_BYTES.get(actor.declared_dtype)
        latency = found["latency_per_token"]
        found["bandwidth"] = -GIGA if size is None else _over(actor.params * size, latency)
        generate = forward_flops(actor, setting.generation_batch * setting.ranks, length)
        found["generate_flops"] = _over(generate, times.upstream_generate * setting.ranks)
    if actor is not None and critic is not None:
        train = sum(training_factor(model) * forward_flops(model, batch, length) for model in (actor, critic))
        found["train_flops"] = _over(train, times.upstream_train * setting.ranks)
        whole = train + generate * setting.generation_batches
        found["e2e_flops"] = _over(whole, end_to_end * setting.ranks)
    return found


def corrected(setting: Setting, times: Times, actor: Model | None, critic: Model | None) -> dict[str, float]:
    """Metric -> value from what was really generated, scored and trained, over the whole iteration."""
    length = setting.prompt_tokens + setting.generated_tokens
    rows = setting.generation_batch * setting.generation_batches
    trained = rows * setting.ppo_epochs
    latency = _over(times.generate, setting.generation_batches * setting.generated_tokens)
    found = {
        "batch": rows * setting.ranks,
        "e2e_time": times.iteration,
        "samples_per_s": _over(rows * setting.ranks, times.iteration),
        "generate_time": times.generate,
        "latency_per_token": latency,
        "score_time": times.score,
        "train_time": times.train,
    }
    if actor is not None:
        size = BYTES.get(actor.dtype)
        if size is not None:
            found["bandwidth"] = _over(actor.params * size, latency)
        generate = forward_flops(actor, rows, length)
        found["generate_flops"] = _over(generate, times.generate)
    if actor is not None and critic is not None:
        unsupervised = trained if setting.unsupervised else 0.0
        train = training_factor(actor) * forward_flops(actor, trained + unsupervised, length)
        train += training_factor(critic) * forward_flops(critic, trained, length)
        # The reference model is a copy of the actor, and the critic begins as a copy of the reward model.
        score = 2 * generate + 2 * forward_flops(critic, rows, length)
        found["train_flops"] = _over(train, times.train)
        found["score_flops"] = _over(score, times.score)
        found["e2e_flops"] = _over(generate + score + train, times.iteration)
    return found


def applying(setting: Setting, actor: Model | None) -> Sequence[bool]:
    """Which of `FLAWS` change a figure of this run."""
    bf16 = actor is not None and actor.declared_dtype not in UPSTREAM_BYTES
    return (False, setting.unsupervised, bf16, True)


def _over(value: float, divisor: float) -> float:
    return value / divisor if divisor else float("nan")
