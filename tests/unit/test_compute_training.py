"""FLOPs of full training: what is counted is the closed form, exactly, by module too."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from llama_like import LlamaLike, Shape, batch, by_path, count, count_training  # noqa: E402

KERNELS = ("eager", "sdpa")
SHAPE = Shape()


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_full_training_is_2nt_plus_4lsht_and_twice_that(kernel: str, device: str) -> None:
    with torch.device(device):
        model = LlamaLike(SHAPE, kernel)
    n_mm = sum(weight.numel() for weight in model.parameters() if weight.dim() == 2) - SHAPE.V * SHAPE.h
    closed_form = 2 * n_mm * SHAPE.T + 4 * SHAPE.L * SHAPE.S * SHAPE.h * SHAPE.T
    flops = count_training(model, SHAPE, device)
    assert flops.forward == closed_form == SHAPE.forward
    assert flops.backward == 2 * flops.forward
    assert flops.total.modelled_forward_flops == flops.forward
    assert flops.total.modelled_backward_flops == flops.backward
    assert flops.total.attention_flops == 3 * SHAPE.L * SHAPE.attention
    # A kernel keeps no scores: it makes them again, a quarter of its backward.
    fused = any(kind == "attention" and in_pass == "recomputed" for in_pass, kind, _ in flops.kinds)
    assert flops.recomputed == (SHAPE.L * SHAPE.attention // 2 if fused else 0)
    assert flops.unknown == {}


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_module_has_its_own_share(kernel: str) -> None:
    """FlopCounterMode gives k_proj, v_proj and up_proj up to five times theirs in backward."""
    model = LlamaLike(SHAPE, kernel)
    rows = by_path(count_training(model, SHAPE), model)
    h, f, kv, tokens = SHAPE.h, SHAPE.f, SHAPE.kv, SHAPE.T
    weights = {
        "attention.q_proj": h * h, "attention.k_proj": h * kv, "attention.v_proj": h * kv, "attention.o_proj": h * h,
        "mlp.gate_proj": h * f, "mlp.up_proj": h * f, "mlp.down_proj": h * f,
    }  # fmt: skip
    for layer in range(SHAPE.L):
        for name, size in weights.items():
            row = rows[f"layers.{layer}.{name}"]
            assert (row.calls, row.forward_flops, row.backward_flops) == (1, 2 * size * tokens, 4 * size * tokens)
        attention = rows[f"layers.{layer}.attention"]
        assert attention.forward_flops == 2 * (2 * h * h + 2 * h * kv) * tokens + SHAPE.attention
        assert attention.backward_flops == 2 * attention.forward_flops
        assert attention.attention_flops == 3 * SHAPE.attention
    assert rows["layers"].forward_flops == SHAPE.L * rows["layers.0"].forward_flops
    assert rows[""].forward_flops == rows["layers"].forward_flops + rows["head"].forward_flops
    assert rows["embedding"].forward_flops == rows["norm"].forward_flops == 0


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_computes_layers_again_and_nothing_else(kernel: str, reentrant: bool) -> None:
    model = LlamaLike(SHAPE, kernel, checkpointing=reentrant)
    flops = count_training(model, SHAPE)
    assert (flops.forward, flops.backward) == (SHAPE.forward, 2 * SHAPE.forward)
    again = 2 * SHAPE.layer * SHAPE.T + SHAPE.attention
    if not reentrant:
        again -= 2 * SHAPE.h * SHAPE.f * SHAPE.T  # stops before down_proj, of which nothing is kept but its input
    in_kernels = SHAPE.attention // 2 if kernel == "sdpa" else 0
    assert flops.recomputed == SHAPE.L * (again + in_kernels)
    assert flops.total.modelled_forward_flops == flops.forward
    assert flops.total.modelled_backward_flops == flops.backward
    rows = by_path(flops, model)
    for layer in range(SHAPE.L):
        row = rows[f"layers.{layer}"]
        assert (row.calls, row.recomputed_calls, row.recomputed_flops) == (1, 1, again + in_kernels)
        query = rows[f"layers.{layer}.attention.q_proj"]
        product = 2 * SHAPE.h * SHAPE.h * SHAPE.T
        assert (query.forward_flops, query.backward_flops, query.recomputed_flops) == (product, 2 * product, product)
        assert query.modelled_backward_flops == 2 * product
    assert (rows["head"].recomputed_calls, rows["head"].recomputed_flops) == (0, 0)


def test_checkpoints_inside_checkpoints() -> None:
    class Nested(LlamaLike):
        def forward(self, ids: Any) -> Any:
            def both(tokens: Any) -> Any:
                for layer in self.layers:
                    tokens = torch.utils.checkpoint.checkpoint(layer, tokens, use_reentrant=True)
                return tokens

            tokens = torch.utils.checkpoint.checkpoint(both, self.embedding(ids), use_reentrant=True)
            return self.head(tokens).square().sum()

    model = Nested(SHAPE)
    flops = count_training(model, SHAPE)
    layers = SHAPE.L * (2 * SHAPE.layer * SHAPE.T + SHAPE.attention)
    assert (flops.forward, flops.backward, flops.recomputed) == (SHAPE.forward, 2 * SHAPE.forward, 2 * layers)
    assert flops.total.modelled_backward_flops == flops.backward
    assert by_path(flops, model)["layers"].recomputed_flops == 2 * layers


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_around_a_function_without_modules(reentrant: bool) -> None:
    class Bare(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Parameter(torch.ones(8, 8))
            self.second = torch.nn.Parameter(torch.ones(8, 8))

        def forward(self, tokens: Any) -> Any:
            def two(tokens: Any) -> Any:
                return torch.tanh(torch.tanh(tokens @ self.first) @ self.second)

            return torch.utils.checkpoint.checkpoint(two, tokens, use_reentrant=reentrant).sum()

    model = Bare()
    tokens = torch.ones(4, 8, requires_grad=True)
    flops = count(model, lambda: model(tokens))
    product = 2 * 4 * 8 * 8
    assert (flops.forward, flops.backward, flops.recomputed) == (2 * product, 4 * product, 2 * product)
    assert flops.total.modelled_backward_flops == 4 * product
    assert by_path(flops, model)[""].recomputed_flops == 2 * product


@pytest.mark.parametrize("kernel", KERNELS)
def test_tied_weights_count_where_they_are_multiplied(kernel: str) -> None:
    model = LlamaLike(SHAPE, kernel, tied=True)
    flops = count_training(model, SHAPE)
    assert (flops.forward, flops.backward) == (SHAPE.forward, 2 * SHAPE.forward)
    rows = by_path(flops, model)
    assert rows["embedding"].forward_flops == rows["embedding"].backward_flops == 0
    assert rows["head"].forward_flops == 2 * SHAPE.h * SHAPE.V * SHAPE.T


@pytest.mark.parametrize("kernel", KERNELS)
def test_grouped_query_attention_has_small_keys_and_whole_scores(kernel: str) -> None:
    shape = Shape(kv=8)
    model = LlamaLike(shape, kernel)
    flops = count_training(model, shape)
    assert (flops.forward, flops.backward) == (shape.forward, 2 * shape.forward)
    assert flops.total.modelled_backward_flops == flops.backward
    assert flops.total.attention_flops == 3 * shape.L * shape.attention
    assert by_path(flops, model)["layers.0.attention.k_proj"].forward_flops == 2 * shape.h * 8 * shape.T


def test_grouped_query_attention_inside_the_kernel() -> None:
    query = torch.ones(2, 8, 6, 4, requires_grad=True)
    key, value = (torch.ones(2, 2, 6, 4, requires_grad=True) for _ in range(2))
    attend = torch.nn.functional.scaled_dot_product_attention
    flops = count(torch.nn.Identity(), lambda: attend(query, key, value, enable_gqa=True).sum())
    products = 4 * 2 * 8 * 6 * 6 * 4
    assert (flops.forward, flops.backward, flops.total.attention_flops) == (products, 2 * products, 3 * products)


@pytest.mark.parametrize("kernel", KERNELS)
def test_causal_attention_is_told_or_not_known(kernel: str) -> None:
    flops = count_training(LlamaLike(SHAPE, kernel), SHAPE)
    attention = 3 * SHAPE.L * SHAPE.attention
    assert flops.total.attention_flops == attention
    # A mask that the model makes itself could be any.
    assert (flops.causal_flops, flops.unclear_flops) == ((attention, 0) if kernel == "sdpa" else (0, attention))


def test_modules_that_are_shared_or_called_twice() -> None:
    class Shared(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = (torch.nn.Sequential(torch.nn.Linear(8, 8, bias=False)) for _ in range(2))
            self.right.append(self.left[0])
            self.twice = torch.nn.Linear(8, 8, bias=False)

        def forward(self, tokens: Any) -> Any:
            return self.twice(self.twice(self.right(self.left(tokens)))).sum()

    model = Shared()
    rows = by_path(count(model, lambda: model(torch.ones(4, 8, requires_grad=True))), model)
    product = 2 * 4 * 8 * 8
    figures = {path: (row.calls, row.forward_flops, row.backward_flops) for path, row in rows.items()}
    assert figures == {
        "": (1, 5 * product, 10 * product),
        "left": (1, product, 2 * product), "left.0": (1, product, 2 * product),
        "right": (1, 2 * product, 4 * product), "right.0": (1, product, 2 * product),
        "right.1": (1, product, 2 * product),  # the layer that `left` has too, called by `right`
        "twice": (2, 2 * product, 4 * product),
    }  # fmt: skip


def test_what_runs_under_inference_mode_is_taken_apart() -> None:
    model = LlamaLike(SHAPE, "sdpa")

    def generate_then_train() -> Any:
        with torch.inference_mode():
            model(batch(SHAPE))
        return model(batch(SHAPE))

    flops = count(model, generate_then_train)
    assert (flops.forward, flops.backward) == (2 * SHAPE.forward, 2 * SHAPE.forward)
    assert flops.total.modelled_backward_flops == flops.backward


def test_vicuna_7b_shapes_without_data() -> None:
    """The figures of a measurement with FlopCounterMode: 6.903 T forward and 13.806 T backward for 512 tokens."""
    shape = Shape(L=32, h=4096, kv=4096, f=11008, V=32000, heads=32, B=1, S=512)
    with torch.device("meta"):
        model = LlamaLike(shape)
    flops = count_training(model, shape, "meta")
    assert (flops.forward, flops.backward) == (shape.forward, 2 * shape.forward)
    assert flops.forward / 1e12 == pytest.approx(6.903, abs=0.0005)
