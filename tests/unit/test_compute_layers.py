"""FLOPs of other layers than a decoder's: experts, convolutions, products with vectors; and of Hugging Face's LLaMA."""

from math import prod
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from llama_like import by_path, count  # noqa: E402

nn, functional = torch.nn, torch.nn.functional


class Experts(nn.Module):
    """A mixture of experts of which every token goes to two."""

    def __init__(self, h: int, f: int, number: int) -> None:
        super().__init__()
        self.router = nn.Linear(h, number, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(h, f, bias=False), nn.SiLU(), nn.Linear(f, h, bias=False)) for _ in range(number)
        )

    def forward(self, tokens: Any) -> Any:
        weights, chosen = self.router(tokens).softmax(-1).topk(2, dim=-1)
        mixed = torch.zeros_like(tokens)
        for index, expert in enumerate(self.experts):
            rows, slots = torch.where(chosen == index)
            mixed = mixed.index_add(0, rows, expert(tokens[rows]) * weights[rows, slots, None])
        return mixed.square().sum()


def test_moe_counts_two_experts_for_each_token_however_they_are_spread() -> None:
    torch.manual_seed(0)
    h, f, experts, tokens = 16, 24, 4, 32
    model = Experts(h, f, experts)
    flops = count(model, lambda: model(torch.randn(tokens, h, requires_grad=True)))
    forward = 2 * h * experts * tokens + 2 * (2 * h * f) * 2 * tokens
    assert (flops.forward, flops.backward) == (forward, 2 * forward)
    assert flops.total.modelled_backward_flops == flops.backward
    rows = by_path(flops, model)
    shares = [rows[f"experts.{number}"].forward_flops for number in range(experts)]
    assert sum(shares) == 2 * (2 * h * f) * 2 * tokens
    assert len(set(shares)) > 1  # the router spreads them unevenly
    assert all(rows[f"experts.{n}"].backward_flops == 2 * share for n, share in enumerate(shares))


@pytest.mark.parametrize(
    ("left", "right", "products"),
    [
        ((6, 4), (3, 4, 5), 6 * 4 * 5),  # every row with its group's matrix
        ((4, 6), (6, 5), 4 * 6 * 5),  # gradients of those matrices
        ((3, 7, 4), (4, 6), 7 * 4 * 6),  # every column with its group's matrix
        ((3, 7, 4), (3, 4, 6), 3 * 7 * 4 * 6),
    ],
)
def test_grouped_products(left: tuple[int, ...], right: tuple[int, ...], products: int) -> None:
    from agprof.instruments.flops_formulas import Formulas

    formula = Formulas(torch).of(torch.ops.aten._grouped_mm.default)
    assert formula is not None
    assert formula.flops(torch.empty(left), torch.empty(right), out_val=None) == 2 * products


class StackedExperts(nn.Module):
    """Experts in one weight, as Llama 4 and GPT-OSS have them: a batched product that is no attention."""

    is_causal = True  # what asks for causal attention around it

    def __init__(self, how: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 8, 6))
        self.how = how

    def forward(self, tokens: Any) -> Any:
        weight = self.weight
        if self.how == "copied and turned":
            weight = weight.transpose(1, 2).contiguous().bfloat16().transpose(1, 2)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.how == "autocast"):
            return torch.bmm(tokens.to(weight.dtype), weight).float().sum()


@pytest.mark.parametrize("how", ["as it is", "autocast", "copied and turned"])
@pytest.mark.parametrize("frozen", [True, False])
def test_experts_in_one_weight_are_no_attention(how: str, frozen: bool) -> None:
    model = StackedExperts(how).requires_grad_(not frozen)
    tokens = torch.randn(3, 5, 8, requires_grad=True)
    flops = count(model, lambda: model(tokens))
    product = 2 * 3 * 5 * 8 * 6
    assert (flops.forward, flops.backward) == (product, (1 if frozen else 2) * product)
    assert (flops.total.attention_flops, flops.causal_flops, flops.unclear_flops) == (0, 0, 0)


CONVOLUTIONS = {
    "1d": (nn.Conv1d(6, 4, 3, padding=1), (2, 6, 10), 2 * 10),
    "2d": (nn.Conv2d(6, 4, 3), (2, 6, 9, 9), 2 * 7 * 7),
    "2d strided": (nn.Conv2d(6, 4, 3, stride=2, padding=1), (2, 6, 9, 9), 2 * 5 * 5),
    "2d dilated, no bias": (nn.Conv2d(6, 4, 3, dilation=2, bias=False), (2, 6, 9, 9), 2 * 5 * 5),
    "3d patches": (nn.Conv3d(3, 8, (2, 4, 4), stride=(2, 4, 4)), (2, 3, 4, 8, 8), 2 * 2 * 2 * 2),
    "2 groups": (nn.Conv2d(6, 4, 3, groups=2), (2, 6, 9, 9), 2 * 7 * 7),
    "depthwise": (nn.Conv2d(6, 6, 3, groups=6), (2, 6, 9, 9), 2 * 7 * 7),
    "transposed": (nn.ConvTranspose2d(6, 4, 3, stride=2), (2, 6, 5, 5), 2 * 5 * 5),
    "transposed, 2 groups": (nn.ConvTranspose2d(6, 4, 3, groups=2), (2, 6, 5, 5), 2 * 5 * 5),
}
"""Layer, input, and positions at which the kernel is multiplied: of the result, or of a transposed one's input."""


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("trained", ["all", "inputs", "weights"])
def test_convolutions(name: str, trained: str) -> None:
    layer, shape, positions = CONVOLUTIONS[name]
    layer.weight.requires_grad_(trained != "inputs")
    inputs = torch.randn(shape, requires_grad=trained != "weights")
    flops = count(layer, lambda: layer(inputs).square().sum())
    forward = 2 * positions * prod(layer.weight.shape)
    assert (flops.forward, flops.backward) == (forward, (2 if trained == "all" else 1) * forward)
    assert flops.total.modelled_backward_flops == flops.backward
    kinds = {(in_pass, kind) for (in_pass, kind, _), sums in flops.kinds.items() if sums.flops}
    assert kinds == {("forward", "convolution"), ("backward", "convolution")}


def test_products_with_vectors_count_once_per_element() -> None:
    """DeepSpeed's profiler counts a matrix times a vector as often as it is long."""
    matrix, vector = torch.ones(6, 4, requires_grad=True), torch.ones(4, requires_grad=True)
    flops = count(nn.Identity(), lambda: torch.mv(matrix, vector).sum())
    # The vector's gradient is such a product again; the matrix's is an outer product, without additions.
    assert (flops.forward, flops.backward) == (2 * 6 * 4, 2 * 6 * 4)
    assert flops.total.modelled_backward_flops == flops.backward


def test_broadcast_products_count_every_matrix() -> None:
    left, right = torch.ones(5, 3, 4, requires_grad=True), torch.ones(4, 2, requires_grad=True)
    flops = count(nn.Identity(), lambda: torch.matmul(left, right).sum())
    assert (flops.forward, flops.backward) == (2 * 5 * 3 * 4 * 2, 4 * 5 * 3 * 4 * 2)


def test_lower_precision_is_seen_where_it_is_used() -> None:
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))

    def step() -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model(torch.ones(4, 8)).float().sum()

    flops = count(model, step)
    assert {dtype for (_, kind, dtype) in flops.kinds if kind == "matmul"} == {"bfloat16"}
    assert (flops.forward, flops.backward) == (2 * 2 * 4 * 8 * 8, 3 * 2 * 4 * 8 * 8)
    assert flops.total.modelled_backward_flops == flops.backward


def test_what_has_no_formula_is_named() -> None:
    @torch.library.custom_op("agprof_test::flash_attn_forward", mutates_args=())
    def foreign(query: torch.Tensor) -> torch.Tensor:
        return query.clone()

    lstm, weight = nn.LSTM(4, 4), torch.ones(2, 2, requires_grad=True)

    def step() -> Any:
        with torch.no_grad():
            lstm(torch.ones(2, 1, 4))
            foreign(torch.ones(2, 2))
            foreign(torch.ones(2, 2))
        return weight.sum()

    flops = count(lstm, step)
    assert flops.forward == 0
    assert flops.unknown == {"aten.mkldnn_rnn_layer.default": 1, "agprof_test.flash_attn_forward.default": 2}


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_a_llama_of_hugging_face(kernel: str) -> None:
    transformers = pytest.importorskip("transformers")
    h, f, kv, vocabulary, layers, batch, length = 64, 96, 32, 100, 2, 2, 16
    config = transformers.LlamaConfig(
        vocab_size=vocabulary, hidden_size=h, intermediate_size=f, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, attn_implementation=kernel,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    ids = torch.zeros(batch, length, dtype=torch.long)
    flops = count(model, lambda: model(input_ids=ids, labels=ids, use_cache=False).loss)
    n_mm = layers * (2 * h * h + 2 * h * kv + 3 * h * f) + h * vocabulary
    attention = 4 * layers * length * h * batch * length
    assert flops.forward == 2 * n_mm * batch * length + attention
    assert flops.backward == 2 * flops.forward == flops.total.modelled_backward_flops
    assert (flops.causal_flops, flops.unclear_flops) == (3 * attention, 0)
