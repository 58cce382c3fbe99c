"""Text that every Python installation carries, and a tokenizer trained on it: nothing is downloaded.

The text is CPython's own documentation: the reference topics behind `help()` and the docstrings of its library. It
differs between releases of Python, and with it everything that is learned from it: losses are compared on one.
"""

import ast
import inspect
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MODULES = (
    "argparse", "ast", "asyncio/base_events", "bisect", "calendar", "collections/__init__", "concurrent/futures/_base",
    "configparser", "contextlib", "csv", "dataclasses", "datetime", "decimal", "difflib", "doctest", "email/message",
    "enum", "fileinput", "fractions", "functools", "glob", "heapq", "http/client", "http/server", "imaplib", "inspect",
    "io", "ipaddress", "json/__init__", "logging/__init__", "mailbox", "multiprocessing/pool", "os", "pathlib", "pdb",
    "pickle", "pickletools", "pprint", "random", "re/__init__", "sched", "selectors", "shelve", "shutil", "smtplib",
    "socket", "ssl", "statistics", "string", "subprocess", "tarfile", "tempfile", "textwrap", "threading", "timeit",
    "tokenize", "trace", "turtle", "typing", "unittest/case", "unittest/mock", "urllib/parse", "urllib/request", "uuid",
    "warnings", "weakref", "xml/dom/minidom", "xml/etree/ElementTree", "zipfile", "zipimport",
)  # fmt: skip
SHORTEST = 120
"""Characters; what is shorter says too little to be told apart or continued."""


def topics() -> list[str]:
    """Paragraphs of the language reference, in a fixed order."""
    from pydoc_data.topics import topics as pages

    paragraphs = [part.strip() for name in sorted(pages) for part in pages[name].split("\n\n")]
    return [text for text in paragraphs if len(text) >= SHORTEST]


def docstrings() -> list[str]:
    """Docstrings of the standard library, in a fixed order; the sources are parsed, nothing is imported."""
    library = Path(sysconfig.get_path("stdlib"))
    found: dict[str, None] = {}
    for module in MODULES:
        source = library / f"{module}.py"
        if not source.is_file():
            continue
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = inspect.cleandoc(ast.get_docstring(node) or "")
                if len(text) >= SHORTEST:
                    found[text] = None
    return list(found)


def train_tokenizer(texts: Sequence[str], vocabulary: int, context: int) -> Any:
    """A byte-level BPE tokenizer of that many tokens; `<pad>` is 0, `<end>` is 1. The same texts give the same one."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(
        texts, vocab_size=vocabulary, min_frequency=2, special_tokens=["<pad>", "<end>"], show_progress=False
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._tokenizer, pad_token="<pad>", eos_token="<end>", model_max_length=context
    )
