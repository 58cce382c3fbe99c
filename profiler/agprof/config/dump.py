"""Workload -> YAML text."""

import re

import yaml

from agprof.config.tree import resolve
from agprof.config.workload import Workload

_PLAIN_TEXT = re.compile(r"[A-Za-z_./][A-Za-z0-9_./-]*")
_NOT_PLAIN = frozenset(["true", "false", "null", "yes", "no", "on", "off", "y", "n", "nan", "inf"])


def dump_workload(workload: Workload) -> str:
    """The workload as the YAML text that loads to an equal one; settings left at their defaults are left out."""
    values = workload.model_dump(exclude_defaults=True)
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**6)
    return text


class _Dumper(yaml.SafeDumper):
    pass


def _text_node(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    # Quoted wherever YAML 1.1, YAML 1.2 or a reader in a hurry could take it for something else.
    word = value.lower().lstrip(".")
    plain = _PLAIN_TEXT.fullmatch(value) and word not in _NOT_PLAIN and resolve(value) == value
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if plain else '"')


def _float_node(dumper: yaml.SafeDumper, value: float) -> yaml.Node:
    # YAML 1.1, by which the dumper decides where a tag is needed, takes 1e-08 for text; our loader reads YAML 1.2.
    text = repr(value)
    return dumper.represent_scalar("tag:yaml.org,2002:float" if "." in text else "tag:yaml.org,2002:str", text)


_Dumper.add_representer(str, _text_node)
_Dumper.add_representer(float, _float_node)
