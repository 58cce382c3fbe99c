"""What each of the three phases is fed: splits of every data set, blended, tokenized and collated."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from agprof_workloads.deepspeed_chat.text import Row, Texts

PHASES = 3
IGNORED = -100
Parts = tuple[float, ...]


class Batch:
    """Tensors that go to the device together."""

    def to(self, device: torch.device) -> Any:
        return type(self)(*(getattr(self, field.name).to(device) for field in fields(self)))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class LanguageBatch(Batch):
    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor


@dataclass(frozen=True, slots=True)
class PairBatch(Batch):
    """Twice as many rows as pairs: first all chosen ones, then all rejected ones."""

    input_ids: Tensor
    attention_mask: Tensor


@dataclass(frozen=True, slots=True)
class PromptBatch(Batch):
    """Prompts that all end in the last column."""

    input_ids: Tensor
    attention_mask: Tensor


# -- which rows ----------------------------------------------------------------------------------------------


def parse_parts(text: str) -> Parts:
    """``"2,4,4"``: how the rows are divided among the phases."""
    try:
        parts = tuple(float(part) for part in text.split(","))
    except ValueError:
        parts = ()
    if len(parts) != PHASES or any(not part >= 0 for part in parts) or not 0 < sum(parts) < float("inf"):
        raise ValueError(f"--data-split {text}: must be three numbers from 0 up, such as 2,4,4, not all 0")
    return parts


def split(count: int, parts: Parts, phase: int, seed: int) -> list[int]:
    """The rows of one phase (1, 2, 3): a seeded shuffle of all rows, cut where the rounded shares end."""
    order = np.arange(count)
    np.random.RandomState(seed).shuffle(order)
    ends = [0]
    for part in parts:
        ends.append(ends[-1] + round(part / sum(parts) * count))
    # rounding may give a row too many or too few: every cut moves by that, as the original's do
    surplus = ends[-1] - count
    ends = [0, *(max(0, end - surplus) for end in ends[1:])]
    chosen: list[int] = order[ends[phase - 1] : ends[phase]].tolist()
    return chosen


def blend(parts: Sequence[Sequence[Row]], seed: int) -> list[Row]:
    """Several data sets as one, shuffled once."""
    rows = list(chain.from_iterable(parts))
    order = np.arange(len(rows))
    np.random.RandomState(seed).shuffle(order)
    return [rows[index] for index in order]


def rows_of(
    sets: Sequence[Texts], parts: Parts, phase: int, seed: int, only_phase_1: Sequence[Texts] = ()
) -> tuple[list[Row], list[Row]]:
    """Training and held-out rows of a phase; both kinds are divided among the phases."""
    divided = [(texts, parts) for texts in sets]
    if phase == 1:
        divided += [(texts, (1.0, 0.0, 0.0)) for texts in only_phase_1]
    train, held_out = (
        blend([[rows[i] for i in split(len(rows), shares, phase, seed)] for rows, shares in kind], seed)
        for kind in (
            [(texts.train, shares) for texts, shares in divided],
            [(texts.evaluation, shares) for texts, shares in divided],
        )
    )
    for rows, what in ((train, "training"), (held_out, "held-out")):
        if not rows:
            raise ValueError(f"--data-split {','.join(map(str, parts))} leaves phase {phase} no {what} rows")
    return train, held_out


# -- tokens --------------------------------------------------------------------------------------------------


class Rows(Dataset[Any]):
    """Tokenized once, at the start."""

    def __init__(self, items: Sequence[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def language_rows(rows: Sequence[Row], tokenizer: Any, length: int) -> Rows:
    """Phase 1. The prompt is not masked: the model learns to write it, too."""
    return Rows([encode(tokenizer, row.prompt + row.chosen + tokenizer.eos_token, length) for row in rows])


def pair_rows(rows: Sequence[Row], tokenizer: Any, length: int, end: str) -> Rows:
    """Phase 2."""
    return Rows(
        [
            (
                encode(tokenizer, row.prompt + row.chosen + end, length),
                encode(tokenizer, row.prompt + row.rejected + end, length),
            )
            for row in rows
        ]
    )


def prompt_rows(rows: Sequence[Row], tokenizer: Any, length: int) -> Rows:
    """Phase 3: prompts alone, without those that are too long."""
    prompts = [torch.tensor(tokenizer(row.prompt)["input_ids"]) for row in rows]
    kept = [prompt for prompt in prompts if len(prompt) <= length]
    if not kept:
        shortest = min(len(prompt) for prompt in prompts)
        raise ValueError(f"no prompt has at most {length} tokens, the shortest has {shortest}; raise --prompt-length")
    return Rows(kept)


def text_blocks(rows: Sequence[Row], tokenizer: Any, length: int) -> Rows:
    """For the unsupervised loss: the answers one after another, cut into blocks of the same length."""
    ids = tokenizer("".join(row.chosen + tokenizer.eos_token for row in rows))["input_ids"]
    blocks = [torch.tensor(ids[i : i + length]) for i in range(0, len(ids) - length + 1, length)]
    if not blocks:
        raise ValueError(f"the answers have {len(ids)} tokens in all, too few for one block of {length}")
    return Rows(blocks)


def encode(tokenizer: Any, text: str, length: int) -> tuple[Tensor, Tensor]:
    """Ids and mask, padded or cut to ``length``."""
    encoded = tokenizer(text, max_length=length, padding="max_length", truncation=True, return_tensors="pt")
    return encoded["input_ids"][0], encoded["attention_mask"][0]


def collate_language(items: Sequence[tuple[Tensor, Tensor]]) -> LanguageBatch:
    ids, mask = (torch.stack(part) for part in zip(*items, strict=True))
    return LanguageBatch(ids, mask, ids.masked_fill(mask == 0, IGNORED))


def collate_pairs(items: Sequence[tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]]) -> PairBatch:
    chosen, rejected = zip(*items, strict=True)
    ids, mask = (torch.stack(part) for part in zip(*chosen, *rejected, strict=True))
    return PairBatch(ids, mask)


def collate_blocks(items: Sequence[Tensor]) -> LanguageBatch:
    ids = torch.stack(tuple(items))
    return LanguageBatch(ids, torch.ones_like(ids), ids)


@dataclass(frozen=True, slots=True)
class CollatePrompts:
    """Pads on the left, to the same length in every batch."""

    length: int
    pad: int

    def __call__(self, items: Sequence[Tensor]) -> PromptBatch:
        ids = torch.full((len(items), self.length), self.pad)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(items):
            ids[row, self.length - len(prompt) :] = prompt
            mask[row, self.length - len(prompt) :] = 1
        return PromptBatch(ids, mask)


def loader(rows: Rows, collate: Any, micro_batch: int, rank: int, ranks: int, *, shuffle: bool) -> DataLoader[Any]:
    """Every rank gets its share; a short last batch is dropped in training, where batches have one size."""
    sampler: DistributedSampler[Any] = DistributedSampler(rows, num_replicas=ranks, rank=rank, shuffle=shuffle)
    if shuffle and len(sampler) < micro_batch:
        raise ValueError(f"{len(rows)} rows are too few for a batch of {micro_batch} on each of {ranks} ranks")
    return DataLoader(rows, micro_batch, sampler=sampler, collate_fn=collate, drop_last=shuffle)


def forever(batches: DataLoader[Any]) -> Iterator[Any]:
    """Epoch after epoch. Each has the same order, because the original never tells its sampler the epoch."""
    while True:
        yield from batches
