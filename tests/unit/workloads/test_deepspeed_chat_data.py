"""Which rows a phase gets, and the tensors that are made of them."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agprof_workloads.deepspeed_chat import data
from agprof_workloads.deepspeed_chat.text import Row, Texts

ROWS = [Row(f"p{n}", f"c{n}", f"r{n}") for n in range(50)]
PARTS = (2.0, 4.0, 4.0)


def test_split_is_by_the_rounded_shares() -> None:
    assert [len(data.split(100, PARTS, phase, seed=1)) for phase in (1, 2, 3)] == [20, 40, 40]
    # 148.8, 297.6 and 297.6 round to one row too many; every cut moves back by it
    assert [len(data.split(744, PARTS, phase, seed=1)) for phase in (1, 2, 3)] == [148, 298, 298]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 400), st.tuples(*[st.integers(0, 9)] * 3).filter(any), st.integers(0, 5))
def test_split_gives_no_row_twice(count: int, parts: tuple[int, ...], seed: int) -> None:
    shares = tuple(map(float, parts))
    given_out = [data.split(count, shares, phase, seed) for phase in (1, 2, 3)]
    every = [row for rows in given_out for row in rows]
    assert len(every) == len(set(every)) == count
    assert given_out == [data.split(count, shares, phase, seed) for phase in (1, 2, 3)]


def test_split_depends_on_the_seed() -> None:
    assert data.split(100, PARTS, 1, seed=1) != data.split(100, PARTS, 1, seed=2)
    assert data.split(100, PARTS, 1, seed=1) != list(range(20))


def test_blend_shuffles_all_sets_once() -> None:
    blended = data.blend([ROWS[:30], ROWS[30:]], seed=3)
    assert sorted(blended) == sorted(ROWS)
    assert blended != ROWS
    assert blended == data.blend([ROWS[:30], ROWS[30:]], seed=3)


def test_data_for_stage_1_alone_is_not_divided() -> None:
    first = Texts("a", ROWS[:20], ROWS[20:30])
    extra = Texts("b", ROWS[30:40], ROWS[40:])
    train, held_out = data.rows_of([first], PARTS, 1, 0, [extra])
    assert set(extra.train) <= set(train)
    assert (len(train), len(held_out)) == (4 + 10, 2 + 10)
    train, _ = data.rows_of([first], PARTS, 2, 0, [extra])
    assert len(train) == 8
    assert not set(train) & set(extra.train)


def test_a_phase_without_rows_is_named() -> None:
    with pytest.raises(ValueError, match="leaves phase 2 no training rows"):
        data.rows_of([Texts("a", ROWS, ROWS)], (1.0, 0.0, 0.0), 2, 0)


@pytest.mark.parametrize("wrong", ["2,4", "a,b,c", "", "1,-1,1", "0,0,0", "nan,1,1", "inf,1,1"])
def test_wrong_parts_are_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="must be three numbers"):
        data.parse_parts(wrong)
    assert data.parse_parts("2,4,4") == PARTS


ROW = Row("\n\nHuman: What is it?\n\nAssistant:", " Return a value.", " No idea.")


def test_stage_1_learns_the_prompt_too(chat_tokenizer: Any) -> None:
    batch = data.collate_language([data.language_rows([ROW], chat_tokenizer, 64)[0]])
    used = int(batch.attention_mask.sum())
    ids = batch.input_ids[0]
    assert chat_tokenizer.decode(ids[1 : used - 1]) == ROW.prompt + ROW.chosen
    assert ids[used - 1] == chat_tokenizer.eos_token_id
    assert (ids[used:] == chat_tokenizer.pad_token_id).all()
    assert torch.equal(batch.labels[0, :used], ids[:used])
    assert (batch.labels[0, used:] == -100).all()


def test_pairs_are_stacked_chosen_first(chat_tokenizer: Any) -> None:
    rows = data.pair_rows([ROW, Row("x", "y", "z")], chat_tokenizer, 64, "<|endoftext|>")
    batch = data.collate_pairs([rows[0], rows[1]])
    decoded = [
        chat_tokenizer.decode(ids[mask.bool()][1:])
        for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)
    ]
    end = "<|endoftext|>"
    assert decoded == [ROW.prompt + ROW.chosen + end, f"xy{end}", ROW.prompt + ROW.rejected + end, f"xz{end}"]


def test_texts_are_cut_to_length(chat_tokenizer: Any) -> None:
    batch = data.collate_language([data.language_rows([ROW], chat_tokenizer, 6)[0]])
    assert batch.input_ids.shape == (1, 6)
    assert batch.attention_mask.all()


def test_prompts_end_in_the_last_column(chat_tokenizer: Any) -> None:
    rows = data.prompt_rows([ROW, Row("x", "", ""), Row("word " * 99, "", "")], chat_tokenizer, 32)
    assert len(rows) == 2
    batch = data.CollatePrompts(32, chat_tokenizer.pad_token_id)([rows[0], rows[1]])
    assert batch.input_ids.shape == (2, 32)
    for ids, mask, prompt in zip(batch.input_ids, batch.attention_mask, (ROW.prompt, "x"), strict=True):
        length = int(mask.sum())
        assert mask[-length:].all()
        assert not mask[:-length].any()
        assert chat_tokenizer.decode(ids[-length + 1 :]) == prompt
        assert (ids[:-length] == chat_tokenizer.pad_token_id).all()


def test_prompts_that_are_all_too_long_are_named(chat_tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=r"no prompt has at most 3 tokens.*raise --prompt-length"):
        data.prompt_rows([ROW], chat_tokenizer, 3)


def test_blocks_of_text_have_one_length(chat_tokenizer: Any) -> None:
    blocks = data.text_blocks([ROW] * 9, chat_tokenizer, 10)
    assert len(blocks) > 2
    batch = data.collate_blocks([blocks[0], blocks[1]])
    assert batch.input_ids.shape == (2, 10)
    assert torch.equal(batch.labels, batch.input_ids)
    with pytest.raises(ValueError, match="too few for one block of 500"):
        data.text_blocks([ROW], chat_tokenizer, 500)


def test_ranks_share_the_rows() -> None:
    rows = data.Rows([(torch.tensor([n]), torch.tensor([1])) for n in range(10)])
    seen = []
    for rank in range(2):
        batches = data.loader(rows, data.collate_language, 2, rank, 2, shuffle=True)
        seen.append([int(i) for batch in batches for i in batch.input_ids.flatten()])
    assert [len(part) for part in seen] == [4, 4]
    assert not set(seen[0]) & set(seen[1])
    with pytest.raises(ValueError, match="10 rows are too few for a batch of 6 on each of 2 ranks"):
        data.loader(rows, data.collate_language, 6, 0, 2, shuffle=True)
