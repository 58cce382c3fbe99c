"""Which attention and dropout kernels a device would run, on tensors without data.

On the meta device torch takes attention apart into matrix products, which keeps every score; a GPU, and a CPU without
dropout, run a fused kernel that keeps one number per row of scores. Dropout keeps a byte per element on a GPU and a
whole element on a CPU. Here both are what the planned device would choose. Only for a process of planning: it changes
torch.nn.functional for good.
"""

from typing import Any

from agprof.model.plan_measure import PlannedDevice

FLASH_HEAD_WIDTH = 256
"""Widest head of torch's flash attention on GPUs."""


def use_kernels_of(device: PlannedDevice, torch: Any) -> None:
    """From here on attention and dropout on the meta device are those of `device`."""
    functional = torch.nn.functional
    functional.scaled_dot_product_attention = _attention(device, torch, functional.scaled_dot_product_attention)
    if device == "gpu":
        functional.dropout = _dropout(torch, functional.dropout)


def _dropout(torch: Any, original: Any) -> Any:
    def dropout(input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
        if not training or inplace or p == 0 or input.device.type != "meta":
            return original(input, p, training, inplace)
        return torch.native_dropout(input, p, True)[0]

    return dropout


def _attention(device: PlannedDevice, torch: Any, original: Any) -> Any:
    choose = _on_gpu if device == "gpu" else _on_cpu

    def scaled_dot_product_attention(
        query: Any,
        key: Any,
        value: Any,
        attn_mask: Any = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Any:
        meant = query.device.type == "meta" and query.dim() == 4
        if meant and not (attn_mask is not None and attn_mask.requires_grad):
            if enable_gqa and query.shape[1] != key.shape[1]:
                groups = query.shape[1] // key.shape[1]
                key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
            result = choose(torch, query, key, value, attn_mask, dropout_p, is_causal, scale)
            if result is not None:
                return result
        return original(
            query, key, value, attn_mask=attn_mask, dropout_p=dropout_p, is_causal=is_causal, scale=scale,
            enable_gqa=enable_gqa,
        )  # fmt: skip

    return scaled_dot_product_attention


def _on_cpu(
    torch: Any, query: Any, key: Any, value: Any, mask: Any, dropout: float, causal: bool, scale: float | None
) -> Any:
    """As aten/src/ATen/native/transformers/sdp_utils_cpp.cpp chooses: fused without dropout, else products."""
    if dropout > 0 or not query.shape[-1] == key.shape[-1] == value.shape[-1]:
        return None
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return fused(query, key, value, 0.0, causal, attn_mask=_as_bias(torch, mask, query), scale=scale)[0]


def _on_gpu(
    torch: Any, query: Any, key: Any, value: Any, mask: Any, dropout: float, causal: bool, scale: float | None
) -> Any:
    """Flash attention where it can be (16 bits, no mask), else the memory-efficient kernel; both keep the same."""
    width = query.shape[-1]
    if mask is None and query.dtype in (torch.float16, torch.bfloat16) and width <= FLASH_HEAD_WIDTH:
        fused = torch.ops.aten._scaled_dot_product_flash_attention
        return fused(query, key, value, dropout, causal, scale=scale)[0]
    bias = _as_bias(torch, mask, query)
    if bias is not None:
        bias = bias.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value))
    fused = torch.ops.aten._scaled_dot_product_efficient_attention
    return fused(query, key, value, bias, keep, dropout, causal, scale=scale)[0]


def _as_bias(torch: Any, mask: Any, query: Any) -> Any:
    """A mask of truth values as what is added to the scores."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=query.dtype).masked_fill(mask.logical_not(), float("-inf"))
