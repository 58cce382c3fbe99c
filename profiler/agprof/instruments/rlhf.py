"""The parts of an RLHF iteration in scripts that know nothing of agprof: DeepSpeed-Chat's stage 3 above all.

`generate` of Hugging Face models, forwards of a role's model without gradients (`score/<role>`), forwards with
gradients, backward and step of a role's engine (`train/<role>`). The roles are read off DeepSpeed-Chat's
`DeepSpeedRLHFEngine`. Without one, several engines beside a `generate` are told apart by number.

A range is opened only where no range of the same vocabulary is open, so that a training which names its own parts has
them once, and the outermost of nested ones counts.
"""

import functools
import itertools
import threading
import weakref
from typing import Any

from agprof.instruments.recorder import Recorder, Span

INSTRUMENT = "rlhf"
GENERATE, EMA = "generate", "ema"
ROLES = {"actor": "actor", "ref": "reference", "actor_ema": "ema", "critic": "critic", "reward": "reward"}
"""DeepSpeedRLHFEngine's attribute -> name of the role."""
UNTRAINED = ("reference", "reward", "ema")
SETTINGS = (
    "per_device_generation_batch_size", "per_device_training_batch_size", "generation_batches", "ppo_epochs",
    "max_prompt_seq_len", "max_answer_seq_len", "unsupervised_dataset_name", "actor_gradient_checkpointing",
    "critic_gradient_checkpointing", "actor_lora_dim", "critic_lora_dim", "enable_hybrid_engine", "enable_ema", "dtype",
)  # fmt: skip
"""Arguments of DeepSpeed-Chat's script that its printed metrics depend on."""


def is_part(name: str) -> bool:
    """Whether a range of this name is a part of an RLHF iteration.

    >>> is_part("generate"), is_part("train/actor"), is_part("retrieval")
    (True, True, False)
    """
    return name in (GENERATE, EMA) or name.startswith(("score/", "train/"))


class _Inside(threading.local):
    def __init__(self) -> None:
        self.generating = 0


def arm(recorder: Recorder, torch: Any, hooks: Any) -> Any:
    """Look out for the modules of interest; returns what is to be told of each root module."""
    parts, guard = RlhfParts(recorder, torch), recorder.guard
    for name, patch in (
        ("transformers.generation.utils", parts.arm_generate),
        ("deepspeed.runtime.engine", parts.arm_engine),
        ("dschat.rlhf.rlhf_engine", parts.arm_roles),
        ("dschat.utils.model.reward_model", parts.arm_reward_model),
        ("dschat.rlhf.ppo_trainer", parts.arm_trainer),
        ("dschat.utils.utils", parts.arm_utils),
    ):
        hooks.when_imported(name, guard(INSTRUMENT, patch))
    return guard(INSTRUMENT, parts.on_root)


class RlhfParts:
    """Recognises the parts. One per rank; the bootstrap says when the modules it looks at have been imported."""

    def __init__(self, recorder: Recorder, torch: Any) -> None:
        self._recorder = recorder
        self._torch = torch
        self._inside = _Inside()
        self._roles: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
        """Role of each engine, and of the model in it."""
        self._engines: list[weakref.ref[Any]] = []
        self._described: set[str] = set()
        self._hooked: weakref.WeakSet[Any] = weakref.WeakSet()
        self._named = False
        """DeepSpeed-Chat's engine named the roles: numbers are not needed."""
        self._generations = recorder.writer.rows("generations")
        self._begin = recorder.guard(INSTRUMENT, self._do_begin)
        self._begin_update = recorder.guard(INSTRUMENT, self._do_begin_update)
        self._begin_forward_value = recorder.guard(INSTRUMENT, self._do_begin_forward_value)
        self._end = recorder.guard(INSTRUMENT, self._do_end, ends=True)
        self.before_forward = recorder.guard(INSTRUMENT, self._before_forward)
        self.after_forward = self._end

    # -- what is patched -------------------------------------------------------------------------------------------

    def arm_generate(self, module: Any) -> None:
        """`module` is transformers.generation.utils."""
        self._recorder.patches.replace(module.GenerationMixin, "generate", self._around_generate)

    def arm_engine(self, module: Any) -> None:
        """`module` is deepspeed.runtime.engine."""
        patches = self._recorder.patches
        patches.replace(module.DeepSpeedEngine, "__init__", self._around_engine_init)
        patches.replace(module.DeepSpeedEngine, "backward", self._around_update)
        patches.replace(module.DeepSpeedEngine, "step", self._around_update)

    def arm_roles(self, module: Any) -> None:
        """`module` is dschat.rlhf.rlhf_engine."""
        self._recorder.patches.replace(module.DeepSpeedRLHFEngine, "__init__", self._around_roles_init)

    def arm_reward_model(self, module: Any) -> None:
        """`module` is dschat.utils.model.reward_model. Critic and reward are called through a method of it."""
        self._recorder.patches.replace(module.RewardModel, "forward_value", self._around_forward_value)

    def arm_trainer(self, module: Any) -> None:
        """`module` is dschat.rlhf.ppo_trainer."""
        trainer = getattr(module, "DeepSpeedPPOTrainerUnsupervised", None)
        if trainer is not None:
            around = functools.partial(self._around_part, "train/unsupervised")
            self._recorder.patches.replace(trainer, "train_unsupervised", around)

    def arm_utils(self, module: Any) -> None:
        """`module` is dschat.utils.utils."""
        self._recorder.patches.replace(module, "moving_average", functools.partial(self._around_part, EMA))

    # -- generation ------------------------------------------------------------------------------------------------

    def _around_generate(self, original: Any) -> Any:
        begin = self._recorder.guard(INSTRUMENT, self._begin_generate)
        end = self._recorder.guard(INSTRUMENT, self._end_generate, ends=True)

        @functools.wraps(original)
        def generate(model: Any, *args: Any, **kwargs: Any) -> Any:
            opened = begin(model)
            result = None
            try:
                result = original(model, *args, **kwargs)
                return result
            finally:
                if opened is not None:
                    end(opened, model, args, kwargs, result)

        return generate

    def _begin_generate(self, model: Any) -> tuple[Span | None, int, int] | None:
        inside = self._inside
        if inside.generating or self._torch.compiler.is_compiling():
            return None  # generate calls itself for some ways of decoding
        recorder = self._recorder
        self._describe("actor", model)
        span = self._do_begin(GENERATE)
        inside.generating = 1
        return span, recorder.step, recorder.clock()

    def _end_generate(self, opened: Any, model: Any, args: Any, kwargs: Any, result: Any) -> None:
        self._inside.generating = 0
        span, step, start_ns = opened
        end_ns = self._recorder.clock() if span is None else self._recorder.close(span)
        if result is not None:
            self._generations((step, start_ns, end_ns, *generated(model, args, kwargs, result)))
        if span is not None and not self._named:
            self._number_engines()

    # -- engines ---------------------------------------------------------------------------------------------------

    def _around_engine_init(self, original: Any) -> Any:
        note = self._recorder.guard(INSTRUMENT, self._note_engine)

        @functools.wraps(original)
        def __init__(engine: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
            original(engine, *args, **kwargs)
            note(engine)

        return __init__

    def _note_engine(self, engine: Any) -> None:
        self._engines.append(weakref.ref(engine))

    def _number_engines(self) -> None:
        """One engine beside a generate is a training that looks at its own samples; several are roles."""
        engines = [engine for engine in (reference() for reference in self._engines) if engine is not None]
        if len(engines) > 1:
            for number, engine in enumerate(engines):
                self._give_role(engine, f"engine {number}")

    def _around_roles_init(self, original: Any) -> Any:
        name = self._recorder.guard(INSTRUMENT, self._name_roles)

        @functools.wraps(original)
        def __init__(roles: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
            original(roles, *args, **kwargs)
            name(roles, kwargs.get("args") or getattr(roles, "args", None))

        return __init__

    def _name_roles(self, roles: Any, settings: Any) -> None:
        self._named = True
        for attribute, role in ROLES.items():
            engine = getattr(roles, attribute, None)
            if engine is not None:
                self._give_role(engine, role)
        known = {name: getattr(settings, name) for name in SETTINGS if hasattr(settings, name)}
        if known:
            self._recorder.fact("rlhf.settings", known)

    def _give_role(self, engine: Any, role: str) -> None:
        if engine in self._roles:
            return
        self._roles[engine] = role
        self._describe(role, engine)
        model = getattr(engine, "module", None)
        if model is not None:
            self._roles[model] = role
        # A model with methods of its own calls its children in them, and is not called itself.
        children = model.children() if model is not None and hasattr(model, "children") else ()
        for module in (engine, model, *children):
            if hasattr(module, "register_forward_pre_hook") and module not in self._hooked:
                self._hooked.add(module)
                hook = _RoleHook(self, role)
                pre = module.register_forward_pre_hook(hook.before)
                post = module.register_forward_hook(hook.after, always_call=True)
                self._recorder.patches.on_undo(pre.remove)
                self._recorder.patches.on_undo(post.remove)

    def _before_forward(self, role: str) -> Span | None:
        """A model of this role is called."""
        if self._inside.generating:
            return None
        trains = role not in UNTRAINED and self._torch.is_grad_enabled()
        return self._do_begin(f"{'train' if trains else 'score'}/{role}")

    def _around_forward_value(self, original: Any) -> Any:
        @functools.wraps(original)
        def forward_value(model: Any, *args: Any, **kwargs: Any) -> Any:
            span = self._begin_forward_value(model)
            try:
                return original(model, *args, **kwargs)
            finally:
                if span is not None:
                    self._end(span)

        return forward_value

    def _do_begin_forward_value(self, model: Any) -> Span | None:
        role = self._roles.get(model)
        return None if role is None else self._before_forward(role)

    def _around_update(self, original: Any) -> Any:
        """Backward and step of an engine belong to the training of its role."""

        @functools.wraps(original)
        def update(engine: Any, *args: Any, **kwargs: Any) -> Any:
            span = self._begin_update(engine)
            try:
                return original(engine, *args, **kwargs)
            finally:
                if span is not None:
                    self._end(span)

        return update

    def _do_begin_update(self, engine: Any) -> Span | None:
        role = self._roles.get(engine)
        return None if role is None else self._do_begin(f"train/{role}")

    def _around_part(self, name: str, original: Any) -> Any:
        @functools.wraps(original)
        def part(*args: Any, **kwargs: Any) -> Any:
            span = self._begin(name)
            try:
                return original(*args, **kwargs)
            finally:
                if span is not None:
                    self._end(span)

        return part

    def _do_begin(self, name: str) -> Span | None:
        if any(map(is_part, self._recorder.open_ranges())):
            return None
        return self._recorder.open("range", name)

    def _do_end(self, span: Span) -> None:
        self._recorder.close(span)

    # -- facts -----------------------------------------------------------------------------------------------------

    def on_root(self, module: Any) -> None:
        """A root module's first call: in a range that the training named itself, the range tells its role."""
        for name in self._recorder.open_ranges():
            kind, _, role = name.partition("/")
            if kind in ("score", "train") and role in ROLES.values():
                self._describe(role, module)
                return

    def _describe(self, role: str, module: Any) -> None:
        """Size of a role's model, as the formulas of DeepSpeed-Chat's printed metrics need it."""
        if role in self._described:
            return
        self._described.add(role)
        for key, value in model_facts(module).items():
            self._recorder.fact(f"rlhf.{role}.{key}", value)


class _RoleHook:
    """Forward hooks of one module. Copied or pickled with its module it comes back as one that does nothing."""

    def __init__(self, parts: RlhfParts | None = None, role: str = "") -> None:
        self._parts = parts
        self._role = role
        self._local = threading.local()

    def before(self, _module: Any, _inputs: Any) -> None:
        if self._parts is not None:
            self._local.span = self._parts.before_forward(self._role)

    def after(self, _module: Any, _inputs: Any, _output: Any) -> None:
        span = getattr(self._local, "span", None)
        if self._parts is not None and span is not None:
            self._local.span = None
            self._parts.after_forward(span)

    def __deepcopy__(self, memo: Any) -> "_RoleHook":
        return _RoleHook()

    def __reduce__(self) -> Any:
        return (_RoleHook, ())


def generated(model: Any, args: Any, kwargs: Any, result: Any) -> tuple[int | None, int | None, int | None]:
    """Batch, prompt tokens and new tokens of a `generate`, from shapes alone: nothing is read from the device."""
    sequences = getattr(result, "sequences", result)
    shape = getattr(sequences, "shape", None)
    if shape is None or len(shape) != 2:
        return None, None, None
    batch, length = int(shape[0]), int(shape[1])
    ids = next(
        (value for value in (*args[:1], kwargs.get("inputs"), kwargs.get("input_ids")) if value is not None), None
    )
    embeddings = kwargs.get("inputs_embeds")
    given = ids if ids is not None else embeddings
    prompt = int(given.shape[1]) if given is not None and len(getattr(given, "shape", ())) >= 2 else None
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return batch, prompt, length - 1  # the decoder's start token was given
    if ids is None and embeddings is not None:
        return batch, prompt, length  # the result holds what is new only
    return batch, prompt, None if prompt is None else length - prompt


def model_facts(module: Any) -> dict[str, Any]:
    """Parameters, element type, layers, hidden size, vocabulary, LoRA rank; keys that are not known are left out."""
    parameters = dict(module.named_parameters())
    sizes: dict[str, int] = {}
    lora = 0
    for name, parameter in parameters.items():
        numel = int(getattr(parameter, "ds_numel", parameter.numel()))
        dtype = str(parameter.dtype).removeprefix("torch.")
        sizes[dtype] = sizes.get(dtype, 0) + numel
        if name.endswith("lora_right_weight") or ".lora_A." in name:
            shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
            lora = max(lora, min(shape, default=0))
    facts: dict[str, Any] = {"params": sum(sizes.values()), "lora_dim": lora}
    if sizes:
        facts["dtype"] = max(sizes, key=lambda name: sizes[name])
    config = _config_of(module)
    for key, names in (
        ("layers", ("num_hidden_layers", "n_layer")),
        ("hidden", ("hidden_size", "n_embd")),
        ("vocab", ("vocab_size",)),
    ):
        value = next((v for v in (getattr(config, name, None) for name in names) if isinstance(v, int)), None)
        if value is not None:
            facts[key] = value
    # Properties of newer versions warn when they are asked by their old names: only what is stored is looked at.
    stored = {} if config is None else vars(config)
    declared = stored.get("dtype") or stored.get("torch_dtype")
    if declared is not None:
        facts["declared_dtype"] = str(declared).removeprefix("torch.")
    facts["gradient_checkpointing"] = any(vars(m).get("gradient_checkpointing") is True for m in module.modules())
    return facts


def _config_of(module: Any) -> Any:
    """The first configuration of a Hugging Face model from the root down; DeepSpeed's engine has one of its own."""
    for inner in itertools.islice(module.modules(), 64):
        config = vars(inner).get("config")
        if config is not None and hasattr(config, "vocab_size"):
            return config
    return None
