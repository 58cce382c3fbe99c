"""What the GPUs' driver reported by itself, in words."""

from agprof.analysis.system_samples import on_axis
from agprof.analysis.view import View
from agprof.model.system_answers import GpuEvent
from agprof.model.xids import event_in_words

MOST_EVENTS = 500
"""A failing GPU may report the same thousands of times."""


def gpu_events(view: View) -> tuple[GpuEvent, ...]:
    """The first events by time."""
    rows = on_axis(view, "gpu_events").sort("at_ns", "node", "gpu", maintain_order=True).head(MOST_EVENTS)
    return tuple(
        GpuEvent(node=node, gpu=gpu, time_ns=at_ns, kind=kind[:60], code=code, meaning=event_in_words(kind, code))
        for node, gpu, at_ns, kind, code in rows.select("node", "gpu", "at_ns", "kind", "code").iter_rows()
    )
