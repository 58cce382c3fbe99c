"""Finds the program of a command as a shell would, and says what is wrong when there is none."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from agprof.errors import LaunchError


def find_program(word: str, env: Mapping[str, str], *, how: str) -> Path:
    """The absolute path of a command's program. `how` is what is written before a command: `agprof run --`.

    Raises LaunchError.
    """
    found = shutil.which(word, path=env.get("PATH", os.defpath))
    if found is not None:
        return Path(found).absolute()
    if "/" in word and Path(word).is_file():
        raise LaunchError(f"{word} can't be executed; a Python file is run as: {how} python {word}")
    hint = "there is no such file" if "/" in word else "it is not on PATH"
    if Path(word).is_file():
        hint += f"; the file of that name is run as: {how} {'python ' if word.endswith('.py') else './'}{word}"
    raise LaunchError(f"command {word!r} was not found: {hint}")
