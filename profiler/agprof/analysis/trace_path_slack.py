"""How near to the critical path the device's work beside it is."""

import numpy as np

from agprof.analysis.trace_host import IntArray
from agprof.analysis.trace_path_device import UNKNOWN, Device
from agprof.analysis.trace_path_host import Thread
from agprof.analysis.trace_path_walk import CATEGORIES, Path
from agprof.analysis.trace_window import Window


def least_slack(window: Window, device: Device, threads: list[Thread], kinds: IntArray, path: Path) -> dict[str, int]:
    """Per category the least slack of its activities off the path; categories without any are left out.

    An activity's slack is how much later it could end, with what follows it in its stream pushed on behind it, until
    the first of these would move: an activity on the path, the return of a synchronising call that waits for it (on
    the path or not, so the slack is at least this), the begin of an activity of another stream that was told to wait
    for it, the end of the window.
    """
    latest = _latest_ends(window, device, threads, path)
    slack = np.maximum(latest - device.end_ns, 0)
    beside = np.ones(slack.size, dtype=np.bool_)
    beside[path.activities] = False
    return {
        name: int(slack[beside & (kinds == number)].min())
        for number, name in enumerate(CATEGORIES)
        if (beside & (kinds == number)).any()
    }


def _latest_ends(window: Window, device: Device, threads: list[Thread], path: Path) -> IntArray:
    latest = np.maximum(device.end_ns, window.end_ns)
    latest[path.activities] = device.end_ns[path.activities]
    for activity, until_ns in (*_awaited_by_host(device, threads), *_awaited_by_streams(device)):
        latest[activity] = min(latest[activity], max(until_ns, device.end_ns[activity]))
    # Within a stream: latest[i] = min(latest[i], latest[i + 1] - duration[i + 1]), from the last one back.
    for lane in range(len(device.stream)):
        members = np.flatnonzero(device.lane == lane)
        before = np.cumsum(device.end_ns[members] - device.start_ns[members])
        spare = np.minimum.accumulate((latest[members] - before)[::-1])[::-1]
        latest[members] = spare + before
    return latest


def _awaited_by_host(device: Device, threads: list[Thread]) -> list[tuple[int, int]]:
    """(activity, return of a call that waits for it, or would)."""
    lanes = range(len(device.stream))
    return [
        (activity, until_ns)
        for thread in threads
        for since_ns, until_ns, lane, record_ns in thread.syncs.T.tolist()
        for each in ([lane] if lane >= 0 else lanes)
        if (activity := device.lane_launched[each].last(since_ns if record_ns == UNKNOWN else record_ns)) >= 0
    ]


def _awaited_by_streams(device: Device) -> list[tuple[int, int]]:
    """(activity, begin of the first activity of another stream that waits for it)."""
    found: list[tuple[int, int]] = []
    for lane, waits in device.waits.items():
        launched = device.lane_launched[lane]
        places = np.searchsorted(launched.launch_ns, waits.call_ns, side="left")
        for place, other, record_ns in zip(places.tolist(), waits.lane.tolist(), waits.record_ns.tolist(), strict=True):
            activity = device.lane_launched[other].last(record_ns)
            if activity >= 0 and place < launched.activity.size:
                found.append((activity, int(device.start_ns[launched.activity[place]])))
    return found
