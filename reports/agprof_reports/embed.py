"""What a page carries inside itself: data as JSON that can't leave its element, scripts with their hashes, plotly."""

import base64
import gzip
import hashlib
import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from markupsafe import Markup
from plotly.offline import get_plotlyjs

PACK_FROM = 4_096
"""Bytes of JSON from which on it is compressed."""

_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


@dataclass(frozen=True, slots=True)
class Payload:
    """Text of a `<script>` element that is not run: plain JSON, or JSON as base64 of gzip."""

    packed: bool
    text: Markup


def asset(name: str) -> str:
    return (files("agprof_reports") / "assets" / name).read_text(encoding="utf-8")


def script_hash(source: str) -> str:
    """Return the source expression that allows exactly this script in a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


def json_text(data: Any) -> str:
    """Return JSON that is safe inside a script element.

    >>> json_text({"name": "</script>"})
    '{"name":"\\\\u003c/script\\\\u003e"}'
    """
    return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(_ESCAPES)


def payload_bytes(data: bytes) -> Payload:
    """Bytes for the page to unpack, always compressed."""
    return Payload(True, Markup(base64.b64encode(gzip.compress(data, 9, mtime=0)).decode()))


def payload(data: Any) -> Payload:
    text = json_text(data)
    if len(text) < PACK_FROM:
        return Payload(False, Markup(text))
    return Payload(True, Markup(_pack(text)))


@cache
def plotly() -> tuple[Markup, str]:
    """Return plotly.js as base64 of gzip, and the hash that allows it to run."""
    source = str(get_plotlyjs())
    return Markup(_pack(source)), script_hash(source)


def _pack(text: str) -> str:
    return base64.b64encode(gzip.compress(text.encode("utf-8", "replace"), 9, mtime=0)).decode()
