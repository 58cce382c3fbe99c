"""GPT-2 at toy size, each rank on a core of its own, rank 1 slowed on purpose.

SLOW=loader: it reads each block as from a slow disk. SLOW=core: busy programs want its core too, and go first.
"""

import os
import subprocess
import sys
import time

from agprof_workloads.gpt2 import train

SECONDS = 0.06
# of the same session as the rank, so that a kernel that shares CPUs out by session weighs the two against each other
BUSY = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: sum(range(100_000))"


class SlowBlocks(train.Blocks):
    def __getitem__(self, index):
        time.sleep(SECONDS)
        return super().__getitem__(index)


def beside_a_busy_program(run):
    def run_slowly(*args):
        busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(3)]
        os.nice(5)
        try:
            run(*args)
        finally:
            for program in busy:
                program.kill()
                program.wait()

    return run_slowly


def main():
    rank = int(os.environ["RANK"])
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    slow = os.environ.get("SLOW") if rank == 1 else None
    if slow == "loader":
        train.Blocks = SlowBlocks
    if slow == "core":
        train.run = beside_a_busy_program(train.run)
    train.main()


if __name__ == "__main__":
    main()
