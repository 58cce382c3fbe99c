"""Whether an attention looks at earlier positions only: by what its kernel or its module was told, or by the model."""

from typing import Any

from agprof.instruments.op_places import Operation


def causality(operation: Operation) -> bool | None:
    """None when nobody says."""
    told = _told(operation)
    if told is not None:
        return told
    call = operation.call
    while call is not None:
        of_module = getattr(call.module, "is_causal", None)
        if isinstance(of_module, bool):
            return of_module
        call = call.outer
    return _of_model(operation.call.outermost.module) if operation.call is not None else None


def _told(operation: Operation) -> bool | None:
    """By the kernel's arguments: told to be, or neither told nor given a mask, which may be anything."""
    schema = getattr(operation.function, "_schema", None)
    given = {argument.name: None for argument in schema.arguments} if schema is not None else {}
    if "is_causal" not in given:
        return None
    given |= dict(zip(given, operation.args, strict=False)) | operation.kwargs
    if given["is_causal"]:
        return True
    return None if given.get("attn_mask") is not None or given.get("attn_bias") is not None else False


def _of_model(root: Any) -> bool | None:
    """A Hugging Face model says in its configuration what it is."""
    for module in root.modules():
        config = getattr(module, "config", None)
        if getattr(config, "model_type", None) is None:
            continue
        names = (type(module).__name__, *(getattr(config, "architectures", None) or ()))
        decodes = getattr(config, "is_decoder", False) or any(
            name.endswith(("ForCausalLM", "LMHeadModel")) for name in names
        )
        return True if decodes and not getattr(config, "is_encoder_decoder", False) else None
    return None
