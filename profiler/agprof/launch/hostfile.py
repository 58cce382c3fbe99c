"""Reads a hostfile as DeepSpeed does: one `name slots=n` a line, `#` begins a comment."""

import re
from dataclasses import dataclass
from pathlib import Path

from agprof.errors import ConfigError

_LINE = re.compile(r"(\S+)\s+slots=(\d+)")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@%-]{0,252}")
"""A name that begins with `-` would be an option of ssh."""
MAX_BYTES = 2**20
MAX_HOSTS = 4096


@dataclass(frozen=True, slots=True)
class Host:
    """A line of a hostfile."""

    name: str
    """As ssh takes it: a host name, an address, or an alias of ~/.ssh/config."""
    slots: int
    """Ranks to start there."""


def read_hostfile(path: Path) -> tuple[Host, ...]:
    """Its hosts in order. Raises ConfigError with the line and the rule that it breaks."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror or error}") from error
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path} has {len(data):,} bytes; a hostfile has at most {MAX_BYTES:,}")
    hosts: dict[str, Host] = {}
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = _LINE.fullmatch(text)
        if match is None:
            raise ConfigError(f"{path}:{number}: {text!r:.80} is not of the form `host slots=n`, as in `node1 slots=4`")
        name, slots = match[1], int(match[2])
        if _NAME.fullmatch(name) is None:
            raise ConfigError(f"{path}:{number}: {name!r:.80} can't be a host name")
        if name in hosts:
            raise ConfigError(
                f"{path}:{number}: host {name} stands there twice; DeepSpeed refuses that: add the slots up"
            )
        if slots < 1:
            raise ConfigError(f"{path}:{number}: host {name} has slots=0; give at least 1, or leave the line out")
        hosts[name] = Host(name, slots)
    if not hosts:
        raise ConfigError(f"{path} names no host; a line is `node1 slots=4`")
    if len(hosts) > MAX_HOSTS:
        raise ConfigError(f"{path} names {len(hosts)} hosts; at most {MAX_HOSTS} can be asked at once")
    return tuple(hosts.values())
