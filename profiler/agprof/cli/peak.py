"""`agprof peak`."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from agprof.model.ceilings import BandwidthCeiling, MeasuredCeiling, ProductCeiling

SECONDS = 52.0
QUICK_SECONDS = 5.0
NOISY = 0.3
"""A spread of single measurements above this is worth a word."""


def peak(
    device: Annotated[
        str, typer.Option(help="cpu, cuda, or auto: the GPU where torch sees one, else the CPU.", metavar="DEVICE")
    ] = "auto",
    threads: Annotated[
        list[int] | None,
        typer.Option(
            min=1, max=4096, help="Threads on a CPU. Repeatable; 1 and all usable cores when left out.", metavar="N"
        ),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="About 10 seconds instead of about a minute.")] = False,
) -> int:
    """Measure what the device at hand can do, as a ceiling for runs.

    Times large matrix products in each element type and copies of large arrays, several times each. The best
    medians go into agprof's cache, in place of those before (unless they had to share their cores and those had not).
    `agprof run` copies them into each run, whose report then says how much of them was used.
    Stop other work on the device first: the ceiling is that of one process that has it for itself (docs/peak.md).
    """
    import os

    from agprof.errors import ConfigError, LaunchError
    from agprof.launch import host
    from agprof.launch import peak as launch

    if device not in {"auto", "cpu", "cuda"}:
        raise ConfigError(f"--device is {device!r:.60}; it must be auto, cpu or cuda")
    if device == "cuda" and threads:
        raise ConfigError("--threads has no effect on a GPU; leave it out, or give --device cpu")
    total = QUICK_SECONDS if quick else SECONDS

    def measure(count: int | None, seconds: float) -> None:
        _say(f"{_where(count)}: about {seconds:.0f} s")
        ceiling = launch.measure(
            device="cpu" if count is not None else "cuda",
            threads=count,
            seconds=seconds,
            quick=quick,
            environ=os.environ,
            python=sys.executable,
            say=_indented(_say),
        )
        path = launch.keep(ceiling, os.environ)
        print("\n".join(_lines(ceiling)), flush=True)
        _say(f"kept in {path}" if path is not None else "not kept: the one before had its cores for itself")

    if device == "cuda" or (device == "auto" and not threads and host.has_gpu()):
        try:
            measure(None, total)
            return 0
        except LaunchError as error:
            if device == "cuda":
                raise
            _say(f"{error}; measuring the CPU")
    counts = sorted({*(threads or (1, host.usable_cores()))})
    for count in counts:
        measure(count, total / len(counts))
    return 0


def _where(threads: int | None) -> str:
    if threads is None:
        return "the GPU"
    return f"the CPU with {threads} thread{'s' * (threads > 1)}"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _indented(say: Callable[[str], None]) -> Callable[[str], None]:
    return lambda line: say(f"  {line} ...")


def _lines(ceiling: "MeasuredCeiling") -> list[str]:
    """The result as text: a line per element type, and one for the memory."""
    threads = f", {ceiling.threads} thread{'s' * (ceiling.threads > 1)}" if ceiling.threads else ""
    from agprof.launch.peak import had_to_share

    lines = [f"{ceiling.device_name}{threads}"]
    lines += [_product_line(product) for product in ceiling.products]
    if ceiling.bandwidth is not None:
        lines.append(_bandwidth_line(ceiling.bandwidth))
    noisy = [product.dtype for product in ceiling.products if _spread(product) > NOISY]
    if noisy:
        apart = f"single measurements of {', '.join(noisy)} lie more than {NOISY:.0%} apart"
        lines.append(f"  note: {apart}: was anything else running?")
    if had_to_share(ceiling):
        lines.append(f"  note: the measurement got {ceiling.cpu_share:.0%} of its cores' time: measure again when idle")
    return lines


def _spread(product: "ProductCeiling") -> float:
    return (product.high - product.low) / product.flops_per_second


def _product_line(product: "ProductCeiling") -> str:
    from agprof.model.format import format_value

    rates = [format_value(rate, "FLOP/s") for rate in (product.flops_per_second, product.low, product.high)]
    shape = " x ".join(map(str, product.shape))
    return f"  {product.dtype:<9} {rates[0]:>15}   {rates[1]} to {rates[2]}, n = {product.repeats}, {shape}"


def _bandwidth_line(bandwidth: "BandwidthCeiling") -> str:
    from agprof.model.format import format_value

    rates = [format_value(rate, "bytes/s") for rate in (bandwidth.bytes_per_second, bandwidth.low, bandwidth.high)]
    what = f"{bandwidth.kind} of {format_value(bandwidth.array_bytes, 'bytes')}"
    return f"  {'memory':<9} {rates[0]:>15}   {rates[1]} to {rates[2]}, n = {bandwidth.repeats}, {what}"
