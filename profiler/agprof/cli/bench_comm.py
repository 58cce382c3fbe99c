"""`agprof bench-comm`."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from agprof.config.setup_choice import SetupJob
    from agprof.launch.comm_bench import Wish
    from agprof.model.comm_ceiling import CommCeiling, CommCurve, CommPoint

SECONDS = 60.0
QUICK_SECONDS = 10.0
QUICK_CPU_BYTES = 4 * 2**20
NOISY = 0.3
"""A fit that is off by more than this at some size is worth a word."""


def bench_comm(
    workload: Annotated[
        str | None, typer.Argument(help="Workload whose node setup --setup names; YAML file or bundled.")
    ] = None,
    setup: Annotated[
        str | None, typer.Option(help="Measure between the nodes of this setup of the workload.", metavar="NAME")
    ] = None,
    ranks: Annotated[
        int | None,
        typer.Option(min=2, max=1024, help="Ranks on this machine; 2, or the GPUs, when left out.", metavar="N"),
    ] = None,
    device: Annotated[
        str, typer.Option(help="cpu, cuda, or auto: GPUs where there are two, else the CPU.", metavar="DEVICE")
    ] = "auto",
    backend: Annotated[
        list[str] | None,
        typer.Option(help="gloo, nccl or mpi; repeatable. Left out: nccl on GPUs, gloo on CPUs.", metavar="NAME"),
    ] = None,
    op: Annotated[
        list[str] | None,
        typer.Option(
            help="all_reduce, all_gather, reduce_scatter, broadcast or all_to_all; repeatable. All when left out.",
            metavar="NAME",
        ),
    ] = None,
    most_bytes: Annotated[
        str | None,
        typer.Option(help="Largest size: 64M, 1G. Left out: 64 MiB on CPUs, 1 GiB on GPUs.", metavar="SIZE"),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=1, max=86400, help="About how long each backend is measured.", metavar="S")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="About 10 seconds, fewer and smaller sizes.")] = False,
) -> int:
    """Measure what the links between ranks can do.

    Times collectives over sizes from 1 KiB on and fits latency and bandwidth to each: t = alpha + beta S. The results
    go into agprof's cache; `agprof run` copies them into each run, whose report then holds each kind of collective
    against what the same link was measured to do, and `agprof forecast` predicts other links from them.
    Stop other work on the machines first (docs/bench-comm.md).
    """
    import os

    from agprof.errors import ConfigError
    from agprof.launch import comm_bench as launch
    from agprof.model.comm_ceiling import OPS

    if (workload is None) != (setup is None):
        raise ConfigError("give a WORKLOAD and one of its setups together: agprof bench-comm gpt2 --setup NAME")
    if setup is not None and ranks is not None:
        raise ConfigError("--ranks has no effect with --setup: the setup says how many ranks each node has")
    unknown = next((name for name in op or () if name not in OPS), None)
    if unknown is not None:
        raise ConfigError(f"--op is {unknown!r:.60}; it must be one of {', '.join(OPS)}")
    if device not in {"auto", "cpu", "cuda"}:
        raise ConfigError(f"--device is {device!r:.60}; it must be auto, cpu or cuda")
    gpus = launch.gpu_count(os.environ)
    chosen = device if device != "auto" else "cuda" if gpus >= 2 or (setup is not None and gpus) else "cpu"
    bytes_ = _size(most_bytes) if most_bytes is not None else _default_bytes(chosen, quick)
    for name in _backends(backend, chosen):
        wish = launch.Wish(
            backend=name,
            device=chosen,
            ops=tuple(dict.fromkeys(op or OPS)),
            most_bytes=bytes_,
            seconds=seconds if seconds is not None else QUICK_SECONDS if quick else SECONDS,
            quick=quick,
        )
        if workload is not None and setup is not None:
            ceiling = _measure_on(workload, setup, wish)
        else:
            count = ranks if ranks is not None else max(2, gpus if chosen == "cuda" else 2)
            _say(f"{name} between {count} ranks of this machine: about {wish.seconds:.0f} s")
            ceiling = launch.measure_here(wish, count, environ=os.environ, python=sys.executable, say=_indented)
        path = launch.keep(ceiling, os.environ)
        print("\n".join(table(ceiling)), flush=True)
        _say(f"kept in {path}")
    return 0


def _measure_on(workload: str, setup: str, wish: "Wish") -> "CommCeiling":
    from agprof.config.load import load_workload
    from agprof.config.setup_choice import choose_setups
    from agprof.launch import comm_bench as launch
    from agprof.launch.setups import has_nodes

    loaded = load_workload(workload)
    (job,) = choose_setups(loaded.workload, [setup])
    if not has_nodes(job.setup):
        return _measure_one_node(job, wish)
    _say(f"{wish.backend} between the nodes of setup {setup}: about {wish.seconds:.0f} s")
    return launch.measure_on(job, loaded.base_dir, wish, python=sys.executable, say=_indented)


def _measure_one_node(job: "SetupJob", wish: "Wish") -> "CommCeiling":
    import os

    from agprof.errors import ConfigError
    from agprof.launch import comm_bench as launch

    ranks = job.workload.launch.ranks_per_node
    if ranks < 2:
        raise ConfigError(f"setup {job.name} has one rank: there is nothing between ranks to measure")
    environ = {**os.environ, **job.setup.env}
    _say(f"{wish.backend} between {ranks} ranks of this machine: about {wish.seconds:.0f} s")
    return launch.measure_here(wish, ranks, environ=environ, python=sys.executable, say=_indented)


def _backends(given: Sequence[str] | None, device: str) -> tuple[str, ...]:
    from agprof.errors import ConfigError

    known = ("gloo", "nccl", "mpi")
    unknown = next((name for name in given or () if name not in known), None)
    if unknown is not None:
        raise ConfigError(f"--backend is {unknown!r:.60}; it must be one of {', '.join(known)}")
    if "nccl" in (given or ()) and device == "cpu":
        raise ConfigError("--backend nccl moves GPU memory only; leave it out, or give --device cuda")
    return tuple(dict.fromkeys(given or ())) or (("nccl",) if device == "cuda" else ("gloo",))


def _default_bytes(device: str, quick: bool) -> int:
    from agprof.instruments.comm_bench import CPU_MOST_BYTES, GPU_MOST_BYTES

    if device == "cuda":
        return GPU_MOST_BYTES
    return QUICK_CPU_BYTES if quick else CPU_MOST_BYTES


def _size(text: str) -> int:
    """`64M` -> 67108864. Raises ConfigError."""
    import re

    from agprof.errors import ConfigError
    from agprof.instruments.comm_bench import LEAST_BYTES

    match = re.fullmatch(r"(\d{1,15})\s*([KMGkmg]?)(?:i?B)?", text.strip())
    if match is None:
        raise ConfigError(f"--most-bytes is {text!r:.40}; write a size as 65536, 64K, 16M or 1G")
    size: int = int(match[1]) * 1024 ** (" KMG".index(match[2].upper()) if match[2] else 0)
    if not 16 * LEAST_BYTES <= size <= 2**40:
        raise ConfigError(f"--most-bytes is {text!r:.40}; it must be from 16K to 1024G: a fit needs three sizes")
    return size


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _indented(line: str) -> None:
    _say("  " + "".join(char if char.isprintable() else "?" for char in line))


def table(ceiling: "CommCeiling") -> list[str]:
    """The result as text: a line per size, and the fit of each operation."""
    where = f"{ceiling.ranks} ranks on {ceiling.nodes} node{'s' * (ceiling.nodes > 1)}"
    lines = [f"{ceiling.backend}, {where}, {ceiling.link}, {ceiling.device_name}"]
    lines.append(
        f"  {'operation':<15} {'size':>10} {'time':>10} {'lowest':>10} {'highest':>10} {'algbw':>12} {'busbw':>12}"
    )
    for curve in ceiling.curves:
        lines += [_point_line(curve, point) for point in curve.points]
        lines.append(_fit_line(curve))
    return lines


def _point_line(curve: "CommCurve", point: "CommPoint") -> str:
    from agprof.analysis.comm import bus_factor
    from agprof.model.format import format_value

    rate = point.bytes / point.median_ns * 1e9
    bus = rate * (bus_factor(curve.op, curve.group_size) or 0.0)
    narrow = [format_value(point.bytes, "bytes")]
    narrow += [format_value(time, "ns") for time in (point.median_ns, point.low_ns, point.high_ns)]
    wide = [format_value(each, "bytes/s") for each in (rate, bus)]
    cells = [*(f"{cell:>10}" for cell in narrow), *(f"{cell:>12}" for cell in wide)]
    return f"  {curve.op:<15} {' '.join(cells)}"


def _fit_line(curve: "CommCurve") -> str:
    from agprof.model.format import format_value

    fit = curve.fit
    if fit is None:
        return f"  {curve.op:<15} no fit: fewer than three sizes"
    latency = f"latency {format_value(fit.alpha_ns, 'ns')} ± {format_value(fit.alpha_error_ns, 'ns')}"
    beta, error = fit.beta_ns_per_byte, fit.beta_error_ns_per_byte
    bandwidth = "no bandwidth that could be told from the latency"
    if beta > 0:
        bandwidth = f"bandwidth {format_value(1e9 / beta, 'bytes/s')} ± {min(error / beta, 9.99):.0%}"
    noise = f"; off by {fit.relative_rms:.0%} on average, {fit.worst:.0%} at most" if fit.worst > NOISY else ""
    return f"  {curve.op:<15} {latency}, {bandwidth}{noise}"
