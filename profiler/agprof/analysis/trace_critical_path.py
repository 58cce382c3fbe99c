"""The critical path of one rank: the chain of dependent work that decides when a window ends.

The path is walked backwards from what ended last in the window. Every step goes to what ended last of all that had to
end before, so that the pieces tile the window:

- a device activity began after the last of: the activity before it in its stream; its launch (by correlation); the
  activities that its stream was told to wait for (recorded event waits). Where all of these lie more than
  UNEXPLAINED_NS back, the activity of any stream that ended last is taken to have gated it, and the note says how
  often that was so;
- a host thread goes back through its operators and calls to the last call in which it waited for the device, and from
  there on through the activity waited for; autograd's threads go back to the thread that enqueued their work, and
  that one to them.

The time between a launch and the begin of what it launched is `launch latency`; the time between two activities of
which one waited for the other is `idle`.

Slack per category is work that lies off the path: the category's whole time in the window, every stream and every
thread added up, less what lies on the path. It can be made longer or shorter within limits without moving the end;
making the path's own work shorter is what makes the window shorter. Those limits, for the device's activities, are the
least slack per category: see `trace_path_slack`.
"""

from collections.abc import Callable

import numpy as np

from agprof.analysis.trace_host import IntArray
from agprof.analysis.trace_path_device import UNKNOWN, Device, device_activities
from agprof.analysis.trace_path_host import LAUNCH, OPERATOR, Thread, host_threads
from agprof.analysis.trace_path_slack import least_slack
from agprof.analysis.trace_path_walk import CATEGORIES, Path, walk
from agprof.analysis.trace_timeline import drawn_name
from agprof.analysis.trace_window import Window, origin_ns, typical_window
from agprof.model.communication_kernels import Communication
from agprof.model.trace_answers import CriticalPath, CriticalSegment
from agprof.model.trace_tables import GpuKind
from agprof.store.traces import RankTrace

MAX_SEGMENTS = 5_000
NOTHING_RECORDED = "(nothing recorded)"


def critical_path(
    trace: RankTrace,
    *,
    step: int | None = None,
    window: Window | None = None,
    origin: int | None = None,
    communicates: Callable[[str], bool] | None = None,
    max_segments: int = MAX_SEGMENTS,
) -> CriticalPath | None:
    """The critical path of a step: of `step`, else the typical one, else (a trace without steps) of the whole trace;
    or of the `window` given. None when the trace has no such step, or nothing in it.

    `origin` is what times count from (the earliest event of any rank); `communicates` tells communication kernels by
    name (default: agprof's table of libraries).
    """
    window = window if window is not None else typical_window(trace, step)
    if window is None or window.end_ns <= window.start_ns:
        return None
    names = trace.names()
    device = device_activities(trace, window)
    threads = host_threads(trace, window, device, names)
    if not device.start_ns.size and not any(thread.pieces.event.max(initial=-1) >= 0 for thread in threads):
        return None
    kinds = _kinds(device, names, communicates or _communicates())
    path = walk(window, device, threads, kinds)
    on_path = _by_category(path.category, path.end_ns - path.start_ns)
    work = _device_work(device, kinds, window) | _host_work(threads)
    return CriticalPath(
        rank=trace.rank,
        step=window.step,
        start_ns=window.start_ns - (origin if origin is not None else origin_ns(trace)),
        total_ns=window.end_ns - window.start_ns,
        by_category_ns=on_path,
        slack_by_category_ns={name: total - on_path.get(name, 0) for name, total in work.items() if total > 0},
        least_slack_by_category_ns=least_slack(window, device, threads, kinds, path),
        segments=_segments(path, names, window, max_segments, origin if origin is not None else origin_ns(trace)),
        segments_left_out=max(0, path.start_ns.size - max_segments),
        note=" ".join(_notes(path, device)),
    )


def _communicates() -> Callable[[str], bool]:
    table = Communication.with_user()
    return lambda name: table.library(name) is not None


def _kinds(device: Device, names: dict[int, str], communicates: Callable[[str], bool]) -> IntArray:
    """Category of every activity, as an index in CATEGORIES."""
    talking = [each for each in np.unique(device.name).tolist() if communicates(names.get(each, ""))]
    is_kernel = np.isin(device.kind, (int(GpuKind.KERNEL), int(GpuKind.OTHER)))
    kernel, communication, memcpy = (CATEGORIES.index(name) for name in ("kernel", "communication", "memcpy"))
    return np.where(is_kernel, np.where(np.isin(device.name, talking), communication, kernel), memcpy)


def _by_category(category: IntArray, duration_ns: IntArray) -> dict[str, int]:
    sums = {name: int(duration_ns[category == number].sum()) for number, name in enumerate(CATEGORIES)}
    return {name: total for name, total in sums.items() if total > 0}


def _device_work(device: Device, kinds: IntArray, window: Window) -> dict[str, int]:
    begin, end = (np.clip(each, window.start_ns, window.end_ns) for each in (device.start_ns, device.end_ns))
    return _by_category(kinds, end - begin)


def _host_work(threads: list[Thread]) -> dict[str, int]:
    work = {"operator": 0, "launch": 0}
    for thread in threads:
        duration = thread.pieces.end_ns - thread.pieces.start_ns
        work["operator"] += int(duration[thread.shows == OPERATOR].sum())
        work["launch"] += int(duration[thread.shows == LAUNCH].sum())
    return work


def _segments(
    path: Path, names: dict[int, str], window: Window, limit: int, origin: int
) -> tuple[CriticalSegment, ...]:
    """The longest `limit` segments in order of time."""
    longest = np.argsort(path.start_ns - path.end_ns, kind="stable")[:limit]
    return tuple(
        CriticalSegment(
            category=CATEGORIES[path.category[each]],
            name=NOTHING_RECORDED if path.name[each] == UNKNOWN else drawn_name(names.get(int(path.name[each]), "?")),
            start_ns=int(path.start_ns[each]) - origin,
            duration_ns=int(path.end_ns[each] - path.start_ns[each]),
            on_device=bool(path.on_device[each]),
            lane=None if path.lane[each] == UNKNOWN else int(path.lane[each]),
        )
        for each in np.sort(longest).tolist()
    )


def _notes(path: Path, device: Device) -> list[str]:
    notes: list[str] = []
    if not device.start_ns.size:
        notes.append("No device activity in the window: this is the host's path.")
    if missing := int((device.launch_start_ns == UNKNOWN).sum()):
        notes.append(
            f"{missing} of {device.start_ns.size} activities have no launch in the trace; {path.without_launch} of "
            "them lie on the path and follow what ended before them."
        )
    if path.inferred:
        notes.append(f"{path.inferred} waits between streams on the path are inferred from times, not recorded.")
    if path.stopped_ns:
        notes.append(
            f"What came before the path's first {path.stopped_ns / 1e3:.1f} us is not known: it counts as idle."
        )
    return notes
