"""Time spent waiting for batches, and what a batch holds."""

from typing import Any

from agprof.instruments.recorder import Recorder

INSTRUMENT = "data"
_TOKEN_KEYS = ("input_ids", "tokens")


def arm(recorder: Recorder, dataloader: Any) -> None:
    """Make DataLoader iteration a phase. `dataloader` is the module torch.utils.data.dataloader."""
    guess = recorder.guard(INSTRUMENT, lambda batch: recorder.guess_counts(*batch_counts(batch)))
    open_phase = recorder.guard(INSTRUMENT, lambda: recorder.open("phase", "data"))
    close_phase = recorder.guard(INSTRUMENT, recorder.close)

    def around_next(original: Any) -> Any:
        def __next__(self: Any) -> Any:  # noqa: N807
            span = open_phase()
            try:
                batch = original(self)
            finally:
                if span is not None:
                    close_phase(span)
            guess(batch)
            return batch

        return __next__

    def around_iter(original: Any) -> Any:
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


def batch_counts(batch: Any) -> tuple[int | None, int | None]:
    """(samples, tokens) that can be read off a batch without looking at its contents; None where they can't."""
    if isinstance(batch, (list, tuple)):
        for item in batch:
            samples, tokens = batch_counts(item)
            if samples is not None:
                return samples, tokens
        return None, None
    keys = getattr(batch, "keys", None)
    if keys is not None:
        for key in _TOKEN_KEYS:
            value = batch.get(key) if hasattr(batch, "get") else None
            if _is_tensor(value) and value.dim() == 2:
                return int(value.shape[0]), int(value.numel())
        return batch_counts(list(batch.values()))
    if _is_tensor(batch) and batch.dim() > 0:
        return int(batch.shape[0]), None
    return None, None


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "numel") and hasattr(value, "dim")
