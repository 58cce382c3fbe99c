"""FLOPs where not everything trains: adapters, a head, a frozen encoder. Backward is not twice the forward, and
DeepSpeed's profiler, which takes it for that, is off by a factor that is computed here."""

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from llama_like import ALL_LINEARS, LlamaLike, Lora, Shape, add_lora, batch, by_path, count, count_training  # noqa: E402

SHAPE = Shape()
R = 4
KERNELS = ("eager", "sdpa")


def lora_size(shape: Shape, name: str) -> int:
    """Parameters of the adapter of one linear layer."""
    inner, outer = {
        "q_proj": (shape.h, shape.h), "k_proj": (shape.h, shape.kv), "v_proj": (shape.h, shape.kv),
        "o_proj": (shape.h, shape.h), "gate_proj": (shape.h, shape.f), "up_proj": (shape.h, shape.f),
        "down_proj": (shape.f, shape.h),
    }[name]  # fmt: skip
    return R * (inner + outer)


def backward_of_adapted_layers(shape: Shape, names: tuple[str, ...], layers: int, kernel: str, r: int = R) -> int:
    """Of the last `layers` layers, all of which have adapters on `names`, with a frozen model below and around them.

    Through frozen weights goes the gradient of inputs, 2 N T; an adapter costs 4 N T; attention twice its forward. But
    nothing below the first adapter gets a gradient: in its layer the frozen q, k, v and the first halves of their
    adapters have none for their inputs, and unadapted keys (or queries) none at all.
    """
    frozen = 2 * shape.layer * shape.T * layers - 2 * (shape.h * shape.h + 2 * shape.h * shape.kv) * shape.T
    adapters = 4 * sum(lora_size(shape, name) for name in names) // R * r * shape.T * layers
    adapters -= 2 * r * shape.h * shape.T * sum(name in names for name in ("q_proj", "k_proj", "v_proj"))
    attention = 2 * shape.attention * layers
    if kernel == "eager" and "k_proj" not in names:
        attention -= shape.attention // 2  # a kernel makes the gradient of keys even so
    head = 2 * shape.h * shape.V * shape.T
    return frozen + adapters + attention + head


def adapted(shape: Shape, names: tuple[str, ...], layers: range, kernel: str) -> Any:
    model = LlamaLike(shape, kernel)
    add_lora(model, names, R, layers)
    return model


ADAPTED = {
    "q and v": (("q_proj", "v_proj"), 4),
    "all linears": (ALL_LINEARS, 4),
    "q and v of the last half": (("q_proj", "v_proj"), 2),
    "all linears of the last layer": (ALL_LINEARS, 1),
}


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("case", ADAPTED)
def test_lora(case: str, kernel: str) -> None:
    names, layers = ADAPTED[case]
    flops = count_training(adapted(SHAPE, names, range(SHAPE.L - layers, SHAPE.L), kernel), SHAPE)
    forward = SHAPE.forward + 2 * SHAPE.T * layers * sum(lora_size(SHAPE, name) for name in names)
    assert flops.forward == flops.total.modelled_forward_flops == forward
    assert flops.backward == backward_of_adapted_layers(SHAPE, names, layers, kernel)
    assert flops.total.modelled_backward_flops == flops.backward


@pytest.mark.parametrize("kernel", KERNELS)
def test_lora_by_module(kernel: str) -> None:
    model = adapted(SHAPE, ("q_proj", "v_proj"), range(SHAPE.L), kernel)
    rows = by_path(count_training(model, SHAPE), model)
    base, detour = 2 * SHAPE.h * SHAPE.h * SHAPE.T, 2 * SHAPE.h * R * SHAPE.T

    def backward(path: str) -> list[int]:
        return [rows[f"layers.{layer}.{path}"].backward_flops for layer in range(SHAPE.L)]

    assert backward("attention.q_proj.base") == [0] + [base] * (SHAPE.L - 1)
    assert backward("attention.k_proj") == [0] + [base] * (SHAPE.L - 1)
    assert backward("attention.q_proj.down") == [detour] + [2 * detour] * (SHAPE.L - 1)
    assert backward("attention.q_proj.up") == [2 * detour] * SHAPE.L
    assert backward("attention.o_proj") == [base] * SHAPE.L
    assert rows["layers.0.attention.q_proj"].forward_flops == base + 2 * detour


@pytest.mark.parametrize("reentrant", [True, False])
def test_lora_under_checkpoints(reentrant: bool) -> None:
    """As Hugging Face does it: the embedding's output is made to require a gradient."""
    model = adapted(SHAPE, ("q_proj", "v_proj"), range(SHAPE.L), "eager")
    model.checkpointing = reentrant
    model.embedding.register_forward_hook(lambda _module, _inputs, output: output.requires_grad_(True))
    flops = count_training(model, SHAPE)
    adapters = SHAPE.L * sum(lora_size(SHAPE, name) for name in ("q_proj", "v_proj"))
    assert flops.forward == SHAPE.forward + 2 * adapters * SHAPE.T
    # Every input has a gradient now: 2 N T through what is frozen, 4 N T for adapters, attention whole.
    frozen = 2 * (SHAPE.L * SHAPE.layer + SHAPE.h * SHAPE.V) * SHAPE.T
    assert flops.backward == frozen + 4 * adapters * SHAPE.T + 2 * SHAPE.L * SHAPE.attention
    assert flops.total.modelled_backward_flops == flops.backward
    again = SHAPE.L * (2 * SHAPE.layer * SHAPE.T + SHAPE.attention) + 2 * adapters * SHAPE.T
    stopped = 0 if reentrant else SHAPE.L * 2 * SHAPE.h * SHAPE.f * SHAPE.T
    assert flops.recomputed == again - stopped


@pytest.mark.parametrize("kernel", KERNELS)
def test_head_only(kernel: str) -> None:
    model = LlamaLike(SHAPE, kernel)
    model.requires_grad_(False)
    model.head.requires_grad_(True)
    flops = count_training(model, SHAPE)
    assert flops.forward == SHAPE.forward
    # Its weight's gradient; nothing below it trains.
    assert flops.backward == flops.total.modelled_backward_flops == 2 * SHAPE.h * SHAPE.V * SHAPE.T


class WithEncoder(torch.nn.Module):
    """A frozen encoder under no_grad, whose features a trained projection brings into a trained decoder."""

    def __init__(self, shape: Shape, *, frozen: bool) -> None:
        super().__init__()
        self.encoder = torch.nn.Sequential(*(torch.nn.Linear(shape.h, shape.h, bias=False) for _ in range(3)))
        self.encoder.requires_grad_(not frozen)
        self.project = torch.nn.Linear(shape.h, shape.h, bias=False)
        self.decoder = torch.nn.Linear(shape.h, shape.h, bias=False)

    def forward(self, tokens: Any) -> Any:
        with torch.no_grad():
            features = self.encoder(tokens)
        return self.decoder(self.project(features)).square().sum()


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_encoder_under_no_grad(frozen: bool) -> None:
    """2 N T and no backward, also if nobody told its weights."""
    model = WithEncoder(SHAPE, frozen=frozen)
    flops = count(model, lambda: model(torch.ones(SHAPE.T, SHAPE.h)))
    product = 2 * SHAPE.h * SHAPE.h * SHAPE.T
    assert (flops.forward, flops.backward) == (5 * product, product + 2 * product)  # the projection's input has none
    assert flops.total.modelled_backward_flops == flops.backward
    assert by_path(flops, model)["encoder"].backward_flops == 0
    assert by_path(flops, model)["encoder"].modelled_backward_flops == 0


MEASURED = Shape(L=6, h=512, kv=512, f=1376, V=4096, heads=8, B=1, S=256)
"""Of 23 M parameters, as the ratios below were once measured with FlopCounterMode."""
Freeze = Callable[[Any], None]


def lora_q_v(model: Any) -> None:
    add_lora(model, ("q_proj", "v_proj"), 8, range(MEASURED.L))


def lora_everywhere(model: Any) -> None:
    add_lora(model, ALL_LINEARS, 8, range(MEASURED.L))


def lora_in_the_last_half(model: Any) -> None:
    add_lora(model, ("q_proj", "v_proj"), 8, range(MEASURED.L // 2, MEASURED.L))


def head_only(model: Any) -> None:
    model.requires_grad_(False)
    model.head.requires_grad_(True)


def everything(model: Any) -> None:
    model.requires_grad_(True)


def measured(freeze: Freeze) -> tuple[Any, Any]:
    with torch.device("meta"):
        model = LlamaLike(MEASURED)
        freeze(model)
    return model, count_training(model, MEASURED, "meta")


@pytest.mark.parametrize(
    ("freeze", "backward_per_forward", "of_full_training"),
    [
        (everything, 2.0, 1.0),
        (lora_q_v, 1.03, 0.68),
        (lora_everywhere, 1.05, 0.70),
        (lora_in_the_last_half, 0.54, 0.52),
        (head_only, 0.09, 0.36),
    ],
)
def test_ratios_are_those_that_were_measured(
    freeze: Freeze, backward_per_forward: float, of_full_training: float
) -> None:
    _, flops = measured(freeze)
    assert round(flops.backward / flops.forward, 2) == backward_per_forward
    assert round((flops.forward + flops.backward) / (3 * MEASURED.forward), 2) == of_full_training


@pytest.mark.parametrize(
    ("freeze", "factor"), [(everything, 1.0), (lora_q_v, 1.48), (lora_in_the_last_half, 1.94), (head_only, 2.75)]
)
def test_deepspeeds_figure_and_its_factor(freeze: Freeze, factor: float) -> None:
    """Its profiler prints the forward, right but for some additions, and takes twice that for the backward."""
    model, flops = measured(freeze)
    printed = deepspeed_forward(model, MEASURED, "meta")
    assert flops.forward <= printed < 1.002 * flops.forward
    assert round(3 * flops.forward / (flops.forward + flops.backward), 2) == factor
    assert 3 * printed / (flops.forward + flops.backward) == pytest.approx(factor, abs=0.008)


def test_lora_at_vicuna_7b_shapes_without_data() -> None:
    """As measured with FlopCounterMode: 33.6 M of 6.77 B parameters trainable; forward 6.937 T, backward 7.057 T; the
    rule of twice the forward is 48.7 % too high."""
    shape = Shape(L=32, h=4096, kv=4096, f=11008, V=32000, heads=32, B=1, S=512)
    with torch.device("meta"):
        model = LlamaLike(shape)
        add_lora(model, ("q_proj", "k_proj", "v_proj", "o_proj"), 32, range(shape.L))
    assert sum(weight.numel() for weight in model.parameters() if weight.requires_grad) == 33_554_432
    flops = count_training(model, shape, "meta")
    assert round(flops.forward / 1e12, 3) == 6.937
    assert round(flops.backward / 1e12, 3) == 7.057
    assert flops.total.modelled_backward_flops == flops.backward
    assert round(3 * flops.forward / (flops.forward + flops.backward), 3) == 1.487


def deepspeed_forward(model: Any, shape: Shape, device: str) -> float:
    pytest.importorskip("deepspeed.profiling.flops_profiler.profiler")
    from agprof.instruments.flops_deepspeed import DeepSpeedFigure

    figure = DeepSpeedFigure(torch, model)
    handle = model.register_forward_pre_hook(lambda *_: figure.start(figure.read))
    try:
        model(batch(shape, device))
    finally:
        figure.dispose()
        handle.remove()
    assert figure.forward_flops is not None
    return figure.forward_flops


def test_a_lora_layer_is_what_it_says() -> None:
    layer = Lora(torch.nn.Linear(6, 10, bias=False), 2)
    assert [name for name, weight in layer.named_parameters() if weight.requires_grad] == ["down.weight", "up.weight"]
