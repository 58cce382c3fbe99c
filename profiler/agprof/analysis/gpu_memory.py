"""Who held the memory of each GPU at its fullest, and who else was on it."""

from collections.abc import Sequence

from agprof.analysis.view import View
from agprof.model.system_answers import GpuMapping, GpuMemory, GpuTenant


def reconcile(view: View, mapping: Sequence[GpuMapping]) -> tuple[GpuMemory, ...]:
    """The account of each GPU at the moment at which NVML saw most of it in use."""
    return ()


def tenants(view: View) -> tuple[GpuTenant, ...]:
    """Processes on the GPUs that do not belong to the run."""
    return ()
