"""Checksums that say equal of equal tensors only, item by item, and leave alone what they can't look at."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agprof.instruments.fingerprints import MAX_ELEMENTS, Fingerprints

SHAPES = [(), (5,), (4, 6), (3, 4, 5), (2, 3, 4, 5)]
DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool]


def a_tensor(shape, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(shape, generator=generator) * 200 - 40).to(dtype)


def read(tensor):
    fingerprint = Fingerprints(torch).of(tensor)
    assert fingerprint is not None
    return fingerprint.key, fingerprint.read()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_tensors_have_equal_checksums_whatever_their_memory(shape, dtype):
    tensor = a_tensor(shape, dtype)
    assert read(tensor) == read(tensor.clone())
    if len(shape) > 1:
        assert read(tensor) == read(tensor.transpose(0, 1).contiguous().transpose(0, 1))


@given(st.integers(0, 119), st.integers(0, 31))
def test_one_bit_anywhere_makes_a_difference(place, bit):
    tensor = a_tensor((2, 3, 4, 5), torch.float32)
    other = tensor.clone()
    other.view(-1).view(torch.int32)[place] ^= -(2**31) if bit == 31 else 1 << bit
    before, after = read(tensor)[1], read(other)[1]
    assert before[0] != after[0]
    first, second = place // 60, place // 20 % 3
    assert [a != b for a, b in zip(before[1], after[1], strict=True)] == [index == first for index in range(2)]
    assert [a != b for a, b in zip(before[2], after[2], strict=True)] == [index == second for index in range(3)]


@pytest.mark.parametrize("dtype", DTYPES[:5])
def test_what_is_swapped_or_shifted_is_another_tensor(dtype):
    tensor = torch.arange(24).reshape(4, 6).to(dtype)
    sums = {
        read(other)[1][0]
        for other in (tensor, tensor.flip(0), tensor.flip(1), tensor.roll(1, 0), tensor.roll(1, 1), tensor + 1)
    }
    assert len(sums) == 6
    assert read(tensor)[0] != read(tensor.reshape(6, 4))[0]


def test_items_that_are_copies_have_equal_checksums_along_both_dimensions():
    item = a_tensor((3, 8), torch.float32)
    other = a_tensor((3, 8), torch.float32, seed=1)
    first = read(torch.stack([item, other, item]))[1][1]
    assert first[0] == first[2] != first[1]
    second = read(torch.stack([item, other, item], dim=1))[1][2]
    assert second[0] == second[2] != second[1]


def test_what_would_have_to_be_waited_for_or_is_too_large_is_left_alone():
    fingerprints = Fingerprints(torch)
    assert fingerprints.of(torch.empty(2, 2, device="meta")) is None
    assert fingerprints.of(torch.eye(3).to_sparse()) is None
    assert fingerprints.of(torch.zeros(2, dtype=torch.complex64)) is None
    assert fingerprints.of(torch.zeros(1).expand(MAX_ELEMENTS["cpu"] + 1)) is None
    assert read(torch.zeros(0, 3))[1] == (0, [], [])


def test_the_tensor_stays_as_it_is():
    tensor = a_tensor((3, 4), torch.float32).requires_grad_()
    before = tensor.detach().clone()
    with torch.no_grad():
        read(tensor)
    assert torch.equal(tensor, before) and tensor.grad is None and tensor.grad_fn is None


class Event:
    """Done when it is told so; whoever waits for it fails."""

    done = False

    def record(self):
        self.recorded = True

    def query(self):
        return type(self).done

    def synchronize(self):
        raise AssertionError("nothing may be waited for")


def test_checksums_of_a_device_are_read_when_its_event_says_so_and_not_before(monkeypatch):
    class OnDevice(torch.Tensor):
        device = torch.device("cuda", 0)

        def tolist(self):
            raise AssertionError("this would wait for the device")

    empty = torch.empty

    def pageable(*args, pin_memory, **kwargs):
        assert pin_memory
        return empty(*args, **kwargs)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch, "empty", pageable)
    sums = torch.tensor([7, 8, 9]).as_subclass(OnDevice)
    read = Fingerprints(torch)._reader(sums)
    Event.done = False
    assert read() is None
    Event.done = True
    assert read() == [7, 8, 9]
