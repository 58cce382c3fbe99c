"""A whole command, as it stands behind `--`, as a workload."""

import json
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from agprof.config.load import LoadedWorkload, parse_workload
from agprof.config.names import text_problem
from agprof.config.problems import shown
from agprof.errors import ConfigError

SHOWN_AS = "the command behind `--`"


def load_command(words: Sequence[str], sets: Sequence[str] = (), *, base_dir: Path | None = None) -> LoadedWorkload:
    """Check a command and the `--set` options beside it. Raises ConfigError."""
    if not words:
        raise ConfigError("there is no command behind `--`; write: agprof run -- python train.py")
    for word in words:
        problem = text_problem(word)
        if problem is not None:
            raise ConfigError(f"{SHOWN_AS}: {shown(word)} {problem}")
    text = json.dumps({"name": name_of_command(words), "command": list(words)}, ensure_ascii=False)
    return parse_workload(text, base_dir if base_dir is not None else Path.cwd(), sets, name=SHOWN_AS)


def name_of_command(words: Sequence[str]) -> str:
    """What a run is named after: the script's name, else the module's, else the program's."""
    script = next((Path(word).stem for word in words if word.endswith(".py") and not word.startswith("-")), None)
    return _as_name(script or _module(words) or Path(words[0]).name)


def _module(words: Sequence[str]) -> str | None:
    """The last module of `-m launcher ... -m package.train`."""
    modules = [value for option, value in pairwise(words) if option in {"-m", "--module"}]
    return modules[-1] if modules else None


def _as_name(text: str) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).lstrip("._-")[:64]
    return name or "command"
