"""NVTX ranges in the domain `agprof`. Without a tool attached a pair costs about 0.1 us."""

import os
from typing import Any

DOMAIN = "agprof"
ENV_TOOL = "NVTX_INJECTION64_PATH"
"""Names the library of the tool that is attached, as nsys sets it for the process it starts."""

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

        domain: Any = nvtx.get_domain(DOMAIN)
        forced = _domain_in_spite(nvtx) if type(domain).__name__ == "DummyDomain" else None
        self.forced: bool = forced is not None
        """A tool is attached, and the package nvtx took it for none."""
        self._domain: Any = domain if forced is None else forced
        self.active: bool = type(self._domain).__name__ != "DummyDomain"
        """False when no tool listens: nvtx then hands out a domain that does nothing."""
        self._attributes: dict[tuple[str, str], Any] = {}
        self._next_step: tuple[int, Any] = (-1, None)
        self._push = self._domain.push_range
        self.pop = self._domain.pop_range

    def push(self, category: str, name: str) -> None:
        self._push(self._attributes.get((category, name)) or self._make(category, name))

    def start_step(self, step: int) -> Any:
        """Open the process-wide range of a step; give what this returns to `end`."""
        token = self._domain.start_range(self._step_attributes(step))
        # A new name takes a tool up to half a millisecond: made ready ahead, at a time that no border waits for.
        self._next_step = (step + 1, self._make_step(step + 1))
        return token

    def _step_attributes(self, step: int) -> Any:
        ready, attributes = self._next_step
        return attributes if ready == step else self._make_step(step)

    def _make_step(self, step: int) -> Any:
        name = f"step {step}" if step < MAX_NAMES else "step (later)"
        return self._domain.get_event_attributes(message=name, color=_COLOURS["step"], payload=step)

    def start(self, name: str) -> Any:
        """Open a process-wide range of another kind; give what this returns to `end`."""
        return self._domain.start_range(message=name, color=_COLOURS["step"])

    def mark(self, name: str, payload: int) -> None:
        self._domain.mark(self._domain.get_event_attributes(message=name, payload=payload))

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


def _domain_in_spite(nvtx: Any) -> Any:
    """A working domain for a tool that says it is switched off; None where there is no tool, or no way.

    nvtx asks nvtxDomainIsEnabled since 0.2.12, and Nsight Systems up to 2023.4 answers 0 although it listens
    (NVIDIA/NVTX issue 126). The names used here are private ones of nvtx 0.2.12 and later.
    """
    if not os.environ.get(ENV_TOOL):
        return None
    try:
        library = nvtx._lib.lib
        handle = library.DomainHandle(DOMAIN)
        if handle.enabled():
            return None
        domain = object.__new__(library.Domain)
        domain.handle = handle
        domain.__init__(DOMAIN)
        domain.get_event_attributes(message=DOMAIN)  # fails where these names mean something else
    except Exception:
        return None
    return domain
