"""`agprof doctor`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from agprof.model.doctor_answers import Check, DoctorAnswer, Status

EXIT_PROBLEM = 1
MASTER_PORT = 29500
_MARKS = {"ok": "✓", "note": "·", "warning": "△", "problem": "✗"}
_STYLES = {"ok": "green", "note": "dim", "warning": "yellow", "problem": "red"}
_TOPICS = {
    "software": "Software",
    "GPU": "GPU",
    "instruments": "Instruments",
    "host": "Host",
    "clock": "Clock",
    "storage": "Storage",
    "network": "Network",
    "cluster": "Cluster",
}
_INDENT = 2


def doctor(
    hostfile: Annotated[
        Path | None,
        typer.Option(
            help="Ask every node of this hostfile (DeepSpeed's form: `node1 slots=4`) over ssh.", metavar="FILE"
        ),
    ] = None,
    ssh: Annotated[
        str, typer.Option(help="How to reach a node, with options: 'ssh -p 2222'.", metavar="COMMAND")
    ] = "ssh",
    master_port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port of the rendezvous on the first node.", metavar="PORT")
    ] = MASTER_PORT,
    out: Annotated[
        Path | None, typer.Option(help="Folder that runs go into, for its free space.", metavar="DIR")
    ] = None,
    all_lines: Annotated[bool, typer.Option("--all", help="With a hostfile: every line of every node.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> int:
    """Look whether this machine or a cluster is fit for training.

    And for being measured: Python, torch, CUDA, driver, NCCL, DeepSpeed's ops, Nsight Systems, the NVML fields that are
    really given, permissions, limits, /dev/shm, NUMA, clocks, free space; each line says what to do. With --hostfile
    the same on each node, and what differs: ssh without a password, ports, folders, versions, slots against GPUs.

    Nothing is changed. Exit code 1 when a job would fail on something that was found; warnings leave it at 0.
    """
    import json
    import shlex

    import msgspec

    from agprof.analysis.doctor import judge, judge_cluster
    from agprof.errors import ConfigError
    from agprof.launch.doctor_cluster import examine
    from agprof.launch.doctor_probe import node_facts
    from agprof.launch.folder import DEFAULT_OUT
    from agprof.launch.hostfile import read_hostfile

    runs = out or DEFAULT_OUT
    if hostfile is None:
        _say("looking at this machine: a few seconds")
        answer = judge(node_facts(runs))
    else:
        try:
            command = shlex.split(ssh)
        except ValueError as error:
            raise ConfigError(f"--ssh {ssh!r:.80} can't be taken apart: {error}") from None
        if not command:
            raise ConfigError("--ssh is empty; give the command that reaches a node, as in --ssh 'ssh -p 2222'")
        hosts = read_hostfile(hostfile)
        answer = judge_cluster(examine(hosts, ssh=command, runs=runs, master_port=master_port, say=_say))
    if as_json:
        print(json.dumps(msgspec.to_builtins(answer), indent=2))
    else:
        _print(answer, everything=all_lines or hostfile is None)
    return EXIT_PROBLEM if answer.count("problem") else 0


def _say(text: str) -> None:
    print(f"agprof doctor: {text}", file=sys.stderr, flush=True)


def _print(answer: "DoctorAnswer", *, everything: bool) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    for node in answer.nodes:
        shown = [check for check in node.checks if everything or check.status in ("warning", "problem")]
        if everything or shown:
            _head(console, node.host)
        topic = ""
        for check in shown:
            if check.topic != topic and everything:
                topic = check.topic
                console.print(_TOPICS[topic], style="bold")
            _line(console, check)
    if answer.cluster:
        _head(console, "The nodes together")
        for check in answer.cluster:
            _line(console, check)
    if answer.differences:
        _head(console, "What differs")
    elif answer.cluster and len(answer.nodes) > 1:
        console.print("  ✓ Nothing that was compared differs between the nodes.")
    for difference in answer.differences:
        values = "; ".join(f"{value} on {_some(names)}" for value, names in difference.values)
        _entry(console, difference.status, difference.title, values, difference.advice)
    console.print()
    console.print(_verdict(answer), style="bold")


def _head(console: "Console", text: str) -> None:
    console.print()
    console.print(_safe(text), style="bold underline")


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _line(console: "Console", check: "Check") -> None:
    _entry(console, check.status, check.title, check.found, check.advice)


def _entry(console: "Console", status: "Status", title: str, found: str, advice: str) -> None:
    from rich.padding import Padding
    from rich.text import Text

    text = Text()
    text.append(f"{_MARKS[status]} ", style=_STYLES[status])
    if status in ("warning", "problem"):
        text.append(f"{status}: ", style=_STYLES[status])
    text.append(f"{title}: ", style="bold")
    text.append(_safe(found))
    console.print(Padding(text, (0, 0, 0, _INDENT)))
    if advice:
        console.print(Padding(Text(f"→ {_safe(advice)}"), (0, 0, 0, 2 * _INDENT)))


def _safe(text: str) -> str:
    """Words of other programs and nodes, without what would steer the terminal."""
    return "".join(char if char.isprintable() else " " for char in text)[:2000]


def _verdict(answer: "DoctorAnswer") -> str:
    problems, warnings, notes = (answer.count(status) for status in ("problem", "warning", "note"))
    counts = f"{problems} problem{'s' * (problems != 1)}, {warnings} warning{'s' * (warnings != 1)}, {notes} to note"
    if problems:
        return f"{counts}: a job is likely to fail; see the lines with ✗."
    return f"{counts}: nothing stands in the way of a job." if warnings or notes else "All is well."
