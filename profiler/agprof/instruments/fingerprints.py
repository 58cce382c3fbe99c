"""Checksums of tensors: of the whole, and of each item along the first two dimensions.

Equal tensors of one shape have equal checksums; different ones have equal checksums by chance only (64 bits, weights
that look random). Nothing is waited for: on a CUDA device the checksums travel to pinned memory and are read once an
event says that they are there.
"""

from collections.abc import Callable
from typing import Any

MAX_ELEMENTS = {"cpu": 1 << 24, "cuda": 1 << 20}
"""Larger tensors are not looked at, nor those of other devices: a checksum needs 8 bytes an element for a moment, which
a GPU that is nearly full must not miss."""
MAX_ITEMS = 4096
_STRIDE = 0x9E3779B97F4A7C15


class Fingerprint:
    """Checksums of one tensor, maybe still on their way."""

    __slots__ = ("_read", "key", "sizes")

    def __init__(self, key: tuple[Any, ...], sizes: tuple[int, ...], read: Callable[[], list[int] | None]) -> None:
        self.key = key
        """Shape and element type."""
        self.sizes = sizes
        """Items along dimension 0, then 1; 0 where they are not told apart."""
        self._read = read

    def read(self) -> tuple[int, list[int], list[int]] | None:
        """(whole, items of dimension 0, of dimension 1); None while they are not there."""
        values = self._read()
        if values is None:
            return None
        first = 1 + self.sizes[0]
        return values[0], values[1:first], values[first:]


class Fingerprints:
    """Makes them; keeps the weights, which depend on lengths only."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self._weights: dict[tuple[Any, int, Any], Any] = {}

    def of(self, tensor: Any) -> Fingerprint | None:
        """None where the tensor can't be looked at without waiting for something, or is too large."""
        torch = self._torch
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.layout != torch.strided:
            return None
        kind = tensor.device.type
        if tensor.numel() > MAX_ELEMENTS.get(kind, -1) or tensor.element_size() > 8:
            return None
        if tensor.is_quantized or tensor.is_conj() or tensor.is_neg() or tensor.dtype.is_complex:
            return None
        if kind == "cuda" and torch.cuda.is_current_stream_capturing():
            return None
        sums, sizes = self._checksums(tensor.detach())
        return Fingerprint((tuple(tensor.shape), str(tensor.dtype)), sizes, self._reader(sums))

    def _checksums(self, tensor: Any) -> tuple[Any, tuple[int, ...]]:
        torch = self._torch
        bits = tensor.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])
        if not bits.numel():
            return torch.zeros(1, dtype=torch.int64, device=bits.device), (0, 0)
        if bits.dim() < 2:
            bits = bits.reshape(1, -1)
        narrow = torch.int64 if bits.dtype == torch.int64 else torch.int32
        # The last dimension in the narrow type, so that no copy is wider than four bytes an element.
        rows = (bits * self._of_length(bits.shape[-1], narrow, bits.device)).sum(-1, dtype=torch.int64)
        if rows.dim() > 2:
            rows = (rows.flatten(2) * self._of_length(rows[0, 0].numel(), torch.int64, rows.device)).sum(-1)
        if rows.dim() == 1:
            whole = (rows * self._of_length(len(rows), torch.int64, rows.device)).sum()
            return self._together(whole, rows if tensor.dim() > 1 else None, None)
        first = (rows * self._of_length(rows.shape[1], torch.int64, rows.device)).sum(1)
        second = (rows * self._of_length(rows.shape[0], torch.int64, rows.device).unsqueeze(1)).sum(0)
        whole = (first * self._of_length(len(first), torch.int64, rows.device)).sum()
        return self._together(whole, first, second)

    def _together(self, whole: Any, first: Any, second: Any) -> tuple[Any, tuple[int, ...]]:
        parts = [
            part if part is not None and len(part) <= MAX_ITEMS else whole.new_empty(0) for part in (first, second)
        ]
        return self._torch.cat([whole.reshape(1), *parts]), tuple(len(part) for part in parts)

    def _of_length(self, length: int, dtype: Any, device: Any) -> Any:
        """Odd numbers that look random."""
        key = (device, length, dtype)
        weights = self._weights.get(key)
        if weights is None:
            torch = self._torch
            x = torch.arange(1, length + 1, dtype=torch.int64, device=device) * (_STRIDE - (1 << 64))
            x = (x ^ (x >> 30)) * (0xBF58476D1CE4E5B9 - (1 << 64))
            x = (x ^ (x >> 27)) * (0x94D049BB133111EB - (1 << 64))
            weights = self._weights[key] = (x | 1).to(dtype)
        return weights

    def _reader(self, sums: Any) -> Callable[[], list[int] | None]:
        torch = self._torch
        if sums.device.type == "cpu":
            values: list[int] = sums.tolist()
            return lambda: values
        host = torch.empty(sums.shape, dtype=torch.int64, pin_memory=True)
        host.copy_(sums, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return lambda: host.tolist() if event.query() else None
