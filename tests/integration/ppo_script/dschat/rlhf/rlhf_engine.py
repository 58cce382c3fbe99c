import deepspeed
from transformers import OPTConfig, OPTForCausalLM

from dschat.utils.model.reward_model import RewardModel


def opt():
    config = OPTConfig(
        vocab_size=128, hidden_size=32, num_hidden_layers=2, ffn_dim=64, num_attention_heads=2, word_embed_proj_dim=32,
        max_position_embeddings=64, bos_token_id=2, eos_token_id=None, pad_token_id=1, dropout=0.0,
    )  # fmt: skip
    return OPTForCausalLM(config)


def engine(model, trains):
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 1,
        "zero_optimization": {"stage": 2 if trains else 0},
    }
    if not trains:
        return deepspeed.initialize(model=model, config=config)[0]
    config["optimizer"] = {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}}
    return deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config)[0]


class DeepSpeedRLHFEngine:
    def __init__(self, args):
        self.args = args
        self.actor, self.ref = engine(opt(), trains=True), engine(opt(), trains=False)
        self.actor_ema = engine(opt(), trains=False)
        self.critic, self.reward = (engine(RewardModel(opt().model), trains) for trains in (True, False))
