"""What ran, where and how it ended; and its configuration as the report lists it."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from agprof.analysis.oom_evidence import words_on_end
from agprof.analysis.ranks import failures_of, how_it_ended, rank_streams, where_it_ended
from agprof.analysis.view import View
from agprof.model.answers import Identity
from agprof.model.format import format_value
from agprof.store import layout

Status = Literal["finished", "failed", "killed", "interrupted", "running", "imported", "unknown"]

_STATUS: dict[str, Status] = {
    "finished": "finished",
    "failed": "failed",
    "killed": "killed",
    "interrupted": "interrupted",
    "launch-failed": "failed",
    "node-lost": "failed",
}
_FRAMEWORKS = {
    "deepspeed": "DeepSpeed",
    "ddp": "DDP",
    "fsdp": "FSDP",
    "fsdp2": "FSDP2",
    "horovod": "Horovod",
    "plain": "plain PyTorch",
}
_LONGEST = 2000
_OWN_VARIABLES = ("AGPROF_", "PATH", "PYTHONPATH")
"""Set by agprof for every run: they explain nothing and hold the machine's paths."""
_MEASURED = ("compute.", "comm.")
"""Facts that are results and have their place in other sections."""
_HOME = re.compile(r"/(?:home|Users)/[^/\s:;,\"']+|/root(?=/)")


def identify(view: View) -> Identity:
    """The identity of a run."""
    manifest = view.run.manifest
    outcome = view.run.outcome or {}
    workload = _mapping(manifest.get("workload"))
    started = outcome.get("started_realtime_ns") or manifest.get("created_realtime_ns") or _first_realtime(view)
    ended = outcome.get("ended_realtime_ns")
    status, sentence = _status(view)
    return Identity(
        name=str(manifest.get("name") or workload.get("name") or view.run.path.name),
        run_id=view.run.path.name,
        description=str(workload.get("description") or ""),
        started_realtime_ns=started if isinstance(started, int) else None,
        duration_ns=_duration(started, ended) or _seen_duration(view),
        world_size=world_size(view),
        nodes=_nodes(view),
        framework=_framework(view),
        device=_text(view.fact("device.name")),
        dtype=_text(view.fact("model.dtype")),
        status=status,
        status_sentence=sentence,
        kind="command" if is_command(view) else "training",
    )


def world_size(view: View) -> int | None:
    """Ranks that the job was to have: the manifest's word, else the ranks' own."""
    ranks = view.run.manifest.get("ranks")
    if isinstance(ranks, int):
        return ranks
    told = [stream.header.get("world_size") for stream in rank_streams(view).values()]
    sizes = [size for size in told if isinstance(size, int)]
    return max(sizes) if sizes else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _nodes(view: View) -> int | None:
    nodes = view.run.manifest.get("nodes")
    return nodes if isinstance(nodes, int) else len(set(view.node_of.values())) or None


def _framework(view: View) -> str | None:
    name = view.fact("framework")
    if name is None:
        return None
    words = _FRAMEWORKS.get(str(name), str(name))
    stage = view.fact("deepspeed.zero_stage")
    return f"{words} ZeRO-{stage}" if name == "deepspeed" and isinstance(stage, int) and stage else words


def _first_realtime(view: View) -> int | None:
    times = [_mapping(stream.header.get("clock")).get("realtime_ns") for stream in view.run.streams]
    return min((time for time in times if isinstance(time, int)), default=None)


def _duration(started: Any, ended: Any) -> int | None:
    return max(0, ended - started) if isinstance(started, int) and isinstance(ended, int) else None


def _seen_duration(view: View) -> int | None:
    ends = view.steps.select("rank", "end_ns").iter_rows()
    return max((view.since_origin(end, rank=rank) for rank, end in ends), default=None)


def _status(view: View) -> tuple[Status, str]:
    steps = view.steps["step"].n_unique()
    ran = f"{steps:,} step{'' if steps == 1 else 's'} on {_many(len(view.ranks))}"
    outcome = view.run.outcome
    if is_command(view):
        return _status_of_command(outcome)
    if (imported := imported_from(view)) is not None:
        return "imported", f"imported from {imported}, {ran}"
    if outcome is None:
        ended = [stream.ended for stream in rank_streams(view).values()]
        if ended and all(ended):
            return "unknown", f"every rank ended by itself, {ran}; how the job ended was not recorded"
        return "unknown", f"{ran} so far: the job still runs, or agprof itself was killed"
    reason = str(outcome.get("reason"))
    status = _STATUS.get(reason, "unknown")
    if reason == "node-lost":
        return status, f"{lost_nodes(view) or 'a node was lost'}, {ran}"
    cause = cause_of_end(view)
    if cause:
        return status, cause
    if status == "interrupted":
        name = outcome.get("signal")
        return status, f"interrupted{f' by {name}' if name else ''}, {ran}"
    if reason == "launch-failed":
        return status, "the launcher ended before any rank ran"
    if status == "finished":
        return status, f"finished, {ran}"
    return status, f"{reason} (exit code {outcome.get('exit_code')}), {ran}"


def _status_of_command(outcome: Mapping[str, Any] | None) -> tuple[Status, str]:
    if outcome is None:
        return "unknown", "the command still runs, or agprof itself was killed"
    reason = str(outcome.get("reason"))
    words = {
        "finished": "finished",
        "failed": f"failed (exit code {outcome.get('exit_code')})",
        "killed": f"killed ({outcome.get('signal')})",
        "interrupted": f"interrupted by {outcome.get('signal')}",
    }
    took = _duration(outcome.get("started_realtime_ns"), outcome.get("ended_realtime_ns"))
    after = f" after {format_value(took, 'ns')}" if took is not None else ""
    return _STATUS.get(reason, "unknown"), words.get(reason, reason) + after


def is_command(view: View) -> bool:
    """Whether the run is a command under `agprof monitor`: sampled, with no instrument in it."""
    return view.run.manifest.get("kind") == layout.KIND_MONITOR


def imported_from(view: View) -> str | None:
    """`one Kineto trace`, `8 nsys traces`; None for a run that agprof measured."""
    imported = view.run.manifest.get("imported")
    if not isinstance(imported, Mapping):
        return None
    formats, files = imported.get("formats"), imported.get("files")
    known = [str(name) for name in formats] if isinstance(formats, list) else []
    words = " and ".join({"kineto": "Kineto"}.get(name, name) for name in known) or "foreign"
    count = len(files) if isinstance(files, list) else 1
    return f"one {words} trace" if count == 1 else f"{count:,} {words} traces"


def _many(ranks: int) -> str:
    return f"{ranks:,} rank{'' if ranks == 1 else 's'}"


def lost_nodes(view: View) -> str | None:
    """`node 1 (node1, 10.77.0.2) was lost: nothing was heard for 5 s`, for each one; None when none was."""
    nodes = (view.run.outcome or {}).get("nodes")
    lost = [node for node in nodes or () if isinstance(node, Mapping) and node.get("lost")]
    words = [f"node {node.get('number')} ({node.get('host')}, {node.get('address')})" for node in lost]
    return "; ".join(f"{who} was lost: {node['lost']}" for who, node in zip(words, lost, strict=True)) or None


def cause_of_end(view: View) -> str | None:
    """`rank 1 ended at step 41: killed (SIGKILL)`, for the rank that ended the job; None when none did."""
    for rank, failure in failures_of(view).items():
        if failure.get("stopped"):
            continue
        memory = words_on_end(view, rank)
        how = how_it_ended(failure)
        return f"rank {rank} ended {where_it_ended(view, rank)}: {how}{f', {memory}' if memory else ''}"
    return None


def configuration(view: View) -> tuple[tuple[str, str], ...]:
    """Key and value in order: command, workload, environment, machine, facts, versions; home folders as `~`."""
    manifest = view.run.manifest
    rows: list[tuple[str, str]] = []
    for key, label in (("argv", "command"), ("command", "command"), ("launcher", "launcher"), ("git_commit", "commit")):
        if manifest.get(key) is not None:
            rows.append((label, _words(manifest[key])))
    rows.extend(_setup(manifest))
    for section in ("workload", "environment_changes", "environment", "host"):
        tree = {key: value for key, value in _mapping(manifest.get(section)).items() if not _is_own(str(key))}
        rows.extend(_flat(section, tree))
    known: dict[str, Any] = {}
    for _, facts in sorted(view.facts.items(), reverse=True):
        known |= facts
    for key, value in sorted(known.items()):
        if key.startswith(_MEASURED) or value is None:
            continue
        rows.extend(_flat(key, value) if isinstance(value, Mapping) else [(key, _words(value))])
    if manifest.get("python"):
        rows.append(("python", str(manifest["python"])))
    rows.extend((f"package {name}", str(v)) for name, v in _flat("", _mapping(manifest.get("packages"))))
    return tuple((key[:200], _HOME.sub("~", value)[:_LONGEST]) for key, value in rows)


def _setup(manifest: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The node setup that the run was of: its name, settings and link, and where each node was."""
    for key in ("setup", "link"):
        if isinstance(manifest.get(key), str):
            yield key, manifest[key]
    yield from _flat("setup", _mapping(manifest.get("setup_section")))
    nodes = manifest.get("node_list")
    for node in nodes if isinstance(nodes, list) else ():
        if isinstance(node, Mapping):
            words = [node.get("host"), node.get("address"), node.get("interface")]
            yield f"setup.node {node.get('number')}", ", ".join(str(word) for word in words if word)


def _is_own(variable: str) -> bool:
    return variable.startswith(_OWN_VARIABLES[0]) or variable in _OWN_VARIABLES


def _words(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return " ".join(value)
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)


def _flat(prefix: str, tree: Mapping[str, Any], depth: int = 0) -> Iterator[tuple[str, str]]:
    """Leaves as dotted keys; what was not set (None, empty) is left out."""
    for key, value in tree.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if value is None or value in ({}, [], ""):
            continue
        if isinstance(value, Mapping) and depth < 8:
            yield from _flat(name, value, depth + 1)
        else:
            yield name, _words(value)
