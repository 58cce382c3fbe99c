"""Phases and step boundaries of DeepSpeed engines.

A step ends when `engine.global_steps` changed across `engine.step()`: true for own loops, gradient accumulation,
Hugging Face's Trainer (which calls step only at the boundary) and several engines side by side, of which one owns the
boundary. Pipeline engines make their updates in `_take_model_step`, which `step` calls for the others.
"""

import functools
import sys
import weakref
from typing import Any

from agprof.instruments.recorder import Recorder
from agprof.instruments.training import TrainingLoop
from agprof.instruments.zero_facts import zero_facts

INSTRUMENT = "deepspeed"


class EnginePhases:
    """Wraps DeepSpeedEngine's __init__, backward and step; its forward is a root module's like any other."""

    def __init__(self, recorder: Recorder, loop: TrainingLoop) -> None:
        self._recorder = recorder
        self._loop = loop
        self._engines = 0
        self._prefixes: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
        self._rates: dict[str, float] = {}
        """Highest learning rate that each engine's optimizer had."""
        self._checkpoint_calls: int | None = None
        self._note_rate = recorder.guard("deepspeed learning rate", self._do_note_rate)
        recorder.on_finish.append((INSTRUMENT, self._finish))

    def arm(self, module: Any) -> None:
        """`module` is deepspeed.runtime.engine."""
        patches = self._recorder.patches
        patches.replace(module.DeepSpeedEngine, "__init__", self._around_init)
        patches.replace(module.DeepSpeedEngine, "backward", self._loop.around_backward)
        patches.replace(module.DeepSpeedEngine, "step", self._around_step)
        patches.replace(module.DeepSpeedEngine, "_take_model_step", self._around_step)

    def arm_hybrid(self, module: Any) -> None:
        """`module` is deepspeed.runtime.hybrid_engine."""
        self._recorder.patches.replace(module.DeepSpeedHybridEngine, "__init__", self._around_hybrid_init)

    def arm_checkpointing(self, module: Any) -> None:
        """`module` is deepspeed.runtime.activation_checkpointing.checkpointing: counts the calls of its API."""
        self._checkpoint_calls = 0
        for name in ("checkpoint", "non_reentrant_checkpoint"):
            self._recorder.patches.replace(module, name, self._around_checkpoint)

    def _around_checkpoint(self, original: Any) -> Any:
        @functools.wraps(original)
        def checkpoint(*args: Any, **kwargs: Any) -> Any:
            self._checkpoint_calls = (self._checkpoint_calls or 0) + 1
            return original(*args, **kwargs)

        return checkpoint

    def _finish(self) -> None:
        for prefix, rate in self._rates.items():
            self._recorder.fact(f"{prefix}.lr", rate)
        if self._engines and self._checkpoint_calls is not None:
            self._recorder.fact("deepspeed.checkpoint_calls", self._checkpoint_calls)

    def _around_hybrid_init(self, original: Any) -> Any:
        count = self._recorder.guard(INSTRUMENT, self._count_containers)

        @functools.wraps(original)
        def __init__(engine: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
            original(engine, *args, **kwargs)
            count(engine)

        return __init__

    def _count_containers(self, engine: Any) -> None:
        # The base class has described the engine; its containers are made after that. None made: no acceleration.
        prefix = "deepspeed" if self._engines <= 1 else f"deepspeed.engine{self._engines - 1}"
        self._recorder.fact(f"{prefix}.hybrid_engine_containers", len(engine._inference_containers))

    def _around_init(self, original: Any) -> Any:
        describe = self._recorder.guard(INSTRUMENT, self._describe)

        @functools.wraps(original)
        def __init__(engine: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
            original(engine, *args, **kwargs)
            describe(engine)

        return __init__

    def _describe(self, engine: Any) -> None:
        fact = self._recorder.fact
        prefix = "deepspeed" if self._engines == 0 else f"deepspeed.engine{self._engines}"
        self._engines += 1
        self._prefixes[engine] = prefix
        fact("framework", "deepspeed")
        fact(f"{prefix}.zero_stage", int(engine.zero_optimization_stage()))
        fact(f"{prefix}.gradient_accumulation_steps", int(engine.gradient_accumulation_steps()))
        fact(f"{prefix}.micro_batch", int(engine.train_micro_batch_size_per_gpu()))
        fact(f"{prefix}.offload_optimizer", _offloads(engine))
        fact(f"{prefix}.optimizer", type(engine.basic_optimizer).__name__ if engine.basic_optimizer else None)
        fact(f"{prefix}.config", getattr(engine._config, "_param_dict", {}))
        for key, value in zero_facts(engine).items():
            fact(f"{prefix}.{key}", value)

    def _around_step(self, original: Any) -> Any:
        recorder, loop = self._recorder, self._loop
        begin = recorder.guard(INSTRUMENT, self._begin_step)
        end = recorder.guard(INSTRUMENT, self._end_step, ends=True)

        @functools.wraps(original)
        def step(engine: Any, *args: Any, **kwargs: Any) -> Any:
            opened = begin(engine) if loop.enter_engine() else None
            failed = True
            try:
                result = original(engine, *args, **kwargs)
                failed = False
                return result
            finally:
                loop.leave_engine()
                if failed:
                    recorder.failing(sys.exc_info()[1])
                if opened is not None:
                    end(engine, *opened)

        return step

    def _begin_step(self, engine: Any) -> tuple[Any, int]:
        steps_before = int(engine.global_steps)
        return self._recorder.open("phase", "optimizer"), steps_before

    def _end_step(self, engine: Any, span: Any, steps_before: int) -> None:
        self._recorder.close(span)
        if engine.global_steps != steps_before:
            self._note_rate(engine)
            self._loop.stepped(engine)

    def _do_note_rate(self, engine: Any) -> None:
        prefix, optimizer = self._prefixes.get(engine), getattr(engine, "optimizer", None)
        groups = getattr(optimizer, "param_groups", None)
        rate = groups[0].get("lr") if groups else None
        if prefix is not None and isinstance(rate, (int, float)):
            self._rates[prefix] = max(self._rates.get(prefix, 0.0), float(rate))


def _offloads(engine: Any) -> bool:
    config = getattr(engine._config, "zero_config", None)
    return bool(getattr(config, "offload_optimizer", None))


def neutralise_shm_op(module: Any) -> None:
    """Keep DeepSpeed from building its shared-memory collective where no compiler is.

    Only inference uses that op; without this, init_distributed raises. `module` is deepspeed.comm.torch.
    """
    module.build_shm_op = lambda: None
