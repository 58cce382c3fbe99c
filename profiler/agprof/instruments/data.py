"""Time spent waiting for batches, and what a batch holds."""

import functools
import itertools
from typing import Any

from agprof.instruments.recorder import Recorder, Span

INSTRUMENT = "data"
_TOKEN_KEYS = ("input_ids", "tokens")
_MASK_KEY = "attention_mask"
_MAX_DEPTH = 4
_MAX_ITEMS = 16


def arm(recorder: Recorder, dataloader: Any) -> None:
    """Make DataLoader iteration a phase. `dataloader` is the module torch.utils.data.dataloader."""

    def count(batch: Any) -> None:
        recorder.guess_counts(*batch_counts(batch))

    def open_data() -> Span:
        return recorder.open("phase", "data")

    # Batches may be anything: one that can't be counted must not cost the phase.
    guess = recorder.guard("data.counts", count)
    open_phase = recorder.guard(INSTRUMENT, open_data)
    close_phase = recorder.guard(INSTRUMENT, recorder.close, ends=True)

    def around_next(original: Any) -> Any:
        @functools.wraps(original)
        def __next__(self: Any) -> Any:  # noqa: N807
            span = open_phase()
            try:
                batch = original(self)
            except (MemoryError, RuntimeError) as error:
                recorder.failing(error)
                raise
            finally:
                if span is not None:
                    close_phase(span)
            guess(batch)
            return batch

        return __next__

    def around_iter(original: Any) -> Any:
        @functools.wraps(original)
        def __iter__(self: Any) -> Any:  # noqa: N807
            span = open_phase()
            try:
                return original(self)
            finally:
                if span is not None:
                    close_phase(span)

        return __iter__

    recorder.patches.replace(dataloader._BaseDataLoaderIter, "__next__", around_next)
    recorder.patches.replace(dataloader.DataLoader, "__iter__", around_iter)


def batch_counts(batch: Any, depth: int = 0) -> tuple[int | None, int | None, int | None]:
    """(samples, tokens, tokens that are no padding) of a batch, by shapes and its attention mask; None: not known."""
    if depth > _MAX_DEPTH:
        return None, None, None
    if isinstance(batch, (list, tuple)):
        for item in batch[:_MAX_ITEMS]:
            counts = batch_counts(item, depth + 1)
            if counts[0] is not None:
                return counts
        return None, None, None
    if callable(getattr(batch, "keys", None)) and callable(getattr(batch, "get", None)):
        for key in _TOKEN_KEYS:
            value = batch.get(key)
            if _is_tensor(value) and value.dim() == 2:
                return int(value.shape[0]), int(value.numel()), _unpadded(batch.get(_MASK_KEY), value)
        return batch_counts([batch.get(key) for key in itertools.islice(batch.keys(), _MAX_ITEMS)], depth + 1)
    if _is_tensor(batch) and batch.dim() > 0:
        return int(batch.shape[0]), None, None
    return None, None, None


def _unpadded(mask: Any, tokens: Any) -> int | None:
    """Positions that the attention mask of `tokens` does not hide. Only read where the host has it already."""
    if not _is_tensor(mask) or mask.shape != tokens.shape or not getattr(mask, "is_cpu", False):
        return None
    try:
        # By way of numpy: torch's own reading of a value would be seen by whatever watches for it, ours included.
        return int((mask.numpy() != 0).sum())
    except (RuntimeError, TypeError):
        return None  # torch without numpy, an element type that numpy lacks, a tensor without data


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "numel") and hasattr(value, "dim")
