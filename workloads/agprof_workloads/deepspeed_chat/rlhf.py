"""Stage 3, PPO: the actor answers prompts, the reward model judges, the actor and the critic learn from it.

Runs as one process (``python -m agprof_workloads.deepspeed_chat.rlhf``), under torchrun and under the deepspeed
launcher. Without checkpoints of stages 1 and 2 it starts from random models. Prints one line per iteration, from rank
0.
"""

import random
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

import agprof
from agprof_workloads.deepspeed_chat import checkpoints, config, data, ema, job, losses, metrics, models, options
from agprof_workloads.deepspeed_chat.job import Job, Phases

NAME = "deepspeed_chat.rlhf"
COMMON = {"generation_batch": 4, "train_batch": 4, "actor_zero_stage": 2, "critic_zero_stage": 2}
DEFAULTS = {
    "tiny": COMMON
    | {
        "iterations": 24,
        "prompt_length": 40,
        "answer_length": 24,
        "dtype": "fp32",
        "actor_learning_rate": 3e-4,
        "critic_learning_rate": 1e-3,
        "warmup_steps": 2,
        "actor_dropout": 0.0,
        "critic_dropout": 0.0,
    },
    "small": COMMON
    | {
        "iterations": 20,
        "prompt_length": 256,
        "answer_length": 256,
        "dtype": "bf16",
        "actor_learning_rate": 9.65e-6,
        "critic_learning_rate": 5e-6,
        "warmup_steps": 2,
    },
    "full": COMMON
    | {
        "iterations": 200,
        "prompt_length": 256,
        "answer_length": 256,
        "dtype": "fp16",
        "actor_learning_rate": 9.65e-6,
        "critic_learning_rate": 5e-6,
        "warmup_steps": 100,
    },
}
POSITIVE = (
    "iterations",
    "generation_batch",
    "generation_batches",
    "train_batch",
    "ppo_epochs",
    "accumulation",
    "prompt_length",
    "answer_length",
    "inference_tp",
)


def main(argv: Sequence[str] | None = None) -> None:
    given = parse(argv)
    try:
        check(given)
        with job.started(given) as running:
            train(given, running)
    except ValueError as error:
        job.finish(NAME, error)


def parse(argv: Sequence[str] | None = None) -> Namespace:
    parser = options.parser_of(NAME, __doc__)
    add = parser.add_argument
    add("--actor-dir", type=Path, help="folder of the actor that stage 1 saved")
    add("--critic-dir", type=Path, help="folder of the reward model that stage 2 saved")
    add("--iterations", type=int, help="PPO iterations")
    add("--generation-batch", type=int, help="prompts answered at a time, per rank")
    add("--generation-batches", type=int, default=1, help="such batches before training on them")
    add("--train-batch", type=int, help="answers per rank and micro-step")
    add("--ppo-epochs", type=int, default=1, help="times that an answer is trained on")
    add("--accumulation", type=int, default=1, help="micro-steps per optimizer step")
    add("--prompt-length", type=int, help="tokens to which prompts are padded; longer ones are left out")
    add("--answer-length", type=int, help="tokens generated, at most")
    for model, stage_help in (
        ("actor", "3 also partitions the reference model"),
        ("critic", "3 also the reward model"),
    ):
        add(f"--{model}-zero-stage", type=int, choices=(0, 1, 2, 3), help=stage_help)
        add(f"--{model}-learning-rate", type=float)
        add(f"--{model}-weight-decay", type=float, default=0.0)
        add(f"--{model}-dropout", type=float)
        add(f"--{model}-lora-rank", type=int, default=0, help="0: no LoRA")
        add(f"--{model}-offload", action="store_true", help=f"--offload for the {model} alone")
    add("--offload-reference", action="store_true", help="keep the reference model's parameters on the CPU, at ZeRO-3")
    add("--warmup-steps", type=int)
    add("--ema", action="store_true", help="keep a slow copy of the actor")
    add("--unsupervised", action="store_true", help="after each PPO micro-step, one on plain text")
    add("--unsupervised-weight", type=float, default=27.8, help="what that loss is multiplied by")
    add("--hybrid-engine", choices=config.HYBRID_CHOICES, default="auto", help="auto: on a GPU")
    add("--inference-tp", type=int, default=1, help="ranks that share a model while it generates, hybrid engine only")
    add("--release-inference-cache", action="store_true", help="hybrid engine: free its cache after generating")
    return options.parsed(parser, argv, DEFAULTS, POSITIVE)


def check(given: Namespace) -> None:
    """Raise on what can be known to be wrong before anything is started."""
    for option, folder, stage in (
        ("--actor-dir", given.actor_dir, "stage 1 (deepspeed_chat.sft)"),
        ("--critic-dir", given.critic_dir, "stage 2 (deepspeed_chat.reward)"),
    ):
        if folder:
            checkpoints.check(folder, option, stage)
        elif given.preset == "full":
            raise ValueError(f"--preset full needs {option}: the folder that {stage} saved with --out")
    check_numbers(given)


def check_numbers(given: Namespace) -> None:
    """Raise on batches that can't be divided as asked."""
    answers = given.generation_batch * given.generation_batches
    if given.generation_batch % given.train_batch:
        raise ValueError(
            f"--generation-batch {given.generation_batch} must be a multiple of --train-batch {given.train_batch}"
        )
    micro_steps = given.iterations * answers // given.train_batch * given.ppo_epochs
    if micro_steps < given.accumulation:
        raise ValueError(
            f"--accumulation {given.accumulation} is more than the {micro_steps} micro-steps of the whole run"
        )


def train(given: Namespace, running: Job) -> Path | None:
    """The whole stage; where actor and critic were saved."""
    job.seed(given.seed)
    tokenizer = options.tokenizer_of(given, given.actor_dir)
    if given.critic_dir and checkpoints.tokenizer_from(given.critic_dir).vocab_size != tokenizer.vocab_size:
        raise ValueError(
            f"--critic-dir {given.critic_dir}: its tokenizer is another than the actor's, so it can't judge its answers"
        )
    rows, _ = data.rows_of(options.texts_of(given), data.parse_parts(given.data_split), 3, given.seed)
    prompts, texts = loaders(rows, tokenizer, given, running)
    team = Team.start(tokenizer, given, running)
    running.say(
        f"{len(prompts.dataset)} prompts of {len(rows)}, {options.source(given)}; "
        f"{running.ranks} x {running.device.type}, {given.dtype}, "
        f"ZeRO-{given.actor_zero_stage} actor, ZeRO-{given.critic_zero_stage} critic"
    )
    Ppo(team, tokenizer.pad_token_id, given, running).run(data.forever(prompts), texts and data.forever(texts))

    folder = checkpoints.step3_folder(given.out, given.preset) if given.out else None
    if folder:
        saved = {"actor": team.actor, "critic": team.critic} | ({"actor_ema": team.average} if team.average else {})
        for name, engine in saved.items():
            checkpoints.save(engine.module, tokenizer, folder / name, running.rank)
        running.say(f"{', '.join(saved)} saved in {folder}")
    job.release(*team.engines())
    return folder


def loaders(rows: Sequence[Any], tokenizer: Any, given: Namespace, running: Job) -> tuple[Any, Any | None]:
    """Of prompts, and of plain text where it is asked for."""
    place = (running.rank, running.ranks)
    prompts = data.loader(
        data.prompt_rows(rows, tokenizer, given.prompt_length),
        data.CollatePrompts(given.prompt_length, tokenizer.pad_token_id),
        given.generation_batch,
        *place,
        shuffle=True,
    )
    if not given.unsupervised:
        return prompts, None
    blocks = data.text_blocks(rows, tokenizer, given.prompt_length + given.answer_length)
    return prompts, data.loader(blocks, data.collate_blocks, given.train_batch, *place, shuffle=True)


# -- the models ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Team:
    """Engines: two that train, and two or three that only score or follow."""

    actor: Any
    reference: Any
    average: Any | None
    critic: Any
    reward: Any

    def engines(self) -> list[Any]:
        return [engine for engine in (self.actor, self.reference, self.average, self.critic, self.reward) if engine]

    @staticmethod
    def start(tokenizer: Any, given: Namespace, running: Job) -> "Team":
        """Actor first, so that its steps are what a profiler counts."""

        def actor_model() -> Any:
            # the reference model and the average must begin as copies of the actor, even of a random one
            torch.manual_seed(given.seed)
            if given.actor_dir:
                return models.actor_from(given.actor_dir, tokenizer, given.actor_dropout)
            return models.random_actor(models.ACTORS[given.preset], tokenizer, given.actor_dropout)

        def critic_model() -> Any:
            torch.manual_seed(given.seed + 1)
            if given.critic_dir:
                return checkpoints.reward_model_from(given.critic_dir, tokenizer, given.critic_dropout)
            return models.random_reward_model(models.CRITICS[given.preset], tokenizer, given.critic_dropout)

        hybrid = hybrid_of(given, running)
        actor = train_engine("actor", actor_model(), given, running, hybrid)
        containers = len(getattr(actor, "_inference_containers", ()))
        running.say(f"HE containers: {containers}")
        follower = follower_of(given, running, given.actor_zero_stage, offload=given.offload_reference)
        reference = job.score_engine(actor_model(), follower)
        average = None
        if given.ema:
            average_model = actor_model()
            # the average follows parameter by parameter, so it has the actor's low-rank layers, too
            job.prepare_lora(average_model, given.actor_lora_rank, only=False)
            average = job.score_engine(average_model, follower)
        critic = train_engine("critic", critic_model(), given, running, None)
        reward = job.score_engine(critic_model(), follower_of(given, running, given.critic_zero_stage, offload=False))
        # model building has drawn from the generator; what follows must not depend on how much
        torch.manual_seed(given.seed)
        return Team(actor, reference, average, critic, reward)


def train_engine(which: str, model: Any, given: Namespace, running: Job, hybrid: config.Hybrid | None) -> Any:
    option = vars(given)
    job.prepare_lora(model, option[f"{which}_lora_rank"], only=given.only_optimize_lora)
    if given.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    # a PPO micro-step and an unsupervised one make up what was one, for the actor
    twice = 2 if which == "actor" and given.unsupervised else 1
    engine = config.Engine(
        micro_batch=given.train_batch,
        accumulation=given.accumulation * twice,
        ranks=running.ranks,
        zero_stage=option[f"{which}_zero_stage"],
        offload=given.offload or option[f"{which}_offload"],
        dtype=given.dtype,
    )
    micro_steps = given.iterations * given.generation_batches * (given.generation_batch // given.train_batch)
    training = job.Training(
        learning_rate=option[f"{which}_learning_rate"],
        lora_learning_rate=given.lora_learning_rate,
        weight_decay=option[f"{which}_weight_decay"],
        schedule=given.schedule,
        warmup_steps=given.warmup_steps,
        total_steps=micro_steps * given.ppo_epochs // given.accumulation,
    )
    started = job.train_engine(model, engine, training, running, hybrid)
    start = option[f"{which}_dir"] or "random weights: no training went before"
    running.say(f"stage 3, {which} of {job.counted(model)}, from {start}")
    return started


def follower_of(given: Namespace, running: Job, stage: int, *, offload: bool) -> config.Engine:
    """A model without optimizer is whole on every rank, unless the one that it goes with is partitioned."""
    return config.Engine(
        micro_batch=given.train_batch,
        accumulation=1,
        ranks=running.ranks,
        zero_stage=3 if stage == 3 else 0,
        offload=offload,
        dtype=given.dtype,
    )


def hybrid_of(given: Namespace, running: Job) -> config.Hybrid | None:
    refused = config.hybrid_refused(
        given.hybrid_engine,
        device=running.device.type,
        actor_stage=given.actor_zero_stage,
        critic_stage=given.critic_zero_stage,
        offload=given.offload or given.actor_offload,
        lora=bool(given.actor_lora_rank),
        tensor_parallel=given.inference_tp,
    )
    running.say(f"hybrid engine: {f'off ({refused})' if refused else 'on'}")
    if refused:
        return None
    return config.Hybrid(
        longest_output=given.prompt_length + given.answer_length,
        tensor_parallel=given.inference_tp,
        release_cache=given.release_inference_cache,
    )


# -- the loop ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Experience:
    """Generated sequences and what the four models made of them. Rows are sequences; ``log_probs``, ``reference`` and
    ``values`` have one column less than ``ids``.
    """

    ids: Tensor
    attention_mask: Tensor
    log_probs: Tensor
    reference: Tensor
    values: Tensor
    scores: Tensor

    def cut(self, rows: int) -> Iterator["Experience"]:
        parts = [getattr(self, name).split(rows) for name in self.__slots__]
        return (Experience(*tensors) for tensors in zip(*parts, strict=True))


class Ppo:
    """An iteration: generate, score, then train actor and critic on what was generated."""

    def __init__(self, team: Team, pad: int, given: Namespace, running: Job) -> None:
        self._team, self._pad, self._given, self._running = team, pad, given, running
        self._phases = Phases(running.device)
        self._order = random.Random(given.seed)
        self._last_answers: Tensor | None = None
        self._start = given.prompt_length - 1
        self._setup = setup_of(team, given, running)
        self._reward: float | None = None

    def run(self, prompts: Iterator[Any], texts: Iterator[Any] | None) -> None:
        upstream, corrected = [], []
        for number in range(1, self._given.iterations + 1):
            columns = self.iterate(number, prompts, texts)
            # the first iteration pays for allocations and kernels that later ones find ready
            if number > 1 or self._given.iterations == 1:
                upstream.append(columns[0])
                corrected.append(columns[1])
        for line in metrics.table(metrics.mean(upstream), metrics.mean(corrected)):
            self._running.say(line)
        self._running.say(f"upstream's flaws: {'; '.join(metrics.FLAWS)} (docs/deepspeed_chat.md)")

    def iterate(
        self, number: int, prompts: Iterator[Any], texts: Iterator[Any] | None
    ) -> tuple[metrics.Column, metrics.Column]:
        given, phases = self._given, self._phases
        phases.restart()
        began = time.perf_counter()
        experiences, generated, answer_tokens = [], [], 0
        host_generate_s = 0.0
        for _ in range(given.generation_batches):
            with phases("data"):
                batch = next(prompts).to(self._running.device)
            with phases("generate"):
                ids = self.generate(batch)
            host_generate_s = phases.last_host_s["generate"]
            ids = self.with_answers(ids)
            experience = self.score(ids)
            answer_tokens += int(experience.attention_mask[:, given.prompt_length :].sum())
            generated.append(metrics.Work(*ids.shape))
            experiences.append(experience)

        training_began = time.perf_counter()
        seen, trained, plain = self.learn(experiences, texts)
        host_train_s = time.perf_counter() - training_began
        job.wait_for(self._running.device)
        iteration = metrics.Iteration(
            host_train_s=host_train_s,
            host_last_generate_s=host_generate_s,
            phases=dict(phases.seconds),
            s=time.perf_counter() - began,
            generated=tuple(generated),
            trained=tuple(trained),
            unsupervised=tuple(plain),
            answer_tokens=answer_tokens,
        )
        scores = torch.cat([experience.scores for experience in experiences]).float()
        return self.report(number, iteration, seen, float(scores.mean()))

    @torch.no_grad()
    def generate(self, batch: data.PromptBatch) -> Tensor:
        """Prompts with their answers; the answers' lengths are those of the longest."""
        actor = self._team.actor
        actor.eval()
        # the module's own generate: the hybrid engine puts its faster one in its place where it has one
        ids: Tensor = actor.module.generate(
            batch.input_ids,
            attention_mask=batch.attention_mask,
            max_length=self._given.prompt_length + self._given.answer_length,
            pad_token_id=self._pad,
            do_sample=False,
            synced_gpus=self._given.actor_zero_stage == 3,
        )
        actor.train()
        return ids

    def with_answers(self, ids: Tensor) -> Tensor:
        """Leave out rows whose answer has at most one token; when none is left, take the last batch that had some."""
        answered = (ids[:, self._given.prompt_length :] != self._pad).sum(dim=1) > 1
        if answered.any():
            self._last_answers = ids[answered]
        elif self._last_answers is None:
            # nothing to fall back on yet: all ranks must go on with something
            self._last_answers = ids
        return self._last_answers

    @torch.no_grad()
    def score(self, ids: Tensor) -> Experience:
        team, phases = self._team, self._phases
        mask = (ids != self._pad).long()
        team.actor.eval()
        team.critic.eval()
        with phases("score/actor"):
            log_probs = losses.log_probabilities(team.actor(input_ids=ids, attention_mask=mask).logits, ids)
        with phases("score/reference"):
            reference = losses.log_probabilities(team.reference(input_ids=ids, attention_mask=mask).logits, ids)
        with phases("score/reward"):
            values = team.reward(ids, mask)
            scores = losses.answer_scores(values, ids, self._given.prompt_length, self._pad)
        with phases("score/critic"):
            values = team.critic(ids, mask)[:, :-1]
        team.actor.train()
        team.critic.train()
        return Experience(ids, mask, log_probs, reference, values.float(), scores.float())

    def learn(
        self, experiences: Sequence[Experience], texts: Iterator[Any] | None
    ) -> tuple[dict[str, list[float]], list[metrics.Work], list[metrics.Work]]:
        """The PPO epochs over what was generated; losses by name, and the passes that were made."""
        team, given, phases = self._team, self._given, self._phases
        seen: dict[str, list[float]] = {}
        trained, plain = [], []
        mini_batches = [part for experience in experiences for part in experience.cut(given.train_batch)]
        for _ in range(given.ppo_epochs):
            for part in mini_batches:
                self.learn_from(part, seen)
                trained.append(metrics.Work(*part.ids.shape))
                if texts is not None:
                    with phases("data"):
                        batch = next(texts).to(self._running.device)
                    with phases("train/unsupervised"):
                        loss = self.learn_text(batch)
                    self.note(seen, "unsupervised", loss)
                    plain.append(metrics.Work(*batch.input_ids.shape))
                if team.average is not None:
                    with phases("ema"):
                        ema.update(team.average.module, team.actor.module)
            self._order.shuffle(mini_batches)
        return seen, trained, plain

    def learn_from(self, part: Experience, seen: dict[str, list[float]]) -> None:
        """One micro-step of the actor, then one of the critic."""
        team, start, phases = self._team, self._start, self._phases
        mask = part.attention_mask[:, 1:]
        rewards = losses.kl_rewards(part.log_probs, part.reference, part.scores, mask, start)
        values = losses.zeroed_after_end(part.values, mask, start)
        advantages, returns = losses.advantages_and_returns(values, rewards, start)
        answer = mask[:, start:]
        with phases("train/actor"):
            logits = team.actor(input_ids=part.ids, attention_mask=part.attention_mask, use_cache=False).logits
            log_probs = losses.log_probabilities(logits, part.ids)[:, start:]
            actor_loss = losses.actor_loss(log_probs, part.log_probs[:, start:], advantages, answer)
            team.actor.backward(actor_loss)
            unpadded = int(part.attention_mask.sum())
            agprof.step(tokens=part.ids.numel(), samples=len(part.ids), unpadded_tokens=unpadded)
            team.actor.step()
            self.note(seen, "actor", actor_loss)
        with phases("train/critic"):
            new_values = team.critic(part.ids, part.attention_mask)[:, start:-1]
            critic_loss = losses.critic_loss(new_values, values[:, start:], returns, answer)
            team.critic.backward(critic_loss)
            team.critic.step()
            self.note(seen, "critic", critic_loss)

    def learn_text(self, batch: data.LanguageBatch) -> Tensor:
        actor = self._team.actor
        output = actor(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels, use_cache=False
        )
        loss: Tensor = self._given.unsupervised_weight * output.loss
        actor.backward(loss)
        unpadded = int(batch.attention_mask.sum())
        agprof.step(tokens=batch.input_ids.numel(), samples=len(batch.input_ids), unpadded_tokens=unpadded)
        actor.step()
        return loss

    def note(self, seen: dict[str, list[float]], name: str, loss: Tensor) -> None:
        value = job.as_float(loss)
        self._running.log_loss(value)
        seen.setdefault(name, []).append(value)

    def report(
        self, number: int, iteration: metrics.Iteration, seen: dict[str, list[float]], reward: float
    ) -> tuple[metrics.Column, metrics.Column]:
        upstream = metrics.ppo_upstream(self._setup, iteration)
        corrected = metrics.ppo_corrected(self._setup, iteration)
        (reward,) = self._running.average([reward])
        self._reward = metrics.moving_reward(self._reward, reward)
        mean_losses = {name: fmean(values) for name, values in seen.items()}
        self._running.say(
            f"iteration {number}/{self._given.iterations} reward {reward:.4f} (smoothed {self._reward:.4f}) "
            + " ".join(f"{name} {loss:.4f}" for name, loss in mean_losses.items())
            + f" | generate {1000 * corrected['generate_s']:.0f} score {1000 * corrected['score_s']:.0f} "
            f"train {1000 * corrected['train_s']:.0f} of {1000 * iteration.s:.0f} ms; end to end "
            f"{1000 * upstream['e2e_s']:.0f} ms as printed upstream, {1000 * corrected['e2e_s']:.0f} corrected"
        )
        self._running.log_metrics(
            {
                "stage": "rlhf",
                "iteration": number,
                "generate_s": corrected["generate_s"],
                "train_s": corrected["train_s"],
                "e2e_s": iteration.s,
                "reward": reward,
                "reward_smoothed": self._reward,
                "losses": mean_losses,
                "phases": dict(iteration.phases),
                "upstream": upstream,
                "corrected": corrected,
            }
        )
        return upstream, corrected


def setup_of(team: Team, given: Namespace, running: Job) -> metrics.Setup:
    actor, critic = job.shape_of(team.actor.module), job.shape_of(team.critic.module)
    checkpointing = given.gradient_checkpointing
    return metrics.Setup(
        actor=actor,
        critic=critic,
        actor_factor=metrics.training_factor(
            actor.hidden, checkpointing=checkpointing, lora_rank=given.actor_lora_rank
        ),
        critic_factor=metrics.training_factor(
            critic.hidden, checkpointing=checkpointing, lora_rank=given.critic_lora_rank
        ),
        ranks=running.ranks,
        generation_batch=given.generation_batch,
        generation_batches=given.generation_batches,
        ppo_epochs=given.ppo_epochs,
        prompt_length=given.prompt_length,
        answer_length=given.answer_length,
        unsupervised=given.unsupervised,
        dtype=given.dtype,
    )


if __name__ == "__main__":
    main()
