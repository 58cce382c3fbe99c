"""Which GPU of its node a rank uses: by what the rank told of its device. Never guessed."""

from agprof.analysis.view import View
from agprof.model.system_answers import GpuMapping


def map_gpus(view: View) -> tuple[GpuMapping, ...]:
    """One row per rank, in order."""
    return tuple(
        GpuMapping(rank=rank, node=view.node_of.get(rank, 0), gpu=None, by=None, reason="not looked at yet")
        for rank in view.ranks
    )
