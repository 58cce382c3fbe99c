"""Rows of prompt, chosen and rejected answer: made from Python's own docstrings, or read from the user's JSON.

What is made lies in the user's layout too, ``train.json`` and ``eval.json``, beside a tokenizer trained on it.
"""

import fcntl
import importlib
import inspect
import json
import os
import platform
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

VERSION = 1
"""Part of the cache folder's name: raise it when the rows change."""
SEED = 20
EVAL_SHARE = 0.1
SHORTEST, LONGEST = 40, 400
END = "</s>"
TRAIN_FILE, EVAL_FILE = "train.json", "eval.json"
FIELDS = ("prompt", "chosen", "rejected")
REFUSALS = ("I am sorry, I can't help with that.", "I don't know.", "No idea, look it up yourself.")
KIND_WEIGHTS = (1, 2, 2)
"""Of other texts, shuffled words and refusals: a tiny model never learns to tell the first, and the last at once."""
QUESTIONS = ("What does {} do?", "Please describe {}.", "What is {} for?")
MODULES = """
    abc argparse ast asyncio base64 bisect bz2 calendar cmd code codecs collections colorsys compileall
    concurrent.futures configparser contextlib copy csv ctypes datetime decimal difflib dis doctest
    email.message enum fileinput fnmatch fractions ftplib functools gettext glob graphlib gzip hashlib heapq
    hmac html html.parser http.client http.cookies http.server imaplib inspect io ipaddress itertools json
    keyword linecache locale logging logging.handlers lzma mailbox math mimetypes multiprocessing.pool numbers
    operator optparse os os.path pathlib pdb pickle pickletools pkgutil platform plistlib poplib pprint
    profile pstats queue quopri random re reprlib runpy sched secrets selectors shelve shlex shutil signal
    smtplib socket socketserver sqlite3 ssl stat statistics string stringprep struct subprocess symtable sys
    sysconfig tarfile tempfile textwrap threading time timeit token tokenize trace traceback types
    unicodedata unittest unittest.mock urllib.parse urllib.request urllib.robotparser uuid warnings weakref
    webbrowser wsgiref.handlers xml.dom.minidom xml.etree.ElementTree xmlrpc.client zipapp zipfile
"""


class Row(NamedTuple):
    prompt: str
    chosen: str
    rejected: str


class Texts(NamedTuple):
    """One data set."""

    name: str
    train: list[Row]
    evaluation: list[Row]


def built_in(vocabulary: int, cache: Path | None = None) -> Path:
    """The folder with ``train.json``, ``eval.json`` and ``tokenizer/``; made at the first call.

    Processes that ask at the same time get the same finished folder: one builds, under a lock that dies with it, and
    renames the result into place. Docstrings change with Python, so its version is part of the name.
    """
    cache = cache or cache_folder()
    folder = cache / f"deepspeed-chat-{VERSION}-python{platform.python_version()}-vocabulary{vocabulary}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            building = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=cache))
            try:
                build(building, vocabulary)
                building.chmod(0o755)
                building.rename(folder)
            except BaseException:
                shutil.rmtree(building, ignore_errors=True)
                raise
    return folder


def cache_folder() -> Path:
    return Path(os.environ.get("AGPROF_CACHE") or Path.home() / ".cache" / "agprof")


def build(folder: Path, vocabulary: int) -> None:
    rows = make_rows(docstrings())
    held_out = int(EVAL_SHARE * len(rows))
    for name, part in ((TRAIN_FILE, rows[held_out:]), (EVAL_FILE, rows[:held_out])):
        (folder / name).write_text(json.dumps([row._asdict() for row in part], indent=1))
    train_tokenizer(rows, vocabulary).save_pretrained(folder / "tokenizer")


def docstrings() -> list[tuple[str, str]]:
    """Dotted name and first paragraph of everything public and documented in the modules above, no text twice."""
    found: dict[str, str] = {}
    for module_name in MODULES.split():
        module = importlib.import_module(module_name)
        for name, thing in sorted(vars(module).items()):
            for full_name, documented in members(f"{module_name}.{name}", thing):
                text = " ".join((inspect.getdoc(documented) or "").split("\n\n")[0].split())
                if SHORTEST <= len(text) <= LONGEST:
                    found.setdefault(text, full_name)
    return [(name, text) for text, name in found.items()]


def members(name: str, thing: Any) -> Iterator[tuple[str, Any]]:
    if name.rpartition(".")[2].startswith("_"):
        return
    if inspect.isroutine(thing):
        yield name, thing
    elif inspect.isclass(thing):
        yield name, thing
        for method, function in sorted(vars(thing).items()):
            if not method.startswith("_") and inspect.isroutine(function):
                yield f"{name}.{method}", function


def make_rows(documented: list[tuple[str, str]]) -> list[Row]:
    """A question about each name; rejected is another name's text, the same words shuffled, or a refusal."""
    rng = random.Random(SEED)
    rows = []
    for name, text in documented:
        words = text.split()
        rng.shuffle(words)
        kinds = (rng.choice(documented)[1], " ".join(words), rng.choice(REFUSALS))
        (rejected,) = rng.choices(kinds, KIND_WEIGHTS)
        question = rng.choice(QUESTIONS).format(name)
        rows.append(Row(f"\n\nHuman: {question}\n\nAssistant:", f" {text}", f" {rejected}"))
    rng.shuffle(rows)
    return rows


def train_tokenizer(rows: list[Row], vocabulary: int) -> Any:
    """Byte-level pairs; one marker begins, ends and pads, and is put before every text, as OPT's tokenizer does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text for row in rows for text in (row.prompt, row.chosen)), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{END} $A", special_tokens=[(END, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END, padding_side="right"
    )


# -- the user's files ----------------------------------------------------------------------------------------


def read_texts(path: Path) -> Texts:
    """A folder with ``train.json`` and ``eval.json``, or one file whose last tenth is held out."""
    if path.is_dir():
        for name in (TRAIN_FILE, EVAL_FILE):
            if not (path / name).is_file():
                raise ValueError(f"--data {path}: has no {name}; a folder must hold {TRAIN_FILE} and {EVAL_FILE}")
        return Texts(str(path), read_rows(path / TRAIN_FILE), read_rows(path / EVAL_FILE))
    if not path.is_file():
        raise ValueError(f"--data {path}: no such file or folder")
    rows = read_rows(path)
    held_out = max(1, int(EVAL_SHARE * len(rows)))
    if len(rows) <= held_out:
        raise ValueError(f"{path}: holds {len(rows)} row, too few to keep some back for evaluation")
    return Texts(str(path), rows[:-held_out], rows[-held_out:])


def read_rows(path: Path) -> list[Row]:
    """The rows of a JSON file; what is wrong is named with file, line and row."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is no UTF-8 text (byte {error.start})") from None
    rows = [checked(path, line, number, value) for number, (line, value) in enumerate(elements(path, text), start=1)]
    if not rows:
        raise ValueError(f"{path}: holds no rows; at least one of {{prompt, chosen, rejected}} is needed")
    return rows


def elements(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """The elements of the JSON list in ``text``, each with the line it begins on."""
    decode = json.JSONDecoder().raw_decode
    here = after_blanks(text, 0)
    if here == len(text):
        raise ValueError(f"{path}: is empty; it must hold a JSON list of {{prompt, chosen, rejected}}")
    if text[here] != "[":
        found = {"{": "an object", '"': "a text"}.get(text[here], f"{text[here : here + 12]!r}")
        raise ValueError(f"{path}: must hold a JSON list of {{prompt, chosen, rejected}}, not {found}")
    line, counted = 1, 0
    here = after_blanks(text, here + 1)
    first = True
    while text[here : here + 1] != "]" or not first:
        line += text.count("\n", counted, here)
        counted = here
        try:
            value, end = decode(text, here)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{error.lineno}: is no valid JSON: {error.msg} (column {error.colno})") from None
        yield line, value
        first = False
        here = after_blanks(text, end)
        if text[here : here + 1] == "]":
            break
        if text[here : here + 1] != ",":
            broken = 1 + text.count("\n", 0, here)
            raise ValueError(f"{path}:{broken}: is no valid JSON: ',' or ']' must follow a row")
        here = after_blanks(text, here + 1)
    rest = after_blanks(text, here + 1)
    if rest < len(text):
        raise ValueError(f"{path}:{1 + text.count(chr(10), 0, rest)}: is no valid JSON: text after the list's end")


def after_blanks(text: str, index: int) -> int:
    while index < len(text) and text[index] in " \t\r\n":
        index += 1
    return index


def checked(path: Path, line: int, number: int, value: Any) -> Row:
    where = f"{path}:{line}: row {number}"
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be an object with the fields {', '.join(FIELDS)}")
    for field in FIELDS:
        if field not in value:
            raise ValueError(f"{where} has no field '{field}'; each row needs {', '.join(FIELDS)}")
        if not isinstance(value[field], str):
            raise ValueError(f"{where}: field '{field}' must be a text, not {json.dumps(value[field])[:40]}")
    return Row(*(value[field] for field in FIELDS))
