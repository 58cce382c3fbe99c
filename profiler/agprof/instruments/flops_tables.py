"""What was counted in the profile step, as rows of the tables `modules` and `operations`."""

from collections.abc import Iterator
from typing import Any

from agprof.instruments.flops_count import FlopsCount

Row = tuple[Any, ...]


def module_rows(step: int, number: int, root: Any, count: FlopsCount) -> Iterator[Row]:
    """Rows of one tree; none when nothing of it was called."""
    for order, (path, module, sums) in enumerate(count.modules(root)):
        params, trainable = parameters(module)
        times = (sums.forward_ns, sums.backward_ns, sums.recomputed_ns) if count.times.known else (None, None, None)
        yield (
            step,
            number,
            path,
            path.rpartition(".")[0] if path else None,
            path.count(".") + 1 if path else 0,
            type(module).__name__,
            order,
            params,
            trainable,
            sums.calls,
            sums.recomputed_calls,
            float(sums.forward_flops),
            float(sums.backward_flops),
            float(sums.recomputed_flops),
            float(sums.attention_flops),
            float(sums.modelled_forward_flops),
            float(sums.modelled_backward_flops),
            float(sums.forward_bytes),
            float(sums.backward_bytes),
            *times,
        )


def operation_rows(step: int, count: FlopsCount) -> Iterator[Row]:
    for (in_pass, kind, dtype), sums in sorted(count.kinds.items(), key=lambda item: tuple(map(str, item[0]))):
        moved = None if kind == "other" else float(sums.bytes)
        duration = sums.duration_ns if count.times.known else None
        yield step, in_pass, kind, dtype, sums.calls, float(sums.flops), moved, duration


def parameters(module: Any) -> tuple[int, int]:
    """Parameters and trainable ones, shared ones once; ZeRO-3's partitioned ones count whole (`ds_numel`)."""
    total = trainable = 0
    for parameter in module.parameters():  # torch leaves out what it has seen already
        count = int(getattr(parameter, "ds_numel", parameter.numel()))
        total += count
        trainable += count if parameter.requires_grad else 0
    return total, trainable
