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

    def start(self, category: str, name: str) -> Any:
        """Open a process-wide range; give what this returns to `end`."""
        attributes = self._domain.get_event_attributes(message=name, color=_COLOURS.get(category, 0x999999))
        return self._domain.start_range(attributes)

    def end(self, token: Any) -> None:
        self._domain.end_range(token)

    def _make(self, category: str, name: str) -> Any:
        if len(self._attributes) >= MAX_NAMES:
            name = "(more names)"
        colour = _COLOURS.get(name, _COLOURS.get(category, 0x999999))
        attributes = self._domain.get_event_attributes(message=name, color=colour)
        self._attributes[category, name] = attributes
        return attributes
