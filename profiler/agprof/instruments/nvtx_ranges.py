"""NVTX ranges in the domain `agprof`. Without a tool attached a pair costs about 0.1 us."""

from typing import Any

_COLOURS = {
    "data": 0xCC79A7,
    "forward": 0x56B4E9,
    "backward": 0x0072B2,
    "optimizer": 0x009E73,
    "communication": 0xD55E00,
    "step": 0x999999,
    "range": 0xE69F00,
}
MAX_NAMES = 2000
"""Names are registered with NVTX for ever, so their number is bounded; later ones share one name."""


class NvtxRanges:
    """Pushes and pops ranges of the calling thread; steps are process ranges because they cross others."""

    def __init__(self) -> None:
        """Raises ImportError where the package nvtx is missing."""
        import nvtx

        self._domain: Any = nvtx.get_domain("agprof")
        self.active: bool = type(self._domain).__name__ != "DummyDomain"
        """False when no tool listens: nvtx then hands out a domain that does nothing."""
        self._attributes: dict[tuple[str, str], Any] = {}
        self._push = self._domain.push_range
        self.pop = self._domain.pop_range

    def push(self, category: str, name: str) -> None:
        self._push(self._attributes.get((category, name)) or self._make(category, name))

    def start_step(self, step: int) -> Any:
        """Open the process-wide range of a step; give what this returns to `end`."""
        name = f"step {step}" if step < MAX_NAMES else "step (later)"
        return self._domain.start_range(message=name, color=_COLOURS["step"], payload=step)

    def end(self, token: Any) -> None:
        self._domain.end_range(token)

    def _make(self, category: str, name: str) -> Any:
        if len(self._attributes) >= MAX_NAMES:
            name = "(more names)"
            known = self._attributes.get((category, name))
            if known is not None:
                return known
        colour = _COLOURS.get(name, _COLOURS.get(category, 0x999999))
        attributes = self._domain.get_event_attributes(message=name, color=colour)
        self._attributes[category, name] = attributes
        return attributes
