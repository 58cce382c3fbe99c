"""What the ranks' own streams tell the launch: ranks that no environment names, and whether there were any."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from agprof.errors import StoreError
from agprof.store import layout
from agprof.store.frames import StreamFollower


class AnnouncedRanks:
    """Reads the header of each rank's stream as it appears."""

    def __init__(self, run_dir: Path) -> None:
        self._folder = run_dir / layout.RANKS
        self._read: set[Path] = set()

    def poll(self) -> Iterator[tuple[int, int, int]]:
        """(rank, process id, world size) of every stream that is new."""
        for path in sorted(self._folder.glob(f"*{layout.SUFFIX}")):
            if path in self._read:
                continue
            with suppress(StoreError, OSError):
                header = StreamFollower(path).read_header()
                if header is None:
                    continue  # its first bytes are still to come
                self._read.add(path)
                yield int(header["rank"]), int(header["pid"]), int(header.get("world_size") or 1)


def no_rank_note(run_dir: Path) -> list[str]:
    """What to look at when a command ended and no rank was found; empty when there was one."""
    if any((run_dir / layout.RANKS).glob(f"*{layout.SUFFIX}")):
        return []
    return [
        "no rank was found: no Python process below the command imported torch. Look whether the command trains at "
        f"all ({layout.LAUNCHER_LOG}), whether it passes PYTHONPATH and AGPROF_* on to what it starts (containers, "
        "ssh, sudo and `python -I`, `-E`, `-S` don't), and whether torch is installed there. "
        "The report holds what the sampler saw"
    ]
