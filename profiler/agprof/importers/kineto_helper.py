"""`python -m agprof.importers.kineto_helper`: reads a Job on standard input, answers with a Part on standard output."""

import gc
import sys

import msgspec

from agprof.importers.kineto_share import Job, read_share


def main() -> None:
    """Do the job. What goes wrong ends the process, which the one that started it sees."""
    gc.disable()  # decoded events hold no cycles
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    sys.stdout.buffer.write(msgspec.json.encode(read_share(job)))


if __name__ == "__main__":
    main()
