"""How many FLOPs one dispatched operation is: multiply-adds x 2 of matrix products, convolutions and attention.

torch's own registry (torch.utils.flop_counter), with what it lacks or gets wrong: attention kernels of the CPU and of
several query heads per key head, the weight's gradient of grouped convolutions (it counts it `groups` times), products
with vectors, grouped products.
"""

from collections.abc import Callable
from math import prod
from typing import Any, Literal

CountedKind = Literal["matmul", "convolution", "attention"]

_SDPA = (
    "_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention", "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_fused_attention_overrideable",
)  # fmt: skip
"""Kernels that take query, key and value as (batch, heads, length, width)."""

_OPERANDS: dict[str, tuple[int, ...]] = {
    "addmm": (1, 2), "baddbmm": (1, 2), "addbmm": (1, 2), "addmv": (2,), "mv": (1,), "dot": (), "vdot": (),
}  # fmt: skip
"""Arguments that are multiplied, where they aren't the first two; of products with a vector only those whose gradient
is such a product again: the others' is an outer product, without additions."""

_LOOKS_COUNTABLE = ("mm", "matmul", "attention", "attn", "conv", "lstm", "gru", "rnn", "linear", "transformer_encoder")
_LOOKS_COUNTABLE_ELSEWHERE = ("attn", "attention", "gemm", "matmul", "_mm", "conv", "linear")


class Formula:
    """FLOPs of one operation."""

    __slots__ = ("backward", "flops", "kind", "operands")

    def __init__(self, kind: CountedKind, flops: Callable[..., int], operands: tuple[int, ...], backward: bool) -> None:
        self.kind = kind
        self.flops = flops
        """Called with the operation's arguments and `out_val`, its result."""
        self.operands = operands
        """Positions of the tensors that are multiplied; of attention query, key and value."""
        self.backward = backward
        """It makes gradients of such an operation."""


class Formulas:
    """Formulas by operation; the answers are kept, for there are as many looks as operations in a step."""

    def __init__(self, torch: Any) -> None:
        from torch.utils import flop_counter

        self._torch = torch
        self._registry: dict[Any, Callable[..., int]] = {**flop_counter.flop_registry, **_own(torch)}
        self._known: dict[Any, Formula | None] = {}
        self._unknown: dict[Any, int] = {}

    @property
    def unknown(self) -> dict[str, int]:
        """Calls of operations that may well multiply matrices and that no formula is known for."""
        return {str(function): calls for function, calls in self._unknown.items()}

    def of(self, function: Any) -> Formula | None:
        """The formula of an overload or higher-order operator; None when it counts nothing."""
        try:
            formula = self._known[function]
        except KeyError:
            formula = self._known[function] = self._look_up(function)
            if formula is None and _looks_countable(function):
                self._unknown[function] = 0
        if formula is None and function in self._unknown:
            self._unknown[function] += 1
        return formula

    def _look_up(self, function: Any) -> Formula | None:
        packet = getattr(function, "overloadpacket", function)
        flops = self._registry.get(packet)
        if flops is None:
            return None
        name = str(getattr(packet, "__name__", packet)).rpartition(".")[2]
        backward = "backward" in name
        if "attention" in name:
            first = 1 if backward and name != "flex_attention_backward" else 0
            return Formula("attention", flops, (first, first + 1, first + 2), backward)
        if "conv" in name:
            return Formula("convolution", flops, (0, 1), backward)
        return Formula("matmul", flops, _OPERANDS.get(name, (0, 1)), backward)


def _looks_countable(function: Any) -> bool:
    namespace, _, name = str(function).partition(".")
    marks = _LOOKS_COUNTABLE if namespace in ("aten", "prims", "mkldnn") else _LOOKS_COUNTABLE_ELSEWHERE
    return not name.startswith("upsample_") and any(mark in (name or namespace) for mark in marks)


def _own(torch: Any) -> dict[Any, Callable[..., int]]:
    aten = torch.ops.aten
    own: dict[str, Callable[..., int]] = {
        **dict.fromkeys(_SDPA, _attention),
        **{f"{name}_backward": _attention_backward for name in _SDPA},
        "convolution_backward": _convolution_backward,
        "mv": _mv, "addmv": _addmv, "dot": _dot, "vdot": _dot, "addbmm": _addbmm, "_int_mm": _mm,
        "_grouped_mm": _grouped_mm, "_scaled_grouped_mm": _grouped_mm,
    }  # fmt: skip
    return {getattr(aten, name): formula for name, formula in own.items() if hasattr(aten, name)}


def attention_flops(query: Any, key: Any, value: Any) -> int:
    """Of shapes (batch, heads, length, width): all scores, and the sum of values by them. A key's head that serves
    several queries' heads is multiplied with each."""
    batch, heads, length, width = query
    return int(2 * batch * heads * length * key[2] * (width + value[3]))


def _attention(query: Any, key: Any, value: Any, *_args: Any, out_val: Any = None, **_kwargs: Any) -> int:
    return attention_flops(query.shape, key.shape, value.shape)


def _attention_backward(
    _grad: Any, query: Any, key: Any, value: Any, *_args: Any, out_val: Any = None, **_kwargs: Any
) -> int:
    """Scores again, then gradients of scores, values, queries and keys."""
    batch, heads, length, width = query.shape
    return int(2 * batch * heads * length * key.shape[2] * (3 * width + 2 * value.shape[3]))


def recomputed_share(query: Any, value: Any) -> tuple[int, int]:
    """Of an attention kernel's backward: which part computes the scores again, as (numerator, denominator)."""
    return query.shape[-1], 3 * query.shape[-1] + 2 * value.shape[-1]


def _convolution_backward(
    grad: Any, inputs: Any, weight: Any, _bias: Any, _stride: Any, _padding: Any, _dilation: Any, transposed: bool,
    _output_padding: Any, _groups: int, output_mask: Any, out_val: Any = None, **_kwargs: Any,
) -> int:  # fmt: skip
    """Each of the two gradients pairs the same elements of input, weight and result as the forward did."""
    positions = prod((inputs if transposed else grad).shape[2:])
    return int(2 * inputs.shape[0] * positions * prod(weight.shape) * (bool(output_mask[0]) + bool(output_mask[1])))


def _mm(left: Any, right: Any, *_args: Any, out_val: Any = None, **_kwargs: Any) -> int:
    return int(2 * left.shape[0] * left.shape[1] * right.shape[1])


def _mv(matrix: Any, vector: Any, *_args: Any, out_val: Any = None, **_kwargs: Any) -> int:
    return int(2 * matrix.shape[0] * matrix.shape[1])


def _addmv(_addend: Any, matrix: Any, vector: Any, *_args: Any, out_val: Any = None, **_kwargs: Any) -> int:
    return _mv(matrix, vector)


def _dot(left: Any, right: Any, *_args: Any, out_val: Any = None, **_kwargs: Any) -> int:
    return int(2 * left.shape[0])


def _addbmm(_addend: Any, left: Any, right: Any, *_args: Any, out_val: Any = None, **_kwargs: Any) -> int:
    return int(2 * left.shape[0] * left.shape[1] * left.shape[2] * right.shape[2])


def _grouped_mm(left: Any, right: Any, *_args: Any, out_val: Any = None, **_kwargs: Any) -> int:
    """One product per group; of a side with two dimensions each row or column belongs to one group."""
    rows_of_one_group = left.shape[1:] if left.dim() == 3 and right.dim() == 2 else left.shape
    return int(2 * prod(rows_of_one_group) * right.shape[-1])
