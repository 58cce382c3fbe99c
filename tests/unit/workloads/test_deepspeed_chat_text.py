"""Rows: the built-in ones, and what is said about a user's file that can't be used."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from agprof_workloads.deepspeed_chat import text
from agprof_workloads.deepspeed_chat.text import Row

GOOD = {"prompt": "p", "chosen": "c", "rejected": "r"}


def written(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=2))
    return path


def test_built_in_rows(chat_cache: Path) -> None:
    folder = text.built_in(1024, chat_cache)
    texts = text.read_texts(folder)
    assert len(texts.train) > 1000
    assert len(texts.evaluation) > 100
    assert not {row.prompt for row in texts.train} & {row.prompt for row in texts.evaluation}
    for row in texts.evaluation:
        assert row.prompt.startswith("\n\nHuman: ")
        assert row.prompt.endswith("\n\nAssistant:")
        assert row.chosen[0] == row.rejected[0] == " "
    # asking again changes nothing
    before = (folder / "train.json").stat().st_mtime_ns
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: text.built_in(1024, chat_cache), range(4))) == {folder}
    assert (folder / "train.json").stat().st_mtime_ns == before
    assert [path.name for path in chat_cache.glob(".*")] == []


def test_rows_are_the_same_every_time() -> None:
    documented = text.docstrings()
    assert text.make_rows(documented) == text.make_rows(documented)


def test_the_tokenizer_marks_the_beginning_with_its_pad(chat_tokenizer: Any) -> None:
    encoded = chat_tokenizer(" Return the value." + text.END)["input_ids"]
    assert encoded[0] == encoded[-1] == chat_tokenizer.pad_token_id == chat_tokenizer.eos_token_id
    assert chat_tokenizer.decode(encoded[1:-1]) == " Return the value."
    assert len(chat_tokenizer) == 1024


def test_a_file_keeps_its_last_tenth_back(tmp_path: Path) -> None:
    rows = [GOOD | {"prompt": str(number)} for number in range(30)]
    texts = text.read_texts(written(tmp_path / "rows.json", rows))
    assert [row.prompt for row in texts.evaluation] == ["27", "28", "29"]
    assert texts.train[0] == Row("0", "c", "r")
    assert len(texts.train) == 27


def test_a_folder_has_both_files(tmp_path: Path) -> None:
    written(tmp_path / "train.json", [GOOD])
    with pytest.raises(ValueError, match=r"has no eval.json; a folder must hold train.json and eval.json"):
        text.read_texts(tmp_path)
    written(tmp_path / "eval.json", [GOOD | {"chosen": "é"}])
    assert text.read_texts(tmp_path).evaluation == [Row("p", "é", "r")]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('[\n {"prompt": "p",\n  "chosen": "c",\n  "rejected": "r"},\n {"prompt": "p", "chosen": "c"}\n]',
         ":5: row 2 has no field 'rejected'; each row needs prompt, chosen, rejected"),
        ('[{"prompt": "p", "chosen": 3, "rejected": "r"}]', ":1: row 1: field 'chosen' must be a text, not 3"),
        ('[{"prompt": null, "chosen": "", "rejected": "r"}]', ":1: row 1: field 'prompt' must be a text, not null"),
        ('\n["text"]', ":2: row 1 must be an object with the fields prompt, chosen, rejected"),
        ('{"prompt": "p"}', ": must hold a JSON list of {prompt, chosen, rejected}, not an object"),
        ("hello", ": must hold a JSON list of {prompt, chosen, rejected}, not 'hello'"),
        ("[]", ": holds no rows"),
        ("  \n", ": is empty"),
        ('[\n{"prompt": }]', ":2: is no valid JSON: Expecting value (column 12)"),
        ("[", ":1: is no valid JSON: Expecting value"),
        ('[\n{"prompt": "p", "chosen": "c", "rejected": "r"}\n{', ":3: is no valid JSON: ',' or ']' must follow a row"),
        ('[{"prompt": "p", "chosen": "c", "rejected": "r"},]', ":1: is no valid JSON: Expecting value"),
        ('[{"prompt": "p", "chosen": "c", "rejected": "r"}]\nx', ":2: is no valid JSON: text after the list's end"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, content: str, said: str) -> None:
    path = written(tmp_path / "rows.json", content)
    with pytest.raises(ValueError) as raised:
        text.read_rows(path)
    assert str(raised.value).startswith(f"{path}{said}")


def test_files_that_are_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--data .*nowhere: no such file or folder"):
        text.read_texts(tmp_path / "nowhere")
    (tmp_path / "binary").write_bytes(b"[\xff\xfe")
    with pytest.raises(ValueError, match="is no UTF-8 text"):
        text.read_rows(tmp_path / "binary")
    with pytest.raises(ValueError, match="too few to keep some back"):
        text.read_texts(written(tmp_path / "one.json", [GOOD]))


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps([GOOD]).encode())
    assert text.read_rows(path) == [Row("p", "c", "r")]
