"""agprof: profiling and resource monitoring for distributed LLM training.

The map: `config` reads a workload file, `launch` starts its ranks, `instruments` (inside each rank) and `sampler` (one
per node) write the run folder of `store`, `analysis` turns its tables into answers, `agprof_reports` draws them.

In training code (all of it does nothing unless the process runs under `agprof run`):

    import agprof

    with agprof.range("retrieval"):    # a named range on the time line and in NVTX
        ...
    agprof.step(tokens=4096, samples=8)  # adds to the counts of the optimizer step in progress
    agprof.mark("epoch 2")             # a point on the time line
"""

from agprof.instruments.api import annotate, mark, range, step
from agprof.model.version import __version__

__all__ = ["__version__", "annotate", "mark", "range", "step"]
