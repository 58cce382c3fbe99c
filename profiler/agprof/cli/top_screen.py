"""Draws one frame of `agprof top`: from the live state to text of a given width and height."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from agprof.analysis.live import LiveRank
from agprof.analysis.live_node import LiveGpu, LiveNode
from agprof.cli.progress import BAR_WIDTH, duration, legend, phase_bar
from agprof.model.format import DASH, format_value, percent

NARROW = 100
"""Below so many columns the columns of CPU, and some words, are left out."""
METER = 10
MAX_NODES = 4
_BLOCKS = " ▁▂▃▄▅▆▇█"
_REASONS = ((0x4, "power"), (0x80, "brake"), (0x60, "heat"), (0x8, "hardware"), (0x10, "sync"), (0x200, "board"))
"""Bits of NVML's clock event reasons that hold clocks down, and a word for each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """Everything that one frame shows."""

    title: str
    status: str
    """`running 0:42`, `ended: exit code 0`, `this machine`."""
    ranks: Sequence[LiveRank]
    nodes: Sequence[LiveNode]
    findings: Sequence[str]
    total_steps: int | None = None
    world_size: int = 0
    waiting: str = ""
    """What is waited for when there is nothing to show."""
    footer: str = "q or Ctrl-C leaves; the job goes on"


def draw(frame: Frame, width: int, height: int) -> RenderableType:
    """The frame, cut to the height: the title, the host and the gravest finding are always there."""
    gpus = [gpu for node in frame.nodes for _, gpu in sorted(node.gpus.items())]
    findings = list(frame.findings)[: 3 if height < 30 else 8]
    hosts = [line for node in frame.nodes[:MAX_NODES] for line in _host(node, width)]
    fixed = 3 + len(hosts) + len(findings) + bool(findings)
    room = max(2, height - fixed - 1)
    ranks_room = room if not gpus else max(3, room // 2)
    parts: list[RenderableType] = [_title(frame, width)]
    if frame.ranks:
        # Two of the lines are the head of the columns and the legend.
        parts.append(_ranks(frame, width, max(1, ranks_room - 2)))
        parts.append(_cut(legend(), width))
    elif frame.waiting:
        parts.append(_cut(Text(frame.waiting, style="dim"), width))
    if gpus:
        used = min(len(frame.ranks), max(1, ranks_room - 2)) + 2 if frame.ranks else 1
        parts.append(_gpus(gpus, width, max(1, room - used - 1), many=len(frame.nodes) > 1))
    parts += [_cut(line, width) for line in hosts]
    if len(frame.nodes) > MAX_NODES:
        parts.append(_cut(Text(f"and {len(frame.nodes) - MAX_NODES} more nodes", style="dim"), width))
    if findings:
        parts.append(Text("what stands out", style="bold"))
        parts += [_cut(Text(f"  △ {_plain(text)}", style="yellow"), width) for text in findings]
    parts.append(_cut(Text(frame.footer, style="dim"), width))
    return Group(*parts)


def _title(frame: Frame, width: int) -> Text:
    steps = max((rank.steps_done for rank in frame.ranks), default=0)
    words = [f"agprof top · {_plain(frame.title)}", frame.status]
    if frame.ranks:
        # A total that the job went past was said wrong.
        words.append(f"step {steps}" + (f" of {frame.total_steps}" if (frame.total_steps or 0) >= steps else ""))
        slowest = min(frame.ranks, key=lambda rank: rank.steps_per_s() or math.inf)
        if (rate := slowest.steps_per_s()) is not None:
            words.append(f"{rate:.3g} steps/s")
        if (eta := slowest.eta_s(frame.total_steps)) is not None:
            words.append(f"{duration(eta)} left")
        if frame.world_size > len(frame.ranks):
            words.append(f"{len(frame.ranks)} of {frame.world_size} ranks")
    return _cut(Text(" · ".join(words), style="bold"), width)


def _ranks(frame: Frame, width: int, room: int) -> RenderableType:
    trees = {rank: tree for node in frame.nodes for rank, tree in node.trees.items()}
    wide = width >= NARROW
    table = _table(("rank", "step", "steps/s", "loss", "memory", *(("CPU", "workers") if wide else ()), "phases"))
    hidden = len(frame.ranks) - room
    shown = frame.ranks[: room - 1] if hidden > 0 else frame.ranks
    for rank in shown:
        rate = rank.steps_per_s()
        tree = trees.get(rank.rank)
        cells: list[RenderableType] = [
            str(rank.rank),
            str(rank.steps_done),
            DASH if rate is None else f"{rate:.3g}",
            DASH if rank.loss is None else f"{rank.loss:.4g}",
            _first(rank.allocated_bytes, rank.rss_bytes, tree.own.number("rss_bytes") if tree else None),
        ]
        if wide:
            cells += [_cores(tree.own.number("cpu_cores") if tree else None)]
            cells += [_cores(tree.workers.number("cpu_cores") if tree else None)]
        table.add_row(*cells, phase_bar(rank.shares(), BAR_WIDTH if not wide else min(80, width - 70)))
    if hidden > 0:
        rates = [rate for rank in frame.ranks[room - 1 :] if (rate := rank.steps_per_s()) is not None]
        spread = f", {min(rates):.3g} to {max(rates):.3g} steps/s" if rates else ""
        return Group(table, Text(f"and {hidden + 1} more ranks{spread}", style="dim"))
    return table


def _gpus(gpus: Sequence[LiveGpu], width: int, room: int, *, many: bool) -> RenderableType:
    wide = width >= NARROW
    columns = ["GPU", "busy", "", "memory", "power", "°C", "MHz", "held down"]
    table = _table(tuple(columns) if not wide else (*columns, "SM", "tensor", "DRAM", "PCIe", "NVLink"))
    hidden = len(gpus) - room
    shown = gpus[: room - 1] if hidden > 0 else gpus
    for gpu in shown:
        latest = gpu.latest
        cells: list[RenderableType] = [
            f"{gpu.node}:{gpu.gpu}" if many else str(gpu.gpu),
            _ratio(latest.number("utilization_ratio")),
            _meter(latest.number("utilization_ratio")) if not wide else spark(list(gpu.utilization), 20),
            _of(latest.number("memory_used_bytes"), latest.number("memory_total_bytes")),
            _watts(latest.number("power_mw"), latest.number("power_limit_mw")),
            _number(latest.number("temperature_c")),
            _number(latest.number("sm_clock_mhz")),
            held_down(latest.get("clock_event_reasons")),
        ]
        if wide:
            cells += [_ratio(latest.number(f"{name}_ratio")) for name in ("sm", "tensor", "dram")]
            cells += [_both(gpu, "pcie"), _both(gpu, "nvlink")]
        table.add_row(*cells)
    if hidden > 0:
        busy = [value for gpu in gpus[room - 1 :] if (value := gpu.latest.number("utilization_ratio")) is not None]
        spread = f", {percent(min(busy))} to {percent(max(busy))} busy" if busy else ""
        return Group(table, Text(f"and {hidden + 1} more GPUs{spread}", style="dim"))
    return table


def _host(node: LiveNode, width: int) -> list[Text]:
    """CPU and memory; on the same line, or a second one, what comes and goes."""
    host = node.host
    name = _plain(node.host_name) or f"node {node.node}"
    cpu = host.number("cpu_ratio")
    text = Text(f"{name}  ", style="bold")
    text.append(f"CPU {_ratio(cpu)} ", style="not bold")
    text.append_text(_meter(cpu))
    used, total = host.number("memory_used_bytes"), host.number("memory_total_bytes")
    text.append(f"  memory {_of(used, total)} ", style="not bold")
    text.append_text(_meter(used / total if used is not None and total else None))
    sent, received = host.number("network_sent_bytes_per_s"), host.number("network_received_bytes_per_s")
    words = []
    if sent is not None or received is not None:
        words.append(f"net ↑{_rate(sent)} ↓{_rate(received)}")
    disk = [host.number(f"disk_{way}_bytes_per_s") for way in ("read", "write")]
    if any(value is not None for value in disk):
        words.append(f"disk {_rate(disk[0])} read, {_rate(disk[1])} written")
    pressure = {kind: host.number(f"{kind}_pressure_ratio") for kind in ("cpu", "memory", "io")}
    told = [f"{kind} {percent(value)}" for kind, value in pressure.items() if value]
    words += [f"pressure {', '.join(told)}"] if told else []
    command = node.trees.get(None)
    if command is not None:
        own, workers = command.own.number("cpu_cores"), command.workers.number("cpu_cores")
        words.insert(0, f"command {_cores((own or 0.0) + (workers or 0.0))} cores")
    if width < NARROW:
        return [text, Text("  " + "  ".join(words))] if words else [text]
    text.append("".join(f"  {word}" for word in words), style="not bold")
    return [text]


def _table(columns: tuple[str, ...]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="dim")
    for name in columns:
        left = name in ("phases", "held down", "")
        table.add_column(name, justify="left" if left else "right", no_wrap=True)
    return table


def spark(values: Sequence[float | None], width: int) -> Text:
    """The newest ratios as a small curve of `width` cells; a gap where nothing was measured."""
    newest = list(values)[-width:]
    cells = [" " if value is None else _BLOCKS[1 + min(7, max(0, round(value * 7)))] for value in newest]
    return Text("".join(cells).rjust(width), style="#56B4E9")


def held_down(reasons: object) -> str:
    """NVML's bits in words: what holds the clocks down; a dash where it is not known."""
    if not isinstance(reasons, int):
        return DASH
    return ", ".join(word for bits, word in _REASONS if reasons & bits) or "no"


def _meter(ratio: float | None) -> Text:
    if ratio is None:
        return Text(" " * METER)
    full = min(METER, max(0, round(ratio * METER)))
    return Text("█" * full + "░" * (METER - full), style="red" if ratio > 0.95 else "green")


def _ratio(value: float | None) -> str:
    return DASH if value is None else f"{value:.0%}"


def _number(value: float | None) -> str:
    return DASH if value is None else f"{value:.0f}"


def _cores(value: float | None) -> str:
    return DASH if value is None else f"{value:.2g}"


def _rate(value: float | None) -> str:
    return DASH if value is None else format_value(value, "bytes/s")


def _watts(power_mw: float | None, limit_mw: float | None) -> str:
    if power_mw is None:
        return DASH
    return f"{power_mw / 1000:.0f}" + (f"/{limit_mw / 1000:.0f} W" if limit_mw else " W")


def _of(used: float | None, total: float | None) -> str:
    if used is None or total is None:
        return DASH
    return f"{used / 2**30:.1f}/{total / 2**30:.0f} GiB"


def _both(gpu: LiveGpu, link: str) -> str:
    ways = [gpu.latest.number(f"{link}_{way}_bytes_per_s") for way in ("sent", "received")]
    known = [value for value in ways if value is not None]
    return _rate(sum(known)) if known else DASH


def _first(*values: float | None) -> str:
    value = next((value for value in values if value is not None), None)
    return DASH if value is None else format_value(value, "bytes")


def _plain(text: str) -> str:
    """Words from outside without what would steer the terminal."""
    return "".join(char if char.isprintable() else " " for char in text[:300])


def _cut(text: Text, width: int) -> Text:
    text.truncate(width, overflow="ellipsis")
    text.no_wrap = True
    return text


Draw = Callable[[Frame, int, int], RenderableType]
