"""The parts of an RLHF iteration in a script that names none of them: fake engines around a real, tiny OPT."""

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from rank_streams import faults

import agprof
from agprof.instruments import rlhf

transformers = pytest.importorskip("transformers")
generation_code = pytest.importorskip("transformers.generation.utils")

PAD = 1


def tiny_opt():
    config = transformers.OPTConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, ffn_dim=32, num_attention_heads=2,
        max_position_embeddings=32, word_embed_proj_dim=16, dropout=0.0, pad_token_id=PAD, eos_token_id=None,
        bos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.OPTForCausalLM(config).eval()


def modules():
    """Modules as DeepSpeed and DeepSpeed-Chat have them, as far as the instrument looks at them."""

    class RewardModel(torch.nn.Module):
        """A base model without head, called through a method of its own."""

        def __init__(self):
            super().__init__()
            self.rwtransformer = tiny_opt().model
            self.config = self.rwtransformer.config
            self.v_head = torch.nn.Linear(16, 1, bias=False)

        def forward_value(self, ids):
            return self.v_head(self.rwtransformer(ids).last_hidden_state).squeeze(-1)

    class DeepSpeedEngine(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.module = model
            self.optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

        def __getattr__(self, name):
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(super().__getattr__("module"), name)

        def forward(self, *args, **kwargs):
            return self.module(*args, **kwargs)

        def backward(self, loss):
            loss.backward()

        def step(self):
            self.optimizer.step()
            self.optimizer.zero_grad()

    class DeepSpeedRLHFEngine:
        def __init__(self, args):
            self.args = args
            self.actor, self.ref = DeepSpeedEngine(tiny_opt()), DeepSpeedEngine(tiny_opt())
            self.critic, self.reward = DeepSpeedEngine(RewardModel()), DeepSpeedEngine(RewardModel())
            self.actor_ema = None

    class DeepSpeedPPOTrainerUnsupervised:
        def train_unsupervised(self, engine, ids):
            loss = engine(ids).logits.float().mean()
            engine.backward(loss)
            engine.step()

    def moving_average(_model, _average):
        return None

    return SimpleNamespace(
        engine=SimpleNamespace(DeepSpeedEngine=DeepSpeedEngine),
        reward=SimpleNamespace(RewardModel=RewardModel),
        roles=SimpleNamespace(DeepSpeedRLHFEngine=DeepSpeedRLHFEngine),
        trainer=SimpleNamespace(DeepSpeedPPOTrainerUnsupervised=DeepSpeedPPOTrainerUnsupervised),
        utils=SimpleNamespace(moving_average=moving_average),
    )


def owners(found):
    return [
        found.engine.DeepSpeedEngine, found.roles.DeepSpeedRLHFEngine, found.trainer.DeepSpeedPPOTrainerUnsupervised,
        found.reward.RewardModel, found.utils, generation_code.GenerationMixin,
    ]  # fmt: skip


@pytest.fixture
def armed(arm):
    """A rank, the instrument that looks at the fake modules, and a check that nothing of it is left."""
    found = modules()
    before = [dict(vars(owner)) for owner in owners(found)]
    rig = arm()
    parts = rlhf.RlhfParts(rig.recorder, torch)
    parts.arm_generate(generation_code)
    parts.arm_engine(found.engine)
    parts.arm_roles(found.roles)
    parts.arm_reward_model(found.reward)
    parts.arm_trainer(found.trainer)
    parts.arm_utils(found.utils)
    yield rig, found
    rig.finish()
    assert [dict(vars(owner)) for owner in owners(found)] == before


SETTINGS = SimpleNamespace(ppo_epochs=1, generation_batches=1, max_answer_seq_len=4, dtype="bf16", secret="no")


def prompts():
    return torch.full((3, 5), 7)


def iterate(roles, found, ranges=None):
    """An iteration as DeepSpeed-Chat has it, and what it computed. `ranges`: those of a script that names its parts."""
    part = ranges or (lambda _name: torch.enable_grad())
    with part("generate"), torch.no_grad():
        sequences = roles.actor.module.generate(prompts(), max_new_tokens=4, do_sample=False, pad_token_id=PAD)
    with torch.no_grad():
        with part("score/actor"), torch.no_grad():
            scored = roles.actor(sequences).logits
        with part("score/reference"), torch.no_grad():
            scored = scored - roles.ref(sequences).logits
        with part("score/reward"), torch.no_grad():
            rewards = roles.reward.forward_value(sequences)
        with part("score/critic"), torch.no_grad():
            values = roles.critic.forward_value(sequences)
    with part("train/actor"):
        loss = (roles.actor(sequences).logits.float().mean() - scored.mean()) ** 2
        roles.actor.backward(loss)
        roles.actor.step()
    with part("train/critic"):
        value_loss = (roles.critic.forward_value(sequences) - values - rewards).pow(2).mean()
        roles.critic.backward(value_loss)
        roles.critic.step()
    with part("ema"):
        found.utils.moving_average(roles.actor, None)
    return sequences, loss.detach(), value_loss.detach()


def ranges_of(tables):
    return [span.name for span in sorted(tables["spans"], key=lambda s: s.start_ns) if span.category == "range"]


PARTS = [
    "generate", "score/actor", "score/reference", "score/reward", "score/critic",
    *["train/actor"] * 3, *["train/critic"] * 3, "ema",
]  # fmt: skip
"""Of a training: forward, backward, step."""


def test_the_parts_of_an_iteration_are_recognised(armed):
    rig, found = armed
    roles = found.roles.DeepSpeedRLHFEngine(args=SETTINGS)
    for _ in range(2):
        iterate(roles, found)
    tables = rig.finish()
    assert ranges_of(tables) == PARTS * 2
    assert not faults(tables)
    facts = {row.key: row.value for row in tables["facts"]}
    assert (facts["rlhf.actor.layers"], facts["rlhf.actor.hidden"]) == ("2", "16")
    assert facts["rlhf.critic.vocab"] == "40"
    assert facts["rlhf.settings"] == (
        '{"generation_batches": 1, "ppo_epochs": 1, "max_answer_seq_len": 4, "dtype": "bf16"}'
    )


def test_generations_are_counted(armed):
    rig, found = armed
    roles = found.roles.DeepSpeedRLHFEngine(args=SETTINGS)
    iterate(roles, found)
    model = roles.actor.module
    model.generate(inputs_embeds=torch.zeros(2, 6, 16), max_new_tokens=3, do_sample=False, pad_token_id=PAD)
    model.generate(
        input_ids=prompts(), max_new_tokens=2, num_beams=2, num_return_sequences=2, do_sample=False, pad_token_id=PAD,
        return_dict_in_generate=True,
    )  # fmt: skip
    rows = rig.finish()["generations"]
    assert [(row.batch, row.prompt_tokens, row.new_tokens) for row in rows] == [(3, 5, 4), (2, 6, 3), (6, 5, 2)]
    assert all(row.end_ns > row.start_ns for row in rows)


def test_ranges_of_the_training_win(armed):
    rig, found = armed
    roles = found.roles.DeepSpeedRLHFEngine(args=SETTINGS)
    iterate(roles, found, ranges=agprof.range)
    tables = rig.finish()
    assert ranges_of(tables) == [
        "generate", "score/actor", "score/reference", "score/reward", "score/critic", "train/actor", "train/critic",
        "ema",
    ]  # fmt: skip
    assert len(tables["generations"]) == 1


def test_ranges_tell_the_roles_where_no_engine_does(rig):
    parts = rlhf.RlhfParts(rig.recorder, torch)
    rig.recorder.open_range("score/critic")
    parts.on_root(modules().reward.RewardModel())
    rig.recorder.close_range()
    parts.on_root(torch.nn.Linear(2, 2))
    facts = {row.key: row.value for row in rig.finish()["facts"]}
    assert facts["rlhf.critic.hidden"] == "16"
    assert not any(key.startswith("rlhf.actor") for key in facts)


def test_the_unsupervised_step_is_one_part(armed):
    rig, found = armed
    roles = found.roles.DeepSpeedRLHFEngine(args=SETTINGS)
    found.trainer.DeepSpeedPPOTrainerUnsupervised().train_unsupervised(roles.actor, prompts())
    assert ranges_of(rig.finish()) == ["train/unsupervised"]


def test_engines_without_roles_have_numbers_once_something_was_generated(armed):
    rig, found = armed
    actor, critic = (found.engine.DeepSpeedEngine(tiny_opt()) for _ in range(2))
    for _ in range(2):
        actor.backward(actor(prompts()).logits.mean())
        actor.module.generate(prompts(), max_new_tokens=1, do_sample=False, pad_token_id=PAD)
        with torch.no_grad():
            critic(prompts())
    assert ranges_of(rig.finish()) == [
        "generate",
        "score/engine 1",
        *["train/engine 0"] * 2,
        "generate",
        "score/engine 1",
    ]


def test_one_engine_that_generates_is_no_rlhf(armed):
    rig, found = armed
    engine = found.engine.DeepSpeedEngine(tiny_opt())
    for _ in range(2):
        engine.module.generate(prompts(), max_new_tokens=1, do_sample=False, pad_token_id=PAD)
        engine.backward(engine(prompts()).logits.mean())
        engine.step()
    assert ranges_of(rig.finish()) == ["generate"] * 2


def test_numbers_are_the_same_with_and_without(arm):
    def numbers(instrumented):
        found = modules()
        if instrumented:
            rig = arm()
            parts = rlhf.RlhfParts(rig.recorder, torch)
            parts.arm_generate(generation_code)
            parts.arm_engine(found.engine)
            parts.arm_roles(found.roles)
            parts.arm_reward_model(found.reward)
        torch.manual_seed(1)
        roles = found.roles.DeepSpeedRLHFEngine(args=SETTINGS)
        results = [iterate(roles, found) for _ in range(3)]
        if instrumented:
            rig.finish()
        return results

    for one, other in zip(numbers(False), numbers(True), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_failure_is_a_fault_and_nothing_else(armed, monkeypatch):
    rig, found = armed

    def broken(*_args):
        raise RuntimeError("on purpose")

    for name in ("model_facts", "is_part", "generated"):
        monkeypatch.setattr(rlhf, name, broken)
    roles = found.roles.DeepSpeedRLHFEngine(args=SETTINGS)
    for _ in range(2):
        sequences, _, _ = iterate(roles, found)
    assert sequences.shape == (3, 9)
    tables = rig.finish()
    assert [row.count for row in tables["faults"] if row.instrument == "rlhf"] == [1, 2, 3]


def test_an_error_in_generate_passes_through_and_ends_its_range(armed):
    rig, _found = armed
    model = tiny_opt()
    with pytest.raises(Exception, match="max_new_tokens"):
        model.generate(prompts(), max_new_tokens=-1)
    model.generate(prompts(), max_new_tokens=1, do_sample=False, pad_token_id=PAD)
    tables = rig.finish()
    assert ranges_of(tables) == ["generate"] * 2
    assert len(tables["generations"]) == 1


def test_models_can_be_copied_and_pickled_while_hooked(armed):
    rig, found = armed
    roles = found.roles.DeepSpeedRLHFEngine(args=SETTINGS)
    model = roles.critic.module.rwtransformer
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with torch.no_grad():
            assert torch.equal(twin(prompts()).last_hidden_state, model(prompts()).last_hidden_state)
    assert ranges_of(rig.finish()) == ["score/critic"] * 2


def test_hooks_are_gone_after_disarming(armed):
    rig, found = armed
    roles = found.roles.DeepSpeedRLHFEngine(args=SETTINGS)
    rig.finish()
    engines = (roles.actor, roles.ref, roles.critic, roles.reward)
    assert not any(module._forward_hooks or module._forward_pre_hooks for e in engines for module in e.modules())
