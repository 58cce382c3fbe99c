"""The speeds that DeepSpeed-Chat prints, twice: ``upstream`` as its formulas have them, and ``corrected``.

Both columns count work with the same formula (``pass_flops``); they differ in what they put into it. Everything here is
a plain function of numbers.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

FLAWS = {
    "local batch over world": (
        "stages 1 and 2 divide one rank's batch by the time of all ranks: TFLOPs are too low by the number of ranks, "
        "samples/s count one rank; the clock is read without waiting for the device"
    ),
    "unsupervised batch of 2": (
        "with an unsupervised data set the batch becomes 2 whatever it was, by operator precedence: stage 3's TFLOPs "
        "and samples/s are those of two sequences"
    ),
    "no bandwidth for bf16": "bytes per parameter are known for fp16 and fp32 only: for bf16 it prints -1.00 GB/s",
    "scoring left out": (
        "the end-to-end time is training plus the last batch's generation time times the number of batches: the four "
        "scoring passes and loading of data are left out"
    ),
}
"""What is wrong with the upstream column."""

BYTES_UPSTREAM = {"fp16": 2, "fp32": 4}
UNKNOWN_BANDWIDTH_UPSTREAM = -1.0
BYTES = {"fp16": 2, "bf16": 2, "fp32": 4}
TERA, GIGA = 1e12, 1e9
REWARD_DECAY = 0.9
SCORES = ("score/actor", "score/reference", "score/reward", "score/critic")
TRAINING = ("train/actor", "train/critic", "train/unsupervised")

Column = dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What the formula knows of a model. It takes feed-forward layers to be four times as wide as the model."""

    layers: int
    hidden: int
    vocabulary: int
    parameters: int


@dataclass(frozen=True, slots=True)
class Work:
    """A pass over so many rows of so many tokens, on one rank."""

    rows: int
    length: int


def pass_flops(shape: Shape, rows: float, length: int, factor: float) -> float:
    """``24 f B s L h^2 (1 + s / 6h + V / 16Lh)``; factor 1 is a forward pass."""
    h, layers = shape.hidden, shape.layers
    extra = 1 + length / (6 * h) + shape.vocabulary / (16 * layers * h)
    return 24 * factor * rows * length * layers * h**2 * extra


def training_factor(hidden: int, *, checkpointing: bool = False, lora_rank: int = 0) -> float:
    """Passes per training step in units of a forward: 3, or 4 when activations are computed again; less with LoRA."""
    factor = 4.0 if checkpointing else 3.0
    return factor - (1 - 2 * lora_rank / hidden) if lora_rank else factor


# -- stages 1 and 2 ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisedStep:
    """A micro-step. ``rows`` is a rank's; ``host_s`` is read without waiting for the device, ``s`` after waiting."""

    shape: Shape
    factor: float
    rows: int
    length: int
    ranks: int
    host_s: float
    s: float


def supervised_upstream(step: SupervisedStep) -> Column:
    flops = pass_flops(step.shape, step.rows, step.length, step.factor)
    return {"tflops": flops / (step.host_s * step.ranks * TERA), "samples_per_s": step.rows / step.host_s}


def supervised_corrected(step: SupervisedStep) -> Column:
    """TFLOPs per device; samples of all ranks."""
    flops = pass_flops(step.shape, step.rows, step.length, step.factor)
    return {"tflops": flops / (step.s * TERA), "samples_per_s": step.rows * step.ranks / step.s}


# -- stage 3 -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What stays the same from one PPO iteration to the next. Batches are one rank's."""

    actor: Shape
    critic: Shape
    actor_factor: float
    critic_factor: float
    ranks: int
    generation_batch: int
    generation_batches: int
    ppo_epochs: int
    prompt_length: int
    answer_length: int
    unsupervised: bool
    dtype: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Iteration:
    """One PPO iteration as measured on one rank; the others are taken to have done as much.

    ``phases``: seconds by range name, each read after waiting for the device. ``host_*``: read without waiting.
    """

    host_train_s: float
    host_last_generate_s: float
    phases: Mapping[str, float]
    s: float
    generated: tuple[Work, ...]
    trained: tuple[Work, ...]
    unsupervised: tuple[Work, ...]
    answer_tokens: int


def upstream_batch(setup: Setup) -> int:
    """``a * b * c * d * 1 if no unsupervised set else 2``: the product never reaches the ``else``."""
    if setup.unsupervised:
        return 2
    return setup.generation_batch * setup.generation_batches * setup.ppo_epochs * setup.ranks


def ppo_upstream(setup: Setup, iteration: Iteration) -> Column:
    length = setup.prompt_length + setup.answer_length
    batch = upstream_batch(setup)
    train_s, generate_s = iteration.host_train_s, iteration.host_last_generate_s
    e2e_s = train_s + generate_s * setup.generation_batches
    train = pass_flops(setup.actor, batch, length, setup.actor_factor)
    train += pass_flops(setup.critic, batch, length, setup.critic_factor)
    generate = pass_flops(setup.actor, setup.generation_batch * setup.ranks, length, 1)
    latency = generate_s / setup.answer_length
    known_bytes = BYTES_UPSTREAM.get(setup.dtype)
    bandwidth = UNKNOWN_BANDWIDTH_UPSTREAM
    if known_bytes is not None:
        bandwidth = setup.actor.parameters * known_bytes / latency / GIGA
    return {
        "train_tflops": train / (train_s * setup.ranks * TERA),
        "generate_tflops": generate / (generate_s * setup.ranks * TERA),
        "e2e_tflops": (train + generate * setup.generation_batches) / (e2e_s * setup.ranks * TERA),
        "latency_per_token_s": latency,
        "bandwidth_gb_per_s": bandwidth,
        "samples_per_s": batch / e2e_s,
        "generate_s": generate_s,
        "train_s": train_s,
        "e2e_s": e2e_s,
    }


def ppo_corrected(setup: Setup, iteration: Iteration) -> Column:
    """From what was really generated, scored and trained, over the whole iteration. TFLOPs are per device."""
    phases = iteration.phases
    generate_s = phases.get("generate", 0.0)
    train_s = sum(phases.get(name, 0.0) for name in TRAINING)
    score_s = sum(phases.get(name, 0.0) for name in SCORES)
    train = flops_of(setup.actor, iteration.trained, setup.actor_factor)
    train += flops_of(setup.critic, iteration.trained, setup.critic_factor)
    train += flops_of(setup.actor, iteration.unsupervised, setup.actor_factor)
    generate = flops_of(setup.actor, iteration.generated, 1)
    # actor and reference model are alike, and so are critic and reward model
    score = 2 * generate + 2 * flops_of(setup.critic, iteration.generated, 1)
    decoded = sum(work.length - setup.prompt_length for work in iteration.generated)
    latency = generate_s / decoded
    rows = sum(work.rows for work in iteration.generated)
    return {
        "train_tflops": train / (train_s * TERA),
        "generate_tflops": generate / (generate_s * TERA),
        "score_tflops": score / (score_s * TERA),
        "e2e_tflops": (train + generate + score) / (iteration.s * TERA),
        "latency_per_token_s": latency,
        "bandwidth_gb_per_s": setup.actor.parameters * BYTES[setup.dtype] / latency / GIGA,
        "samples_per_s": rows * setup.ranks / iteration.s,
        "generated_tokens_per_s": iteration.answer_tokens * setup.ranks / generate_s,
        "generate_s": generate_s,
        "score_s": score_s,
        "train_s": train_s,
        "e2e_s": iteration.s,
    }


def flops_of(shape: Shape, passes: Iterable[Work], factor: float) -> float:
    return sum(pass_flops(shape, work.rows, work.length, factor) for work in passes)


# -- printing ------------------------------------------------------------------------------------------------


def moving_reward(before: float | None, reward: float) -> float:
    """The original's smoothed reward; the first one is taken as it is."""
    return reward if before is None else REWARD_DECAY * before + (1 - REWARD_DECAY) * reward


def mean(columns: Iterable[Column]) -> Column:
    columns = list(columns)
    return {name: sum(column[name] for column in columns) / len(columns) for name in columns[0]} if columns else {}


def table(upstream: Column, corrected: Column) -> list[str]:
    """The two columns beside one another; a dash where upstream prints nothing."""
    lines = [f"{'':24}{'as printed upstream':>20}{'corrected':>14}"]
    for name, value in corrected.items():
        printed = f"{upstream[name]:.4g}" if name in upstream else "-"
        lines.append(f"{name:24}{printed:>20}{value:>14.4g}")
    return lines
