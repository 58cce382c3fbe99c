"""What names say of host calls and ranges: which wait for the device, which wait for a batch, which launch a graph."""

import re

SYNCHRONISING = re.compile(
    r"^(cuda|hip)(Stream|Device|Event|Thread)Synchronize|^cu(Stream|Ctx|Event)Synchronize|^hipCtxSynchronize|"
    r"^(cuda|hip)Memcpy(2D|3D|ToSymbol|FromSymbol|2DToArray|2DFromArray|Peer|DtoH|HtoD|DtoD|WithStream)?(_v\d+|_ptds)*$|"
    r"^cuMemcpy\w*(?<!Async)(?<!Async_v2)(_ptds)?$|^(cuda|hip)(Free|FreeHost|HostFree|HostUnregister|DeviceReset)(_v\d+)?$"
)
"""Calls in which the host waits for the device."""
_NO_SYNC = re.compile(r"Async")
DATA = re.compile(r"dataloader|data_loader|data[ _](wait|load|fetch)|next_?batch|get_?batch|fetch_?data", re.IGNORECASE)
"""Ranges in which the host waits for a batch."""
GRAPH_LAUNCH = re.compile(r"^(cuda|hip|cu)GraphLaunch")


def synchronises(name: str) -> bool:
    """Whether a runtime call makes the host wait for the device.

    >>> [synchronises(n) for n in ("cudaStreamSynchronize", "cudaMemcpy_v3020", "cudaMemcpyAsync", "cudaLaunchKernel")]
    [True, True, False, False]
    """
    return SYNCHRONISING.match(name[:200]) is not None and _NO_SYNC.search(name[:200]) is None
