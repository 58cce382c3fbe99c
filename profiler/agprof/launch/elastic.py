"""torchrun that passes on the first failed rank's own exit code: `python -m agprof.launch.elastic TORCHRUN-ARGS`.

torchrun itself ends with 1 whatever a rank ended with, prints a long traceback, and waits up to 30 s for ranks that
ignore SIGTERM.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from agprof.launch.processes import signal_name
from agprof.model.settings import ENV_NODE, ENV_NSYS, ENV_RUN_DIR, NSYS_GRACE_S
from agprof.store.layout import failures_file

STOP_TIMEOUT_S = 5


def main(argv: list[str]) -> int:
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing import api
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    _shorten_stop(api)
    try:
        run.run(run.parse_args(argv))  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        rank, first = error.get_first_failure()
        _write_failures(error.failures)
        print(f"agprof: rank {rank} ended with {_describe(first.exitcode)}", file=sys.stderr)
        return shell_code(first.exitcode)
    except api.SignalException as error:
        return 128 + int(error.sigval)
    return 0


def shell_code(code: int) -> int:
    """128 + n for a code that Python gives as -n."""
    return 128 - code if code < 0 else code


def _describe(code: int) -> str:
    return signal_name(-code) if code < 0 else f"exit code {code}"


def _shorten_stop(api: Any) -> None:
    original = api.PContext.close
    longest = STOP_TIMEOUT_S + (NSYS_GRACE_S if ENV_NSYS in os.environ else 0)

    def close(self: Any, death_sig: Any = None, timeout: int = longest) -> None:
        original(self, death_sig, min(timeout, longest))

    api.PContext.close = close


def _write_failures(failures: Any) -> None:
    folder = os.environ.get(ENV_RUN_DIR)
    if folder is None:
        return
    rows = [
        {
            "rank": rank,
            "local_rank": failure.local_rank,
            "pid": failure.pid,
            "exitcode": shell_code(failure.exitcode),
            "signal": signal_name(-failure.exitcode) if failure.exitcode < 0 else None,
            "time": failure.timestamp,
        }
        for rank, failure in sorted(failures.items(), key=lambda item: (item[1].timestamp, item[0]))
    ]
    node = os.environ.get(ENV_NODE, "")
    target = failures_file(Path(folder), int(node) if node.isdigit() else 0)
    try:
        partial = target.with_suffix(".part")
        partial.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        partial.replace(target)
    except OSError as error:
        print(f"agprof: {target} could not be written: {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
