import gzip
import json
from pathlib import Path

import pytest

from agprof_workloads.anomalygpt import prompts
from agprof_workloads.anomalygpt.prompts import EncodedText, Turn, class_sentences, encode_conversation, pad_right
from agprof_workloads.anomalygpt.tokenizer import ClipTokenizer, HashSentenceTokenizer, HashTokenizer


def test_fourteen_normal_and_ten_abnormal_sentences() -> None:
    normal, abnormal = class_sentences("metal_nut")
    assert (len(normal), len(abnormal)) == (14, 10)
    assert normal[:4] == [
        "a photo of a metal nut.",
        "a photo of the metal nut.",
        "a photo of a flawless metal nut.",
        "a photo of the flawless metal nut.",
    ]
    assert abnormal[-1] == "a photo of the metal nut with damage."


def test_only_what_the_assistant_says_is_learned_and_later_questions_carry_the_marker() -> None:
    tokenizer = HashTokenizer(512)
    talk = [Turn(speaker=who, value=what) for who, what in (("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", "d"))]
    encoded = encode_conversation(talk, tokenizer, 1000)
    asked = [tokenizer.encode("a\n### Assistant:"), tokenizer.encode("Human: c\n### Assistant:")]
    said = [tokenizer.encode("b\n###"), tokenizer.encode("d\n###")]
    assert encoded.ids == asked[0] + said[0] + asked[1] + said[1]
    assert encoded.labels == [-100] * len(asked[0]) + said[0] + [-100] * len(asked[1]) + said[1]
    assert encode_conversation(talk, tokenizer, 5) == EncodedText(encoded.ids[:5], encoded.labels[:5])


def test_padding_goes_to_the_right() -> None:
    ids, labels, mask = pad_right([EncodedText([5, 6], [-100, 6]), EncodedText([7], [7])], pad=2)
    assert ids == [[5, 6], [7, 2]]
    assert labels == [[-100, 6], [7, -100]]
    assert mask == [[1, 1], [1, 0]]


def test_answers_name_the_places() -> None:
    assert prompts.verdict([]) == "No, there is no anomaly in the image."
    assert prompts.verdict(["top left"]) == "Yes, there is an anomaly in the image, at the top left of the image."
    assert "2 anomalies" in prompts.verdict(["top", "left"])


def test_own_descriptions_come_on_top(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"brick": "My bricks.", "widget": "A widget, round."}))
    descriptions = prompts.read_descriptions(path)
    assert descriptions["brick"] == "My bricks."
    assert descriptions["grass"] == prompts.DESCRIPTIONS["grass"]
    assert prompts.inspection("widget", [], descriptions)[0]["value"].startswith("A widget, round. Is there any")
    path.write_text('["brick"]')
    with pytest.raises(ValueError, match="must be a JSON object of strings"):
        prompts.read_descriptions(path)


def test_every_published_class_is_described() -> None:
    assert len(prompts.DESCRIPTIONS) == 15 + 12 + 6 + 1


def test_hash_tokens_stay_in_the_vocabulary_and_off_the_markers() -> None:
    tokenizer = HashTokenizer(512)
    ids = tokenizer.encode(" ".join(prompts.DESCRIPTIONS.values()))
    assert min(ids) >= 3 and max(ids) < 512
    assert tokenizer.encode("brick wall") == tokenizer.encode("brick") + tokenizer.encode("wall")


def test_hash_sentences_end_in_the_highest_id_and_are_padded_with_zero() -> None:
    ids = HashSentenceTokenizer(512).encode("a photo of a brick.")
    assert len(ids) == 77
    assert ids[0] == 510
    end = ids.index(511)
    assert max(ids) == 511 and ids.count(511) == 1
    assert set(ids[end + 1 :]) == {0}
    long = HashSentenceTokenizer(512).encode("word " * 100)
    assert len(long) == 77 and long[-1] == 511


def test_clip_tokenizer_numbers_bytes_merges_and_markers_as_clip_does(tmp_path: Path) -> None:
    merges = ["p h", "ph o", "t o</w>", "pho to</w>", "o f</w>"]
    path = tmp_path / "bpe_simple_vocab_16e6.txt.gz"
    path.write_bytes(gzip.compress("\n".join(["#version: 0.2", *merges]).encode()))
    tokenizer = ClipTokenizer(path)
    # 256 bytes, 256 bytes that end a word, then the merges in order, then the two markers
    assert (tokenizer.start, tokenizer.end) == (512 + 5, 512 + 6)
    ids = tokenizer.encode("A photo  of a")
    a = ord("a") - ord("!") + 256
    assert ids[:6] == [517, a, 515, 516, a, 518]
    assert len(ids) == 77 and set(ids[6:]) == {0}
