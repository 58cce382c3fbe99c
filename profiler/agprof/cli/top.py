"""`agprof top`."""

import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from agprof.cli.top_follow import MachineWatch, RunWatch

_ENDING = (signal.SIGTERM, signal.SIGHUP)


class _EndError(Exception):
    """A signal asked for the end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def top(
    run: Annotated[
        Path | None, typer.Argument(help="Run folder; the newest running one when left out, else this machine.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder in which running runs are looked for.")] = Path("agprof-runs"),
    machine: Annotated[bool, typer.Option("--machine", help="This machine, whatever runs on it.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, max=60, help="Seconds between frames.", metavar="SECONDS")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print one frame and leave; for logs and `watch`.")] = False,
) -> int:
    """Watch a running job, or this machine, in the terminal.

    Shows ranks with step rate, loss and phases, GPUs, host, and what stands out. It reads the run folder as any other
    reader would and costs the job nothing; without a job it samples this machine by itself. q or Ctrl-C leaves.
    """
    from rich.console import Console

    from agprof.cli.top_follow import RunWatch, running_run, watching_machine
    from agprof.errors import ConfigError, StoreError
    from agprof.store import layout

    if machine and run is not None:
        raise ConfigError(f"--machine and the run folder {run} exclude one another; leave one out")
    chosen = None if machine else run or running_run(out)
    if chosen is not None and not any(
        (chosen / name).exists() for name in (layout.MANIFEST, layout.RANKS, layout.NODES)
    ):
        raise StoreError(f"{chosen} is not a run folder: it has neither {layout.MANIFEST} nor streams")
    console = Console(highlight=False, markup=False, emoji=False)
    code = 0
    with ExitStack() as stack:
        try:
            stack.enter_context(_ending_signals())
            watch = RunWatch(chosen) if chosen is not None else stack.enter_context(watching_machine())
            if once or not console.is_terminal:
                _print_once(console, watch, wait_s=0.0 if chosen is not None else 3.0)
            else:
                _show(console, watch, interval)
        except KeyboardInterrupt:
            pass  # the usual way to leave
        except _EndError as end:
            code = 128 + end.number
    if chosen is not None and watch.outcome is not None and not once:
        console.print(f"{chosen.name} has ended: agprof show {chosen}", soft_wrap=True)
    return code


def _print_once(console: "Console", watch: "RunWatch | MachineWatch", wait_s: float) -> None:
    from agprof.cli.top_screen import draw

    deadline = time.monotonic() + wait_s
    watch.poll()
    # Rates need a second sample.
    while time.monotonic() < deadline:
        time.sleep(0.1)
        watch.poll()
    console.print(draw(watch.frame(), console.width, 1000))


def _show(console: "Console", watch: "RunWatch | MachineWatch", interval_s: float) -> None:
    from rich.live import Live

    from agprof.cli.top_screen import draw

    with _keys() as keys:
        watch.poll()
        frame = draw(watch.frame(), *console.size)
        # The alternate screen: what stood in the terminal before is there again when we leave, however we leave.
        with Live(frame, console=console, screen=True, auto_refresh=False, transient=True) as live:
            while watch.outcome is None:
                live.update(draw(watch.frame(), *console.size), refresh=True)
                if _quits(keys, interval_s):
                    return
                watch.poll()
            live.update(draw(watch.frame(), *console.size), refresh=True)
    console.print(draw(watch.frame(), console.width, 1000))


def _quits(keys: int | None, interval_s: float) -> bool:
    """Wait for the next frame; True when q was pressed meanwhile."""
    deadline = time.monotonic() + interval_s
    while (left := deadline - time.monotonic()) > 0:
        if keys is None:
            time.sleep(left)
        elif select.select([keys], [], [], left)[0]:
            pressed = os.read(keys, 64)
            if not pressed or b"q" in pressed or b"Q" in pressed:
                return True
    return False


@contextmanager
def _keys() -> Iterator[int | None]:
    """Single keys, unechoed; None where stdin is no terminal. The terminal is as before afterwards."""
    import termios
    import tty

    if not sys.stdin.isatty():
        yield None
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield descriptor
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


@contextmanager
def _ending_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the display in order, as Ctrl-C does."""

    def end(number: int, _frame: Any) -> None:
        raise _EndError(number)

    before = {number: signal.signal(number, end) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
