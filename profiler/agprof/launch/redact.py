"""Takes secrets out of what is written into a run folder or printed."""

import re
from collections.abc import Iterable
from typing import Any

REDACTED = "[redacted]"

_ALWAYS = frozenset({"password", "passwd", "pwd", "secret", "secrets", "credential", "credentials", "apikey"})
_KEY_KINDS = frozenset({"api", "access", "secret", "private", "account"})
_TOKEN_KINDS = frozenset({"auth", "access", "api", "hf", "hub", "huggingface", "github", "bearer", "wandb", "refresh"})
_VALUES = re.compile(
    r"""
      hf_[A-Za-z0-9]{16,} | gh[pousr]_[A-Za-z0-9]{20,} | github_pat_\w{20,} | glpat-[\w-]{16,}
    | sk-[A-Za-z0-9_-]{16,} | xox[abprs]-[A-Za-z0-9-]{10,} | A(?:KI|SI)A[A-Z0-9]{16} | AIza[\w-]{30,}
    | eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*
    | -----BEGIN[ A-Z]*PRIVATE\ KEY-----.*
    | (?<=://)[^/\s:@]+:[^/\s@]+(?=@)
    | (?i:(?<=bearer\ ))[\w.~+/-]{8,}
    """,
    re.VERBOSE | re.DOTALL,
)


def names_a_secret(name: str) -> bool:
    """Whether the value under this name (of a variable, key or option) is a secret. `pad_token` is none."""
    words = [word for word in re.split(r"[^a-z0-9]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()) if word]
    if not words:
        return False
    if _ALWAYS.intersection(words):
        return True
    before = words[-2] if len(words) > 1 else None
    if words[-1] == "key":
        return before in _KEY_KINDS
    return words[-1] == "token" and (before is None or before in _TOKEN_KINDS)


def redact_text(text: str) -> str:
    """Replace whatever looks like a token, a key or credentials in an address."""
    return _VALUES.sub(REDACTED, text)


def redact_value(name: str, value: str) -> str:
    return REDACTED if names_a_secret(name) else redact_text(value)


def redact_argv(argv: Iterable[str]) -> list[str]:
    """Redact `--api-key VALUE`, `--api-key=VALUE` and values that look like secrets."""
    words: list[str] = []
    secret_follows = False
    for word in argv:
        option, equals, value = word.partition("=")
        if secret_follows and not word.startswith("--"):
            words.append(REDACTED)
        elif option.startswith("-") and equals:
            words.append(f"{option}={redact_value(option, value)}")
        else:
            words.append(redact_text(word))
        secret_follows = word.startswith("-") and not equals and names_a_secret(word)
    return words


def redact_tree(value: Any, name: str = "") -> Any:
    """Redact nested mappings and lists, of JSON's types."""
    if isinstance(value, dict):
        return {key: redact_tree(item, str(key)) for key, item in value.items()}
    if isinstance(value, list):
        if value and all(isinstance(item, str) for item in value):
            return [REDACTED] * len(value) if names_a_secret(name) else redact_argv(value)
        return [redact_tree(item, name) for item in value]
    if isinstance(value, str):
        return redact_value(name, value)
    return value
