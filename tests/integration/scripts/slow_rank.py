"""GPT-2 at toy size, each rank on a core of its own.

SLOW_LOADER=1: rank 1 reads each block as from a slow disk. POLITE=1: rank 1 gives way to others that want its core.
"""

import os
import time

from agprof_workloads.gpt2 import train

SECONDS = 0.06


class SlowBlocks(train.Blocks):
    def __getitem__(self, index):
        time.sleep(SECONDS)
        return super().__getitem__(index)


def main():
    rank = int(os.environ["RANK"])
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    if rank == 1 and os.environ.get("SLOW_LOADER"):
        train.Blocks = SlowBlocks
    if rank == 1 and os.environ.get("POLITE"):
        os.nice(5)
    train.main()


if __name__ == "__main__":
    main()
