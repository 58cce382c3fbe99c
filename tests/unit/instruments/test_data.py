from collections import UserDict, namedtuple

import pytest
import torch
from rank_streams import faults
from torch.utils.data import DataLoader, Dataset, IterableDataset

from agprof.instruments import data


class Numbers(Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        return torch.full((4,), index)


class Stream(IterableDataset):
    def __iter__(self):
        yield from (torch.full((4,), index) for index in range(6))


@pytest.mark.parametrize("dataset", [Numbers(), Stream()])
@pytest.mark.parametrize("workers", [0, 1])
def test_every_wait_for_a_batch_is_a_phase(arm, dataset, workers):
    rig = arm()
    batches = [batch.tolist() for batch in DataLoader(dataset, batch_size=2, num_workers=workers)]
    assert batches == [[[0] * 4, [1] * 4], [[2] * 4, [3] * 4], [[4] * 4, [5] * 4]]
    tables = rig.finish()
    # the making of the iterator, three batches, and the end
    assert [span.name for span in tables["spans"]] == ["data"] * 5
    assert {span.depth for span in tables["spans"]} == {0}
    assert not faults(tables)


def test_samples_and_tokens_of_batches_reach_the_step(arm):
    rig = arm()
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in DataLoader(Numbers(), batch_size=3, collate_fn=lambda rows: {"input_ids": torch.stack(rows)}):
        model(batch["input_ids"].float()).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert [(row.samples, row.tokens) for row in rig.finish()["steps"]] == [(3, 12), (3, 12)]


def test_padding_of_batches_is_told_from_tokens(arm):
    def collate(rows):
        ids = torch.stack(rows)
        return {"input_ids": ids, "attention_mask": (torch.arange(4) < 3).expand(len(ids), 4)}

    rig = arm()
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for number, batch in enumerate(DataLoader(Numbers(), batch_size=2, collate_fn=collate)):
        model(batch["input_ids"].float()).sum().backward()
        if number:
            optimizer.step()
    tables = rig.finish()
    assert [(row.tokens, row.unpadded_tokens) for row in tables["micro_steps"]] == [(8, 6)] * 3
    assert [(row.tokens, row.unpadded_tokens) for row in tables["steps"]] == [(16, 12), (8, 6)]


def test_an_error_in_the_loader_passes_and_closes_the_phase(arm):
    class Broken(Numbers):
        def __getitem__(self, index):
            raise KeyError(index)

    rig = arm()
    with pytest.raises(KeyError):
        next(iter(DataLoader(Broken())))
    assert rig.recorder.phase() == "other"
    assert not faults(rig.finish())


def test_batches_that_can_not_be_counted_cost_no_phase(arm):
    class Odd:
        def keys(self):
            raise RuntimeError("not that kind of keys")

        get = keys

    rig = arm()
    for _ in DataLoader(Numbers(), collate_fn=lambda _rows: Odd()):
        pass
    tables = rig.finish()
    assert len(tables["spans"]) == 8
    assert {row.instrument for row in faults(tables)} == {"data.counts"}
    assert len(faults(tables)) == 3


Pair = namedtuple("Pair", "x y")
TEXT = torch.zeros(2, 5, dtype=torch.long)
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
CYCLE: list = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize(
    ("batch", "counts"),
    [
        (torch.zeros(3, 4), (3, None, None)),
        ((torch.zeros(3, 4), torch.zeros(3)), (3, None, None)),
        (Pair(torch.zeros(7), None), (7, None, None)),
        (["name", [torch.tensor(1), torch.zeros(6, 1)]], (6, None, None)),
        ({"input_ids": TEXT, "labels": TEXT}, (2, 10, None)),
        (UserDict({"input_ids": TEXT}), (2, 10, None)),
        ([{"tokens": TEXT}], (2, 10, None)),
        ({"input_ids": TEXT, "attention_mask": MASK}, (2, 10, 7)),
        ([UserDict({"input_ids": TEXT, "attention_mask": MASK.bool()})], (2, 10, 7)),
        ({"input_ids": TEXT, "attention_mask": -MASK.float()}, (2, 10, 7)),
        # masks that don't tell it, or not without waiting for a device
        ({"input_ids": TEXT, "attention_mask": MASK.bfloat16()}, (2, 10, None)),
        ({"input_ids": TEXT, "attention_mask": MASK[:1]}, (2, 10, None)),
        ({"input_ids": TEXT, "attention_mask": MASK[:, None, None]}, (2, 10, None)),
        ({"input_ids": TEXT, "attention_mask": MASK.to("meta")}, (2, 10, None)),
        ({"input_ids": TEXT, "attention_mask": [[1] * 5] * 2}, (2, 10, None)),
        ({"image": torch.zeros(4, 1)}, (4, None, None)),
        ({"input_ids": [1, 2]}, (None, None, None)),
        ({}, (None, None, None)),
        (torch.tensor(1), (None, None, None)),
        ("text", (None, None, None)),
        (None, (None, None, None)),
        (CYCLE, (None, None, None)),
        (list(range(1_000_000)), (None, None, None)),
    ],
)
def test_counts_of_batches(batch, counts):
    assert data.batch_counts(batch) == counts
