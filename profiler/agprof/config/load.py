"""A workload file or a bundled name -> Workload, checked completely before anything starts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agprof.config.bundled import bundled_workloads, find_bundled
from agprof.config.check import check_tree
from agprof.config.overrides import apply_overrides
from agprof.config.problems import Problem, config_error, nearest, printable, shown
from agprof.config.source import is_file, read_source
from agprof.config.tree import Table, read_tree
from agprof.config.workload import Workload
from agprof.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedWorkload:
    """A checked workload and where it came from."""

    workload: Workload
    reference: str
    """As the user named it."""
    path: Path | None
    """The file it was read from; None when it was given as text."""
    base_dir: Path
    """Absolute folder that a relative `script` is taken from."""
    text: str
    """The file's text, without `--set`."""
    sets: tuple[str, ...]
    """The `--set` options that were applied."""
    notes: tuple[str, ...]
    """What is allowed but probably not meant, in sentences."""

    @property
    def script_path(self) -> Path | None:
        """Absolute path of the script; None for a module."""
        return None if self.workload.script is None else self.base_dir / self.workload.script


def load_workload(reference: str, sets: Sequence[str] = ()) -> LoadedWorkload:
    """Read and check a workload: the path of a YAML file, or the name of a bundled one (see `config.bundled`).

    A bundled name wins over a file of the same name, which `./NAME` means. `sets` are `--set` options. Raises
    ConfigError that names file, line, column, key, rule and nearest known key for all problems found, up to ten.
    """
    notes: list[str] = []
    bundled = find_bundled(reference)
    if bundled is not None:
        path = bundled.path
        if is_file(Path(reference)):
            notes.append(f"{reference} is the bundled workload; write ./{reference} for the file of that name")
    else:
        path = _file(reference)
    text = read_source(path)
    return _parse(text, reference=reference, path=path, base_dir=path.absolute().parent, sets=sets, notes=notes)


def parse_workload(text: str, base_dir: Path, sets: Sequence[str] = (), name: str = "<text>") -> LoadedWorkload:
    """Check a workload given as text; `name` stands for the file in messages. Raises ConfigError."""
    return _parse(text, reference=name, path=None, base_dir=base_dir.absolute(), sets=sets, notes=[])


def _file(reference: str) -> Path:
    if not reference:
        raise ConfigError("the workload's name is empty; name a YAML file or a bundled workload")
    path = Path(reference)
    try:
        if path.exists() or path.is_symlink():
            return path
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"{shown(reference)}: can't be looked up: {reason}") from None
    names = [bundled.name for bundled in bundled_workloads()]
    close = nearest(reference, names)
    if close is not None:
        hint = f"did you mean the bundled {shown(close)}?"
    elif names:
        hint = f"bundled workloads: {', '.join(names)}"
    else:
        hint = "no workload is bundled with this installation"
    raise ConfigError(f"{printable(reference)}: no such file and no bundled workload of that name; {hint}")


def _parse(
    text: str, *, reference: str, path: Path | None, base_dir: Path, sets: Sequence[str], notes: list[str]
) -> LoadedWorkload:
    name = printable(str(path) if path is not None else reference)
    problems: list[Problem] = []
    root = read_tree(text, name, problems)
    if not isinstance(root, Table):
        rule = "a workload file is a mapping of `key: value` lines, beginning with `name:`"
        raise config_error([*problems, Problem(root.where, "", rule)], name)
    apply_overrides(root, sets)
    workload = check_tree(root, base_dir, problems)
    if problems or workload is None:
        raise config_error(problems, name)
    return LoadedWorkload(
        workload=workload,
        reference=reference,
        path=path,
        base_dir=base_dir,
        text=text,
        sets=tuple(sets),
        notes=(*notes, *_notes(workload)),
    )


def _notes(workload: Workload) -> list[str]:
    notes = []
    profile, monitor = workload.profile, workload.monitor
    step, total = profile.profile_step, profile.total_steps
    if profile.level == "default" and step is not None and total is not None and step >= total:
        notes.append(f"profile.profile_step {step} is never reached in {total} steps: no FLOPs will be measured")
    nsys = workload.nsys
    if nsys is not None and nsys.steps is not None and total is not None and nsys.first_step >= total:
        notes.append(f"nsys.first_step {nsys.first_step} is never reached in {total} steps: nsys will capture nothing")
    if profile.level == "off" and not monitor.enabled:
        notes.append("profile.level is off and the monitor is not enabled: nothing will be measured")
    period = monitor.period_s
    for key, used in zip(("fast_period_s", "slow_period_s"), monitor.periods_s()[::2], strict=True):
        asked = getattr(monitor, key)
        if key in monitor.model_fields_set and used != asked:
            notes.append(f"monitor.{key} is {asked:g} and monitor.period_s {period:g}: both tiers take {used:g} s")
    return notes
