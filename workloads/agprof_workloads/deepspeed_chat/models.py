"""The actor (OPT with its language-model head) and the reward model or critic (OPT with one number per token)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

PADDED_TO = 8
"""Rows of the embedding are a multiple of this, which matrix units like."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """An OPT model. ``word_projection`` is the embedding's width: other than ``hidden``, OPT projects in and out."""

    hidden: int
    feed_forward: int
    layers: int
    heads: int
    word_projection: int
    norm_first: bool
    positions: int
    least_vocabulary: int


def opt_125m() -> Size:
    return Size(
        hidden=768,
        feed_forward=3072,
        layers=12,
        heads=12,
        word_projection=768,
        norm_first=True,
        positions=2048,
        least_vocabulary=50_272,
    )


# the tiny pair differs as OPT-1.3B and OPT-350M do: the smaller one normalises last and projects its embedding
TINY_ACTOR = Size(
    hidden=64,
    feed_forward=128,
    layers=2,
    heads=4,
    word_projection=64,
    norm_first=True,
    positions=512,
    least_vocabulary=0,
)
TINY_CRITIC = Size(
    hidden=64,
    feed_forward=128,
    layers=2,
    heads=4,
    word_projection=32,
    norm_first=False,
    positions=512,
    least_vocabulary=0,
)
ACTORS = {"tiny": TINY_ACTOR, "small": opt_125m()}
CRITICS = {"tiny": TINY_CRITIC, "small": opt_125m()}


class RewardModel(nn.Module):
    """A base model without its head, and a linear layer that gives every token a value.

    Parameter names are the original's: ``rwtransformer.…`` and ``v_head.weight``.
    """

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.config = base.config
        width = getattr(base.config, "word_embed_proj_dim", base.config.hidden_size)
        self.rwtransformer = base
        self.v_head = nn.Linear(width, 1, bias=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Ids and mask, both rows x tokens; the values, rows x tokens."""
        states = self.rwtransformer(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)[0]
        values: Tensor = self.v_head(states).squeeze(-1)
        return values

    def gradient_checkpointing_enable(self) -> None:
        self.rwtransformer.gradient_checkpointing_enable()


def random_actor(size: Size, tokenizer: Any, dropout: float | None = None) -> Any:
    from transformers import OPTForCausalLM

    return OPTForCausalLM(opt_config(size, tokenizer, dropout))


def random_reward_model(size: Size, tokenizer: Any, dropout: float | None = None) -> RewardModel:
    from transformers import OPTModel

    return RewardModel(OPTModel(opt_config(size, tokenizer, dropout)))


def opt_config(size: Size, tokenizer: Any, dropout: float | None) -> Any:
    from transformers import OPTConfig

    config = OPTConfig(
        vocab_size=max(padded(len(tokenizer)), size.least_vocabulary),
        hidden_size=size.hidden,
        ffn_dim=size.feed_forward,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        word_embed_proj_dim=size.word_projection,
        do_layer_norm_before=size.norm_first,
        max_position_embeddings=size.positions,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return with_dropout(config, dropout)


def actor_from(folder: Path, tokenizer: Any, dropout: float | None = None) -> Any:
    """The language model in a Hugging Face folder, its embedding widened to the tokenizer's vocabulary."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = with_dropout(AutoConfig.from_pretrained(folder), dropout)
    model = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32)
    return fitted(model, tokenizer)


def reward_model_on(folder: Path, tokenizer: Any, dropout: float | None = None) -> RewardModel:
    """A new reward model on the base model in a Hugging Face folder: where stage 2 begins."""
    from transformers import AutoConfig, AutoModel

    config = with_dropout(AutoConfig.from_pretrained(folder), dropout)
    return RewardModel(fitted(AutoModel.from_pretrained(folder, config=config, dtype=torch.float32), tokenizer))


def fitted(model: Any, tokenizer: Any) -> Any:
    wanted = padded(len(tokenizer))
    if model.config.vocab_size < wanted:
        # drawing the new rows from the old ones' covariance takes minutes at full size, and training overwrites them
        model.resize_token_embeddings(wanted, mean_resizing=False)
    model.config.end_token_id = tokenizer.eos_token_id
    model.config.pad_token_id = tokenizer.pad_token_id
    return model


def with_dropout(config: Any, dropout: float | None) -> Any:
    """Set every kind of dropout that the architecture may know, or leave the configuration as it is."""
    if dropout is not None:
        for name in ("dropout", "attention_dropout", "hidden_dropout", "activation_dropout"):
            if hasattr(config, name):
                setattr(config, name, dropout)
    return config


def padded(count: int) -> int:
    return -(-count // PADDED_TO) * PADDED_TO


def parameter_count(model: nn.Module) -> int:
    """Under ZeRO-3 each rank holds a part; DeepSpeed keeps the whole count."""
    return sum(int(getattr(parameter, "ds_numel", parameter.numel())) for parameter in model.parameters())
