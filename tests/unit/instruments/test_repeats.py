"""Frozen modules that get the same inputs again: found, counted, and never felt by the training."""

import copy
import io

import pytest
import torch
from torch import nn

from agprof.instruments.profile_step import ProfileStep
from agprof.instruments.repeats import LATER_STEPS, Repeats

BATCH = 4


class Job(nn.Module):
    """A frozen encoder before a trained head."""

    def __init__(self, encoder=None):
        super().__init__()
        self.encoder = encoder or nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16))
        self.encoder.requires_grad_(False)
        self.head = nn.Linear(16, 2)
        self.twice = False

    def forward(self, x):
        if self.twice:
            self.encoder(x)
        return self.head(self.encoder(x))


class Run:
    """A loop around a model whose profile step is step 1."""

    def __init__(self, rig, model, micro_steps=1):
        object.__setattr__(rig.recorder.settings, "profile_step", 1)
        self.recorder, self.model, self.micro_steps = rig.recorder, model, micro_steps
        self.step_of_profile = ProfileStep(rig.recorder, torch)
        self.step_of_profile.add("repeats", Repeats(rig.recorder, torch))
        self.step_of_profile.arm()
        self.rig = rig

    def steps(self, *batches):
        for index, batch in enumerate(batches):
            if self.recorder.step == 0 and index == 0:
                self.step_of_profile.on_root(self.model)
            self.model(batch).sum().backward()
            self.recorder.end_micro_step()
            if self.recorder.micro_step == self.micro_steps:
                self.recorder.end_step()
        return self

    def rows(self):
        tables = self.rig.finish()
        assert tables.get("faults", []) == []
        return {row.path: row for row in tables.get("repeats", [])}


def batch(seed):
    return torch.rand(BATCH, 16, generator=torch.Generator().manual_seed(seed))


def test_inputs_of_an_earlier_step_are_repeated_ones(rig):
    rows = Run(rig, Job()).steps(batch(0), batch(1), batch(2), batch(1), batch(1), batch(3)).rows()
    row = rows["encoder"]
    # from step 1, the profile step, on: 1, 2, 1, 1, 3
    assert (row.first_step, row.last_step, row.root) == (1, 5, 0)
    assert (row.calls, row.repeated_calls, row.repeated_at_once, row.unverified_calls) == (5, 2, 0, 0)
    assert row.forward_ns_per_call > 0
    assert row.repeated_items_share == 0
    assert set(rows) == {"encoder"}  # neither what is trained nor what is inside


def test_different_inputs_are_not_repeated(rig):
    row = Run(rig, Job()).steps(*map(batch, range(6))).rows()["encoder"]
    assert (row.calls, row.repeated_calls) == (5, 0)


def test_the_same_input_twice_in_a_micro_step_is_told_apart(rig):
    model = Job()
    model.twice = True
    row = Run(rig, model, micro_steps=2).steps(*map(batch, range(8))).rows()["encoder"]
    assert (row.calls, row.repeated_calls, row.repeated_at_once) == (12, 6, 6)


def test_copies_in_a_batch_are_counted_in_the_profile_step(rig):
    pair = torch.cat([batch(1)[:2], batch(1)[:2]])
    row = Run(rig, Job()).steps(batch(0), pair, batch(2)).rows()["encoder"]
    assert row.repeated_items_share == 0.5


class Sequence(nn.Module):
    """Reads items along the first dimension and runs them along the second, as a text tower does."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Embedding(32, 8)
        self.trunk = nn.Linear(8, 8)

    def forward(self, ids):
        return self.trunk(self.stem(ids).transpose(0, 1))


class TextJob(nn.Module):
    def __init__(self):
        super().__init__()
        self.tower = Sequence().requires_grad_(False)
        self.head = nn.Linear(8, 1)

    def forward(self, ids):
        # by its parts, so that the tower itself is no call
        return self.head(self.tower.trunk(self.tower.stem(ids).transpose(0, 1)))


def test_items_along_the_second_dimension_are_known_by_those_that_went_in(rig):
    ids = torch.randint(0, 32, (3, 10))
    rows = Run(rig, TextJob()).steps(ids, torch.cat([ids, ids]), ids).rows()
    assert rows["tower.stem"].repeated_items_share == 0.5
    assert rows["tower.trunk"].repeated_items_share == 0.5


def test_equal_positions_are_no_copied_items(rig):
    padded = torch.zeros(1, 10, dtype=torch.long)
    rows = Run(rig, TextJob()).steps(padded, padded, padded).rows()
    assert rows["tower.trunk"].repeated_items_share == 0


def test_inputs_that_are_trained_through_are_not_looked_at(rig):
    class Behind(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.frozen = nn.Linear(16, 16), nn.Linear(16, 16).requires_grad_(False)

        def forward(self, x):
            return self.frozen(self.first(x))

    assert Run(rig, Behind()).steps(*[batch(1)] * 4).rows() == {}


@pytest.mark.parametrize("encoder", [nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.1)), nn.RReLU()])
def test_what_is_random_or_has_no_parameters_is_not_looked_at(encoder, rig):
    assert Run(rig, Job(encoder)).steps(*[batch(1)] * 4).rows() == {}


def test_other_arguments_count_as_well_and_unknown_ones_make_a_call_unverified(rig):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(16, 16)

        def forward(self, x, factor, *, cache=None):
            return self.inner(x) * factor

    class Outer(Job):
        calls = 0

        def forward(self, x):
            self.calls += 1
            cache = object() if self.calls > 4 else None
            return self.head(self.encoder(x, self.calls % 2, cache=cache))

    row = Run(rig, Outer(Scaled())).steps(*[batch(1)] * 6).rows()["encoder"]
    # calls 2 to 6: factors 0 1 0 1 0, the last two with something unknown
    assert (row.calls, row.repeated_calls, row.unverified_calls) == (5, 1, 2)


def test_looking_ends_after_a_few_steps_and_leaves_no_hooks(rig):
    model = Job()
    run = Run(rig, model).steps(*[batch(1)] * (LATER_STEPS + 6))
    assert all(not module._forward_pre_hooks and not module._forward_hooks for module in model.modules())
    row = run.rows()["encoder"]
    assert (row.last_step, row.calls) == (1 + LATER_STEPS, 1 + LATER_STEPS)


def test_a_run_that_ends_early_writes_what_it_has_and_takes_its_hooks_away(rig):
    model = Job()
    assert Run(rig, model).steps(*[batch(1)] * 3).rows()["encoder"].calls == 2
    assert all(not module._forward_pre_hooks for module in model.modules())


def test_numbers_of_the_training_stay_the_same(rig):
    torch.manual_seed(0)
    model = Job()
    other = copy.deepcopy(model)
    Run(rig, model).steps(*map(batch, range(5)))
    for seed in range(5):
        other(batch(seed)).sum().backward()
    assert torch.equal(model.head.weight.grad, other.head.weight.grad)


def test_a_model_that_is_copied_or_saved_meanwhile_works_without_us(rig):
    model = Job()
    run = Run(rig, model).steps(batch(0), batch(1), batch(2))
    twin = copy.deepcopy(model)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(loaded(batch(1)), model(batch(1)))
    rows = run.rows()
    twin(batch(1))
    assert rows["encoder"].calls == 3


def test_a_tensor_is_not_kept_alive(rig):
    import gc
    import weakref

    first = batch(1)
    Run(rig, Job()).steps(batch(0), first)
    gone = weakref.ref(first)
    del first
    gc.collect()
    assert gone() is None
