import socket
from types import SimpleNamespace

import pytest
import torch
from rank_streams import faults

from agprof.instruments.deepspeed_engine import EnginePhases, neutralise_shm_op
from agprof.instruments.training import TrainingLoop
from agprof.model.settings import InstrumentSettings


def engine_class():
    class DeepSpeedEngine(torch.nn.Module):
        """As much of DeepSpeed's engine as the instrument looks at."""

        def __init__(self, model, accumulation=2):
            super().__init__()
            self.module = model
            self.basic_optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            self.accumulation = accumulation
            self.micro_steps = self.global_steps = 0
            self._config = SimpleNamespace(zero_config=SimpleNamespace(offload_optimizer=None), _param_dict={"a": 1})

        zero_optimization_stage = train_micro_batch_size_per_gpu = lambda self: 2

        def gradient_accumulation_steps(self):
            return self.accumulation

        def forward(self, x):
            return self.module(x)

        def backward(self, loss, scale_wrt_gas=True):
            (loss / self.accumulation).backward()

        def step(self, lr_kwargs=None):
            self.micro_steps += 1
            if self.micro_steps % self.accumulation == 0:
                self._take_model_step(lr_kwargs)

        def _take_model_step(self, lr_kwargs):
            self.basic_optimizer.step()
            self.global_steps += 1

    return DeepSpeedEngine


@pytest.fixture
def armed(arm):
    rig = arm()
    module = SimpleNamespace(DeepSpeedEngine=engine_class())
    # The loop that the bootstrap made is reached through the hook that it patched in.
    loop = torch.Tensor.backward.__closure__
    loop = next(cell.cell_contents for cell in loop if isinstance(cell.cell_contents, TrainingLoop))
    original = dict(vars(module.DeepSpeedEngine))
    EnginePhases(rig.recorder, loop).arm(module)
    yield rig, module.DeepSpeedEngine
    rig.finish()
    assert dict(vars(module.DeepSpeedEngine)) == original


def test_the_engines_boundary_ends_the_step(armed):
    rig, engine_type = armed
    engine = engine_type(torch.nn.Linear(3, 1))
    losses = []
    for number in range(4):
        loss = engine(torch.ones(2, 3)).sum()
        losses.append(loss.item())
        engine.backward(loss=loss) if number % 2 else engine.backward(loss)
        engine.step()
    tables = rig.finish()
    assert [row.micro_steps for row in tables["steps"]] == [2, 2]
    assert [row.loss for row in tables["micro_steps"]] == losses
    assert [span.name for span in tables["spans"]] == ["forward", "backward", "optimizer"] * 4
    facts = {row.key: row.value for row in tables["facts"]}
    assert facts["deepspeed.gradient_accumulation_steps"] == "2"
    assert facts["framework"] == '"deepspeed"'
    assert facts["model.type"] == '"Linear"'
    assert not faults(tables)


def test_plain_backward_on_the_engines_output_is_one_micro_step(armed):
    rig, engine_type = armed
    engine = engine_type(torch.nn.Linear(3, 1), accumulation=1)
    engine(torch.ones(2, 3)).sum().backward()
    engine.step()
    (step,) = rig.finish()["steps"]
    assert step.micro_steps == 1


def test_of_several_engines_the_first_that_steps_owns_the_boundary(armed):
    rig, engine_type = armed
    actor, critic, reference = (engine_type(torch.nn.Linear(3, 1)) for _ in range(3))
    for _ in range(4):
        reference(torch.ones(2, 3))
        for engine in (actor, critic):
            engine.backward(engine(torch.ones(2, 3)).sum())
            engine.step()
    tables = rig.finish()
    assert len(tables["steps"]) == 2
    assert {row.key for row in tables["facts"]} >= {"deepspeed.zero_stage", "deepspeed.engine2.zero_stage"}


def test_an_engine_that_never_steps_does_not_own_the_boundary(armed):
    rig, engine_type = armed
    engine_type(torch.nn.Linear(3, 1))
    torch.optim.SGD(torch.nn.Linear(3, 1).parameters(), lr=0.1).step()
    assert len(rig.finish()["steps"]) == 1


def test_the_highest_learning_rate_of_each_engine_is_recorded(armed):
    rig, engine_type = armed
    engine, other = engine_type(torch.nn.Linear(3, 1), accumulation=1), engine_type(torch.nn.Linear(3, 1))
    engine.optimizer = engine.basic_optimizer
    for rate in (0.0, 3e-4, 1e-4):
        engine.optimizer.param_groups[0]["lr"] = rate
        engine.step()
    assert other is not None  # never stepped
    facts = {row.key: row.value for row in rig.finish()["facts"]}
    assert facts["deepspeed.lr"] == "0.0003"
    assert "deepspeed.engine1.lr" not in facts


def test_calls_of_deepspeeds_checkpointing_are_counted(arm):
    rig = arm()
    module = SimpleNamespace(checkpoint=lambda function, x: function(x), non_reentrant_checkpoint=None)
    deepspeed = SimpleNamespace(DeepSpeedEngine=engine_class())
    loop = torch.Tensor.backward.__closure__
    loop = next(cell.cell_contents for cell in loop if isinstance(cell.cell_contents, TrainingLoop))
    engines = EnginePhases(rig.recorder, loop)
    original = module.checkpoint
    engines.arm(deepspeed)
    engines.arm_checkpointing(module)
    deepspeed.DeepSpeedEngine(torch.nn.Linear(3, 1))
    assert [module.checkpoint(abs, number) for number in (-1, 2)] == [1, 2]
    facts = {row.key: row.value for row in rig.finish()["facts"]}
    assert facts["deepspeed.checkpoint_calls"] == "2"
    assert module.checkpoint is original


def test_a_pipeline_engine_updates_without_step(armed):
    rig, engine_type = armed
    engine = engine_type(torch.nn.Linear(3, 1))
    for _ in range(3):
        engine(torch.ones(2, 3)).sum().backward()
        engine._take_model_step(None)
    tables = rig.finish()
    assert len(tables["steps"]) == 3
    assert [span.name for span in tables["spans"]] == ["forward", "backward", "optimizer"] * 3


def test_a_step_that_raises_passes_and_closes_its_phase(armed):
    rig, engine_type = armed
    engine = engine_type(torch.nn.Linear(3, 1), accumulation=1)
    engine.basic_optimizer = None
    with pytest.raises(AttributeError):
        engine.step()
    assert rig.recorder.phase() == "other"
    tables = rig.finish()
    assert "steps" not in tables


def test_an_engine_of_another_version_is_a_fault_and_still_runs(armed):
    rig, engine_type = armed
    engine_type.zero_optimization_stage = None
    engine = engine_type(torch.nn.Linear(3, 1), accumulation=1)
    engine.backward(engine(torch.ones(2, 3)).sum())
    engine.step()
    del engine_type.zero_optimization_stage
    engine_type.zero_optimization_stage = engine_type.train_micro_batch_size_per_gpu
    tables = rig.finish()
    assert len(tables["steps"]) == 1
    assert [row.instrument for row in faults(tables)] == ["deepspeed"]


def test_the_shared_memory_op_is_not_built():
    module = SimpleNamespace(build_shm_op=lambda: 1 // 0)
    neutralise_shm_op(module)
    assert module.build_shm_op() is None


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


REAL = """
import torch, deepspeed
torch.manual_seed(3)
model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1))
config = {"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 2, "zero_optimization": {"stage": 1},
          "optimizer": {"type": "AdamW", "params": {"lr": 0.01, "torch_adam": True}}, "steps_per_print": 1000000}
engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config)
for number in range(6):
    loss = engine(torch.full((2, 8), number / 6)).square().mean()
    engine.backward(loss)
    engine.step()
    print("loss", loss.item().hex())
"""


def test_a_real_engine(rank_process):
    pytest.importorskip("deepspeed")
    options = {
        "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "DS_ACCELERATOR": "cpu",
        # No op of DeepSpeed's own is needed, so nothing is compiled.
        "AGPROF_NO_DS_OPS": "1",
    }  # fmt: skip
    profiled = rank_process.start(REAL, level="light", MASTER_PORT=free_port(), **options)
    assert profiled.code == 0, profiled.log("stderr")[-2000:]
    settings = InstrumentSettings(level="off", capture_output=False).to_json()
    plain = rank_process.start(REAL, MASTER_PORT=free_port(), AGPROF_SETTINGS=settings, **options)
    assert plain.code == 0, plain.stderr[-2000:]

    def losses(text):
        return [line.split()[1] for line in text.splitlines() if line.startswith("loss")]

    assert losses(profiled.log("stdout")) == losses(plain.stdout)
    tables = profiled.tables()
    assert [row.micro_steps for row in tables["steps"]] == [2, 2, 2]
    assert [row.loss.hex() for row in tables["micro_steps"]] == losses(plain.stdout)
    assert not faults(tables)
    assert [span.name for span in tables["spans"]].count("optimizer") == 6


def test_a_hybrid_engine_says_how_many_containers_it_made(arm):
    rig = arm()
    engine = engine_class()

    class DeepSpeedHybridEngine(engine):
        def __init__(self, model):
            super().__init__(model)
            self._inference_containers = [object(), object()]

    original = DeepSpeedHybridEngine.__init__
    phases = EnginePhases(rig.recorder, TrainingLoop(rig.recorder, torch))
    phases.arm(SimpleNamespace(DeepSpeedEngine=engine))
    phases.arm_hybrid(SimpleNamespace(DeepSpeedHybridEngine=DeepSpeedHybridEngine))
    DeepSpeedHybridEngine(torch.nn.Linear(2, 1))
    facts = {row.key: row.value for row in rig.finish()["facts"]}
    assert facts["deepspeed.hybrid_engine_containers"] == "2"
    assert "deepspeed.zero_stage" in facts
    assert DeepSpeedHybridEngine.__init__ is original
